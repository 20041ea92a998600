# Sets DLLAMA_HAS_CUDA and DLLAMA_HAS_NCCL, and enables the language, as DLLAMA_CUDA asks (ON, OFF or AUTO: when a
# toolkit is found).

set(DLLAMA_HAS_CUDA OFF)
set(DLLAMA_HAS_NCCL OFF)
if(DLLAMA_CUDA OR DLLAMA_CUDA STREQUAL "AUTO")
    find_program(nvcc_program nvcc HINTS ${CMAKE_CUDA_COMPILER} /usr/local/cuda/bin)
    if(nvcc_program)
        # Machine code for each generation from Turing to Blackwell, and PTX of the newest for what comes after.
        if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
            set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 86-real 89-real 90-real 120)
        endif()
        if(NOT DEFINED CMAKE_CUDA_COMPILER)
            set(CMAKE_CUDA_COMPILER ${nvcc_program})
        endif()
        enable_language(CUDA)
        find_package(CUDAToolkit REQUIRED)
        # CMake 3.25 does not know that nvcc can do C++20.
        set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
        set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
        set(DLLAMA_HAS_CUDA ON)
        # The header alone: the library is loaded at run time where there is one.
        find_path(nccl_include_dir nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
        if(nccl_include_dir)
            set(DLLAMA_HAS_NCCL ON)
        else()
            message(STATUS "No nccl.h: GPUs of several processes will add up through the network")
        endif()
    elseif(NOT DLLAMA_CUDA STREQUAL "AUTO")
        message(FATAL_ERROR "DLLAMA_CUDA=${DLLAMA_CUDA}, but there is no nvcc on PATH or in /usr/local/cuda/bin")
    endif()
endif()

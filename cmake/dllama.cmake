# Helpers for the folders under src/: one static library a folder, warnings as errors on our targets only.

add_library(dllama_options INTERFACE)
target_compile_options(dllama_options INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Werror -ffp-contract=off -fno-math-errno>)
# The release runs on any x86-64 of the last fifteen years; faster instruction sets are chosen at run time (src/cpu).
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    target_compile_options(dllama_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-march=x86-64-v2>)
endif()
target_include_directories(dllama_options INTERFACE ${CMAKE_SOURCE_DIR}/src)
if(DLLAMA_SANITIZE)
    target_compile_options(dllama_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${DLLAMA_SANITIZE} -fno-omit-frame-pointer>)
    target_compile_definitions(dllama_options INTERFACE DLLAMA_SANITIZED)
    target_link_options(dllama_options INTERFACE -fsanitize=${DLLAMA_SANITIZE})
endif()

if(DLLAMA_FUZZ)
    # The fuzz targets see which branches of the libraries an input takes.
    target_compile_options(dllama_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=fuzzer-no-link>)
endif()

# Sanitizers make compilers slow, most of all on code that is templates of libraries. What computes little (the command
# line, the tests of the network) is not optimised there: half the time to build, and the same to run.
if(DLLAMA_SANITIZE)
    set(dllama_unhurried -O0)
endif()

# dllama_library(name SOURCES a.cpp ... DEPENDS targets ... PRIVATE_DEPENDS targets ...)
function(dllama_library name)
    cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS;PRIVATE_DEPENDS" ${ARGN})
    add_library(dllama_${name} STATIC ${ARG_SOURCES})
    target_link_libraries(dllama_${name} PUBLIC dllama_options ${ARG_DEPENDS} PRIVATE ${ARG_PRIVATE_DEPENDS})
endfunction()

# dllama_test(name SOURCES a.cpp ... DEPENDS targets ... LABELS labels ...)
function(dllama_test name)
    cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS;LABELS" ${ARGN})
    add_executable(${name} ${ARG_SOURCES})
    target_link_libraries(${name} PRIVATE dllama_options ${ARG_DEPENDS} GTest::gtest GTest::gtest_main)
    target_compile_definitions(${name} PRIVATE DLLAMA_TEST_DATA="${CMAKE_SOURCE_DIR}/tests/data")
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES TIMEOUT 300 LABELS "${ARG_LABELS}")
endfunction()

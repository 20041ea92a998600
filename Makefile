# A thin front for CMake: installs what is missing, says so, builds, runs.
#   make            the program, left here as ./dllama
#   make demo       the demo model writes a story, alone and on three nodes
#   make test       everything that can be tested on this machine
#   make bench      micro-benchmarks
#   make format     clang-format over all sources
#   make BUILD_CUDA=1|0   with CUDA for all generations of GPUs, or without; by default with CUDA, for this machine's
#                         GPUs, if there is one and a toolkit

BUILD_CUDA ?= AUTO
JOBS ?= $(shell nproc)
CMAKE_FLAGS ?=
BUILD = build/release

.PHONY: all build demo test bench format clean packages test-packages python

all: build

packages:
	@cmake/install-packages build

test-packages:
	@cmake/install-packages build test

python: test-packages
	@cmake/install-python

build: packages
	@mkdir -p build
	@echo "==> building in $(BUILD)"
	@cmake --preset release -DDLLAMA_CUDA=$(BUILD_CUDA) -DDLLAMA_TESTS=OFF $(CMAKE_FLAGS) > $(BUILD)-configure.log 2>&1 || { cat $(BUILD)-configure.log; exit 1; }
	@cmake --build $(BUILD) --parallel $(JOBS)
	@cp -f $(BUILD)/src/app/dllama dllama
	@cp -f $(BUILD)/src/app/dllama-api dllama-api
	@echo "==> ./dllama and ./dllama-api are ready: try ./dllama --help"

demo: build
	@cmake/run-demo

test: test-packages python
	@mkdir -p build
	@echo "==> building program and tests in $(BUILD)"
	@cmake --preset release -DDLLAMA_CUDA=$(BUILD_CUDA) -DDLLAMA_TESTS=ON $(CMAKE_FLAGS) > $(BUILD)-configure.log 2>&1 || { cat $(BUILD)-configure.log; exit 1; }
	@cmake --build $(BUILD) --parallel $(JOBS)
	@cp -f $(BUILD)/src/app/dllama dllama
	@echo "==> testing"
	@tests/check-layers
	@ctest --test-dir $(BUILD) --output-on-failure --parallel $(JOBS)

bench: packages
	@mkdir -p build
	@cmake --preset release -DDLLAMA_CUDA=$(BUILD_CUDA) -DDLLAMA_BENCH=ON $(CMAKE_FLAGS) > $(BUILD)-configure.log 2>&1 || { cat $(BUILD)-configure.log; exit 1; }
	@cmake --build $(BUILD) --parallel $(JOBS)
	@cp -f $(BUILD)/src/app/dllama dllama
	@echo "==> benchmarks are in $(BUILD)/bench; the demo model:"
	./dllama benchmark

format:
	git ls-files '*.cpp' '*.hpp' '*.cu' '*.cuh' | xargs clang-format -i

clean:
	rm -rf build dllama dllama-api

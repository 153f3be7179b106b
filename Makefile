# Two commands do everything: `make run` shows Lapidary, `make test` checks it. Both install what is missing first.
include tools/versions.mk
SHELL := /bin/bash
.DEFAULT_GOAL := build
.PHONY: setup packages build run test bench gpu-bundle clean

LLVM := /usr/lib/llvm-$(LLVM_MAJOR)
CARGO ?= cargo

setup: packages .deps/lib/libMLIR-C.so .deps/cuda/versions

packages:
	@tools/packages.sh $(DEBIAN_PACKAGES)

.deps/lib/libMLIR-C.so: tools/mlir.sh tools/versions.mk | packages
	@echo "linking MLIR's C API into a shared library" >&2
	@tools/mlir.sh $(LLVM) $(LLVM_MAJOR) .deps/lib

# Without NVRTC everything but PTX and cubin works, so a failed download warns and goes on.
.deps/cuda/versions: tools/cuda.sh tools/versions.mk | packages
	@echo "unpacking NVRTC from its wheels" >&2
	@tools/cuda.sh .deps/cuda $(CUDA_WHEELS) \
	  || echo "warning: NVRTC could not be fetched; kernels are emitted as CUDA C++ only. Run 'make setup' to try again." >&2

build: setup
	$(CARGO) build --release --locked --bins

run: build
	@tools/show.sh target/release/lapidary

test: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) test --workspace --locked

bench: setup
	$(CARGO) bench --workspace --locked

# Everything that benches/gpu.sh needs on a machine with a GPU, in one folder; needs no GPU itself.
gpu-bundle: build
	rm -rf target/gpu-bundle
	target/release/lapidary bench --bundle target/gpu-bundle
	cp target/release/lapidary-gpu target/gpu-bundle/
	@echo "target/gpu-bundle: copy it and benches/gpu*.py, benches/gpu.sh, then: gpu.sh gpu-bundle out" >&2

clean:
	$(CARGO) clean
	rm -rf out*.lpd

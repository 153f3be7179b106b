# Every version that is not in Cargo.lock stands here, and only here.
LLVM_MAJOR := 22
# Chromium opens report pages in the tests; Open MPI carries models that are spread over processes, and looks for ssh.
DEBIAN_PACKAGES := g++ pkg-config python3 python3-pip chromium \
  llvm-$(LLVM_MAJOR)-dev libmlir-$(LLVM_MAJOR)-dev mlir-$(LLVM_MAJOR)-tools llvm-$(LLVM_MAJOR)-tools \
  libpolly-$(LLVM_MAJOR)-dev libclang1-$(LLVM_MAJOR) libclang-common-$(LLVM_MAJOR)-dev libzstd-dev zlib1g-dev \
  libopenmpi-dev openmpi-bin openssh-client

# NVRTC and the tools around it, as wheels: they need no GPU and no system CUDA.
CUDA_WHEELS := nvidia-cuda-nvrtc-cu12==12.9.86 nvidia-cuda-runtime-cu12==12.9.79 nvidia-cuda-nvcc-cu12==12.9.86 \
  nvidia-cuda-cuobjdump==13.5.37 nvidia-cuda-nvdisasm==13.5.37

#!/bin/sh
# Debian ships MLIR's C API as static archives only; this links them once into a shared libMLIR-C.so (1 MB),
# so that every binary of the workspace links in a second.
set -eu
llvm=$1 out=$2
mkdir -p "$out"
g++ -shared -fPIC -o "$out/libMLIR-C.so.tmp" -Wl,-soname,libMLIR-C.so \
  -Wl,--whole-archive "$llvm"/lib/libMLIRCAPI*.a -Wl,--no-whole-archive \
  -L"$llvm/lib" -lMLIR -lLLVM-22 -Wl,-z,defs -Wl,-rpath,"$llvm/lib"
mv "$out/libMLIR-C.so.tmp" "$out/libMLIR-C.so"

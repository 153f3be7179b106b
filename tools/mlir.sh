#!/bin/sh
# Debian ships MLIR's C API as static archives only; this links them once into a shared libMLIR-C.so (1 MB),
# so that every binary of the workspace links in a second.
# usage: mlir.sh LLVM_PREFIX LLVM_MAJOR FOLDER
set -eu
llvm=$1 major=$2 out=$3
mkdir -p "$out"
g++ -shared -fPIC -o "$out/libMLIR-C.so.tmp" -Wl,-soname,libMLIR-C.so \
  -Wl,--whole-archive "$llvm"/lib/libMLIRCAPI*.a -Wl,--no-whole-archive \
  -L"$llvm/lib" -lMLIR "-lLLVM-$major" -Wl,-z,defs -Wl,-rpath,"$llvm/lib"
mv "$out/libMLIR-C.so.tmp" "$out/libMLIR-C.so"

// The words of the `cuda` dialect.
#ifndef LAPIDARY_CUDA_ENUMS_TD
#define LAPIDARY_CUDA_ENUMS_TD

include "mlir/IR/EnumAttr.td"

class Cuda_Cases<string cpp, string what, list<I32EnumAttrCase> cases> : I32EnumAttr<cpp, what, cases> {
  let cppNamespace = "::lapidary::cuda";
  let genSpecializedAttr = 0;
}

def Cuda_BufferKindCases : Cuda_Cases<"BufferKind", "who provides a buffer", [
  I32EnumAttrCase<"param", 0>, I32EnumAttrCase<"input", 1>, I32EnumAttrCase<"output", 2>,
  I32EnumAttrCase<"arena", 3>, I32EnumAttrCase<"cache", 4>]>;
def Cuda_KernelKindCases : Cuda_Cases<"KernelKind", "where a kernel comes from", [
  I32EnumAttrCase<"generated", 0>, I32EnumAttrCase<"library", 1>]>;

#endif // LAPIDARY_CUDA_ENUMS_TD

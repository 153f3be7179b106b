// The words of the `nn` dialect.
#ifndef LAPIDARY_NN_ENUMS_TD
#define LAPIDARY_NN_ENUMS_TD

include "mlir/IR/EnumAttr.td"

class NN_Cases<string cpp, string what, list<I32EnumAttrCase> cases> : I32EnumAttr<cpp, what, cases> {
  let cppNamespace = "::lapidary::nn";
  let genSpecializedAttr = 0;
}

def NN_NormKindCases : NN_Cases<"NormKind", "how a norm is centred", [
  I32EnumAttrCase<"rms", 0>, I32EnumAttrCase<"layer", 1>]>;
def NN_PairingCases : NN_Cases<"Pairing", "which two features a rotation turns", [
  I32EnumAttrCase<"half", 0>, I32EnumAttrCase<"interleaved", 1>]>;
def NN_RopeScalingCases : NN_Cases<"RopeScaling", "how rotary frequencies are stretched", [
  I32EnumAttrCase<"none", 0>, I32EnumAttrCase<"linear", 1>, I32EnumAttrCase<"llama3", 2>]>;
def NN_FunctionCases : NN_Cases<"Function", "an activation function", [
  I32EnumAttrCase<"silu", 0>, I32EnumAttrCase<"gelu", 1>, I32EnumAttrCase<"gelu_tanh", 2>,
  I32EnumAttrCase<"relu", 3>, I32EnumAttrCase<"relu2", 4>]>;
def NN_CacheCases : NN_Cases<"Cache", "one half of the key/value cache", [
  I32EnumAttrCase<"k", 0>, I32EnumAttrCase<"v", 1>]>;
def NN_AnchorCases : NN_Cases<"Anchor", "the op that gives a fused kernel its loop", [
  I32EnumAttrCase<"matmul", 0>, I32EnumAttrCase<"attention", 1>, I32EnumAttrCase<"row", 2>,
  I32EnumAttrCase<"elementwise", 3>, I32EnumAttrCase<"gather", 4>]>;

#endif // LAPIDARY_NN_ENUMS_TD

// The words of the `wafer` dialect.
#ifndef LAPIDARY_WAFER_ENUMS_TD
#define LAPIDARY_WAFER_ENUMS_TD

include "mlir/IR/EnumAttr.td"

class Wafer_Cases<string cpp, string what, list<I32EnumAttrCase> cases> : I32EnumAttr<cpp, what, cases> {
  let cppNamespace = "::lapidary::wafer";
  let genSpecializedAttr = 0;
}

def Wafer_SourceCases : Wafer_Cases<"Source", "where a weight lives", [
  I32EnumAttrCase<"streamed", 0>, I32EnumAttrCase<"resident", 1>]>;
def Wafer_InnerCases : Wafer_Cases<"Inner", "what lies over the columns of a block", [
  I32EnumAttrCase<"features", 0>, I32EnumAttrCase<"tokens", 1>]>;
def Wafer_MapFnCases : Wafer_Cases<"MapFn", "what is done to every element", [
  I32EnumAttrCase<"add", 0>, I32EnumAttrCase<"mul", 1>, I32EnumAttrCase<"scale", 2>, I32EnumAttrCase<"silu", 3>,
  I32EnumAttrCase<"gelu", 4>, I32EnumAttrCase<"gelu_tanh", 5>, I32EnumAttrCase<"relu", 6>,
  I32EnumAttrCase<"relu2", 7>]>;

#endif // LAPIDARY_WAFER_ENUMS_TD

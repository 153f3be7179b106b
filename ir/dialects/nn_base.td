// The `nn` dialect without its ops: what other dialects take from it.
#ifndef LAPIDARY_NN_BASE_TD
#define LAPIDARY_NN_BASE_TD

include "lapidary.td"
include "nn_enums.td"
include "mlir/IR/AttrTypeBase.td"

def NN_Dialect : Dialect {
  let name = "nn";
  let cppNamespace = "::lapidary::nn";
  let summary = "A transformer's forward pass as tensor ops with known sizes";
  let description = [{
    Letters: B batch, S query length, L key length (S in prefill, cached + S in decode), D model width, H heads,
    K key/value heads, d width of a head, F hidden width of the MLP, V vocabulary. Activations keep their heads
    flattened (`q` is [B,S,H*d]); weights are [out, in]; token ids are i32.

    A model is a module of two functions: `@layer(%layer: index, %x)`, one decoder layer, and `@main(%ids)`, which
    calls it through `nn.repeat`. A per-layer parameter is written once, with `*` for the layer's number.

    A training module has two functions for a layer, `@layer` and `@layer_backward(%layer: index, %dy)`, and
    `@main(%ids, %labels)` returns the loss. Layers keep values by `nn.save` and read them by `nn.saved`; derivatives of
    weights end in `nn.gradient`. An op `nn.X_dx` or `nn.X_dw` is the derivative of `nn.X`.

    The module of one rank of a spread model holds its part of every weight and meets the other ranks in `nn.all_reduce`,
    `nn.all_gather`, `nn.reduce_scatter`, `nn.gather_rows`, `nn.send` and `nn.receive`.

    Attributes of this dialect on other ops: `nn.model` (string), `nn.mode` (string), `nn.batch`, `nn.seq`,
    `nn.cached` (i64) on the module; `nn.name` (string) on function arguments.
  }];
  let dependentDialects = ["::mlir::func::FuncDialect"];
  let useDefaultAttributePrinterParser = 1;
  let hasOperationAttrVerify = 1;
  let hasRegionArgAttrVerify = 1;
}

// --- types and enums ---------------------------------------------------------------------------------------------

def NN_Tensor : StaticShapeTensorOf<[Lapidary_Element]> { let summary = "float tensor of known sizes"; }
def NN_Ids : StaticShapeTensorOf<[I32]> { let summary = "i32 tensor of known sizes"; }
def NN_Value : AnyTypeOf<[NN_Tensor, NN_Ids, Index]>;

def NN_NormKind : EnumAttr<NN_Dialect, NN_NormKindCases, "norm_kind">;
def NN_Pairing : EnumAttr<NN_Dialect, NN_PairingCases, "pairing">;
def NN_RopeScaling : EnumAttr<NN_Dialect, NN_RopeScalingCases, "rope_scaling">;
def NN_Function : EnumAttr<NN_Dialect, NN_FunctionCases, "function">;
def NN_Cache : EnumAttr<NN_Dialect, NN_CacheCases, "cache">;
def NN_Anchor : EnumAttr<NN_Dialect, NN_AnchorCases, "anchor">;

#endif // LAPIDARY_NN_BASE_TD

// The `wafer` dialect: ops placed on a rectangle of processing elements.
#ifndef LAPIDARY_WAFER_TD
#define LAPIDARY_WAFER_TD

include "nn_base.td"
include "wafer_enums.td"
include "mlir/IR/BuiltinAttributes.td"
include "mlir/IR/SymbolInterfaces.td"
include "mlir/Interfaces/SideEffectInterfaces.td"

def Wafer_Dialect : Dialect {
  let name = "wafer";
  let cppNamespace = "::lapidary::wafer";
  let summary = "Ops placed on a rectangle of processing elements (PEs)";
  let description = [{
    An activation of a wafer is a tile: tokens x features, tokens spread over rows of PEs, features over columns. All
    ops of a program share this layout, so nothing moves between them. An op says where it runs (`at <x, y, w, h>`,
    x to the east, y to the south), how many bytes of a PE's 48 KiB it needs (`sram`, 0 = not planned yet) and which
    of the 24 routable colours its routes use (`colours`, empty = not routed yet); later passes fill in the last two.

    Letters as in `nn`; T = B*S tokens. Weights keep the canonical form [out, in].
  }];
  let useDefaultAttributePrinterParser = 1;
  let useDefaultTypePrinterParser = 1;
  let dependentDialects = ["::lapidary::nn::NNDialect"];
}

// --- attributes and types ----------------------------------------------------------------------------------------

def Wafer_Source : EnumAttr<Wafer_Dialect, Wafer_SourceCases, "source">;
def Wafer_MapFn : EnumAttr<Wafer_Dialect, Wafer_MapFnCases, "map_fn">;

def Wafer_Rect : AttrDef<Wafer_Dialect, "Rect"> {
  let mnemonic = "rect";
  let summary = "a rectangle of PEs";
  let description = [{ Column x and row y of its north-west corner, width w and height h, in PEs: `<0, 0, 750, 994>`. }];
  let parameters = (ins "int64_t":$x, "int64_t":$y, "int64_t":$w, "int64_t":$h);
  let assemblyFormat = "`<` $x `,` $y `,` $w `,` $h `>`";
  let genVerifyDecl = 1;
}

def Wafer_Layout : AttrDef<Wafer_Dialect, "Layout"> {
  let mnemonic = "layout";
  let summary = "how a tile is spread over PEs";
  let description = [{
    Tokens over `rows` rows of PEs, features over `cols` columns, each in parts that differ by at most one element: a
    PE holds at most ceil(tokens/rows) x ceil(features/cols) elements.

    For attention the columns fall into `blocks` of neighbours, each with the features of whole heads. Within a block
    the columns share those features (`inner = features`), or each column has all of the block's features for a part
    of the row's tokens (`inner = tokens`), which keeps everything within a head local.
  }];
  let parameters = (ins "int64_t":$rows, "int64_t":$cols, DefaultValuedParameter<"int64_t", "1">:$blocks,
                        DefaultValuedParameter<"::lapidary::wafer::Inner",
                                               "::lapidary::wafer::Inner::features">:$inner);
  let assemblyFormat = "`<` struct(params) `>`";
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    int64_t getColumnsOfBlock() { return getCols() / getBlocks(); }
  }];
}

def Wafer_Tile : TypeDef<Wafer_Dialect, "Tile"> {
  let mnemonic = "tile";
  let summary = "an activation spread over PEs";
  let description = [{ `!wafer.tile<2048x4096xbf16, <rows = 750, cols = 994>>`: tokens x features x element. }];
  let parameters = (ins "int64_t":$tokens, "int64_t":$features, "::mlir::Type":$element, "LayoutAttr":$layout);
  let assemblyFormat = "`<` custom<TileSize>($tokens, $features, $element) `,` $layout `>`";
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    /// Bytes of the largest block that one PE holds.
    int64_t getBlockBytes();
  }];
}


// --- structure ---------------------------------------------------------------------------------------------------

class Wafer_Op<string mnemonic, list<Trait> traits = []> : Op<Wafer_Dialect, mnemonic, [KnownAttributes] # traits>;

def Wafer_ProgramOp : Wafer_Op<"program", [IsolatedFromAbove, Symbol, SingleBlock,
                                           HasParent<"::mlir::ModuleOp">]> {
  let summary = "what a wafer computes";
  let description = [{
    The block's arguments come from the host, `wafer.return` sends results to it. `grid` is the width and height of
    the part of the wafer that the program may use; every rectangle lies inside.

    ```mlir
    wafer.program @tiny grid = [16, 16] (%ids: tensor<1x32xi32>) {
      ..
      wafer.return %logits : !wafer.tile<32x512xf32, <rows = 16, cols = 16>>
    }
    ```
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, DenseI64ArrayAttr:$grid);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = "$sym_name `grid` `=` $grid custom<Body>($body) attr-dict";
  let hasVerifier = 1;
}

def Wafer_ReturnOp : Wafer_Op<"return", [Pure, Terminator, HasParent<"ProgramOp">]> {
  let summary = "what a program sends to the host";
  let description = [{ Ends `wafer.program`; the tiles leave the wafer in this order. }];
  let arguments = (ins Variadic<Wafer_Tile>:$values);
  let assemblyFormat = "attr-dict ($values^ `:` type($values))?";
}

def Wafer_RepeatOp : Wafer_Op<"repeat", [SingleBlock, RecursiveMemoryEffects]> {
  let summary = "do a layer N times on the same PEs";
  let description = [{
    The body runs `times` times; its arguments are the inputs, then what the round before yielded. Weights with `*`
    in their name are those of the running layer, streamed in layer by layer.
  }];
  let arguments = (ins I64Attr:$times, Variadic<Wafer_Tile>:$inputs);
  let results = (outs Variadic<Wafer_Tile>:$results);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = [{
    `times` `=` $times custom<BoundBody>($inputs, type($inputs), type($results), $body) attr-dict
  }];
  let hasVerifier = 1;
}

def Wafer_YieldOp : Wafer_Op<"yield", [Pure, Terminator, HasParent<"RepeatOp">]> {
  let summary = "what a round hands to the next";
  let description = [{ Ends the body of `wafer.repeat`; the tiles are the next round's arguments. }];
  let arguments = (ins Variadic<Wafer_Tile>:$values);
  let assemblyFormat = "attr-dict ($values^ `:` type($values))?";
}

def Wafer_WeightOp : Wafer_Op<"weight", [Pure]> {
  let summary = "a weight, streamed in or kept in SRAM";
  let description = [{
    `streamed`: MemoryX sends it through the wafer when an op needs it. `resident`: it is loaded once into the PEs of
    the op that reads it. `scale` is applied by the host. In `wafer.repeat`, `*` stands for the running layer.
  }];
  let arguments = (ins StrAttr:$name, Wafer_Source:$source, DefaultValuedAttr<F64Attr, "1.0">:$scale);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$name `` $source (`scale` `=` custom<Number>($scale)^)? attr-dict `:` type($result)";
  let hasVerifier = 1;
}

// --- placed ops --------------------------------------------------------------------------------------------------

// Has a rectangle inside the program's grid that its result's layout fits, at most 48 KiB of SRAM, and distinct
// colours below 24.
def Wafer_PlacedTrait : NativeOpTrait<"Placed"> { let cppNamespace = "::lapidary::wafer"; }

class Wafer_Placed<string mnemonic, dag operands, string head, list<Trait> traits = [Pure]>
    : Wafer_Op<mnemonic, [Wafer_PlacedTrait] # traits> {
  let arguments = !con(operands, (ins Wafer_Rect:$rect, DefaultValuedAttr<I64Attr, "0">:$sram_bytes,
                                      DefaultValuedAttr<DenseI64ArrayAttr, "{}">:$colours));
  let results = (outs Wafer_Tile:$result);
  let assemblyFormat = head # " `at` $rect (`sram` `=` $sram_bytes^)? (`colours` `=` $colours^)? attr-dict "
                            # "`:` functional-type(operands, results)";
  let hasVerifier = 1;
}

def Wafer_EmbedOp : Wafer_Placed<"embed",
    (ins NN_Ids:$ids, NN_Tensor:$table), "$ids `,` $table"> {
  let summary = "table rows of the host's token ids, spread over the rectangle";
  let description = [{ ids [B,S], table [V,D], result T x D with T = B*S, tokens of a sequence in a row. }];
}

def Wafer_PositionOp : Wafer_Placed<"position",
    (ins Wafer_Tile:$x, NN_Tensor:$table, I64Attr:$sequences, DefaultValuedAttr<I64Attr, "0">:$offset),
    "$x `,` $table `sequences` `=` $sequences (`offset` `=` $offset^)?"> {
  let summary = "add a learned position";
  let description = [{ x T x D of `sequences` sequences, table [max_seq,D]; token s of a sequence gets row offset + s. }];
}

def Wafer_LinearOp : Wafer_Placed<"linear",
    (ins Wafer_Tile:$x, NN_Tensor:$weight, Optional<NN_Tensor>:$bias, Optional<Wafer_Tile>:$residual,
         TypeAttr:$acc),
    "$x `,` $weight (`bias` $bias^)? (`plus` $residual^)? `acc` $acc", [Pure, AttrSizedOperandSegments]> {
  let summary = "multiply by a weight that passes through";
  let description = [{
    `result[t,n] = residual[t,n] + bias[n] + sum_k x[t,k] * weight[n,k]`, x T x K, weight [N,K], result T x N. Each
    weight triggers a multiply-add over the tokens of the PEs that own feature k; partial sums reduce along the row
    in type `acc`, starting from bias and residual.
  }];
}

def Wafer_NormOp : Wafer_Placed<"norm",
    (ins Wafer_Tile:$x, NN_Tensor:$weight, Optional<NN_Tensor>:$bias, NN_NormKind:$kind, F64Attr:$eps),
    "`` $kind $x `,` $weight (`,` $bias^)? `eps` `=` custom<Number>($eps)"> {
  let summary = "normalise every token";
  let description = [{
    The rule of `nn.norm`. Two words per token (sum and sum of squares; one for `rms`) reduce along the row and are
    broadcast back.
  }];
}

def Wafer_RopeOp : Wafer_Placed<"rope",
    (ins Wafer_Tile:$x, NN_Pairing:$pairing, I64Attr:$sequences, I64Attr:$head_dim, I64Attr:$rot_dims,
         F64Attr:$theta, DefaultValuedAttr<I64Attr, "0">:$offset,
         DefaultValuedAttr<NN_RopeScaling, "::lapidary::nn::RopeScaling::none">:$scaling,
         OptionalAttr<F64Attr>:$factor, OptionalAttr<F64Attr>:$low_freq, OptionalAttr<F64Attr>:$high_freq,
         OptionalAttr<I64Attr>:$original_max),
    "`` $pairing $x `sequences` `=` $sequences `head_dim` `=` $head_dim `rot_dims` `=` $rot_dims "
    # "`theta` `=` custom<Number>($theta) (`offset` `=` $offset^)? (`scaling` `=` `` $scaling^)? "
    # "(`factor` `=` custom<Number>($factor)^)? (`low_freq` `=` custom<Number>($low_freq)^)? "
    # "(`high_freq` `=` custom<Number>($high_freq)^)? (`original_max` `=` $original_max^)?"> {
  let summary = "rotate pairs of features by the position";
  let description = [{
    The rule of `nn.rope`, token by token. The columns of the weight before it are ordered at compile time so that
    both features of a pair lie in one PE; then the rotation sends nothing.
  }];
}

def Wafer_KvAppendOp : Wafer_Placed<"kv_append",
    (ins Wafer_Tile:$x, NN_Cache:$cache, I64Attr:$sequences, I64Attr:$cached),
    "`` $cache $x `sequences` `=` $sequences `cached` `=` $cached", [MemoryEffects<[MemRead, MemWrite]>]> {
  let summary = "write new keys or values behind the cached ones and return all of them";
  let description = [{ x (B*S) x K*d of B = `sequences` sequences, result (B*(cached+S)) x K*d, kept where its heads live. }];
}

def Wafer_AttentionOp : Wafer_Placed<"attention",
    (ins Wafer_Tile:$q, Wafer_Tile:$k, Wafer_Tile:$v, I64Attr:$sequences, I64Attr:$heads, I64Attr:$kv_heads,
         F64Attr:$scale, UnitAttr:$causal, DefaultValuedAttr<I64Attr, "0">:$window, UnitAttr:$alibi,
         DefaultValuedAttr<F64Attr, "1.0">:$alibi_scaling, DefaultValuedAttr<I64Attr, "0">:$offset),
    "$q `,` $k `,` $v `sequences` `=` $sequences `heads` `=` $heads `kv_heads` `=` $kv_heads "
    # "`scale` `=` custom<Number>($scale) (`causal` $causal^)? (`window` `=` $window^)? (`alibi` $alibi^)? "
    # "(`alibi_scaling` `=` custom<Number>($alibi_scaling)^)? (`offset` `=` $offset^)?"> {
  let summary = "attention without the S x L tensor";
  let description = [{
    `result = values(softmax(mask(scale * scores(q, k))), v)` with the rules of `nn`, head by head, for each of B =
    `sequences` sequences: q (B*S) x H*d, k and v (B*L) x K*d, result (B*S) x H*d. A sequence lives on a group of
    rows; blocks of keys and values circulate through it while each row keeps its running maximum and sum.
  }];
}

def Wafer_MapOp : Wafer_Placed<"map",
    (ins Wafer_MapFn:$fn, Variadic<Wafer_Tile>:$inputs, OptionalAttr<F64Attr>:$by),
    "`` $fn $inputs (`by` custom<Number>($by)^)?"> {
  let summary = "a function of the elements that a PE already holds";
  let description = [{
    `add` and `mul` of two tiles, `scale` of one by `by`, an activation function of one. Nothing is sent.
  }];
}

def Wafer_LastTokenOp : Wafer_Placed<"last_token",
    (ins Wafer_Tile:$x, I64Attr:$sequences), "$x `sequences` `=` $sequences"> {
  let summary = "the last token of every sequence";
  let description = [{ x (B*S) x D of B = `sequences` sequences, result B x D. }];
}

#endif // LAPIDARY_WAFER_TD

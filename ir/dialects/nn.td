// The ops of the `nn` dialect: a transformer as tensor ops with known sizes. Those of training stand in nn_train.td,
// those of a model that is spread over ranks in nn_shard.td.
#ifndef LAPIDARY_NN_TD
#define LAPIDARY_NN_TD

include "nn_base.td"
include "mlir/IR/OpAsmInterface.td"
include "mlir/IR/SymbolInterfaces.td"
include "mlir/Interfaces/ControlFlowInterfaces.td"
include "mlir/Interfaces/InferTypeOpInterface.td"
include "mlir/Interfaces/SideEffectInterfaces.td"

class NN_Op<string mnemonic, list<Trait> traits = []> : Op<NN_Dialect, mnemonic, [KnownAttributes] # traits>;
// An op whose result type follows from its operands and attributes.
class NN_Inferred<string mnemonic, list<Trait> traits = []> : NN_Op<mnemonic, [InferTypeOpAdaptor] # traits>;

// --- parameters and gathers --------------------------------------------------------------------------------------

def NN_ParamOp : NN_Op<"param", [Pure, DeclareOpInterfaceMethods<OpAsmOpInterface, ["getAsmResultNames"]>]> {
  let summary = "a weight of the model";
  let description = [{
    `result = scale * weight[name]`. The name is canonical; in the layer function a per-layer name is written with
    `*` and indexed by the layer's number: `layers.*.attn.q.weight`. The scale is applied once, when weights are
    loaded, so it costs nothing at run time.

    ```mlir
    %attn.q.weight = nn.param "layers.*.attn.q.weight"[%layer] scale = 0.0078125 : tensor<4096x4096xbf16>
    ```
  }];
  let arguments = (ins Optional<Index>:$layer, StrAttr:$name, DefaultValuedAttr<F64Attr, "1.0">:$scale);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$name (`[` $layer^ `]`)? (`scale` `=` custom<Number>($scale)^)? attr-dict `:` type($result)";
  let hasVerifier = 1;
}

def NN_EmbedOp : NN_Inferred<"embed", [Pure]> {
  let summary = "one table row per token";
  let description = [{
    `result[b,s,:] = table[ids[b,s],:]` with ids i32 [B,S], table [V,D], result [B,S,D].
  }];
  let arguments = (ins NN_Ids:$ids, NN_Tensor:$table);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$ids `,` $table attr-dict `:` functional-type(operands, results)";
}

def NN_PositionOp : NN_Inferred<"position", [Pure]> {
  let summary = "add a learned position";
  let description = [{
    `result[b,s,:] = x[b,s,:] + table[offset+s,:]` with x [B,S,D], table [max_seq,D]; `offset` is the number of
    cached tokens.
  }];
  let arguments = (ins NN_Tensor:$x, NN_Tensor:$table, DefaultValuedAttr<I64Attr, "0">:$offset);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$x `,` $table (`offset` `=` $offset^)? attr-dict `:` functional-type(operands, results)";
}

def NN_LastTokenOp : NN_Inferred<"last_token", [Pure]> {
  let summary = "the last position only";
  let description = [{ `result[b,0,:] = x[b,S-1,:]` with x [B,S,D], result [B,1,D]. }];
  let arguments = (ins NN_Tensor:$x);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$x attr-dict `:` functional-type(operands, results)";
  let hasFolder = 1;
}

// --- linear algebra ----------------------------------------------------------------------------------------------

def NN_LinearOp : NN_Inferred<"linear", [Pure]> {
  let summary = "multiply by a weight matrix";
  let description = [{
    `result[..,n] = sum_k x[..,k] * weight[n,k]` with x [..,K], weight [N,K], result [..,N]; accumulated in f32.
  }];
  let arguments = (ins NN_Tensor:$x, NN_Tensor:$weight);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$x `,` $weight attr-dict `:` functional-type(operands, results)";
}

def NN_BiasOp : NN_Inferred<"bias", [Pure]> {
  let summary = "add a vector to every row";
  let description = [{ `result[..,n] = x[..,n] + bias[n]` with x [..,N], bias [N]. }];
  let arguments = (ins NN_Tensor:$x, NN_Tensor:$bias);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$x `,` $bias attr-dict `:` functional-type(operands, results)";
}

// --- elementwise -------------------------------------------------------------------------------------------------

class NN_Binary<string mnemonic, string verb, string sign> : NN_Inferred<mnemonic, [Pure, SameTypeOperands]> {
  let summary = verb # " two tensors of one shape, element by element";
  let description = "`result = a " # sign # " b`; a, b and result have one type.";
  let arguments = (ins NN_Tensor:$a, NN_Tensor:$b);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$a `,` $b attr-dict `:` type($a)";
}

def NN_AddOp : NN_Binary<"add", "add", "+">;
def NN_MulOp : NN_Binary<"mul", "multiply", "*">;

def NN_ScaleOp : NN_Inferred<"scale", [Pure]> {
  let summary = "multiply by a constant";
  let description = [{
    `result = by * x`. `role` says why the constant is there, so that passes need not guess: `mup.embedding`,
    `mup.output`, `mup.attention`, `attention`, `embedding`, `output` or `residual`. A scale by 1 folds away; two scales of one
    role in a row become one.
  }];
  let arguments = (ins NN_Tensor:$x, F64Attr:$by, StrAttr:$role);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$x `by` custom<Number>($by) `as` $role attr-dict `:` type($x)";
  let hasVerifier = 1;
  let hasFolder = 1;
  let hasCanonicalizeMethod = 1;
}

def NN_ActivationOp : NN_Inferred<"activation", [Pure]> {
  let summary = "apply a function to every element";
  let description = [{
    `result = fn(x)`: `silu` x*sigmoid(x); `gelu` x*Phi(x) with the exact normal distribution; `gelu_tanh` its tanh
    approximation; `relu` max(x,0); `relu2` max(x,0)^2.
  }];
  let arguments = (ins NN_Tensor:$x, NN_Function:$fn);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "`` $fn $x attr-dict `:` type($x)";
}

// --- rows --------------------------------------------------------------------------------------------------------

def NN_NormOp : NN_Inferred<"norm", [Pure]> {
  let summary = "normalise every row";
  let description = [{
    With x [..,D], weight [D], bias [D] (or none), statistics in f32:
    `rms`: `result = x / sqrt(mean(x^2) + eps) * weight + bias`;
    `layer`: `result = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias`, var without Bessel's correction.
  }];
  let arguments = (ins NN_Tensor:$x, NN_Tensor:$weight, Optional<NN_Tensor>:$bias, NN_NormKind:$kind, F64Attr:$eps);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = [{
    `` $kind $x `,` $weight (`,` $bias^)? `eps` `=` custom<Number>($eps) attr-dict
    `:` functional-type(operands, results)
  }];
  let hasVerifier = 1;
}

def NN_SoftmaxOp : NN_Inferred<"softmax", [Pure]> {
  let summary = "softmax over the last axis";
  let description = [{ `result[..,l] = exp(x[..,l] - m) / sum_j exp(x[..,j] - m)`, m the row's maximum, in f32. }];
  let arguments = (ins NN_Tensor:$x);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$x attr-dict `:` type($x)";
}

// --- attention ---------------------------------------------------------------------------------------------------

class NN_Rotary<string mnemonic> : NN_Inferred<mnemonic, [Pure]> {
  let arguments = (ins NN_Tensor:$x, NN_Pairing:$pairing, I64Attr:$head_dim, I64Attr:$rot_dims, F64Attr:$theta,
                       DefaultValuedAttr<I64Attr, "0">:$offset,
                       DefaultValuedAttr<NN_RopeScaling, "::lapidary::nn::RopeScaling::none">:$scaling,
                       OptionalAttr<F64Attr>:$factor, OptionalAttr<F64Attr>:$low_freq,
                       OptionalAttr<F64Attr>:$high_freq, OptionalAttr<I64Attr>:$original_max);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = [{
    `` $pairing $x `head_dim` `=` $head_dim `rot_dims` `=` $rot_dims `theta` `=` custom<Number>($theta)
    (`offset` `=` $offset^)? (`scaling` `=` `` $scaling^)? (`factor` `=` custom<Number>($factor)^)?
    (`low_freq` `=` custom<Number>($low_freq)^)? (`high_freq` `=` custom<Number>($high_freq)^)?
    (`original_max` `=` $original_max^)? attr-dict `:` type($x)
  }];
  let hasVerifier = 1;
}

def NN_RopeOp : NN_Rotary<"rope"> {
  let summary = "rotate pairs of features by the position";
  let description = [{
    x [B,S,heads*head_dim]. In each head the first `rot_dims` features form pairs, (i, i+rot_dims/2) for `half`,
    (2i, 2i+1) for `interleaved`; pair i of token s turns by `(offset+s) * f_i`, f_i = theta^(-2i/rot_dims), in f32.
    `scaling` stretches the frequencies: `linear` divides them by `factor`; `llama3` divides those of wavelength
    above original_max/low_freq by `factor`, keeps those below original_max/high_freq, and blends between.
  }];
}

def NN_KvAppendOp : NN_Inferred<"kv_append", [MemoryEffects<[MemRead, MemWrite]>]> {
  let summary = "write new keys or values into the cache and return the whole of it";
  let description = [{
    Writes x [B,S,K*d] into rows cached..cached+S of the named cache of this layer and returns rows 0..L of it,
    [B,L,K*d], L = cached + S. Reads and writes memory: it is neither removed nor merged with another.
  }];
  let arguments = (ins NN_Tensor:$x, Index:$layer, NN_Cache:$cache, I64Attr:$cached);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "`` $cache $x `[` $layer `]` `cached` `=` $cached attr-dict `:` type($x) `->` type($result)";
}

def NN_ScoresOp : NN_Inferred<"scores", [Pure]> {
  let summary = "dot products of queries and keys, head by head";
  let description = [{
    `result[b,h,s,l] = sum_i q[b,s,h*d+i] * k[b,l,g*d+i]`, g = h / (heads/kv_heads), with q [B,S,heads*d],
    k [B,L,kv_heads*d], result [B,heads,S,L]; no scale.
  }];
  let arguments = (ins NN_Tensor:$q, NN_Tensor:$k, I64Attr:$heads, I64Attr:$kv_heads);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = [{
    $q `,` $k `heads` `=` $heads `kv_heads` `=` $kv_heads attr-dict `:` functional-type(operands, results)
  }];
}

def NN_MaskOp : NN_Inferred<"mask", [Pure]> {
  let summary = "add minus infinity where a query may not look, and ALiBi's slopes";
  let description = [{
    x [B,H,S,L]; query s stands at position p = offset + s. `causal`: keys l > p become -inf. `window` w > 0: keys
    l <= p - w become -inf. `alibi`: adds `slope_h * alibi_scaling * (l - p)` with the slopes of H heads, or with
    those of the heads from `alibi_first` on of a model of `alibi_heads` heads where that is not 0. A mask that does
    nothing folds away.
  }];
  let arguments = (ins NN_Tensor:$x, UnitAttr:$causal, DefaultValuedAttr<I64Attr, "0">:$window, UnitAttr:$alibi,
                       DefaultValuedAttr<F64Attr, "1.0">:$alibi_scaling, DefaultValuedAttr<I64Attr, "0">:$alibi_first,
                       DefaultValuedAttr<I64Attr, "0">:$alibi_heads, DefaultValuedAttr<I64Attr, "0">:$offset);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = [{
    $x (`causal` $causal^)? (`window` `=` $window^)? (`alibi` $alibi^)?
    (`alibi_scaling` `=` custom<Number>($alibi_scaling)^)? (`alibi_first` `=` $alibi_first^)?
    (`alibi_heads` `=` $alibi_heads^)? (`offset` `=` $offset^)? attr-dict `:` type($x)
  }];
  let hasVerifier = 1;
  let hasFolder = 1;
}

def NN_ValuesOp : NN_Inferred<"values", [Pure]> {
  let summary = "weighted sums of values, head by head";
  let description = [{
    `result[b,s,h*d+i] = sum_l p[b,h,s,l] * v[b,l,g*d+i]`, g = h / (heads/kv_heads), with p [B,heads,S,L],
    v [B,L,kv_heads*d], result [B,S,heads*d].
  }];
  let arguments = (ins NN_Tensor:$p, NN_Tensor:$v, I64Attr:$heads, I64Attr:$kv_heads);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = [{
    $p `,` $v `heads` `=` $heads `kv_heads` `=` $kv_heads attr-dict `:` functional-type(operands, results)
  }];
}

// --- structure ---------------------------------------------------------------------------------------------------

def NN_RepeatOp : NN_Op<"repeat", [DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "call a layer N times";
  let description = [{
    `x = body(first, x); x = body(first+1, x); ... x = body(first+times-1, x)`, the last layer first where `reverse`.
    The body is a function `(index, T...) -> T...`.

    ```mlir
    %y = nn.repeat @layer times = 32 (%x) : (tensor<1x8x64xbf16>) -> tensor<1x8x64xbf16>
    ```
  }];
  let arguments = (ins FlatSymbolRefAttr:$body, I64Attr:$times, Variadic<NN_Tensor>:$inputs,
                       DefaultValuedAttr<I64Attr, "0">:$first, UnitAttr:$reverse);
  let results = (outs Variadic<NN_Tensor>:$results);
  let assemblyFormat = [{
    $body `times` `=` $times (`first` `=` $first^)? (`reverse` $reverse^)? ` ` `(` $inputs `)` attr-dict
    `:` functional-type($inputs, $results)
  }];
  let hasVerifier = 1;
}

def NN_YieldOp : NN_Op<"yield", [Pure, ReturnLike, Terminator]> {
  let summary = "the results of a kernel";
  let description = [{ Ends the body of `nn.fused` and of `cuda.kernel`. }];
  let hasVerifier = 1;
  let arguments = (ins Variadic<NN_Tensor>:$values);
  let builders = [OpBuilder<(ins), [{ build($_builder, $_state, ::mlir::ValueRange()); }]>];
  let assemblyFormat = "attr-dict ($values^ `:` type($values))?";
}

def NN_FusedOp : NN_Op<"fused", [IsolatedFromAbove, RecursiveMemoryEffects, SingleBlockImplicitTerminator<"YieldOp">]> {
  let summary = "ops that become one kernel";
  let description = [{
    The region computes the results from the block arguments, one per input; nothing else is visible inside, and
    values that the region does not yield never reach memory. `anchor` names the op that gives the kernel its loop,
    `saved_bytes` the memory traffic that the fusion removes, `reason` why that is so.

    ```mlir
    %s, %y = nn.fused "add_norm" row(%a = %x : tensor<1x8x64xbf16>, %b = %r : tensor<1x8x64xbf16>,
                                     %w = %weight : tensor<64xbf16>)
        -> (tensor<1x8x64xbf16>, tensor<1x8x64xbf16>) {
      %0 = nn.add %a, %b : tensor<1x8x64xbf16>
      %1 = nn.norm rms %0, %w eps = 1.0e-06 : (tensor<1x8x64xbf16>, tensor<64xbf16>) -> tensor<1x8x64xbf16>
      nn.yield %0, %1 : tensor<1x8x64xbf16>, tensor<1x8x64xbf16>
    } saved_bytes = 1024 reason = "the sum is normalised where it is made"
    ```
  }];
  let arguments = (ins Variadic<NN_Value>:$inputs, StrAttr:$name, NN_Anchor:$anchor, I64Attr:$saved_bytes,
                       StrAttr:$reason);
  let results = (outs Variadic<NN_Tensor>:$results);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = [{
    $name `` $anchor `` custom<BoundBody>($inputs, type($inputs), type($results), $body)
    `saved_bytes` `=` $saved_bytes `reason` `=` $reason attr-dict
  }];
  let hasVerifier = 1;
  let hasRegionVerifier = 1;
  let hasCanonicalizeMethod = 1;
}

include "nn_train.td"
include "nn_shard.td"

#endif // LAPIDARY_NN_TD

// The ops of the `nn` dialect that only training has: the loss, derivatives, and what passes from forward to backward.
#ifndef LAPIDARY_NN_TRAIN_TD
#define LAPIDARY_NN_TRAIN_TD

// --- the loss ------------------------------------------------------------------------------------------------------

def NN_CrossEntropyOp : NN_Inferred<"cross_entropy", [Pure]> {
  let summary = "mean cross entropy of logits against labels";
  let description = [{
    `result[0] = mean over labels[b,s] >= 0 of log(sum_v exp(logits[b,s,v])) - logits[b,s,labels[b,s]]` with logits
    [B,S,V], labels i32 [B,S], result f32 [1]. A negative label does not count.
  }];
  let arguments = (ins NN_Tensor:$logits, NN_Ids:$labels);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$logits `,` $labels attr-dict `:` functional-type(operands, results)";
}

def NN_CrossEntropyDxOp : NN_Inferred<"cross_entropy_dx", [Pure]> {
  let summary = "derivative of the mean cross entropy by the logits";
  let description = [{
    `result[b,s,:] = (softmax(logits[b,s,:]) - 1 at labels[b,s]) / count`, count the number of labels >= 0; zero
    where the label is negative.
  }];
  let arguments = (ins NN_Tensor:$logits, NN_Ids:$labels);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$logits `,` $labels attr-dict `:` functional-type(operands, results)";
}

// --- derivatives of products and sums ------------------------------------------------------------------------------

def NN_LinearDxOp : NN_Inferred<"linear_dx", [Pure]> {
  let summary = "derivative of a linear by its operand";
  let description = [{ `result[..,k] = sum_n dy[..,n] * weight[n,k]` with dy [..,N], weight [N,K], result [..,K]. }];
  let arguments = (ins NN_Tensor:$dy, NN_Tensor:$weight);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$dy `,` $weight attr-dict `:` functional-type(operands, results)";
}

def NN_LinearDwOp : NN_Inferred<"linear_dw", [Pure]> {
  let summary = "derivative of a linear by its weight";
  let description = [{ `result[n,k] = sum over rows of dy[..,n] * x[..,k]` with dy [..,N], x [..,K], result [N,K]. }];
  let arguments = (ins NN_Tensor:$dy, NN_Tensor:$x);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$dy `,` $x attr-dict `:` functional-type(operands, results)";
}

def NN_ColumnSumOp : NN_Inferred<"column_sum", [Pure]> {
  let summary = "the sum of all rows: the derivative by a bias";
  let description = [{ `result[n] = sum over rows of x[..,n]` with x [..,N], result [N]. }];
  let arguments = (ins NN_Tensor:$x);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$x attr-dict `:` functional-type(operands, results)";
}

def NN_EmbedDwOp : NN_Inferred<"embed_dw", [Pure]> {
  let summary = "derivative of a lookup by its table";
  let description = [{
    `result[v,:] = sum over ids[b,s] = v of dy[b,s,:]` with ids i32 [B,S], dy [B,S,D], result [rows,D].
  }];
  let arguments = (ins NN_Ids:$ids, NN_Tensor:$dy, I64Attr:$rows);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$ids `,` $dy `rows` `=` $rows attr-dict `:` functional-type(operands, results)";
}

def NN_PositionDwOp : NN_Inferred<"position_dw", [Pure]> {
  let summary = "derivative of a learned position by its table";
  let description = [{ `result[offset+s,:] = sum_b dy[b,s,:]`, zero elsewhere, with dy [B,S,D], result [rows,D]. }];
  let arguments = (ins NN_Tensor:$dy, I64Attr:$rows, DefaultValuedAttr<I64Attr, "0">:$offset);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$dy `rows` `=` $rows (`offset` `=` $offset^)? attr-dict `:` functional-type(operands, results)";
}

def NN_LastTokenDxOp : NN_Inferred<"last_token_dx", [Pure]> {
  let summary = "derivative of the choice of the last position";
  let description = [{ `result[b,seq-1,:] = dy[b,0,:]`, zero elsewhere, with dy [B,1,D], result [B,seq,D]. }];
  let arguments = (ins NN_Tensor:$dy, I64Attr:$seq);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$dy `seq` `=` $seq attr-dict `:` functional-type(operands, results)";
}

// --- derivatives of pointwise ops and rows -------------------------------------------------------------------------

def NN_ActivationDxOp : NN_Inferred<"activation_dx", [Pure, SameTypeOperands]> {
  let summary = "derivative of an activation by its operand";
  let description = [{ `result = fn'(x) * dy`; x, dy and result have one type. The slope of a relu at 0 is 0. }];
  let arguments = (ins NN_Tensor:$x, NN_Tensor:$dy, NN_Function:$fn);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "`` $fn $x `,` $dy attr-dict `:` type($x)";
}

def NN_NormDxOp : NN_Inferred<"norm_dx", [Pure]> {
  let summary = "derivative of a norm by its operand";
  let description = [{
    With h the normalised row, r one over its deviation and g = weight * dy:
    `result = r * (g - mean(g) - h * mean(g * h))`, for `rms` without `mean(g)`; x [..,D], weight [D], dy [..,D].
  }];
  let arguments = (ins NN_Tensor:$x, NN_Tensor:$weight, NN_Tensor:$dy, NN_NormKind:$kind, F64Attr:$eps);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = [{
    `` $kind $x `,` $weight `,` $dy `eps` `=` custom<Number>($eps) attr-dict `:` functional-type(operands, results)
  }];
  let hasVerifier = 1;
}

def NN_NormDwOp : NN_Inferred<"norm_dw", [Pure]> {
  let summary = "derivative of a norm by its weight";
  let description = [{ `result[d] = sum over rows of h[..,d] * dy[..,d]`, h the normalised rows of x; result [D]. }];
  let arguments = (ins NN_Tensor:$x, NN_Tensor:$dy, NN_NormKind:$kind, F64Attr:$eps);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = [{
    `` $kind $x `,` $dy `eps` `=` custom<Number>($eps) attr-dict `:` functional-type(operands, results)
  }];
  let hasVerifier = 1;
}

def NN_SoftmaxDxOp : NN_Inferred<"softmax_dx", [Pure, SameTypeOperands]> {
  let summary = "derivative of a softmax by its operand";
  let description = [{ `result = p * (dp - sum_l p[..,l] * dp[..,l])`, p being the softmax's result. }];
  let arguments = (ins NN_Tensor:$p, NN_Tensor:$dp);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$p `,` $dp attr-dict `:` type($p)";
}

// --- derivatives of attention --------------------------------------------------------------------------------------
// dq of scores is `nn.values`, dp of values is `nn.scores`.

def NN_RopeDxOp : NN_Rotary<"rope_dx"> {
  let summary = "rotate pairs of features back";
  let description = [{ The inverse of `nn.rope` with the same attributes, which is its transpose. }];
}

def NN_MaskDxOp : NN_Inferred<"mask_dx", [Pure]> {
  let summary = "zero where a query may not look";
  let description = [{
    x [B,H,S,L]; `causal`, `window` and `offset` as of `nn.mask`. ALiBi adds a constant and has no derivative.
  }];
  let arguments = (ins NN_Tensor:$x, UnitAttr:$causal, DefaultValuedAttr<I64Attr, "0">:$window,
                       DefaultValuedAttr<I64Attr, "0">:$offset);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$x (`causal` $causal^)? (`window` `=` $window^)? (`offset` `=` $offset^)? attr-dict `:` type($x)";
  let hasVerifier = 1;
  let hasFolder = 1;
}

def NN_ValuesDvOp : NN_Inferred<"values_dv", [Pure]> {
  let summary = "weighted sums over queries, for every key";
  let description = [{
    `result[b,l,g*d+i] = sum over heads h of group g and s of p[b,h,s,l] * y[b,s,h*d+i]` with p [B,heads,S,L],
    y [B,S,heads*d], result [B,L,kv_heads*d]: the derivative of `nn.values` by v and of `nn.scores` by k.
  }];
  let arguments = (ins NN_Tensor:$p, NN_Tensor:$y, I64Attr:$heads, I64Attr:$kv_heads);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = [{
    $p `,` $y `heads` `=` $heads `kv_heads` `=` $kv_heads attr-dict `:` functional-type(operands, results)
  }];
}

// --- between forward and backward ----------------------------------------------------------------------------------

def NN_SaveOp : NN_Inferred<"save", [MemoryEffects<[MemWrite]>]> {
  let summary = "keep a layer's value for its backward pass";
  let description = [{
    Keeps x in the named slot of this layer and returns it. Writes memory: it is neither removed nor moved.

    ```mlir
    %0 = nn.save "attn.q"[%layer] %q : tensor<1x8x64xbf16>
    ```
  }];
  let arguments = (ins NN_Tensor:$x, Index:$layer, StrAttr:$name);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$name `[` $layer `]` $x attr-dict `:` type($x)";
  let hasVerifier = 1;
}

def NN_SavedOp : NN_Op<"saved", [MemoryEffects<[MemRead]>]> {
  let summary = "the value that a layer kept";
  let description = [{ What the forward pass of this layer kept in the named slot. }];
  let arguments = (ins Index:$layer, StrAttr:$name);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$name `[` $layer `]` attr-dict `:` type($result)";
  let hasVerifier = 1;
}

def NN_GradientOp : NN_Inferred<"gradient", [MemoryEffects<[MemRead, MemWrite]>]> {
  let summary = "add to the gradient of a weight";
  let description = [{
    Adds dw to the gradient of the named weight, kept in f32, and returns dw. The name is that of `nn.param`, with the
    layer's number for a name with `*`.

    ```mlir
    %1 = nn.gradient "layers.*.attn.q.weight"[%layer] %dw : tensor<64x64xbf16>
    ```
  }];
  let arguments = (ins NN_Tensor:$dw, Optional<Index>:$layer, StrAttr:$name);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$name (`[` $layer^ `]`)? $dw attr-dict `:` type($dw)";
  let hasVerifier = 1;
}

#endif // LAPIDARY_NN_TRAIN_TD

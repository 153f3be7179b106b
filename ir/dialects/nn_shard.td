// The ops of the `nn` dialect that only one rank's part of a model has: what ranks say to each other.
#ifndef LAPIDARY_NN_SHARD_TD
#define LAPIDARY_NN_SHARD_TD

// Collectives read and write memory of other ranks: they are neither removed, merged nor moved past one another.
class NN_Collective<string mnemonic> : NN_Inferred<mnemonic, [MemoryEffects<[MemRead, MemWrite]>]>;

def NN_EmbedPartOp : NN_Inferred<"embed_part", [Pure]> {
  let summary = "one table row per token, from the rows that the rank holds";
  let description = [{
    `result[b,s,:] = table[ids[b,s]-first,:]`, zero where the row lies outside of the table, with ids i32 [B,S], table
    [rows,D], result [B,S,D].
  }];
  let arguments = (ins NN_Ids:$ids, NN_Tensor:$table, I64Attr:$first);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$ids `,` $table `first` `=` $first attr-dict `:` functional-type(operands, results)";
}

def NN_AllReduceOp : NN_Collective<"all_reduce"> {
  let summary = "the sum over the ranks of the tensor-parallel group";
  let description = [{ `result = sum over ranks of x`, on every rank; all ranks of the group meet in it. }];
  let arguments = (ins NN_Tensor:$x);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$x attr-dict `:` type($x)";
}

def NN_AllGatherOp : NN_Collective<"all_gather"> {
  let summary = "the parts of the tensor-parallel group side by side";
  let description = [{
    `result[..,r*N+n] = x of rank r [..,n]` with x [..,N], result [..,width], on every rank; what lies beyond `width` is
    padding and is dropped.
  }];
  let arguments = (ins NN_Tensor:$x, I64Attr:$width);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$x `width` `=` $width attr-dict `:` functional-type(operands, results)";
}

def NN_ReduceScatterOp : NN_Collective<"reduce_scatter"> {
  let summary = "the rank's run of rows of the sum over the tensor-parallel group";
  let description = [{
    Rank r has rows `r*n .. (r+1)*n` of the sum over ranks of x, with x of R rows of N, n = R over `ranks` rounded up,
    result [1,n,N]; zeros behind row R.

    ```mlir
    %0 = nn.reduce_scatter %x ranks = 4 : (tensor<2x8x64xbf16>) -> tensor<1x4x64xbf16>
    ```
  }];
  let arguments = (ins NN_Tensor:$x, I64Attr:$ranks);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$x `ranks` `=` $ranks attr-dict `:` functional-type(operands, results)";
}

def NN_GatherRowsOp : NN_Collective<"gather_rows"> {
  let summary = "the rows of all ranks of the tensor-parallel group";
  let description = [{
    The rows of all ranks after one another, with x [1,n,N], result [batch,seq,N]; what lies beyond is padding and is
    dropped.
  }];
  let arguments = (ins NN_Tensor:$x, I64Attr:$batch, I64Attr:$seq);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$x `batch` `=` $batch `seq` `=` $seq attr-dict `:` functional-type(operands, results)";
}

def NN_TakeRowsOp : NN_Inferred<"take_rows", [Pure]> {
  let summary = "a run of rows";
  let description = [{ Rows `first .. first+rows` of x, with x of R rows of N, result [1,rows,N]; zeros behind row R. }];
  let arguments = (ins NN_Tensor:$x, I64Attr:$first, I64Attr:$rows);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$x `first` `=` $first `rows` `=` $rows attr-dict `:` functional-type(operands, results)";
}

def NN_TakeOp : NN_Inferred<"take", [Pure]> {
  let summary = "a run of columns";
  let description = [{
    `result[..,n] = x[..,first+n]` for n below `length` and zero behind, with x [..,N], result [..,held].
  }];
  let arguments = (ins NN_Tensor:$x, I64Attr:$first, I64Attr:$length, I64Attr:$held);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat =
      "$x `first` `=` $first `length` `=` $length `held` `=` $held attr-dict `:` functional-type(operands, results)";
}

def NN_EmbedPartDwOp : NN_Inferred<"embed_part_dw", [Pure]> {
  let summary = "derivative of a lookup by the rows of its table that the rank holds";
  let description = [{
    `result[v,:] = sum over ids[b,s] = first+v of dy[b,s,:]` with ids i32 [B,S], dy [B,S,D], result [rows,D].
  }];
  let arguments = (ins NN_Ids:$ids, NN_Tensor:$dy, I64Attr:$first, I64Attr:$rows);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat =
      "$ids `,` $dy `first` `=` $first `rows` `=` $rows attr-dict `:` functional-type(operands, results)";
}

def NN_SendOp : NN_Collective<"send"> {
  let summary = "hand a value to a stage of the pipeline";
  let description = [{
    Sends x to the rank of that stage with the same place in its group, and returns x without waiting. Messages of a lane
    arrive in their order.

    ```mlir
    %0 = nn.send %x to 1 : tensor<1x8x64xbf16>
    %1 = nn.send %x to 0 lane = 3 : tensor<1x8x64xbf16>
    ```
  }];
  let arguments = (ins NN_Tensor:$x, I64Attr:$stage, DefaultValuedAttr<I64Attr, "0">:$lane);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$x `to` $stage (`lane` `=` $lane^)? attr-dict `:` type($x)";
}

def NN_ReceiveOp : NN_Op<"receive", [MemoryEffects<[MemRead, MemWrite]>]> {
  let summary = "what a stage of the pipeline sent";
  let description = [{ The value that the rank of that stage with the same place in its group sends. }];
  let arguments = (ins I64Attr:$stage, DefaultValuedAttr<I64Attr, "0">:$lane);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "`from` $stage (`lane` `=` $lane^)? attr-dict `:` type($result)";
  let hasVerifier = 1;
}

#endif // LAPIDARY_NN_SHARD_TD

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

def NN_SendOp : NN_Collective<"send"> {
  let summary = "hand a value to a stage of the pipeline";
  let description = [{
    Sends x to the rank of that stage with the same place in its group, and returns x.

    ```mlir
    %0 = nn.send %x to 1 : tensor<1x8x64xbf16>
    ```
  }];
  let arguments = (ins NN_Tensor:$x, I64Attr:$stage);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "$x `to` $stage attr-dict `:` type($x)";
}

def NN_ReceiveOp : NN_Op<"receive", [MemoryEffects<[MemRead, MemWrite]>]> {
  let summary = "what a stage of the pipeline sent";
  let description = [{ The value that the rank of that stage with the same place in its group sends. }];
  let arguments = (ins I64Attr:$stage);
  let results = (outs NN_Tensor:$result);
  let assemblyFormat = "`from` $stage attr-dict `:` type($result)";
  let hasVerifier = 1;
}

#endif // LAPIDARY_NN_SHARD_TD

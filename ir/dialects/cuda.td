// The `cuda` dialect: kernels, launches and buffers, before text is printed.
#ifndef LAPIDARY_CUDA_TD
#define LAPIDARY_CUDA_TD

include "nn_base.td"
include "cuda_enums.td"
include "mlir/IR/BuiltinAttributes.td"
include "mlir/IR/SymbolInterfaces.td"
include "mlir/Interfaces/SideEffectInterfaces.td"

def Cuda_Dialect : Dialect {
  let name = "cuda";
  let cppNamespace = "::lapidary::cuda";
  let summary = "Kernels, launches and buffers of one GPU";
  let description = [{
    Everything is decided here: which kernel form computes which fused region with which tile sizes, over which grid,
    from and to which memory. Emitters only print it. A kernel's body is the `nn` region that it computes; a launch
    binds the region's inputs and results to buffers.
  }];
  let useDefaultAttributePrinterParser = 1;
  let dependentDialects = ["::lapidary::nn::NNDialect"];
}

def Cuda_BufferKind : EnumAttr<Cuda_Dialect, Cuda_BufferKindCases, "buffer_kind">;
def Cuda_KernelKind : EnumAttr<Cuda_Dialect, Cuda_KernelKindCases, "kernel_kind">;

def Cuda_Memory : StaticShapeMemRefOf<[Lapidary_Element, I32]> { let summary = "memory of known sizes"; }
def Cuda_Operand : AnyTypeOf<[Cuda_Memory, Index]>;

class Cuda_Op<string mnemonic, list<Trait> traits = []> : Op<Cuda_Dialect, mnemonic, [KnownAttributes] # traits>;

def Cuda_ProgramOp : Cuda_Op<"program", [IsolatedFromAbove, Symbol, SymbolTable, SingleBlock, NoTerminator]> {
  let summary = "what a GPU computes";
  let description = [{
    Kernels, buffers, then launches and repeats in the order in which they run. `arena_bytes` is the size of the
    memory that all arena buffers share; the memory planner sets it together with their offsets.

    ```mlir
    cuda.program @tiny arch = "sm_80" arena_bytes = 4096 {
      cuda.kernel @double row generated variant = "row_warp" params = {threads = 128 : i64}
          (%x: tensor<4x8xbf16>) {
        %y = nn.add %x, %x : tensor<4x8xbf16>
        nn.yield %y : tensor<4x8xbf16>
      }
      %in = cuda.buffer "x" input bytes = 64 : memref<4x8xbf16>
      %out = cuda.buffer "y" output bytes = 64 : memref<4x8xbf16>
      cuda.launch @double grid = [4, 1, 1] block = [128, 1, 1] (%in) to (%out)
          : (memref<4x8xbf16>) -> memref<4x8xbf16>
    }
    ```
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, StrAttr:$arch, OptionalAttr<I64Attr>:$arena_bytes);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = [{
    $sym_name `arch` `=` $arch (`arena_bytes` `=` $arena_bytes^)? $body attr-dict
  }];
  let hasVerifier = 1;
  let hasRegionVerifier = 1;
}

def Cuda_BufferOp : Cuda_Op<"buffer", [HasParent<"ProgramOp">]> {
  let summary = "a named piece of device memory";
  let description = [{
    The type is the shape of one slice; with `layers` the buffer holds one slice per layer at equal distances and a
    launch inside `cuda.repeat` sees the slice of the running layer. `bytes` counts everything, padding and all layers
    included. `offset` is its place in the arena, for kind `arena` only.
  }];
  let arguments = (ins StrAttr:$name, Cuda_BufferKind:$kind, I64Attr:$bytes, OptionalAttr<I64Attr>:$layers,
                       OptionalAttr<I64Attr>:$offset);
  let results = (outs Cuda_Memory:$result);
  let assemblyFormat = [{
    $name `` $kind `bytes` `=` $bytes (`layers` `=` $layers^)? (`offset` `=` $offset^)? attr-dict `:` type($result)
  }];
  let hasVerifier = 1;
}

def Cuda_KernelOp : Cuda_Op<"kernel", [IsolatedFromAbove, Symbol, SingleBlock, HasParent<"ProgramOp">]> {
  let summary = "a fused region and the form that computes it";
  let description = [{
    The body is the region of the `nn.fused` it was made from: inputs as arguments, results yielded. `variant` names
    the kernel form (or the library routine), `params` holds its tile sizes and the like, so that an emitter decides
    nothing. `reason` says why this form.
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, NN_Anchor:$anchor, Cuda_KernelKind:$kind, StrAttr:$variant,
                       DefaultValuedAttr<DictionaryAttr, "{}">:$params, DefaultValuedAttr<StrAttr, "\"\"">:$reason);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = [{
    $sym_name `` $anchor `` $kind `variant` `=` $variant (`params` `=` $params^)? (`reason` `=` $reason^)?
    custom<Body>($body) attr-dict
  }];
  let hasVerifier = 1;
  let hasRegionVerifier = 1;
}

def Cuda_LaunchOp : Cuda_Op<"launch", [AttrSizedOperandSegments, DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "run a kernel once";
  let description = [{
    Reads `inputs`, one per argument of the kernel (buffers, or the layer index), and writes `outputs`, one buffer per
    value it yields; an output may be an input's buffer. A generated kernel has `grid` and `block` (x, y, z) and
    `shared` bytes of dynamic shared memory; a library routine has none of them.
  }];
  let arguments = (ins FlatSymbolRefAttr:$kernel, Variadic<Cuda_Operand>:$inputs, Variadic<Cuda_Memory>:$outputs,
                       OptionalAttr<DenseI64ArrayAttr>:$grid, OptionalAttr<DenseI64ArrayAttr>:$block,
                       DefaultValuedAttr<I64Attr, "0">:$shared);
  let assemblyFormat = [{
    $kernel (`grid` `=` $grid^)? (`block` `=` $block^)? (`shared` `=` $shared^)? ` ` `(` $inputs `)` `to`
    ` ` `(` $outputs `)` attr-dict `:` functional-type($inputs, $outputs)
  }];
  let hasVerifier = 1;
}

def Cuda_RepeatOp : Cuda_Op<"repeat", [SingleBlock, NoTerminator, HasParent<"ProgramOp">]> {
  let summary = "run launches N times";
  let description = [{
    The body's argument is the layer's number 0, 1, .. times-1.

    ```mlir
    cuda.repeat times = 32 (%layer: index) {
      cuda.launch @norm grid = [8, 1, 1] block = [128, 1, 1] (%x, %w) to (%h) : (memref<..>, memref<..>) -> memref<..>
    }
    ```
  }];
  let arguments = (ins I64Attr:$times);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = "`times` `=` $times custom<Body>($body) attr-dict";
  let hasVerifier = 1;
}

#endif // LAPIDARY_CUDA_TD

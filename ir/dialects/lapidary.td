// What the dialects share: traits and element types.
#ifndef LAPIDARY_TD
#define LAPIDARY_TD

include "mlir/IR/OpBase.td"

// An op with this trait carries its own attributes and those of a loaded dialect, spelled with the dialect's
// prefix, and nothing else; and its results have a size that an i64 can count.
def KnownAttributes : NativeOpTrait<"KnownAttributes"> {
  let cppNamespace = "::lapidary";
}

// The element types of activations and weights.
def Lapidary_Element : AnyTypeOf<[F64, F32, F16, BF16, F8E4M3FN, F8E5M2]>;

#endif // LAPIDARY_TD

// C++ declarations of the `wafer` dialect, generated from wafer.td.
#pragma once

#include "nn.h"

#include "wafer_enum_decls.inc"
#include "wafer_dialect_decls.inc"
#define GET_ATTRDEF_CLASSES
#include "wafer_attrdef_decls.inc"
#define GET_TYPEDEF_CLASSES
#include "wafer_typedef_decls.inc"

namespace lapidary::wafer {

llvm::LogicalResult verifyPlaced(mlir::Operation *op);

/// Has a rectangle, SRAM and colours that the wafer can give.
template <typename ConcreteOp> class Placed : public mlir::OpTrait::TraitBase<ConcreteOp, Placed> {
public:
  static llvm::LogicalResult verifyTrait(mlir::Operation *op) { return verifyPlaced(op); }
};

} // namespace lapidary::wafer

#define GET_OP_CLASSES
#include "wafer_op_decls.inc"

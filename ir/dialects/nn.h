// C++ declarations of the `nn` dialect, generated from nn.td.
#pragma once

#include "traits.h"

#include "mlir/Bytecode/BytecodeOpInterface.h"
#include "mlir/IR/BuiltinAttributes.h"
#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/Dialect.h"
#include "mlir/IR/OpImplementation.h"
#include "mlir/IR/PatternMatch.h"
#include "mlir/IR/SymbolTable.h"
#include "mlir/Interfaces/ControlFlowInterfaces.h"
#include "mlir/Interfaces/InferTypeOpInterface.h"
#include "mlir/Interfaces/SideEffectInterfaces.h"

#include "nn_enum_decls.inc"
#include "nn_dialect_decls.inc"
#define GET_ATTRDEF_CLASSES
#include "nn_attrdef_decls.inc"
#define GET_OP_CLASSES
#include "nn_op_decls.inc"

namespace lapidary::nn {
/// heads and kv_heads are positive and the second divides the first.
llvm::LogicalResult checkHeads(const Check &check, int64_t heads, int64_t kvHeads);
/// A kernel's body: ops of this dialect that need no memory or symbol of their own, ended by nn.yield.
llvm::LogicalResult verifyKernelBody(mlir::Operation *kernel, mlir::Block &block);
} // namespace lapidary::nn

// C++ declarations of the `cuda` dialect, generated from cuda.td.
#pragma once

#include "nn.h"

#include "mlir/IR/RegionKindInterface.h"

#include "cuda_enum_decls.inc"
#include "cuda_dialect_decls.inc"
#define GET_ATTRDEF_CLASSES
#include "cuda_attrdef_decls.inc"
#define GET_OP_CLASSES
#include "cuda_op_decls.inc"

// The `cuda` dialect: what fits together in a program of buffers, kernels and launches. The records are in cuda.td.
#include "cuda.h"
#include "rules.h"

#include "mlir/CAPI/IR.h"
#include "mlir/CAPI/Registration.h"
#include "mlir/CAPI/Support.h"
#include "mlir/IR/Builders.h"
#include "mlir/IR/DialectImplementation.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/StringSet.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace lapidary;
using namespace lapidary::cuda;

#include "cuda_enum_defs.inc"
#include "cuda_dialect_defs.inc"
#define GET_ATTRDEF_CLASSES
#include "cuda_attrdef_defs.inc"

void CudaDialect::initialize() {
  addAttributes<
#define GET_ATTRDEF_LIST
#include "cuda_attrdef_defs.inc"
      >();
  addOperations<
#define GET_OP_LIST
#include "cuda_op_defs.inc"
      >();
}

// --- programs and buffers ------------------------------------------------------------------------------------------

LogicalResult ProgramOp::verify() {
  StringRef number = getArch();
  if (!number.consume_front("sm_") || number.empty() || !llvm::all_of(number.rtrim("af"), llvm::isDigit))
    return emitOpError("arch is written like sm_80, found \"") << getArch() << "\"";
  if (getArenaBytesAttr())
    return atLeast(*this, "arena_bytes", *getArenaBytes(), 0);
  return success();
}

LogicalResult ProgramOp::verifyRegions() {
  llvm::StringSet<> names;
  for (auto buffer : getBody().getOps<BufferOp>()) {
    if (!names.insert(buffer.getName()).second)
      return buffer.emitOpError("name \"") << buffer.getName() << "\" is taken";
    if (!buffer.getOffsetAttr())
      continue;
    int64_t arena = getArenaBytes().value_or(0), bytes = buffer.getBytes(), offset = *buffer.getOffset();
    if (offset > arena - bytes)
      return buffer.emitOpError("ends at ") << offset << " + " << bytes << ", past arena_bytes = " << arena;
  }
  return success();
}

static int64_t elementBytes(Type type) { return (type.getIntOrFloatBitWidth() + 7) / 8; }

LogicalResult BufferOp::verify() {
  if (getName().empty())
    return emitOpError("needs a name");
  MemRefType type = getType();
  int64_t needed = elementBytes(type.getElementType()), layers = getLayersAttr() ? *getLayers() : 1;
  if (failed(atLeast(*this, "layers", layers, 1)))
    return failure();
  for (int64_t size : type.getShape())
    if (size < 1 || llvm::MulOverflow(needed, size, needed))
      return emitOpError("has an empty or uncountable shape: ") << type;
  if (llvm::MulOverflow(needed, layers, needed) || int64_t(getBytes()) < needed)
    return emitOpError("bytes = ") << getBytes() << " is less than the " << needed << " of its shape";
  if (!getOffsetAttr())
    return success();
  if (getKind() != BufferKind::arena)
    return emitOpError("offset belongs to kind arena");
  return atLeast(*this, "offset", *getOffset(), 0);
}

// --- kernels and launches ------------------------------------------------------------------------------------------

LogicalResult KernelOp::verify() {
  if (getVariant().empty())
    return emitOpError("needs a variant");
  return success();
}

LogicalResult KernelOp::verifyRegions() { return nn::verifyKernelBody(*this, getBody().front()); }

LogicalResult RepeatOp::verify() {
  if (failed(atLeast(*this, "times", getTimes(), 1)))
    return failure();
  if (getBody().getNumArguments() != 1 || !getBody().getArgument(0).getType().isIndex())
    return emitOpError("has one argument, the layer's number, of type index");
  return success();
}

// Limits of every CUDA device since compute capability 3.0 (CUDA C++ Programming Guide, "Technical Specifications per
// Compute Capability").
static constexpr int64_t maxThreads = 1024, maxBlockZ = 64, maxGridX = INT32_MAX, maxGridYZ = 65535;

static LogicalResult verifyExtent(LaunchOp op, StringRef name, ArrayRef<int64_t> extent, ArrayRef<int64_t> limit) {
  if (extent.size() != 3)
    return op.emitOpError() << name << " is [x, y, z]";
  for (auto [size, most] : llvm::zip(extent, limit))
    if (size < 1 || size > most)
      return op.emitOpError() << name << " size " << size << " is outside 1.." << most;
  return success();
}

/// A buffer of many layers is seen through the repeat that counts them.
static LogicalResult verifyLayers(LaunchOp op, Value value) {
  auto buffer = value.getDefiningOp<BufferOp>();
  if (!buffer || !buffer.getLayersAttr())
    return success();
  auto repeat = op->getParentOfType<RepeatOp>();
  if (!repeat)
    return op.emitOpError("reads buffer \"") << buffer.getName() << "\" of many layers outside cuda.repeat";
  return Check(op.getLoc(), op->getName().getStringRef())
      .equal("layer count mismatch", "layers of \"" + buffer.getName() + "\"", *buffer.getLayers(), "times",
             repeat.getTimes());
}

LogicalResult LaunchOp::verify() {
  if (failed(atLeast(*this, "shared", getShared(), 0)))
    return failure();
  for (Value value : getOperands())
    if (failed(verifyLayers(*this, value)))
      return failure();
  if (bool(getGridAttr()) != bool(getBlockAttr()))
    return emitOpError("grid and block belong together");
  if (!getGridAttr())
    return success();
  ArrayRef<int64_t> block = *getBlock();
  if (failed(verifyExtent(*this, "grid", *getGrid(), {maxGridX, maxGridYZ, maxGridYZ})) ||
      failed(verifyExtent(*this, "block", block, {maxThreads, maxThreads, maxBlockZ})))
    return failure();
  if (block[0] * block[1] * block[2] > maxThreads)
    return emitOpError("block has ") << block[0] * block[1] * block[2] << " threads, at most " << maxThreads;
  return success();
}

/// Whether a launch operand can carry a value of the kernel's region.
static bool carries(Type operand, Type inside) {
  auto tensor = dyn_cast<RankedTensorType>(inside);
  auto memory = dyn_cast<MemRefType>(operand);
  if (!tensor || !memory)
    return operand == inside;
  return tensor.getShape() == memory.getShape() && tensor.getElementType() == memory.getElementType();
}

static LogicalResult verifyBinding(LaunchOp op, StringRef what, TypeRange operands, TypeRange inside) {
  if (operands.size() != inside.size())
    return op.emitOpError() << "@" << op.getKernel() << " has " << inside.size() << " " << what << "s, found "
                            << operands.size();
  for (auto [index, pair] : llvm::enumerate(llvm::zip(operands, inside)))
    if (!carries(std::get<0>(pair), std::get<1>(pair)))
      return op.emitOpError() << what << " " << index << " of @" << op.getKernel() << " is " << std::get<1>(pair)
                              << ", found " << std::get<0>(pair);
  return success();
}

LogicalResult LaunchOp::verifySymbolUses(SymbolTableCollection &symbols) {
  auto kernel = symbols.lookupNearestSymbolFrom<KernelOp>(*this, getKernelAttr());
  if (!kernel)
    return emitOpError("launches @") << getKernel() << ", which is not a kernel of this program";
  if ((kernel.getKind() == KernelKind::generated) != bool(getGridAttr()))
    return emitOpError("a generated kernel has grid and block, a library routine has neither");
  Block &body = kernel.getBody().front();
  if (failed(verifyBinding(*this, "input", getInputs().getTypes(), body.getArgumentTypes())))
    return failure();
  return verifyBinding(*this, "output", getOutputs().getTypes(), body.back().getOperandTypes());
}

#define GET_OP_CLASSES
#include "cuda_op_defs.inc"

// --- the door to Rust ----------------------------------------------------------------------------------------------

extern "C" {
MLIR_DECLARE_CAPI_DIALECT_REGISTRATION(Cuda, cuda);

/// The word of an enum attribute of this dialect, or an empty string for any other attribute.
MlirStringRef lapidaryCudaEnumWord(MlirAttribute attr) {
  return wrap(llvm::TypeSwitch<Attribute, StringRef>(unwrap(attr))
                  .Case([](BufferKindAttr a) { return stringifyBufferKind(a.getValue()); })
                  .Case([](KernelKindAttr a) { return stringifyKernelKind(a.getValue()); })
                  .Default([](Attribute) { return StringRef(); }));
}
}
MLIR_DEFINE_CAPI_DIALECT_REGISTRATION(Cuda, cuda, lapidary::cuda::CudaDialect)

// Rules on attributes that ops of several dialects share.
#pragma once

#include "nn.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"

namespace lapidary {

/// A number above zero, and there.
inline llvm::LogicalResult positive(mlir::Operation *op, llvm::StringRef name, mlir::FloatAttr attr) {
  if (!attr)
    return op->emitOpError("needs ") << name << " for this scaling";
  if (!attr.getValue().isFinite() || attr.getValueAsDouble() <= 0)
    return op->emitOpError() << name << " must be positive, found " << attr.getValueAsDouble();
  return llvm::success();
}

inline llvm::LogicalResult atLeast(mlir::Operation *op, llvm::StringRef name, int64_t value, int64_t least) {
  if (value >= least)
    return llvm::success();
  return op->emitOpError() << name << " must be at least " << least << ", found " << value;
}

template <typename Rope> llvm::LogicalResult verifyScaling(Rope op) {
  bool linear = op.getScaling() == nn::RopeScaling::linear, llama3 = op.getScaling() == nn::RopeScaling::llama3;
  if (!llama3 && (op.getLowFreqAttr() || op.getHighFreqAttr() || op.getOriginalMaxAttr()))
    return op.emitOpError("low_freq, high_freq and original_max belong to scaling = llama3");
  if (!linear && !llama3 && op.getFactorAttr())
    return op.emitOpError("factor belongs to scaling = linear or llama3");
  if ((linear || llama3) && failed(positive(op, "factor", op.getFactorAttr())))
    return llvm::failure();
  if (!llama3)
    return llvm::success();
  if (failed(positive(op, "low_freq", op.getLowFreqAttr())) || failed(positive(op, "high_freq", op.getHighFreqAttr())))
    return llvm::failure();
  if (op.getHighFreqAttr().getValueAsDouble() <= op.getLowFreqAttr().getValueAsDouble())
    return op.emitOpError("high_freq must be above low_freq");
  if (!op.getOriginalMaxAttr() || op.getOriginalMaxAttr().getInt() < 1)
    return op.emitOpError("needs original_max, the context length of the first training, for this scaling");
  return llvm::success();
}

/// The attributes of a rotary embedding, on either level.
template <typename Rope> llvm::LogicalResult verifyRope(Rope op) {
  int64_t rotated = op.getRotDims();
  if (rotated < 2 || rotated % 2 != 0)
    return op.emitOpError("rot_dims must be even and at least 2, found ") << rotated;
  if (rotated > int64_t(op.getHeadDim()))
    return op.emitOpError("rot_dims = ") << rotated << " exceeds head_dim = " << op.getHeadDim();
  if (failed(atLeast(op, "offset", op.getOffset(), 0)) || failed(positive(op, "theta", op.getThetaAttr())))
    return llvm::failure();
  return verifyScaling(op);
}

/// The attributes of a mask over `queries` x `keys`, on either level.
template <typename Mask> llvm::LogicalResult verifyMask(Mask op, int64_t queries, int64_t keys) {
  int64_t offset = op.getOffset();
  if (int64_t(op.getWindow()) < 0)
    return op.emitOpError("window must be at least 0 (0 = none), found ") << int64_t(op.getWindow());
  if (offset < 0 || offset > keys - queries)
    return op.emitOpError("offset must lie in 0..L-S = 0..") << keys - queries << ", found " << offset;
  if (!op.getAlibi() && !op.getAlibiScaling().isExactlyValue(1.0))
    return op.emitOpError("alibi_scaling belongs to alibi");
  return positive(op, "alibi_scaling", op.getAlibiScalingAttr());
}

/// A name that may become part of a symbol, a tensor's key or a file: letters, digits, `_`, `.`, `-` and what `also`
/// allows.
inline llvm::LogicalResult plainName(mlir::Operation *op, llvm::StringRef name, llvm::StringRef also = "") {
  if (name.empty())
    return op->emitOpError("needs a name");
  auto plain = [&](char letter) { return llvm::isAlnum(letter) || llvm::StringRef("_.-").contains(letter); };
  for (char letter : name)
    if (!plain(letter) && !also.contains(letter))
      return op->emitOpError("name \"") << name << "\" holds more than letters, digits, '_', '.' and '-'";
  return llvm::success();
}

/// A parameter's name and load-time factor.
template <typename Param> llvm::LogicalResult verifyParameter(Param op) {
  if (failed(plainName(op, op.getName(), "*")))
    return llvm::failure();
  if (op.getName().count('*') > 1)
    return op.emitOpError("name \"") << op.getName() << "\" has more than one layer number";
  if (!op.getScale().isFinite() || op.getScale().isZero())
    return op.emitOpError("scale must be finite and not zero, found ") << op.getScale().convertToDouble();
  return llvm::success();
}

} // namespace lapidary

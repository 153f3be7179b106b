// What the dialects share on the C++ side: the trait KnownAttributes and located shape checks.
#pragma once

#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/Dialect.h"
#include "mlir/IR/OpDefinition.h"
#include "mlir/IR/OpImplementation.h"

namespace lapidary {

/// Rejects discardable attributes that no loaded dialect owns, and results too large to count.
llvm::LogicalResult verifyKnownAttributes(mlir::Operation *op);

template <typename ConcreteOp>
class KnownAttributes : public mlir::OpTrait::TraitBase<ConcreteOp, KnownAttributes> {
public:
  static llvm::LogicalResult verifyTrait(mlir::Operation *op) { return verifyKnownAttributes(op); }
};

/// Shape checks that name the op, the operand and the dims; used by type inference, which runs both when an op is
/// built and when it is verified, so each rule is written once.
class Check {
public:
  Check(std::optional<mlir::Location> loc, llvm::StringRef op) : loc(loc), op(op) {}

  llvm::LogicalResult fail(const llvm::Twine &why) const;

  /// The type of `value` if it is a static tensor of `rank`; `dims` names the axes for the message.
  mlir::FailureOr<mlir::RankedTensorType> tensor(mlir::Value value, llvm::StringRef name, unsigned rank,
                                                 llvm::StringRef dims) const;
  /// The type of `value` if it is a static tensor of rank 1 or more.
  mlir::FailureOr<mlir::RankedTensorType> tensor(mlir::Value value, llvm::StringRef name) const;

  llvm::LogicalResult equal(const llvm::Twine &rule, const llvm::Twine &leftName, int64_t left,
                            const llvm::Twine &rightName, int64_t right) const;
  llvm::LogicalResult divides(const llvm::Twine &leftName, int64_t left, const llvm::Twine &rightName,
                              int64_t right) const;
  llvm::LogicalResult sameElement(llvm::StringRef leftName, mlir::RankedTensorType left,
                                  llvm::StringRef rightName, mlir::RankedTensorType right) const;
  llvm::LogicalResult atLeast(llvm::StringRef name, int64_t value, int64_t least) const;

private:
  std::optional<mlir::Location> loc;
  llvm::StringRef op;
};

/// An f64 in assembly: the shortest decimal that reads back as the same number, always with a point.
mlir::ParseResult parseNumber(mlir::OpAsmParser &parser, mlir::FloatAttr &number);
void printNumber(mlir::OpAsmPrinter &printer, mlir::Operation *op, mlir::FloatAttr number);

/// A region and what its block arguments are bound to: `(%arg = %input : type, ..) -> types { .. }`.
mlir::ParseResult parseBoundBody(mlir::OpAsmParser &parser,
                                 llvm::SmallVectorImpl<mlir::OpAsmParser::UnresolvedOperand> &inputs,
                                 llvm::SmallVectorImpl<mlir::Type> &inputTypes,
                                 llvm::SmallVectorImpl<mlir::Type> &resultTypes, mlir::Region &body);
void printBoundBody(mlir::OpAsmPrinter &printer, mlir::Operation *op, mlir::OperandRange inputs, mlir::TypeRange,
                    mlir::TypeRange results, mlir::Region &body);

/// A region and its arguments: `(%arg: type, ..) { .. }`.
mlir::ParseResult parseBody(mlir::OpAsmParser &parser, mlir::Region &body);
void printBody(mlir::OpAsmPrinter &printer, mlir::Operation *op, mlir::Region &body);

inline int64_t lastDim(mlir::RankedTensorType type) { return type.getShape().back(); }

} // namespace lapidary

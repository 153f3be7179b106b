#include "traits.h"

#include "mlir/IR/Builders.h"
#include "mlir/IR/Diagnostics.h"
#include "llvm/Support/MathExtras.h"

#include <charconv>
#include <cmath>

using namespace mlir;

namespace lapidary {

static LogicalResult unknownAttribute(Operation *op, StringAttr name) {
  auto diagnostic = op->emitOpError("does not know the attribute '") << name.getValue() << "'";
  auto known = op->getName().getAttributeNames();
  if (!known.empty()) {
    auto &note = diagnostic.attachNote() << "known attributes: ";
    llvm::interleaveComma(known, note, [&](StringAttr attr) { note << attr.getValue(); });
  }
  return diagnostic;
}

static LogicalResult countable(Operation *op, Type type) {
  auto tensor = dyn_cast<RankedTensorType>(type);
  if (!tensor || !tensor.hasStaticShape())
    return success();
  int64_t elements = 1;
  for (int64_t size : tensor.getShape()) {
    if (size < 1)
      return op->emitOpError("has a result with an empty axis: ") << tensor;
    // 16 = room for the widest element in bytes, so that sizes in bytes fit as well.
    if (llvm::MulOverflow(elements, size, elements) || elements > INT64_MAX / 16)
      return op->emitOpError("has a result too large to count in 64 bits: ") << tensor;
  }
  return success();
}

LogicalResult verifyKnownAttributes(Operation *op) {
  for (NamedAttribute attr : op->getDiscardableAttrs())
    if (!attr.getName().strref().contains('.') || !attr.getNameDialect())
      return unknownAttribute(op, attr.getName());
  for (Type type : op->getResultTypes())
    if (failed(countable(op, type)))
      return failure();
  return success();
}

LogicalResult Check::fail(const Twine &why) const { return emitOptionalError(loc, "'", op, "' op ", why); }

FailureOr<RankedTensorType> Check::tensor(Value value, StringRef name) const {
  auto type = dyn_cast<RankedTensorType>(value.getType());
  if (!type || !type.hasStaticShape() || type.getRank() == 0) {
    (void)emitOptionalError(loc, "'", op, "' op ", name, " must be a tensor of rank 1 or more with known sizes, found ",
                            value.getType());
    return failure();
  }
  return type;
}

FailureOr<RankedTensorType> Check::tensor(Value value, StringRef name, unsigned rank, StringRef dims) const {
  auto type = dyn_cast<RankedTensorType>(value.getType());
  if (!type || !type.hasStaticShape() || type.getRank() != rank) {
    (void)emitOptionalError(loc, "'", op, "' op ", name, " must be a tensor ", dims, " with known sizes, found ",
                            value.getType());
    return failure();
  }
  return type;
}

LogicalResult Check::equal(const Twine &rule, const Twine &leftName, int64_t left, const Twine &rightName,
                           int64_t right) const {
  if (left == right)
    return success();
  return fail(rule + ": " + leftName + " = " + Twine(left) + " but " + rightName + " = " + Twine(right));
}

LogicalResult Check::divides(const Twine &leftName, int64_t left, const Twine &rightName, int64_t right) const {
  if (left > 0 && right % left == 0)
    return success();
  return fail(leftName + " = " + Twine(left) + " does not divide " + rightName + " = " + Twine(right));
}

LogicalResult Check::sameElement(StringRef leftName, RankedTensorType left, StringRef rightName,
                                 RankedTensorType right) const {
  if (left.getElementType() == right.getElementType())
    return success();
  return emitOptionalError(loc, "'", op, "' op element types differ: ", leftName, " has ", left.getElementType(),
                           " but ", rightName, " has ", right.getElementType());
}

LogicalResult Check::atLeast(StringRef name, int64_t value, int64_t least) const {
  if (value >= least)
    return success();
  return fail(name + " must be at least " + Twine(least) + ", found " + Twine(value));
}

ParseResult parseNumber(OpAsmParser &parser, FloatAttr &number) {
  double value;
  if (parser.parseFloat(value))
    return failure();
  number = parser.getBuilder().getF64FloatAttr(value);
  return success();
}

void printNumber(OpAsmPrinter &printer, Operation *, FloatAttr number) {
  double value = number.getValueAsDouble();
  if (!std::isfinite(value))
    return printer.printAttributeWithoutType(number);
  bool plain = value == 0 || (std::abs(value) >= 1e-3 && std::abs(value) < 1e9);
  auto format = plain ? std::chars_format::fixed : std::chars_format::scientific;
  char buffer[64];
  StringRef text(buffer, std::to_chars(buffer, buffer + sizeof buffer, value, format).ptr - buffer);
  size_t exponent = std::min(text.find('e'), text.size());
  printer << text.take_front(exponent) << (text.contains('.') ? "" : ".0") << text.drop_front(exponent);
}

ParseResult parseBoundBody(OpAsmParser &parser, SmallVectorImpl<OpAsmParser::UnresolvedOperand> &inputs,
                           SmallVectorImpl<Type> &inputTypes, SmallVectorImpl<Type> &resultTypes, Region &body) {
  SmallVector<OpAsmParser::Argument> arguments;
  auto input = [&]() -> ParseResult {
    OpAsmParser::Argument &argument = arguments.emplace_back();
    if (parser.parseArgument(argument) || parser.parseEqual() || parser.parseOperand(inputs.emplace_back()) ||
        parser.parseColonType(argument.type))
      return failure();
    inputTypes.push_back(argument.type);
    return success();
  };
  return failure(parser.parseCommaSeparatedList(AsmParser::Delimiter::Paren, input) ||
                 parser.parseArrowTypeList(resultTypes) || parser.parseRegion(body, arguments));
}

void printBoundBody(OpAsmPrinter &printer, Operation *, OperandRange inputs, TypeRange, TypeRange results,
                    Region &body) {
  printer << '(';
  llvm::interleaveComma(llvm::zip(body.getArguments(), inputs), printer, [&](auto pair) {
    printer << std::get<0>(pair) << " = " << std::get<1>(pair) << " : " << std::get<1>(pair).getType();
  });
  printer << ')';
  printer.printArrowTypeList(results);
  printer << ' ';
  printer.printRegion(body, /*printEntryBlockArgs=*/false);
}

ParseResult parseBody(OpAsmParser &parser, Region &body) {
  SmallVector<OpAsmParser::Argument> arguments;
  return failure(parser.parseArgumentList(arguments, AsmParser::Delimiter::Paren, /*allowType=*/true) ||
                 parser.parseRegion(body, arguments));
}

void printBody(OpAsmPrinter &printer, Operation *, Region &body) {
  printer << '(';
  llvm::interleaveComma(body.getArguments(), printer,
                        [&](BlockArgument argument) { printer << argument << ": " << argument.getType(); });
  printer << ") ";
  printer.printRegion(body, /*printEntryBlockArgs=*/false);
}

} // namespace lapidary

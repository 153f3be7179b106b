// Shape rules and verifiers of the ops that only training has. The records are in nn_train.td.
#include "nn.h"
#include "rules.h"

#include "mlir/IR/Builders.h"

using namespace mlir;
using namespace lapidary;
using namespace lapidary::nn;

using Loc = std::optional<Location>;
using Types = SmallVectorImpl<Type>;

// --- the loss ------------------------------------------------------------------------------------------------------

static FailureOr<RankedTensorType> checkLoss(const Check &check, Value logitsValue, Value labelsValue) {
  auto logits = check.tensor(logitsValue, "logits", 3, "[B, S, V]");
  auto labels = check.tensor(labelsValue, "labels", 2, "[B, S]");
  if (failed(logits) || failed(labels) ||
      failed(check.equal("batch mismatch", "logits B", logits->getDimSize(0), "labels B", labels->getDimSize(0))) ||
      failed(check.equal("length mismatch", "logits S", logits->getDimSize(1), "labels S", labels->getDimSize(1))))
    return failure();
  return *logits;
}

LogicalResult CrossEntropyOp::inferReturnTypes(MLIRContext *cx, Loc loc, Adaptor op, Types &results) {
  if (failed(checkLoss(Check(loc, getOperationName()), op.getLogits(), op.getLabels())))
    return failure();
  results.push_back(RankedTensorType::get({1}, Float32Type::get(cx)));
  return success();
}

LogicalResult CrossEntropyDxOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  auto logits = checkLoss(Check(loc, getOperationName()), op.getLogits(), op.getLabels());
  if (failed(logits))
    return failure();
  results.push_back(*logits);
  return success();
}

// --- products and sums ---------------------------------------------------------------------------------------------

LogicalResult LinearDxOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  Check check(loc, getOperationName());
  auto dy = check.tensor(op.getDy(), "dy");
  auto weight = check.tensor(op.getWeight(), "weight", 2, "[N, K]");
  if (failed(dy) || failed(weight) || failed(check.sameElement("dy", *dy, "weight", *weight)) ||
      failed(check.equal("contraction mismatch", "dy N", lastDim(*dy), "weight N", weight->getDimSize(0))))
    return failure();
  SmallVector<int64_t> shape(dy->getShape());
  shape.back() = weight->getDimSize(1);
  results.push_back(RankedTensorType::get(shape, dy->getElementType()));
  return success();
}

/// Both have the same rows.
static LogicalResult sameRows(const Check &check, RankedTensorType a, StringRef aName, RankedTensorType b,
                              StringRef bName) {
  if (failed(check.sameElement(aName, a, bName, b)) ||
      failed(check.equal("rank mismatch", "rank of " + aName, a.getRank(), "rank of " + bName, b.getRank())))
    return failure();
  for (int64_t axis = 0; axis + 1 < a.getRank(); ++axis)
    if (failed(check.equal("row mismatch", aName + " axis " + Twine(axis), a.getDimSize(axis),
                           bName + " axis " + Twine(axis), b.getDimSize(axis))))
      return failure();
  return success();
}

LogicalResult LinearDwOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  Check check(loc, getOperationName());
  auto dy = check.tensor(op.getDy(), "dy"), x = check.tensor(op.getX(), "x");
  if (failed(dy) || failed(x) || failed(sameRows(check, *dy, "dy", *x, "x")))
    return failure();
  results.push_back(RankedTensorType::get({lastDim(*dy), lastDim(*x)}, dy->getElementType()));
  return success();
}

LogicalResult ColumnSumOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  auto x = Check(loc, getOperationName()).tensor(op.getX(), "x");
  if (failed(x))
    return failure();
  results.push_back(RankedTensorType::get({lastDim(*x)}, x->getElementType()));
  return success();
}

LogicalResult EmbedDwOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  Check check(loc, getOperationName());
  auto ids = check.tensor(op.getIds(), "ids", 2, "[B, S]");
  auto dy = check.tensor(op.getDy(), "dy", 3, "[B, S, D]");
  if (failed(ids) || failed(dy) || failed(check.atLeast("rows", op.getRows(), 1)) ||
      failed(check.equal("batch mismatch", "ids B", ids->getDimSize(0), "dy B", dy->getDimSize(0))) ||
      failed(check.equal("length mismatch", "ids S", ids->getDimSize(1), "dy S", dy->getDimSize(1))))
    return failure();
  results.push_back(RankedTensorType::get({int64_t(op.getRows()), dy->getDimSize(2)}, dy->getElementType()));
  return success();
}

LogicalResult PositionDwOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  Check check(loc, getOperationName());
  auto dy = check.tensor(op.getDy(), "dy", 3, "[B, S, D]");
  if (failed(dy) || failed(check.atLeast("offset", op.getOffset(), 0)) || failed(check.atLeast("rows", op.getRows(), 1)))
    return failure();
  if (int64_t(op.getOffset()) > int64_t(op.getRows()) - dy->getDimSize(1))
    return check.fail("positions end at offset + S = " + Twine(op.getOffset()) + " + " + Twine(dy->getDimSize(1)) +
                      " but the table has " + Twine(op.getRows()) + " rows");
  results.push_back(RankedTensorType::get({int64_t(op.getRows()), dy->getDimSize(2)}, dy->getElementType()));
  return success();
}

LogicalResult LastTokenDxOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  Check check(loc, getOperationName());
  auto dy = check.tensor(op.getDy(), "dy", 3, "[B, 1, D]");
  if (failed(dy) || failed(check.atLeast("seq", op.getSeq(), 1)) ||
      failed(check.equal("length mismatch", "dy S", dy->getDimSize(1), "one position", 1)))
    return failure();
  results.push_back(
      RankedTensorType::get({dy->getDimSize(0), int64_t(op.getSeq()), dy->getDimSize(2)}, dy->getElementType()));
  return success();
}

// --- pointwise ops and rows ----------------------------------------------------------------------------------------

/// Two tensors of one type, which is the result's.
static LogicalResult inferAlike(const Check &check, Value left, StringRef leftName, Value right, StringRef rightName,
                                Types &results) {
  auto a = check.tensor(left, leftName), b = check.tensor(right, rightName);
  if (failed(a) || failed(b) || failed(sameRows(check, *a, leftName, *b, rightName)) ||
      failed(check.equal("width mismatch", leftName + " width", lastDim(*a), rightName + " width", lastDim(*b))))
    return failure();
  results.push_back(*a);
  return success();
}

LogicalResult ActivationDxOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  return inferAlike(Check(loc, getOperationName()), op.getX(), "x", op.getDy(), "dy", results);
}

LogicalResult SoftmaxDxOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  return inferAlike(Check(loc, getOperationName()), op.getP(), "p", op.getDp(), "dp", results);
}

LogicalResult NormDxOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  Check check(loc, getOperationName());
  auto weight = check.tensor(op.getWeight(), "weight", 1, "[D]");
  if (failed(weight) || failed(inferAlike(check, op.getX(), "x", op.getDy(), "dy", results)))
    return failure();
  auto x = cast<RankedTensorType>(results.front());
  if (failed(check.sameElement("x", x, "weight", *weight)))
    return failure();
  return check.equal("width mismatch", "x D", lastDim(x), "weight D", lastDim(*weight));
}

LogicalResult NormDxOp::verify() { return positive(*this, "eps", getEpsAttr()); }

LogicalResult NormDwOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  if (failed(inferAlike(Check(loc, getOperationName()), op.getX(), "x", op.getDy(), "dy", results)))
    return failure();
  auto x = cast<RankedTensorType>(results.front());
  results.front() = RankedTensorType::get({lastDim(x)}, x.getElementType());
  return success();
}

LogicalResult NormDwOp::verify() { return positive(*this, "eps", getEpsAttr()); }

// --- attention -----------------------------------------------------------------------------------------------------

LogicalResult MaskDxOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  auto x = Check(loc, getOperationName()).tensor(op.getX(), "x", 4, "[B, H, S, L]");
  if (failed(x))
    return failure();
  results.push_back(*x);
  return success();
}

LogicalResult MaskDxOp::verify() {
  auto type = cast<RankedTensorType>(getType());
  int64_t offset = getOffset(), most = type.getDimSize(3) - type.getDimSize(2);
  if (failed(atLeast(*this, "window", getWindow(), 0)))
    return failure();
  if (offset < 0 || offset > most)
    return emitOpError("offset must lie in 0..L-S = 0..") << most << ", found " << offset;
  return success();
}

OpFoldResult MaskDxOp::fold(FoldAdaptor) {
  return !getCausal() && getWindow() == 0 ? OpFoldResult(getX()) : OpFoldResult();
}

LogicalResult ValuesDvOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  Check check(loc, getOperationName());
  auto p = check.tensor(op.getP(), "p", 4, "[B, heads, S, L]");
  auto y = check.tensor(op.getY(), "y", 3, "[B, S, heads*d]");
  int64_t heads = op.getHeads(), kvHeads = op.getKvHeads();
  if (failed(p) || failed(y) || failed(check.sameElement("p", *p, "y", *y)) ||
      failed(check.equal("batch mismatch", "p B", p->getDimSize(0), "y B", y->getDimSize(0))) ||
      failed(check.equal("length mismatch", "p S", p->getDimSize(2), "y S", y->getDimSize(1))) ||
      failed(checkHeads(check, heads, kvHeads)) ||
      failed(check.equal("head count mismatch", "p H", p->getDimSize(1), "heads", heads)) ||
      failed(check.divides("heads", heads, "width of y", lastDim(*y))))
    return failure();
  results.push_back(
      RankedTensorType::get({p->getDimSize(0), p->getDimSize(3), lastDim(*y) / heads * kvHeads}, p->getElementType()));
  return success();
}

// --- between forward and backward ----------------------------------------------------------------------------------

LogicalResult SaveOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  auto x = Check(loc, getOperationName()).tensor(op.getX(), "x");
  if (failed(x))
    return failure();
  results.push_back(*x);
  return success();
}

LogicalResult SaveOp::verify() { return plainName(*this, getName()); }

LogicalResult SavedOp::verify() { return plainName(*this, getName()); }

LogicalResult GradientOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  auto dw = Check(loc, getOperationName()).tensor(op.getDw(), "dw");
  if (failed(dw))
    return failure();
  results.push_back(*dw);
  return success();
}

LogicalResult GradientOp::verify() {
  if (failed(plainName(*this, getName(), "*")))
    return failure();
  if (getName().count('*') > 1 || getName().contains('*') != bool(getLayer()))
    return emitOpError("name \"") << getName() << "\" " << (getLayer() ? "has no '*' for" : "needs")
                                  << " the layer index";
  return success();
}

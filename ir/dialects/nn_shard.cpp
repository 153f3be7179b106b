// Shape rules and verifiers of the ops of one rank's part of a model. The records are in nn_shard.td.
#include "nn.h"
#include "rules.h"

using namespace mlir;
using namespace lapidary;
using namespace lapidary::nn;

using Loc = std::optional<Location>;
using Types = SmallVectorImpl<Type>;

LogicalResult EmbedPartOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  Check check(loc, getOperationName());
  auto ids = check.tensor(op.getIds(), "ids", 2, "[B, S]");
  auto table = check.tensor(op.getTable(), "table", 2, "[rows, D]");
  if (failed(ids) || failed(table) || failed(check.atLeast("first", op.getFirst(), 0)))
    return failure();
  results.push_back(RankedTensorType::get({ids->getDimSize(0), ids->getDimSize(1), table->getDimSize(1)},
                                          table->getElementType()));
  return success();
}

LogicalResult AllReduceOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  auto x = Check(loc, getOperationName()).tensor(op.getX(), "x");
  if (failed(x))
    return failure();
  results.push_back(*x);
  return success();
}

LogicalResult AllGatherOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  Check check(loc, getOperationName());
  auto x = check.tensor(op.getX(), "x");
  if (failed(x))
    return failure();
  int64_t part = lastDim(*x), width = op.getWidth();
  if (width < part)
    return check.fail("parts of " + Twine(part) + " values make a whole of " + Twine(width));
  SmallVector<int64_t> shape(x->getShape());
  shape.back() = width;
  results.push_back(RankedTensorType::get(shape, x->getElementType()));
  return success();
}

/// Rows of a tensor: everything but its last axis.
static int64_t rowsOf(RankedTensorType type) {
  int64_t rows = 1;
  for (int64_t dim : type.getShape().drop_back())
    rows *= dim;
  return rows;
}

LogicalResult ReduceScatterOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  Check check(loc, getOperationName());
  auto x = check.tensor(op.getX(), "x");
  if (failed(x) || failed(check.atLeast("ranks", op.getRanks(), 1)))
    return failure();
  int64_t ranks = op.getRanks();
  int64_t rows = (rowsOf(*x) + ranks - 1) / ranks;
  results.push_back(RankedTensorType::get({1, rows, lastDim(*x)}, x->getElementType()));
  return success();
}

LogicalResult GatherRowsOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  Check check(loc, getOperationName());
  auto x = check.tensor(op.getX(), "x");
  if (failed(x) || failed(check.atLeast("batch", op.getBatch(), 1)) || failed(check.atLeast("seq", op.getSeq(), 1)))
    return failure();
  int64_t whole = int64_t(op.getBatch()) * int64_t(op.getSeq());
  if (rowsOf(*x) > whole)
    return check.fail("parts of " + Twine(rowsOf(*x)) + " rows make a whole of " + Twine(whole));
  results.push_back(
      RankedTensorType::get({int64_t(op.getBatch()), int64_t(op.getSeq()), lastDim(*x)}, x->getElementType()));
  return success();
}

LogicalResult TakeRowsOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  Check check(loc, getOperationName());
  auto x = check.tensor(op.getX(), "x");
  if (failed(x) || failed(check.atLeast("first", op.getFirst(), 0)) || failed(check.atLeast("rows", op.getRows(), 1)))
    return failure();
  if (int64_t(op.getRows()) > rowsOf(*x))
    return check.fail(Twine(op.getRows()) + " rows of " + Twine(rowsOf(*x)));
  results.push_back(RankedTensorType::get({1, int64_t(op.getRows()), lastDim(*x)}, x->getElementType()));
  return success();
}

LogicalResult TakeOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  Check check(loc, getOperationName());
  auto x = check.tensor(op.getX(), "x");
  if (failed(x) || failed(check.atLeast("first", op.getFirst(), 0)) ||
      failed(check.atLeast("length", op.getLength(), 0)) || failed(check.atLeast("held", op.getHeld(), 1)))
    return failure();
  int64_t first = op.getFirst(), length = op.getLength(), held = op.getHeld();
  if (first > lastDim(*x) - length || length > held)
    return check.fail("columns " + Twine(first) + " to " + Twine(first + length) + " of " + Twine(lastDim(*x)) +
                      ", held in " + Twine(held));
  SmallVector<int64_t> shape(x->getShape());
  shape.back() = held;
  results.push_back(RankedTensorType::get(shape, x->getElementType()));
  return success();
}

LogicalResult EmbedPartDwOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  Check check(loc, getOperationName());
  auto ids = check.tensor(op.getIds(), "ids", 2, "[B, S]");
  auto dy = check.tensor(op.getDy(), "dy", 3, "[B, S, D]");
  if (failed(ids) || failed(dy) || failed(check.atLeast("first", op.getFirst(), 0)) ||
      failed(check.atLeast("rows", op.getRows(), 1)) ||
      failed(check.equal("batch mismatch", "ids B", ids->getDimSize(0), "dy B", dy->getDimSize(0))) ||
      failed(check.equal("length mismatch", "ids S", ids->getDimSize(1), "dy S", dy->getDimSize(1))))
    return failure();
  results.push_back(RankedTensorType::get({int64_t(op.getRows()), dy->getDimSize(2)}, dy->getElementType()));
  return success();
}

LogicalResult SendOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  Check check(loc, getOperationName());
  auto x = check.tensor(op.getX(), "x");
  if (failed(x) || failed(check.atLeast("stage", op.getStage(), 0)))
    return failure();
  results.push_back(*x);
  return success();
}

LogicalResult ReceiveOp::verify() { return atLeast(*this, "stage", getStage(), 0); }

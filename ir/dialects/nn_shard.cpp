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

LogicalResult SendOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  Check check(loc, getOperationName());
  auto x = check.tensor(op.getX(), "x");
  if (failed(x) || failed(check.atLeast("stage", op.getStage(), 0)))
    return failure();
  results.push_back(*x);
  return success();
}

LogicalResult ReceiveOp::verify() { return atLeast(*this, "stage", getStage(), 0); }

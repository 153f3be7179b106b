// The `nn` dialect: shape rules, verifiers, folds, and the syntax of nn.fused. The records are in nn.td.
#include "nn.h"
#include "rules.h"

#include "mlir/CAPI/IR.h"
#include "mlir/CAPI/Support.h"
#include "mlir/CAPI/Registration.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/Builders.h"
#include "mlir/IR/DialectImplementation.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace lapidary;
using namespace lapidary::nn;

#include "nn_enum_defs.inc"
#include "nn_dialect_defs.inc"
#define GET_ATTRDEF_CLASSES
#include "nn_attrdef_defs.inc"

using Loc = std::optional<Location>;
using Types = SmallVectorImpl<Type>;

// --- the dialect ---------------------------------------------------------------------------------------------------

void NNDialect::initialize() {
  addAttributes<
#define GET_ATTRDEF_LIST
#include "nn_attrdef_defs.inc"
      >();
  addOperations<
#define GET_OP_LIST
#include "nn_op_defs.inc"
      >();
}

static bool isI64(Attribute attr) {
  auto integer = dyn_cast<IntegerAttr>(attr);
  return integer && integer.getType().isSignlessInteger(64);
}

LogicalResult NNDialect::verifyOperationAttribute(Operation *op, NamedAttribute attr) {
  StringRef name = attr.getName().strref();
  bool text = name == "nn.model" || name == "nn.mode";
  bool count = name == "nn.batch" || name == "nn.seq" || name == "nn.cached";
  if (!isa<ModuleOp>(op) || !(text || count))
    return op->emitOpError("does not know the attribute '") << name << "'";
  if (text && !isa<StringAttr>(attr.getValue()))
    return op->emitOpError("attribute '") << name << "' must be a string";
  if (count && !isI64(attr.getValue()))
    return op->emitOpError("attribute '") << name << "' must be an i64";
  return success();
}

LogicalResult NNDialect::verifyRegionArgAttribute(Operation *op, unsigned, unsigned arg, NamedAttribute attr) {
  if (attr.getName() == "nn.name" && isa<StringAttr>(attr.getValue()))
    return success();
  return op->emitOpError("argument ") << arg << " does not know the attribute '" << attr.getName().strref() << "'";
}

// --- parameters and gathers ----------------------------------------------------------------------------------------

LogicalResult ParamOp::verify() {
  if (failed(verifyParameter(*this)))
    return failure();
  if (getName().contains('*') != bool(getLayer()))
    return emitOpError("name \"") << getName() << "\" " << (getLayer() ? "has no '*' for" : "needs")
                                  << " the layer index";
  return success();
}

/// In print, a weight is called by its own name.
void ParamOp::getAsmResultNames(OpAsmSetValueNameFn setName) {
  StringRef name = getName();
  name.consume_front("layers.*.");
  setName(getResult(), name);
}

LogicalResult EmbedOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  Check check(loc, getOperationName());
  auto ids = check.tensor(op.getIds(), "ids", 2, "[B, S]");
  auto table = check.tensor(op.getTable(), "table", 2, "[V, D]");
  if (failed(ids) || failed(table))
    return failure();
  results.push_back(RankedTensorType::get({ids->getDimSize(0), ids->getDimSize(1), table->getDimSize(1)},
                                          table->getElementType()));
  return success();
}

LogicalResult PositionOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  Check check(loc, getOperationName());
  auto x = check.tensor(op.getX(), "x", 3, "[B, S, D]");
  auto table = check.tensor(op.getTable(), "table", 2, "[max_seq, D]");
  if (failed(x) || failed(table) || failed(check.sameElement("x", *x, "table", *table)) ||
      failed(check.equal("width mismatch", "x D", x->getDimSize(2), "table D", table->getDimSize(1))) ||
      failed(check.atLeast("offset", op.getOffset(), 0)))
    return failure();
  if (int64_t(op.getOffset()) > table->getDimSize(0) - x->getDimSize(1))
    return check.fail("positions end at offset + S = " + Twine(op.getOffset()) + " + " + Twine(x->getDimSize(1)) +
                      " but the table has max_seq = " + Twine(table->getDimSize(0)) + " rows");
  results.push_back(*x);
  return success();
}

LogicalResult LastTokenOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  auto x = Check(loc, getOperationName()).tensor(op.getX(), "x", 3, "[B, S, D]");
  if (failed(x))
    return failure();
  results.push_back(RankedTensorType::get({x->getDimSize(0), 1, x->getDimSize(2)}, x->getElementType()));
  return success();
}

OpFoldResult LastTokenOp::fold(FoldAdaptor) {
  return getX().getType() == getType() ? OpFoldResult(getX()) : OpFoldResult();
}

// --- linear algebra ------------------------------------------------------------------------------------------------

LogicalResult LinearOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  Check check(loc, getOperationName());
  auto x = check.tensor(op.getX(), "x");
  auto weight = check.tensor(op.getWeight(), "weight", 2, "[N, K]");
  if (failed(x) || failed(weight) || failed(check.sameElement("x", *x, "weight", *weight)) ||
      failed(check.equal("contraction mismatch", "x K", lastDim(*x), "weight K", weight->getDimSize(1))))
    return failure();
  SmallVector<int64_t> shape(x->getShape());
  shape.back() = weight->getDimSize(0);
  results.push_back(RankedTensorType::get(shape, x->getElementType()));
  return success();
}

LogicalResult BiasOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  Check check(loc, getOperationName());
  auto x = check.tensor(op.getX(), "x");
  auto bias = check.tensor(op.getBias(), "bias", 1, "[N]");
  if (failed(x) || failed(bias) || failed(check.sameElement("x", *x, "bias", *bias)) ||
      failed(check.equal("width mismatch", "x N", lastDim(*x), "bias N", lastDim(*bias))))
    return failure();
  results.push_back(*x);
  return success();
}

// --- elementwise ---------------------------------------------------------------------------------------------------

static LogicalResult inferBinary(const Check &check, Value a, Value b, Types &results) {
  auto left = check.tensor(a, "a"), right = check.tensor(b, "b");
  if (failed(left) || failed(right) || failed(check.sameElement("a", *left, "b", *right)) ||
      failed(check.equal("rank mismatch", "rank of a", left->getRank(), "rank of b", right->getRank())))
    return failure();
  for (int64_t axis = 0; axis < left->getRank(); ++axis)
    if (failed(check.equal("shape mismatch", "a axis " + Twine(axis), left->getDimSize(axis),
                           "b axis " + Twine(axis), right->getDimSize(axis))))
      return failure();
  results.push_back(*left);
  return success();
}

LogicalResult AddOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  return inferBinary(Check(loc, getOperationName()), op.getA(), op.getB(), results);
}

LogicalResult MulOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  return inferBinary(Check(loc, getOperationName()), op.getA(), op.getB(), results);
}

static LogicalResult inferSame(const Check &check, Value x, Types &results) {
  auto type = check.tensor(x, "x");
  if (failed(type))
    return failure();
  results.push_back(*type);
  return success();
}

LogicalResult ScaleOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  return inferSame(Check(loc, getOperationName()), op.getX(), results);
}

LogicalResult ScaleOp::verify() {
  static constexpr StringRef roles[] = {"mup.embedding", "mup.output", "mup.attention",
                                        "attention",     "embedding",  "output",      "residual"};
  if (!llvm::is_contained(roles, getRole())) {
    auto diagnostic = emitOpError("does not know the role \"") << getRole() << "\"";
    auto &note = diagnostic.attachNote() << "known roles: ";
    llvm::interleaveComma(roles, note);
    return diagnostic;
  }
  if (!getBy().isFinite())
    return emitOpError("factor must be finite, found ") << getBy().convertToDouble();
  return success();
}

OpFoldResult ScaleOp::fold(FoldAdaptor) {
  return getBy().isExactlyValue(1.0) ? OpFoldResult(getX()) : OpFoldResult();
}

LogicalResult ScaleOp::canonicalize(ScaleOp op, PatternRewriter &rewriter) {
  auto inner = op.getX().getDefiningOp<ScaleOp>();
  if (!inner || inner.getRole() != op.getRole() || !inner->hasOneUse())
    return failure();
  double by = inner.getBy().convertToDouble() * op.getBy().convertToDouble();
  rewriter.replaceOpWithNewOp<ScaleOp>(op, inner.getX(), rewriter.getF64FloatAttr(by), op.getRoleAttr());
  return success();
}

LogicalResult ActivationOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  return inferSame(Check(loc, getOperationName()), op.getX(), results);
}

// --- rows ----------------------------------------------------------------------------------------------------------

LogicalResult NormOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  Check check(loc, getOperationName());
  auto x = check.tensor(op.getX(), "x");
  auto weight = check.tensor(op.getWeight(), "weight", 1, "[D]");
  if (failed(x) || failed(weight) || failed(check.sameElement("x", *x, "weight", *weight)) ||
      failed(check.equal("width mismatch", "x D", lastDim(*x), "weight D", lastDim(*weight))))
    return failure();
  if (op.getBias()) {
    auto bias = check.tensor(op.getBias(), "bias", 1, "[D]");
    if (failed(bias) || failed(check.sameElement("x", *x, "bias", *bias)) ||
        failed(check.equal("width mismatch", "x D", lastDim(*x), "bias D", lastDim(*bias))))
      return failure();
  }
  results.push_back(*x);
  return success();
}

LogicalResult NormOp::verify() {
  return positive(*this, "eps", getEpsAttr());
}

LogicalResult SoftmaxOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  return inferSame(Check(loc, getOperationName()), op.getX(), results);
}

// --- attention -----------------------------------------------------------------------------------------------------

template <typename Adaptor> static LogicalResult inferRotary(const Check &check, Adaptor op, Types &results) {
  auto x = check.tensor(op.getX(), "x", 3, "[B, S, heads*head_dim]");
  if (failed(x) || failed(check.divides("head_dim", op.getHeadDim(), "width of x", lastDim(*x))))
    return failure();
  results.push_back(*x);
  return success();
}

LogicalResult RopeOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  return inferRotary(Check(loc, getOperationName()), op, results);
}

LogicalResult RopeDxOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  return inferRotary(Check(loc, getOperationName()), op, results);
}

LogicalResult RopeDxOp::verify() { return verifyRope(*this); }

LogicalResult RopeOp::verify() { return verifyRope(*this); }

LogicalResult KvAppendOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  Check check(loc, getOperationName());
  auto x = check.tensor(op.getX(), "x", 3, "[B, S, K*d]");
  if (failed(x) || failed(check.atLeast("cached", op.getCached(), 0)))
    return failure();
  int64_t length;
  if (llvm::AddOverflow(int64_t(op.getCached()), x->getDimSize(1), length))
    return check.fail("cached + S does not fit in 64 bits");
  results.push_back(RankedTensorType::get({x->getDimSize(0), length, x->getDimSize(2)}, x->getElementType()));
  return success();
}

LogicalResult lapidary::nn::checkHeads(const Check &check, int64_t heads, int64_t kvHeads) {
  if (failed(check.atLeast("heads", heads, 1)) || failed(check.atLeast("kv_heads", kvHeads, 1)))
    return failure();
  return check.divides("kv_heads", kvHeads, "heads", heads);
}

LogicalResult ScoresOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  Check check(loc, getOperationName());
  auto q = check.tensor(op.getQ(), "q", 3, "[B, S, heads*d]");
  auto k = check.tensor(op.getK(), "k", 3, "[B, L, kv_heads*d]");
  int64_t heads = op.getHeads(), kvHeads = op.getKvHeads();
  if (failed(q) || failed(k) || failed(check.sameElement("q", *q, "k", *k)) ||
      failed(check.equal("batch mismatch", "q B", q->getDimSize(0), "k B", k->getDimSize(0))) ||
      failed(checkHeads(check, heads, kvHeads)) || failed(check.divides("heads", heads, "width of q", lastDim(*q))) ||
      failed(check.divides("kv_heads", kvHeads, "width of k", lastDim(*k))) ||
      failed(check.equal("head width mismatch", "q d", lastDim(*q) / heads, "k d", lastDim(*k) / kvHeads)))
    return failure();
  results.push_back(
      RankedTensorType::get({q->getDimSize(0), heads, q->getDimSize(1), k->getDimSize(1)}, q->getElementType()));
  return success();
}

LogicalResult MaskOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  auto x = Check(loc, getOperationName()).tensor(op.getX(), "x", 4, "[B, H, S, L]");
  if (failed(x))
    return failure();
  results.push_back(*x);
  return success();
}

LogicalResult MaskOp::verify() {
  auto type = cast<RankedTensorType>(getType());
  if (failed(atLeast(*this, "alibi_first", getAlibiFirst(), 0)) || failed(atLeast(*this, "alibi_heads", getAlibiHeads(), 0)))
    return failure();
  if (!getAlibi() && getAlibiHeads() != 0)
    return emitOpError("alibi_heads belongs to alibi");
  return verifyMask(*this, type.getDimSize(2), type.getDimSize(3));
}

OpFoldResult MaskOp::fold(FoldAdaptor) {
  return !getCausal() && getWindow() == 0 && !getAlibi() ? OpFoldResult(getX()) : OpFoldResult();
}

LogicalResult ValuesOp::inferReturnTypes(MLIRContext *, Loc loc, Adaptor op, Types &results) {
  Check check(loc, getOperationName());
  auto p = check.tensor(op.getP(), "p", 4, "[B, heads, S, L]");
  auto v = check.tensor(op.getV(), "v", 3, "[B, L, kv_heads*d]");
  int64_t heads = op.getHeads(), kvHeads = op.getKvHeads(), width;
  if (failed(p) || failed(v) || failed(check.sameElement("p", *p, "v", *v)) ||
      failed(check.equal("batch mismatch", "p B", p->getDimSize(0), "v B", v->getDimSize(0))) ||
      failed(check.equal("length mismatch", "p L", p->getDimSize(3), "v L", v->getDimSize(1))) ||
      failed(checkHeads(check, heads, kvHeads)) ||
      failed(check.equal("head count mismatch", "p H", p->getDimSize(1), "heads", heads)) ||
      failed(check.divides("kv_heads", kvHeads, "width of v", lastDim(*v))))
    return failure();
  if (llvm::MulOverflow(lastDim(*v) / kvHeads, heads, width))
    return check.fail("heads*d does not fit in 64 bits");
  results.push_back(RankedTensorType::get({p->getDimSize(0), p->getDimSize(2), width}, p->getElementType()));
  return success();
}

// --- structure -----------------------------------------------------------------------------------------------------

LogicalResult RepeatOp::verify() {
  if (failed(atLeast(*this, "times", getTimes(), 1)) || failed(atLeast(*this, "first", getFirst(), 0)))
    return failure();
  if (getInputs().getTypes() != getResultTypes())
    return emitOpError("returns other types than it takes: ") << getInputs().getTypes() << " and " << getResultTypes();
  return success();
}

/// Whether `function` calls `target`, directly or through other functions. A body that was visited is not visited again.
static bool reaches(func::FuncOp function, func::FuncOp target, SymbolTableCollection &symbols,
                    SmallPtrSetImpl<Operation *> &visited) {
  if (function == target)
    return true;
  if (!visited.insert(function).second)
    return false;
  auto calls = [&](RepeatOp repeat) {
    auto body = symbols.lookupNearestSymbolFrom<func::FuncOp>(repeat, repeat.getBodyAttr());
    return body && reaches(body, target, symbols, visited) ? WalkResult::interrupt() : WalkResult::advance();
  };
  return function.walk(calls).wasInterrupted();
}

LogicalResult RepeatOp::verifySymbolUses(SymbolTableCollection &symbols) {
  auto body = symbols.lookupNearestSymbolFrom<func::FuncOp>(*this, getBodyAttr());
  if (!body)
    return emitOpError("calls @") << getBody() << ", which is not a function of this module";
  SmallVector<Type> arguments{IndexType::get(getContext())};
  llvm::append_range(arguments, getInputs().getTypes());
  auto wanted = FunctionType::get(getContext(), arguments, SmallVector<Type>(getResultTypes()));
  SmallPtrSet<Operation *, 4> visited;
  auto caller = (*this)->getParentOfType<func::FuncOp>();
  if (caller && reaches(body, caller, symbols, visited))
    return emitOpError("calls @") << getBody() << ", which calls @" << caller.getName() << " again without end";
  if (body.getFunctionType() == wanted)
    return success();
  auto diagnostic = emitOpError("needs a body of type ") << wanted << ", but @" << getBody() << " is "
                                                         << body.getFunctionType();
  diagnostic.attachNote(body.getLoc()) << "the body is here";
  return diagnostic;
}

LogicalResult YieldOp::verify() {
  StringRef parent = (*this)->getParentOp()->getName().getStringRef();
  if (parent == "nn.fused" || parent == "cuda.kernel")
    return success();
  return emitOpError("ends a kernel, not ") << parent;
}

LogicalResult FusedOp::verify() {
  if (failed(plainName(*this, getName())))
    return failure();
  if (failed(atLeast(*this, "saved_bytes", getSavedBytes(), 0)))
    return failure();
  if (getNumResults() == 0)
    return emitOpError("needs a result");
  Block &block = getBody().front();
  if (block.getArgumentTypes() != getInputs().getTypes())
    return emitOpError("inputs and block arguments differ: ")
           << getInputs().getTypes() << " and " << block.getArgumentTypes();
  return success();
}

LogicalResult lapidary::nn::verifyKernelBody(Operation *kernel, Block &block) {
  for (Operation &inner : block) {
    if (!isa<NNDialect>(inner.getDialect()) || isa<ParamOp, RepeatOp, FusedOp, SaveOp, SavedOp>(inner)) {
      auto diagnostic = kernel->emitOpError("holds an op that cannot be part of a kernel: ") << inner.getName();
      diagnostic.attachNote(inner.getLoc()) << "it is here";
      return diagnostic;
    }
  }
  if (block.empty() || llvm::hasSingleElement(block))
    return kernel->emitOpError("computes nothing");
  if (!isa<YieldOp>(block.back()))
    return kernel->emitOpError("must end with nn.yield");
  return success();
}

LogicalResult FusedOp::verifyRegions() {
  if (failed(verifyKernelBody(*this, getBody().front())))
    return failure();
  Operation *yield = getBody().front().getTerminator();
  if (yield->getOperandTypes() != getResultTypes())
    return emitOpError("yields other types than it returns: ")
           << yield->getOperandTypes() << " and " << getResultTypes();
  return success();
}

/// Drops inputs that the body does not read and passes each value once.
LogicalResult FusedOp::canonicalize(FusedOp op, PatternRewriter &rewriter) {
  Block &block = op.getBody().front();
  llvm::BitVector dropped(block.getNumArguments());
  llvm::SmallDenseMap<Value, unsigned> first;
  for (auto [index, input] : llvm::enumerate(op.getInputs())) {
    auto [seen, fresh] = first.try_emplace(input, index);
    if (!fresh)
      rewriter.replaceAllUsesWith(block.getArgument(index), block.getArgument(seen->second));
    if (block.getArgument(index).use_empty())
      dropped.set(index);
  }
  if (dropped.none())
    return failure();
  rewriter.modifyOpInPlace(op, [&] {
    block.eraseArguments(dropped);
    op->eraseOperands(dropped);
  });
  return success();
}

#define GET_OP_CLASSES
#include "nn_op_defs.inc"

// --- the door to Rust ----------------------------------------------------------------------------------------------

extern "C" {
MLIR_DECLARE_CAPI_DIALECT_REGISTRATION(NN, nn);

/// The word of an enum attribute of this dialect, or an empty string for any other attribute.
MlirStringRef lapidaryNnEnumWord(MlirAttribute attr) {
  StringRef word =
      llvm::TypeSwitch<Attribute, StringRef>(unwrap(attr))
          .Case([](NormKindAttr a) { return stringifyNormKind(a.getValue()); })
          .Case([](PairingAttr a) { return stringifyPairing(a.getValue()); })
          .Case([](RopeScalingAttr a) { return stringifyRopeScaling(a.getValue()); })
          .Case([](FunctionAttr a) { return stringifyFunction(a.getValue()); })
          .Case([](CacheAttr a) { return stringifyCache(a.getValue()); })
          .Case([](AnchorAttr a) { return stringifyAnchor(a.getValue()); })
          .Default([](Attribute) { return StringRef(); });
  return wrap(word);
}
}
MLIR_DEFINE_CAPI_DIALECT_REGISTRATION(NN, nn, lapidary::nn::NNDialect)

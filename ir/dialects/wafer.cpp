// The `wafer` dialect: layouts, placement and shape rules. The records are in wafer.td.
#include "wafer.h"
#include "rules.h"

#include "mlir/CAPI/IR.h"
#include "mlir/CAPI/Registration.h"
#include "mlir/CAPI/Support.h"
#include "mlir/IR/Builders.h"
#include "mlir/IR/DialectImplementation.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace lapidary;
using namespace lapidary::wafer;

// Cerebras WSE-2: memory of one PE, and virtual channels that a program may route.
static constexpr int64_t sramBytes = 48 * 1024;
static constexpr int64_t colourCount = 24;

static ParseResult parseTileSize(AsmParser &parser, int64_t &tokens, int64_t &features, Type &element) {
  SmallVector<int64_t> sizes;
  SMLoc place = parser.getCurrentLocation();
  if (parser.parseDimensionList(sizes, /*allowDynamic=*/false) || parser.parseType(element))
    return failure();
  if (sizes.size() != 2)
    return parser.emitError(place, "a tile is tokens x features x element");
  tokens = sizes[0], features = sizes[1];
  return success();
}

static void printTileSize(AsmPrinter &printer, int64_t tokens, int64_t features, Type element) {
  printer << tokens << 'x' << features << 'x' << element;
}

#include "wafer_enum_defs.inc"
#include "wafer_dialect_defs.inc"
#define GET_ATTRDEF_CLASSES
#include "wafer_attrdef_defs.inc"
#define GET_TYPEDEF_CLASSES
#include "wafer_typedef_defs.inc"

namespace {
/// Tiles are long to write and repeat on every line: a printed module names each once, `!tile_16x64xf32`.
struct TileAliases : OpAsmDialectInterface {
  using OpAsmDialectInterface::OpAsmDialectInterface;
  AliasResult getAlias(Type type, raw_ostream &os) const override {
    auto tile = dyn_cast<TileType>(type);
    if (!tile)
      return AliasResult::NoAlias;
    os << "tile_" << tile.getTokens() << 'x' << tile.getFeatures() << 'x' << tile.getElement();
    return AliasResult::FinalAlias;
  }
};
} // namespace

void WaferDialect::initialize() {
  addInterfaces<TileAliases>();
  addAttributes<
#define GET_ATTRDEF_LIST
#include "wafer_attrdef_defs.inc"
      >();
  addTypes<
#define GET_TYPEDEF_LIST
#include "wafer_typedef_defs.inc"
      >();
  addOperations<
#define GET_OP_LIST
#include "wafer_op_defs.inc"
      >();
}

// --- attributes and types ------------------------------------------------------------------------------------------

using Emit = function_ref<InFlightDiagnostic()>;

LogicalResult RectAttr::verify(Emit emit, int64_t x, int64_t y, int64_t w, int64_t h) {
  if (x < 0 || y < 0 || w < 1 || h < 1)
    return emit() << "rectangle <" << x << ", " << y << ", " << w << ", " << h << "> is empty or outside";
  return success();
}

LogicalResult LayoutAttr::verify(Emit emit, int64_t rows, int64_t cols, int64_t blocks, Inner) {
  if (rows < 1 || cols < 1)
    return emit() << "a layout needs at least one row and one column, found " << rows << " x " << cols;
  if (blocks < 1 || cols % blocks != 0)
    return emit() << "blocks = " << blocks << " does not divide cols = " << cols;
  return success();
}

LogicalResult TileType::verify(Emit emit, int64_t tokens, int64_t features, Type element, LayoutAttr layout) {
  if (!isa<FloatType>(element))
    return emit() << "a tile's elements are floats, found " << element;
  if (tokens < layout.getRows())
    return emit() << "tokens = " << tokens << " cannot spread over rows = " << layout.getRows();
  if (features % layout.getBlocks() != 0)
    return emit() << "blocks = " << layout.getBlocks() << " does not divide features = " << features;
  if (layout.getInner() == Inner::features && features < layout.getCols())
    return emit() << "features = " << features << " cannot spread over cols = " << layout.getCols();
  return success();
}

static int64_t ceilDiv(int64_t a, int64_t b) { return a / b + (a % b != 0); }

int64_t TileType::getBlockBytes() {
  int64_t tokens = ceilDiv(getTokens(), getLayout().getRows()), elements, bits;
  int64_t features = getFeatures() / getLayout().getBlocks(), columns = getLayout().getColumnsOfBlock();
  (getLayout().getInner() == Inner::tokens ? tokens : features) =
      ceilDiv(getLayout().getInner() == Inner::tokens ? tokens : features, columns);
  if (llvm::MulOverflow(tokens, features, elements) ||
      llvm::MulOverflow(elements, int64_t(getElement().getIntOrFloatBitWidth()), bits))
    return INT64_MAX;
  return ceilDiv(bits, 8);
}

// --- structure -----------------------------------------------------------------------------------------------------

LogicalResult ProgramOp::verify() {
  if (getGrid().size() != 2 || getGrid()[0] < 1 || getGrid()[1] < 1)
    return emitOpError("grid is [width, height], both at least 1");
  if (!isa<ReturnOp>(getBody().front().back()))
    return emitOpError("must end with wafer.return");
  for (Type type : getBody().getArgumentTypes())
    if (!isa<RankedTensorType>(type))
      return emitOpError("takes tensors from the host, found ") << type;
  return success();
}

LogicalResult RepeatOp::verify() {
  if (failed(atLeast(*this, "times", getTimes(), 1)))
    return failure();
  Block &block = getBody().front();
  auto yield = dyn_cast<YieldOp>(block.back());
  if (!yield)
    return emitOpError("must end with wafer.yield");
  TypeRange types = getInputs().getTypes();
  if (types != getResultTypes() || types != TypeRange(block.getArgumentTypes()) || types != yield.getOperandTypes())
    return emitOpError("takes, passes on and returns one list of types: ")
           << types << ", " << block.getArgumentTypes() << ", " << yield.getOperandTypes() << ", " << getResultTypes();
  return success();
}

LogicalResult WeightOp::verify() {
  if (failed(verifyParameter(*this)))
    return failure();
  if (getName().contains('*') && !(*this)->getParentOfType<RepeatOp>())
    return emitOpError("name \"") << getName() << "\" means a layer, but no wafer.repeat is around";
  return success();
}

// --- placement -----------------------------------------------------------------------------------------------------

static LogicalResult verifyColours(Operation *op, ArrayRef<int64_t> colours) {
  llvm::SmallBitVector seen(colourCount);
  for (int64_t colour : colours) {
    if (colour < 0 || colour >= colourCount)
      return op->emitOpError("colour ") << colour << " does not exist: there are 0.." << colourCount - 1;
    if (seen.test(colour))
      return op->emitOpError("uses colour ") << colour << " twice";
    seen.set(colour);
  }
  return success();
}

static LogicalResult verifyRect(Operation *op, RectAttr rect, TileType tile) {
  if (tile.getLayout().getRows() > rect.getH() || tile.getLayout().getCols() > rect.getW())
    return op->emitOpError("result of ") << tile.getLayout().getRows() << " rows and " << tile.getLayout().getCols()
                                         << " columns does not fit a rectangle of " << rect.getH() << " rows and "
                                         << rect.getW() << " columns";
  auto program = op->getParentOfType<ProgramOp>();
  if (!program || program.getGrid().size() != 2)
    return success();
  int64_t width = program.getGrid()[0], height = program.getGrid()[1];
  if (rect.getX() > width - rect.getW() || rect.getY() > height - rect.getH())
    return op->emitOpError("rectangle <") << rect.getX() << ", " << rect.getY() << ", " << rect.getW() << ", "
                                          << rect.getH() << "> leaves the grid [" << width << ", " << height << "]";
  return success();
}

LogicalResult wafer::verifyPlaced(Operation *op) {
  auto rect = op->getAttrOfType<RectAttr>("rect");
  auto sram = op->getAttrOfType<IntegerAttr>("sram_bytes");
  auto colours = op->getAttrOfType<DenseI64ArrayAttr>("colours");
  auto tile = dyn_cast<TileType>(op->getResult(0).getType());
  if (!rect || !tile)
    return op->emitOpError("needs a rectangle and a tile");
  if (sram && (sram.getInt() < 0 || sram.getInt() > sramBytes))
    return op->emitOpError("sram = ") << sram.getInt() << " bytes: a PE has " << sramBytes;
  if (colours && failed(verifyColours(op, colours.asArrayRef())))
    return failure();
  return verifyRect(op, rect, tile);
}

// --- shapes --------------------------------------------------------------------------------------------------------

namespace {
/// Shape checks of one placed op.
struct Rules : Check {
  explicit Rules(Operation *op) : Check(op->getLoc(), op->getName().getStringRef()) {}

  LogicalResult sequences(int64_t count, int64_t tokens) const { return divides("sequences", count, "tokens", tokens); }
  LogicalResult size(StringRef what, TileType tile, int64_t tokens, int64_t features) const {
    if (failed(equal("token mismatch", what + " tokens", tile.getTokens(), "expected", tokens)))
      return failure();
    return equal("feature mismatch", what + " features", tile.getFeatures(), "expected", features);
  }
  LogicalResult vector(StringRef name, Value value, int64_t features) const {
    auto type = tensor(value, name, 1, "[N]");
    if (failed(type))
      return failure();
    return equal("width mismatch", "features", features, name + " N", type->getDimSize(0));
  }
  /// One size, whatever the layouts.
  LogicalResult sameSize(StringRef leftName, TileType left, StringRef rightName, TileType right) const {
    if (failed(equal("token mismatch", leftName + " tokens", left.getTokens(), rightName + " tokens",
                     right.getTokens())) ||
        failed(equal("feature mismatch", leftName + " features", left.getFeatures(), rightName + " features",
                     right.getFeatures())))
      return failure();
    return left.getElement() == right.getElement() ? success()
                                                   : fail(leftName + " and " + rightName + " have different elements");
  }
  LogicalResult same(StringRef leftName, TileType left, StringRef rightName, TileType right) const {
    return left == right ? success() : fail(leftName + " and " + rightName + " are different tiles");
  }
};
} // namespace

LogicalResult EmbedOp::verify() {
  Rules rules(*this);
  auto ids = rules.tensor(getIds(), "ids", 2, "[B, S]");
  auto table = rules.tensor(getTable(), "table", 2, "[V, D]");
  if (failed(ids) || failed(table))
    return failure();
  return rules.size("result", getType(), ids->getNumElements(), table->getDimSize(1));
}

LogicalResult PositionOp::verify() {
  Rules rules(*this);
  auto table = rules.tensor(getTable(), "table", 2, "[max_seq, D]");
  if (failed(table) || failed(rules.same("x", getX().getType(), "result", getType())) ||
      failed(rules.sequences(getSequences(), getType().getTokens())) || failed(atLeast(*this, "offset", getOffset(), 0)))
    return failure();
  if (int64_t(getOffset()) > table->getDimSize(0) - getType().getTokens() / int64_t(getSequences()))
    return emitOpError("positions run past the table's ") << table->getDimSize(0) << " rows";
  return rules.equal("width mismatch", "x D", getType().getFeatures(), "table D", table->getDimSize(1));
}

LogicalResult LinearOp::verify() {
  Rules rules(*this);
  auto weight = rules.tensor(getWeight(), "weight", 2, "[N, K]");
  TileType x = getX().getType();
  if (failed(weight) ||
      failed(rules.equal("contraction mismatch", "x K", x.getFeatures(), "weight K", weight->getDimSize(1))) ||
      failed(rules.size("result", getType(), x.getTokens(), weight->getDimSize(0))))
    return failure();
  if (getBias() && failed(rules.vector("bias", getBias(), getType().getFeatures())))
    return failure();
  if (getResidual() && failed(rules.same("residual", getResidual().getType(), "result", getType())))
    return failure();
  if (!isa<FloatType>(getAcc()))
    return emitOpError("accumulates in a float type, found ") << getAcc();
  return success();
}

LogicalResult NormOp::verify() {
  Rules rules(*this);
  if (failed(positive(*this, "eps", getEpsAttr())) || failed(rules.same("x", getX().getType(), "result", getType())) ||
      failed(rules.vector("weight", getWeight(), getType().getFeatures())))
    return failure();
  return getBias() ? rules.vector("bias", getBias(), getType().getFeatures()) : success();
}

LogicalResult RopeOp::verify() {
  Rules rules(*this);
  if (failed(rules.same("x", getX().getType(), "result", getType())) ||
      failed(rules.sequences(getSequences(), getType().getTokens())) ||
      failed(rules.divides("head_dim", getHeadDim(), "features", getType().getFeatures())))
    return failure();
  return verifyRope(*this);
}

LogicalResult KvAppendOp::verify() {
  Rules rules(*this);
  TileType x = getX().getType();
  int64_t cached;
  if (failed(rules.sequences(getSequences(), x.getTokens())) || failed(atLeast(*this, "cached", getCached(), 0)))
    return failure();
  if (llvm::MulOverflow(int64_t(getCached()), int64_t(getSequences()), cached) || cached > INT64_MAX - x.getTokens())
    return emitOpError("holds more tokens than 64 bits count");
  return rules.size("result", getType(), cached + x.getTokens(), x.getFeatures());
}

LogicalResult AttentionOp::verify() {
  Rules rules(*this);
  TileType q = getQ().getType(), k = getK().getType();
  int64_t heads = getHeads(), kvHeads = getKvHeads(), sequences = getSequences();
  if (failed(rules.sameSize("q", q, "result", getType())) || failed(rules.same("k", k, "v", getV().getType())) ||
      failed(rules.atLeast("heads", heads, 1)) || failed(rules.divides("kv_heads", kvHeads, "heads", heads)) ||
      failed(rules.divides("heads", heads, "q features", q.getFeatures())) ||
      failed(rules.divides("kv_heads", kvHeads, "k features", k.getFeatures())) ||
      failed(rules.equal("head width mismatch", "q d", q.getFeatures() / heads, "k d", k.getFeatures() / kvHeads)) ||
      failed(rules.sequences(sequences, q.getTokens())) || failed(rules.sequences(sequences, k.getTokens())))
    return failure();
  if (!getScale().isFinite())
    return emitOpError("scale must be finite");
  return verifyMask(*this, q.getTokens() / sequences, k.getTokens() / sequences);
}

LogicalResult MapOp::verify() {
  Rules rules(*this);
  unsigned wanted = getFn() == MapFn::add || getFn() == MapFn::mul ? 2 : 1;
  if (getInputs().size() != wanted)
    return emitOpError() << stringifyMapFn(getFn()) << " takes " << wanted << " tiles, found " << getInputs().size();
  for (Value input : getInputs())
    if (failed(rules.same("input", cast<TileType>(input.getType()), "result", getType())))
      return failure();
  if ((getFn() == MapFn::scale) != bool(getByAttr()))
    return emitOpError("`by` and the function scale belong together");
  if (getByAttr() && !getByAttr().getValue().isFinite())
    return emitOpError("factor must be finite");
  return success();
}

LogicalResult LastTokenOp::verify() {
  Rules rules(*this);
  if (failed(rules.sequences(getSequences(), getX().getType().getTokens())))
    return failure();
  return rules.size("result", getType(), getSequences(), getX().getType().getFeatures());
}

#define GET_OP_CLASSES
#include "wafer_op_defs.inc"

// --- the door to Rust ----------------------------------------------------------------------------------------------

extern "C" {
MLIR_DECLARE_CAPI_DIALECT_REGISTRATION(Wafer, wafer);

/// The word of an enum attribute of this dialect, or an empty string for any other attribute.
MlirStringRef lapidaryWaferEnumWord(MlirAttribute attr) {
  return wrap(llvm::TypeSwitch<Attribute, StringRef>(unwrap(attr))
                  .Case([](SourceAttr a) { return stringifySource(a.getValue()); })
                  .Case([](MapFnAttr a) { return stringifyMapFn(a.getValue()); })
                  .Default([](Attribute) { return StringRef(); }));
}

/// x, y, w, h of a rectangle; false for any other attribute.
bool lapidaryWaferRect(MlirAttribute attr, int64_t *out) {
  auto rect = dyn_cast<RectAttr>(unwrap(attr));
  if (rect)
    out[0] = rect.getX(), out[1] = rect.getY(), out[2] = rect.getW(), out[3] = rect.getH();
  return bool(rect);
}

/// tokens, features, rows, cols, blocks of a tile, whether columns of a block share tokens, and its element type;
/// false for any other type.
bool lapidaryWaferTile(MlirType type, int64_t *out, MlirType *element) {
  auto tile = dyn_cast<TileType>(unwrap(type));
  if (!tile)
    return false;
  LayoutAttr layout = tile.getLayout();
  out[0] = tile.getTokens(), out[1] = tile.getFeatures();
  out[2] = layout.getRows(), out[3] = layout.getCols(), out[4] = layout.getBlocks();
  out[5] = layout.getInner() == Inner::tokens;
  *element = wrap(tile.getElement());
  return true;
}
}
MLIR_DEFINE_CAPI_DIALECT_REGISTRATION(Wafer, wafer, lapidary::wafer::WaferDialect)

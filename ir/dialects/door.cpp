// What the C API of MLIR lacks: parsing a module under a file's name, and short diagnostics.
#include "mlir/Interfaces/SideEffectInterfaces.h"
#include "mlir/CAPI/IR.h"
#include "mlir/CAPI/Support.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/Parser/Parser.h"

extern "C" MlirModule lapidaryParseModule(MlirContext context, MlirStringRef text, MlirStringRef name) {
  mlir::ParserConfig config(unwrap(context));
  return wrap(mlir::parseSourceString<mlir::ModuleOp>(unwrap(text), config, unwrap(name)).release());
}

/// Diagnostics point at a place in a text; a copy of the operation, whole regions included, would only hide them.
extern "C" void lapidaryPointOnly(MlirContext context) { unwrap(context)->printOpOnDiagnostic(false); }

/// Whether nobody reads an operation's results and it does nothing else.
extern "C" bool lapidaryIsDead(MlirOperation op) { return mlir::isOpTriviallyDead(unwrap(op)); }

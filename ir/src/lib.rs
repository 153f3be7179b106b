//! The only home of MLIR: context, dialects, import from the graph, printing.

//! The only home of MLIR: context, dialects, import from the graph, printing.

pub mod at;
pub mod context;
pub mod cuda;
pub mod error;
pub mod handle;
pub mod import;
pub mod module;
pub mod nn;
pub mod pipeline;
pub mod raw;
pub mod wafer;

pub use at::{At, New};
pub use context::IrContext;
pub use error::{Diagnostic, IrError, PassFailure, Place, Severity};
pub use handle::View;
pub use import::import;
pub use melior::ir::{Attribute, Location, Type};
pub use module::Module;
pub use pipeline::{Event, PassResult, Pipeline};
pub use raw::{Block, Op, Use, Value};

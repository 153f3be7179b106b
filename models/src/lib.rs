//! What to compute: model specifications, their graphs, shapes and work.
//!
//! A [`ModelSpec`] says what a transformer is; [`Graph::build`] turns it into functions of a closed set of
//! [`Op`]s with every dimension bound; each op knows its result shape and its [`Work`].
//!
//! ```text
//! model.toml  -> parse_model   \
//! config.json -> import_config  > ModelSpec -> Graph::build(mode, dims) -> Graph
//! name        -> builtin       /      |  \
//!                                     |   weights::sources: published name, layout and rows of each parameter
//!                                     mup: training table, inference fold
//! ```
//!
//! Reading tells every [`Fault`] at once, with line, column, key and a hint; nothing here opens a file. Adding a model
//! is a TOML file and its row in `builtin.rs`; a family of `config.json` a file and its row in `import/mod.rs`, and
//! its names in `weights/names.rs`; an op a variant in `op.rs`, where exhaustive matches lead on.

pub mod autodiff;
pub mod build;
pub mod builtin;
pub mod check;
mod document;
pub mod dtype;
pub mod experts;
pub mod export;
pub mod fault;
pub mod graph;
pub mod import;
mod load;
pub mod mup;
pub mod op;
pub mod optimizer;
mod read;
mod schema;
pub mod shard;
pub mod spec;
#[cfg(feature = "strategy")]
pub mod testing;
pub mod weights;
pub mod work;
mod write;

pub use builtin::{BuiltinError, builtin, builtin_names, builtin_text};
pub use check::{Violation, validate};
pub use dtype::DType;
pub use experts::Experts;
pub use export::{Published, export_config};
pub use fault::{Fault, FaultKind, Faults};
pub use graph::{Dims, Function, Graph, GraphError, Mode, Node, Param, Slot, TensorType, Value, ValueId};
pub use import::{Import, ImportEntry, ImportReport, ImportStatus, import_config};
pub use load::parse_model;
pub use op::Op;
pub use schema::model_schema;
pub use spec::ModelSpec;
pub use work::Work;
pub use write::to_toml;

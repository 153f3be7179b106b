//! The only home of MLIR: context, dialects, import from the graph, rewriting, pipelines, printing.
//!
//! ```text
//! IrContext ── Module::parse / import(&graph) ──> Module ── Pipeline of passes ──> Module ── to_string()
//!                                                   │
//!                              Op, Value, Block: handles to copy, compare, ask and change
//!                              nn::Linear, nn::Norm, ..: typed views;  nn::linear(at, x, w): builders
//! ```
//!
//! Three dialects stand on top of MLIR's `builtin` and `func`: [`nn`] (what a model computes), [`wafer`] (ops placed on
//! processing elements) and [`cuda`] (kernels, launches, buffers). Their records are in `ir/dialects/*.td`, with a page
//! of C++ each for shape rules and folds; `ir/docs/*.md` is generated from them.
//!
//! # Reading and changing a module
//! ```text
//! let cx = IrContext::new();
//! let mut module = Module::parse(&cx, text, "layer.mlir")?;
//! let mut pipeline = Pipeline::new();
//! pipeline.add_builtin("canonicalize").add("fold-half", |root| {
//!     for scale in root.find::<nn::Scale>() {
//!         let Some(add) = scale.x().defined_by::<nn::Add>() else { continue };
//!         if scale.by() != 0.5 || add.a() != add.b() { continue }     // 0.5 * (a + a) = a
//!         scale.op().replace_with(&[add.a()])?;
//!     }
//!     Ok(())
//! });
//! pipeline.run(&mut module, &mut |event| ..)?;
//! ```
//!
//! # Rules
//! - Nothing is printed: every diagnostic of MLIR comes back in an [`IrError`] with file, line, column and the name of
//!   the graph node; what no error carries (warnings, remarks) waits in [`IrContext::take_diagnostics`].
//! - A module verifies between any two passes: [`Pipeline::run`] checks it, and builders check each op they make.
//! - Handles do not own. One that points into an erased operation must not be used: collect first, change after.
//! - A context belongs to one thread.
//! - `unsafe` is in [`raw`] alone.

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

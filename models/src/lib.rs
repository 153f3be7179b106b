//! What to compute: model specifications, their graphs, shapes and work.
//!
//! A [`ModelSpec`] says what a transformer is; [`Graph::build`] turns it into functions of a closed set of
//! [`Op`]s with every dimension bound; each op knows its result shape and its [`Work`].

pub mod build;
pub mod dtype;
pub mod graph;
pub mod op;
pub mod spec;
pub mod work;

pub use dtype::DType;
pub use graph::{Dims, Function, Graph, Mode, Node, Param, TensorType, Value, ValueId};
pub use op::Op;
pub use spec::ModelSpec;
pub use work::Work;

//! Reads published checkpoints: safetensors and PyTorch's zip form, single or in shards.
//!
//! ```text
//! names in a folder -> folder::choose ─┐
//! model.safetensors.index.json -> Index ┤
//! bytes of each file ──────────────────┴─> Checkpoint::open -> stored tensors by name
//!                                                 │
//!                    ModelSpec -> Map::new(spec) ─┴─> which tensor holds which parameter, and every fault
//!                                     └─> Map::bind -> Binding::tensor("layers.3.attn.q.weight") -> values
//! ```
//!
//! The other way, [`Random`] makes the weights of a model from a seed and [`lay_out`] says how they are written.
//!
//! Nothing here opens a file: the caller hands in bytes, mapped or read, with a name for messages. A pickle is
//! read as data; of its callables only those that PyTorch needs to describe a tensor are known, and none is called.
//! Every fault of a checkpoint is told at once, with file and tensor.

mod binding;
mod checkpoint;
mod element;
mod fault;
pub mod folder;
mod index;
mod json;
mod map;
mod random;
mod safetensors;
mod stored;
mod torch;
mod values;
mod write;

pub use binding::{Binding, Tensor};
pub use checkpoint::{Checkpoint, File, FileInfo, Format};
pub use element::Element;
pub use fault::{Fault, FaultKind, Faults};
pub use index::Index;
pub use map::{Entry, Fate, Map};
pub use random::Random;
pub use stored::Stored;
pub use values::Values;
pub use write::{Layout, Planned, SHARD_BYTES, Shard, lay_out};

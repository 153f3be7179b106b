//! What enters and leaves the wafer: streams at its edges and tensors held by the host.

use super::{Affine, Colour, Command, Port, Wire};
use serde::{Deserialize, Serialize};

/// A tensor that the host holds as f32 values, flat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorDecl {
    /// Number of elements.
    pub elements: u64,
}

/// Which element of a tensor each element of a buffer is: element number `n` of the buffer, written in row-major
/// order as `(d0, d1, ..)` of `dims`, is `tensor[index]`. Elements beyond the product of `dims` are not mapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorMap {
    /// Name of a declared tensor.
    pub tensor: String,
    /// One to four lengths, outermost first; may use `x` and `y` of the PE.
    pub dims: Vec<Affine>,
    /// Element of the tensor: uses `x`, `y` and `d0..d3`.
    pub index: Affine,
}

/// Whether a host stream feeds or drains the wafer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the host into the wafer.
    In,
    /// From the wafer to the host.
    Out,
}

/// Words that enter or leave at an edge, on `lanes` neighbouring lanes at once, each with its own words.
///
/// On lane l (`x` on the north and south edges, `y` on the west and east edges) the words are, in row-major order of
/// `dims`, the elements `tensor[index]`. An input enters the router of the edge PE through the port that faces the
/// edge; an output is what a route of the edge PE sends through that port. Inputs read tensors as they were before the
/// run; what outputs bring is in them after it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostStream {
    /// Name, unique in the program.
    pub name: String,
    /// Into the wafer or out of it.
    pub direction: Direction,
    /// North, East, South or West edge.
    pub edge: Port,
    /// First lane.
    pub first: u32,
    /// Number of lanes.
    pub lanes: u32,
    /// Distance between lanes, at least 1.
    pub step: u32,
    /// The colour of the words.
    pub colour: Colour,
    /// How elements are encoded in words.
    pub wire: Wire,
    /// Name of a declared tensor.
    pub tensor: String,
    /// One to four lengths, outermost first; may use the lane's `x` or `y`.
    pub dims: Vec<Affine>,
    /// Element of the tensor: uses the lane's `x` or `y` and `d0..d3`.
    pub index: Affine,
    /// Control word after the last word (inputs only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<Command>,
    /// Least number of cycles between two words of a lane, at least 1.
    pub interval: u32,
}

impl HostStream {
    /// Words on the lane of an edge PE.
    pub fn words_at(&self, at: super::Coord) -> u64 {
        let length = |d: &Affine| d.eval(|v| v.at_place(at.x, at.y).unwrap_or(0)).max(0) as u64;
        let elements = self.dims.iter().map(length).fold(1, u64::saturating_mul);
        elements.div_ceil(u64::from(self.wire.lanes()))
    }
}

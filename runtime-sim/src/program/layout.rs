//! Which PEs a class covers, what lies in their memory and how their routers are set.

use super::{Affine, Colour, Shared, Task, TensorMap, Var};
use lapidary_models::dtype::DType;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// PEs that share code, memory map and routes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Class {
    /// Name, unique in the program.
    pub name: String,
    /// Where the PEs are; regions must not overlap.
    pub regions: Vec<Region>,
    /// Memory map by buffer name, which classes may have in common.
    pub buffers: Shared<BTreeMap<String, Buffer>>,
    /// Code.
    pub tasks: Vec<Task>,
    /// Router settings by colour. A colour without an entry is not routed: nothing may arrive on it.
    pub routes: BTreeMap<Colour, Route>,
}

/// A position in the program's grid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Coord {
    /// Column, 0 in the west.
    pub x: u32,
    /// Row, 0 in the north.
    pub y: u32,
}

impl fmt::Display for Coord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, {})", self.x, self.y)
    }
}

/// `columns` x `rows` PEs: column `x + i * step_x`, row `y + j * step_y`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Region {
    /// First column.
    pub x: u32,
    /// First row.
    pub y: u32,
    /// How many columns.
    pub columns: u32,
    /// How many rows.
    pub rows: u32,
    /// Distance between columns, at least 1.
    pub step_x: u32,
    /// Distance between rows, at least 1.
    pub step_y: u32,
}

impl Region {
    /// A dense rectangle.
    pub fn rect(x: u32, y: u32, columns: u32, rows: u32) -> Self {
        Region { x, y, columns, rows, step_x: 1, step_y: 1 }
    }

    /// One PE.
    pub fn pe(x: u32, y: u32) -> Self {
        Region::rect(x, y, 1, 1)
    }

    /// The same columns and rows, `step_x` and `step_y` apart.
    pub fn every(self, step_x: u32, step_y: u32) -> Self {
        Region { step_x, step_y, ..self }
    }

    /// Number of PEs.
    pub fn count(&self) -> u64 {
        u64::from(self.columns) * u64::from(self.rows)
    }

    /// All PEs, row by row.
    pub fn pes(&self) -> impl Iterator<Item = Coord> + '_ {
        (0..self.rows).flat_map(move |j| {
            (0..self.columns).map(move |i| Coord { x: self.x + i * self.step_x, y: self.y + j * self.step_y })
        })
    }
}

/// A named range of a PE's memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Buffer {
    /// Element type: f32, f16 or bf16.
    pub dtype: DType,
    /// Number of elements.
    pub elements: u32,
    /// First byte in the PE's memory; a multiple of the element size. The bank follows from it.
    pub offset: u32,
    /// When it is alive; `None` means during the whole program. Buffers that are alive together must not overlap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alive: Option<Lifetime>,
    /// Filled from a tensor before the program starts (outside the timed run); zeros otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<TensorMap>,
    /// Copied to a tensor after the program ends (outside the timed run).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<TensorMap>,
}

impl Buffer {
    /// A buffer alive during the whole program, zero at the start.
    pub fn new(dtype: DType, elements: u32, offset: u32) -> Self {
        Buffer { dtype, elements, offset, alive: None, load: None, store: None }
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.elements) * self.dtype.bytes()
    }
}

/// From the beginning of phase `first` to the end of phase `last`, both names of [`super::WaferProgram::phases`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifetime {
    /// First phase.
    pub first: String,
    /// Last phase.
    pub last: String,
}

/// A side of a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Port {
    /// To and from the PE's own processor.
    Ramp,
    /// Towards smaller y.
    North,
    /// Towards larger x.
    East,
    /// Towards larger y.
    South,
    /// Towards smaller x.
    West,
}

impl Port {
    /// The name in the text form.
    pub const fn name(self) -> &'static str {
        match self {
            Port::Ramp => "ramp",
            Port::North => "north",
            Port::East => "east",
            Port::South => "south",
            Port::West => "west",
        }
    }

    /// The port of the neighbour that faces this one; the ramp faces itself.
    pub const fn opposite(self) -> Port {
        match self {
            Port::Ramp => Port::Ramp,
            Port::North => Port::South,
            Port::East => Port::West,
            Port::South => Port::North,
            Port::West => Port::East,
        }
    }

    /// The variable that counts lanes along this edge of the grid.
    pub const fn lane(self) -> Var {
        match self {
            Port::North | Port::South | Port::Ramp => Var::X,
            Port::East | Port::West => Var::Y,
        }
    }
}

/// How a router forwards a colour: one position, or up to four that control words switch between.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Route {
    /// The positions; the first is active at the start.
    pub positions: Vec<Position>,
}

/// Words from one port go to all of the others: multicast costs nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Where words come from. At the edge of the grid: from a host stream.
    pub from: Port,
    /// Where they go, without repetition; never back to `from`. At the edge of the grid: to a host stream.
    pub to: Vec<Port>,
}

impl Route {
    /// A route that never switches.
    pub fn fixed(from: Port, to: &[Port]) -> Self {
        Route { positions: vec![Position { from, to: to.to_vec() }] }
    }

    /// This route with one more switch position.
    pub fn then(mut self, from: Port, to: &[Port]) -> Self {
        self.positions.push(Position { from, to: to.to_vec() });
        self
    }
}

impl Class {
    /// An empty class over one region.
    pub fn new(name: impl Into<String>, region: Region) -> Self {
        Class { name: name.into(), regions: vec![region], ..Class::default() }
    }

    /// Number of PEs.
    pub fn count(&self) -> u64 {
        self.regions.iter().map(Region::count).sum()
    }

    /// Adds a task that runs once at the start.
    pub fn start(&mut self, name: impl Into<String>, body: Vec<super::Stmt>) -> &mut Self {
        let trigger = super::Trigger::Start;
        self.tasks.push(Task { name: name.into(), trigger, times: Affine::constant(1), body });
        self
    }
}

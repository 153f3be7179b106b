//! Routes made explicit: every sender's words are traced through the routers to everyone who receives them.
//!
//! A *stream* runs from one source (a ramp, a host lane, or a router with switch positions) to the places where it
//! ends: ramps, host lanes, or the next router with switch positions. Between these ends its words meet no decision,
//! so their times are those of the source plus a constant, unless a link is shared with another colour.

mod alike;
mod build;
mod cover;
mod groups;
mod line;
mod routes;
mod thin;

pub use alike::{Alike, Likeness, Looks};
pub use cover::{NOBODY, cover};
pub use line::Line;

use crate::program::{Colour, Coord, Port, Route, WaferProgram};

/// No index.
pub const NONE: u32 = u32::MAX;

/// The five ports by index: ramp, north, east, south, west.
pub const PORTS: [Port; 5] = [Port::Ramp, Port::North, Port::East, Port::South, Port::West];

/// What is told of the links that streams cross.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// Which ones streams of several colours share.
    Shared,
    /// Nothing: for who asks only where words arrive, or takes links for wide enough.
    Untold,
}

/// Who sends a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A processor, by PE index.
    Pe(u32),
    /// A switched router, by index and output port.
    Switch(u32, u8),
    /// A host input lane, by index.
    Host(u32),
}

/// Who receives a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A processor, by PE index.
    Pe(u32),
    /// A switched router, by index and input port.
    Switch(u32, u8),
    /// A host output lane, by index.
    Host(u32),
}

/// One sender's words.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Who sends.
    pub origin: Origin,
    /// The colour.
    pub colour: Colour,
    /// First of its ends in [`Network::ends`].
    pub first_end: u32,
    /// Number of ends.
    pub ends: u32,
    /// First of its shared links in [`Network::shared`].
    pub first_shared: u32,
    /// Number of shared links.
    pub shared: u32,
}

/// One place where a stream's words arrive.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// Who receives.
    pub target: Target,
    /// The stream.
    pub stream: u32,
    /// Cycles from leaving the source to being readable here, without contention.
    pub latency: u32,
    /// Words that may be under way to here or waiting here.
    pub depth: u32,
    /// Number of shared links on the way: 0, or 1 + the index of the last one among the stream's.
    pub column: u32,
}

/// A link that a stream shares with other colours.
#[derive(Clone, Copy, Debug)]
pub struct SharedLink {
    /// Index in the table of shared links.
    pub link: u32,
    /// Cycles from the source to entering this link, without contention.
    pub latency: u32,
    /// 0, or 1 + the index (in the stream) of the shared link before it.
    pub parent: u32,
}

/// A router with switch positions, for one colour.
#[derive(Clone, Debug)]
pub struct SwitchNode {
    /// Where it is.
    pub pe: u32,
    /// The colour.
    pub colour: Colour,
    /// Class, to find the route.
    pub class: u16,
    /// End that arrives through each port, or [`NONE`].
    pub ends: [u32; 5],
    /// Stream that leaves through each port, or [`NONE`].
    pub streams: [u32; 5],
}

/// One lane of the host with all that passes it on one colour, in order.
#[derive(Clone, Debug)]
pub struct HostLane {
    /// The lane's edge PE.
    pub at: Coord,
    /// The colour.
    pub colour: Colour,
    /// Indices into [`WaferProgram::host`].
    pub parts: Vec<u32>,
    /// Its stream (inputs) or end (outputs), or [`NONE`].
    pub link: u32,
}

/// All streams of a program.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// Width of the grid.
    pub width: u32,
    /// Height of the grid.
    pub height: u32,
    /// Class of each PE, row by row; [`NOBODY`] where there is none.
    pub class_of: Vec<u16>,
    /// Rows whose PEs are traced.
    pub traced: Vec<bool>,
    /// First entry of each PE in [`Network::slots`].
    pub first_slot: Vec<u32>,
    /// Per PE: the ends of its input colours, then the streams of its output colours, in slot order.
    pub slots: Vec<u32>,
    /// Number of input slots by class.
    pub inputs: Vec<u32>,
    /// All streams.
    pub streams: Vec<Stream>,
    /// All ends, grouped by stream.
    pub ends: Vec<End>,
    /// Per row: the southernmost one that words of its PEs enter, as far as they are traced.
    pub reach: Vec<u32>,
    /// Ramps in rows that are not traced where words arrive: stream and PE, in order of streams.
    pub elsewhere: Vec<(u32, Coord)>,
    /// Shared links by stream.
    pub shared: Vec<SharedLink>,
    /// Number of links that are shared.
    pub shared_links: u32,
    /// All switched routers.
    pub switches: Vec<SwitchNode>,
    /// Host lanes that feed.
    pub host_in: Vec<HostLane>,
    /// Host lanes that drain.
    pub host_out: Vec<HostLane>,
}

impl Network {
    /// Index of the PE at `at`.
    pub fn index(&self, at: Coord) -> usize {
        at.y as usize * self.width as usize + at.x as usize
    }

    /// Position of PE `index`.
    pub fn coord(&self, index: u32) -> Coord {
        Coord { x: index % self.width, y: index / self.width }
    }

    /// The PEs of traced rows that have a class, row by row, with their classes.
    pub fn traced_pes(&self) -> impl Iterator<Item = (u32, u16)> + '_ {
        let rows = self.class_of.chunks(self.width.max(1) as usize).zip(&self.traced).zip(0u32..);
        rows.filter(|((_, traced), _)| **traced).flat_map(move |((row, _), y)| {
            let pes = (y * self.width..).zip(row.iter().copied());
            pes.filter(|(_, class)| *class != NOBODY)
        })
    }

    /// The end behind input `slot` of a PE.
    pub fn input(&self, pe: usize, slot: usize) -> u32 {
        self.slots[self.first_slot[pe] as usize + slot]
    }

    /// The stream behind output `slot` of a PE.
    pub fn output(&self, pe: usize, slot: usize) -> u32 {
        let inputs = self.inputs[self.class_of[pe] as usize] as usize;
        self.slots[self.first_slot[pe] as usize + inputs + slot]
    }

    /// Output slots of a PE.
    pub fn outputs(&self, pe: usize) -> usize {
        let next = self.first_slot.get(pe + 1).map_or(self.slots.len(), |next| *next as usize);
        next - self.first_slot[pe] as usize - self.inputs[self.class_of[pe] as usize] as usize
    }

    /// Ends of a stream.
    pub fn ends_of(&self, stream: u32) -> &[End] {
        let s = &self.streams[stream as usize];
        &self.ends[s.first_end as usize..(s.first_end + s.ends) as usize]
    }
}

impl Network {
    /// Visits every link that a stream crosses, as the PE whose router it leaves and the port.
    pub fn links(&self, program: &WaferProgram, stream: u32, visit: &mut dyn FnMut(u32, Port)) {
        let s = &self.streams[stream as usize];
        let mut open: Vec<(u32, Port)> = Vec::new();
        match s.origin {
            Origin::Pe(pe) => self.enter(program, s.colour, pe, Port::Ramp, &mut open),
            Origin::Host(lane) => {
                let lane = &self.host_in[lane as usize];
                let edge = program.host[lane.parts[0] as usize].edge;
                self.enter(program, s.colour, self.index(lane.at) as u32, edge, &mut open);
            }
            Origin::Switch(node, port) => open.push((self.switches[node as usize].pe, PORTS[port as usize])),
        }
        while let Some((pe, port)) = open.pop() {
            visit(pe, port);
            if let Some(next) = self.neighbour(pe, port) {
                self.enter(program, s.colour, next, port.opposite(), &mut open);
            }
        }
    }

    /// The links by which words leave a router they enter, unless it has a switch.
    fn enter(
        &self,
        program: &WaferProgram,
        colour: Colour,
        pe: u32,
        from: Port,
        open: &mut Vec<(u32, Port)>,
    ) {
        let class = self.class_of[pe as usize];
        let route = (class != NOBODY).then(|| program.classes[class as usize].routes.get(&colour)).flatten();
        if let Some(Route { positions }) = route
            && positions.len() == 1
            && positions[0].from == from
        {
            open.extend(positions[0].to.iter().filter(|p| **p != Port::Ramp).map(|p| (pe, *p)));
        }
    }

    /// The PE behind a port, if it is on the grid.
    pub fn neighbour(&self, pe: u32, port: Port) -> Option<u32> {
        let at = self.coord(pe);
        match port {
            Port::Ramp => None,
            Port::North => (at.y > 0).then(|| pe - self.width),
            Port::South => (at.y + 1 < self.height).then(|| pe + self.width),
            Port::West => (at.x > 0).then(|| pe - 1),
            Port::East => (at.x + 1 < self.width).then(|| pe + 1),
        }
    }
}

#[cfg(test)]
impl Network {
    /// Bytes that are held.
    pub fn held_bytes(&self) -> usize {
        size_of_val(&self.class_of[..])
            + size_of_val(&self.first_slot[..])
            + size_of_val(&self.slots[..])
            + size_of_val(&self.streams[..])
            + size_of_val(&self.ends[..])
            + size_of_val(&self.shared[..])
    }
}

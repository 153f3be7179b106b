//! The ways words travel, and their colours.
//!
//! An op asks for channels; each channel says how every router it passes is set. Two channels share a colour if no
//! router would have to be set in two ways and they are used in different phases: words of one colour keep their order,
//! so a neighbour that is ahead cannot overtake. What is left over gets a colour of its own, at most 24 in all.

use super::error::WaferError;
use super::line::{Axis, SumStep};
use super::placed::Placed;
use lapidary_runtime_sim::program::{Colour, Coord, Port, Route};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A way for words. Chains alternate two channels by the parity of the sender's column or row,
/// because a router takes a colour from one port only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// From the host at the north edge down every column, read by all PEs of the column.
    Weights,
    /// To the next column, sent by columns of this parity.
    East(u8),
    /// From the last column to the first.
    Wrap,
    /// A step of a sum over a line of PEs.
    Sum(Axis, SumStep),
    /// From the last PE of such a line to all others.
    Share(Axis),
    /// From the host at the west edge along every row, read by all PEs of the row.
    Along,
    /// From the last column out at the east edge, of so many rows.
    Aside(u32),
    /// From the last column of each head block to its first.
    HeadWrap,
    /// To the next row of the same sequence, sent by rows of this parity.
    Down(u8),
    /// From the last row of a sequence to its first.
    RowWrap,
    /// From the north edge and on to the next row, sent by rows of this parity.
    Enter(u8),
    /// To the next row and out at the south edge, sent by rows of this parity.
    Leave(u8),
}

impl Channel {
    fn enters(self) -> Option<Entering> {
        match self {
            Channel::Weights => Some(Entering::Weights),
            Channel::Enter(_) => Some(Entering::Activations),
            _ => None,
        }
    }

    /// How the router at `at` is set for this channel, `None` if it does not pass.
    pub fn route(self, placed: &Placed, at: Coord) -> Option<Route> {
        let (last_x, last_y) = (placed.width - 1, placed.rows() - 1);
        match self {
            Channel::Weights if at.y == last_y => Some(Route::fixed(Port::North, &[Port::Ramp])),
            Channel::Weights => Some(Route::fixed(Port::North, &[Port::Ramp, Port::South])),
            Channel::East(parity) if at.x % 2 == u32::from(parity) => {
                (at.x < last_x).then(|| Route::fixed(Port::Ramp, &[Port::East]))
            }
            Channel::East(_) => (at.x > 0).then(|| Route::fixed(Port::West, &[Port::Ramp])),
            Channel::Wrap => Some(westward(at.x == 0, at.x == last_x)),
            Channel::Sum(axis, step) => axis.route(placed, at, step),
            Channel::Share(axis) => axis.share(placed, at),
            Channel::Along if at.x == last_x => Some(Route::fixed(Port::West, &[Port::Ramp])),
            Channel::Along => Some(Route::fixed(Port::West, &[Port::Ramp, Port::East])),
            Channel::Aside(rows) => {
                (at.x == last_x && at.y < rows).then(|| Route::fixed(Port::Ramp, &[Port::East]))
            }
            Channel::HeadWrap => {
                let blocks = placed.heads?.column_blocks();
                let local = blocks.local(at.x);
                blocks.contains(at.x).then(|| westward(local == 0, local == blocks.size - 1))
            }
            Channel::Down(parity) => {
                let row = placed.tokens.blocks().local(at.y);
                southward(at.y, parity, true, row + 1 < placed.tokens.rows)
            }
            Channel::RowWrap => {
                let row = placed.tokens.blocks().local(at.y);
                Some(northward(row == 0, row + 1 == placed.tokens.rows))
            }
            Channel::Enter(parity) => southward(at.y, parity, true, at.y < last_y),
            Channel::Leave(parity) => southward(at.y, parity, at.y > 0, true),
        }
    }
}

/// A way from the last column to the first.
fn westward(first: bool, last: bool) -> Route {
    match (first, last) {
        (true, _) => Route::fixed(Port::East, &[Port::Ramp]),
        (_, true) => Route::fixed(Port::Ramp, &[Port::West]),
        _ => Route::fixed(Port::East, &[Port::West]),
    }
}

/// A way from the last row of a sequence to its first.
fn northward(first: bool, last: bool) -> Route {
    match (first, last) {
        (true, _) => Route::fixed(Port::South, &[Port::Ramp]),
        (_, true) => Route::fixed(Port::Ramp, &[Port::North]),
        _ => Route::fixed(Port::South, &[Port::North]),
    }
}

/// A step from row to row, sent by rows of this parity.
fn southward(y: u32, parity: u8, reads: bool, sends: bool) -> Option<Route> {
    if y % 2 == u32::from(parity) {
        sends.then(|| Route::fixed(Port::Ramp, &[Port::South]))
    } else {
        reads.then(|| Route::fixed(Port::North, &[Port::Ramp]))
    }
}

/// A channel wanted by the op of one phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Number of the phase.
    pub phase: usize,
    /// The channel.
    pub channel: Channel,
}

/// Colours by phase and channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Colours {
    of: BTreeMap<(usize, Channel), Colour>,
}

impl Colours {
    /// The colour of a channel that was asked for; colour 0 for one that was not, which no route carries.
    pub fn get(&self, phase: usize, channel: Channel) -> Colour {
        self.of.get(&(phase, channel)).copied().unwrap_or(Colour(0))
    }

    /// Everything that was coloured, by phase and channel.
    pub fn iter(&self) -> impl Iterator<Item = (usize, Channel, Colour)> + '_ {
        self.of.iter().map(|((phase, channel), colour)| (*phase, *channel, *colour))
    }

    /// How the router of a PE is set, by colour.
    pub fn routes(&self, placed: &Placed, at: Coord) -> BTreeMap<Colour, Route> {
        self.iter().filter_map(|(_, channel, colour)| Some((colour, channel.route(placed, at)?))).collect()
    }

    /// How many colours are in use.
    pub fn count(&self) -> usize {
        self.of.values().map(|colour| usize::from(colour.0) + 1).max().unwrap_or(0)
    }
}

/// What one colour is in use for.
#[derive(Default)]
struct Holder {
    routes: Vec<Option<Route>>,
    phases: Vec<usize>,
    /// What enters the rectangle on it.
    enters: Option<Entering>,
}

/// What enters a rectangle from the north. What comes from there may have two senders, so they have two colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entering {
    Weights,
    Activations,
}

impl Holder {
    fn admits(&self, wanted: Wanted, routes: &[Option<Route>]) -> bool {
        if self.enters != wanted.channel.enters()
            && self.enters.is_some()
            && wanted.channel.enters().is_some()
        {
            return false;
        }
        let same = |(held, asked): (&Option<Route>, &Option<Route>)| {
            held.is_none() || asked.is_none() || held == asked
        };
        !self.phases.contains(&wanted.phase) && self.routes.iter().zip(routes).all(same)
    }

    fn add(&mut self, wanted: Wanted, routes: Vec<Option<Route>>) {
        self.enters = self.enters.or(wanted.channel.enters());
        self.phases.push(wanted.phase);
        if self.routes.is_empty() {
            self.routes = routes;
        } else {
            self.routes.iter_mut().zip(routes).for_each(|(held, asked)| *held = held.take().or(asked));
        }
    }
}

/// Gives each wanted channel the lowest colour that can take it. `sites` has a PE of every class, so that routers set
/// alike are compared once.
pub fn allocate(
    placed: &Placed,
    sites: &[Coord],
    wanted: &[Wanted],
    available: u32,
) -> Result<Colours, WaferError> {
    let mut holders: Vec<Holder> = Vec::new();
    let mut colours = Colours::default();
    for want in wanted {
        let routes: Vec<_> = sites.iter().map(|at| want.channel.route(placed, *at)).collect();
        let place = holders.iter().position(|held| held.admits(*want, &routes)).unwrap_or_else(|| {
            holders.push(Holder::default());
            holders.len() - 1
        });
        holders[place].add(*want, routes);
        colours.of.insert((want.phase, want.channel), Colour(place.min(255) as u8));
    }
    if holders.len() > available as usize {
        let channels =
            wanted.iter().map(|w| format!("{:?}", w.channel)).collect::<std::collections::BTreeSet<_>>();
        let channels = channels.into_iter().collect::<Vec<_>>().join(", ");
        return Err(WaferError::Colours { needed: holders.len(), available, channels });
    }
    Ok(colours)
}

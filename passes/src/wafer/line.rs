//! Lines of PEs that make sums together: a row, a column, or the rows of a column that share heads.
//!
//! The sum of a line ends in its last PE, the root. Places on a line are counted from there: place 0 is the root, sums
//! travel towards smaller places.

use super::channel::Channel;
use super::placed::Placed;
use super::tile::Blocks;
use lapidary_hardware::price::wafer::{Reduce, balanced_groups};
use lapidary_runtime_sim::program::{Coord, Port, Route};
use serde::{Deserialize, Serialize};

/// Which PEs make a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// A row.
    Row,
    /// A column.
    Column,
    /// A block of rows within a column.
    Rows(Blocks),
}

/// One step of a sum. Chains alternate two channels by the parity of the sender's place, because a router takes a colour
/// from one port only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SumStep {
    /// A chain's, from a sender of this parity.
    Next(u8),
    /// Inside a group.
    Inner(u8),
    /// From group to group.
    Outer(u8),
    /// A tree's, of this round.
    Round(u8),
}

/// The place of a PE on a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// PEs between it and the root, itself included and the root not.
    pub at: u32,
    /// PEs of the line.
    pub of: u32,
}

/// The place of a PE in its group, for two phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InGroup {
    /// Its place in the group.
    pub at: u32,
    /// PEs of the group.
    pub of: u32,
    /// The place of the group.
    pub group: u32,
    /// How many groups.
    pub groups: u32,
}

impl Axis {
    /// Where a PE is on its line; `None` if it is on none.
    pub fn place(self, placed: &Placed, at: Coord) -> Option<Place> {
        let place = |index: u32, of: u32| Place { at: of - 1 - index, of };
        match self {
            Axis::Row => Some(place(at.x, placed.width)),
            Axis::Column => Some(place(at.y, placed.rows())),
            Axis::Rows(blocks) => blocks.contains(at.y).then(|| place(blocks.local(at.y), blocks.size)),
        }
    }

    /// PEs of a line.
    pub fn length(self, placed: &Placed) -> u32 {
        match self {
            Axis::Row => placed.width,
            Axis::Column => placed.rows(),
            Axis::Rows(blocks) => blocks.size,
        }
    }

    /// The word for reports.
    pub fn name(self) -> &'static str {
        match self {
            Axis::Row => "row",
            Axis::Column => "column",
            Axis::Rows(_) => "rows of heads",
        }
    }

    /// Where sums come from, and where they go.
    fn ports(self) -> (Port, Port) {
        match self {
            Axis::Row => (Port::West, Port::East),
            Axis::Column | Axis::Rows(_) => (Port::North, Port::South),
        }
    }

    /// Channels of a sum that is made in a way and goes back to the whole line.
    pub fn channels(self, placed: &Placed, kind: Reduce) -> Vec<Channel> {
        let of = self.length(placed);
        if of < 2 {
            return vec![];
        }
        let parities = |step: fn(u8) -> SumStep| [step(0), step(1)].to_vec();
        let steps = match kind {
            Reduce::Chain => parities(SumStep::Next),
            Reduce::Tree => (0..rounds(of)).map(|round| SumStep::Round(round as u8)).collect(),
            Reduce::TwoPhase => [parities(SumStep::Inner), parities(SumStep::Outer)].concat(),
        };
        let mut channels: Vec<Channel> = steps.into_iter().map(|step| Channel::Sum(self, step)).collect();
        channels.push(Channel::Share(self));
        channels
    }

    /// How the router at a place is set for a step; `None` if it does not pass.
    pub fn route(self, placed: &Placed, at: Coord, step: SumStep) -> Option<Route> {
        let place = self.place(placed, at)?;
        let (back, ahead) = self.ports();
        let (send, take, pass) = (
            Route::fixed(Port::Ramp, &[ahead]),
            Route::fixed(back, &[Port::Ramp]),
            Route::fixed(back, &[ahead]),
        );
        let chain = |at: u32, of: u32, parity: u8| match at % 2 == u32::from(parity) {
            true => (at > 0).then(|| send.clone()),
            false => (at + 1 < of).then(|| take.clone()),
        };
        match step {
            SumStep::Next(parity) => chain(place.at, place.of, parity),
            SumStep::Inner(parity) => chain(place.group().at, place.group().of, parity),
            SumStep::Outer(parity) => {
                let InGroup { at, group, groups, .. } = place.group();
                match at {
                    0 => chain(group, groups, parity),
                    _ => (group + 1 < groups && (group + 1) % 2 == u32::from(parity)).then(|| pass.clone()),
                }
            }
            SumStep::Round(round) => match (place.sends(), u32::from(round)) {
                (Some(own), round) if round == own => Some(send),
                // Behind a sender nothing passes; the router is set as if it did, so that there are fewer kinds of PEs.
                (Some(own), round) if round > own => (place.at + 1 < place.of).then_some(pass),
                (_, round) => place.takes().any(|taken| taken == round).then_some(take),
            },
        }
    }

    /// How the router at a place is set for the way back from the root.
    pub fn share(self, placed: &Placed, at: Coord) -> Option<Route> {
        let place = self.place(placed, at)?;
        let (back, ahead) = self.ports();
        match (place.at, place.at + 1 == place.of) {
            (0, true) => None,
            (0, false) => Some(Route::fixed(Port::Ramp, &[back])),
            (_, true) => Some(Route::fixed(ahead, &[Port::Ramp])),
            (_, false) => Some(Route::fixed(ahead, &[Port::Ramp, back])),
        }
    }
}

/// Rounds of a tree.
fn rounds(of: u32) -> u32 {
    of.max(1).next_power_of_two().ilog2()
}

impl Place {
    /// Its place in its group.
    pub fn group(self) -> InGroup {
        let sizes = balanced_groups(self.of);
        let groups = sizes.len() as u32;
        let mut first = 0;
        for (group, of) in (0..).zip(sizes) {
            if self.at < first + of {
                return InGroup { at: self.at - first, of, group, groups };
            }
            first += of;
        }
        InGroup { at: 0, of: 1, group: groups, groups }
    }

    /// What a PE's code and routes depend on when sums are made in a way.
    pub fn role(self, kind: Reduce) -> Vec<u32> {
        let ends = |at: u32, of: u32| [u32::from(at == 0), u32::from(at + 1 == of), at % 2];
        match kind {
            Reduce::Chain => ends(self.at, self.of).to_vec(),
            Reduce::Tree => {
                let (own, taken) = (self.sends().unwrap_or(u32::MAX), self.takes().count() as u32);
                vec![own, taken, u32::from(self.at + 1 == self.of)]
            }
            Reduce::TwoPhase => {
                let InGroup { at, of, group, groups } = self.group();
                [ends(at, of), ends(group, groups)].concat()
            }
        }
    }

    /// Rounds of a tree in which it takes a sum.
    pub fn takes(self) -> impl Iterator<Item = u32> {
        let own = if self.at == 0 { rounds(self.of) } else { self.at.trailing_zeros() };
        (0..own).filter(move |round| self.at + (1 << round) < self.of)
    }

    /// The round in which it sends its own; the root never does.
    pub fn sends(self) -> Option<u32> {
        (self.at > 0).then(|| self.at.trailing_zeros())
    }
}

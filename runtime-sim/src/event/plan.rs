//! Who acts and on which thread: actors in one numbering, and strips of rows that threads share out among themselves.

use crate::network::{NOBODY, Network, Origin, Target};

/// Actors in one numbering: PEs, switches, host inputs, host outputs.
#[derive(Clone, Copy, Debug)]
pub struct Actors {
    /// First switch.
    pub switches: u32,
    /// First host input lane.
    pub host_in: u32,
    /// First host output lane.
    pub host_out: u32,
    /// One past the last.
    pub end: u32,
}

impl Actors {
    /// Numbers the actors of a network.
    pub fn of(net: &Network) -> Actors {
        let switches = net.class_of.len() as u32;
        let host_in = switches + net.switches.len() as u32;
        let host_out = host_in + net.host_in.len() as u32;
        Actors { switches, host_in, host_out, end: host_out + net.host_out.len() as u32 }
    }

    /// The actor that sends for `origin`.
    pub fn sender(&self, origin: Origin) -> u32 {
        match origin {
            Origin::Pe(pe) => pe,
            Origin::Switch(s, _) => self.switches + s,
            Origin::Host(h) => self.host_in + h,
        }
    }

    /// The actor that receives for `target`.
    pub fn receiver(&self, target: Target) -> u32 {
        match target {
            Target::Pe(pe) => pe,
            Target::Switch(s, _) => self.switches + s,
            Target::Host(h) => self.host_out + h,
        }
    }

    /// The PE where an actor is.
    pub fn place(&self, net: &Network, actor: u32) -> u32 {
        if actor < self.switches {
            actor
        } else if actor < self.host_in {
            net.switches[(actor - self.switches) as usize].pe
        } else if actor < self.host_out {
            net.index(net.host_in[(actor - self.host_in) as usize].at) as u32
        } else {
            net.index(net.host_out[(actor - self.host_out) as usize].at) as u32
        }
    }
}

/// The rows of each strip.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The actors.
    pub actors: Actors,
    /// First row of each strip, and the number of rows at the end.
    pub first_row: Vec<u32>,
}

impl Plan {
    /// Cuts the grid into at most `strips` strips with about as many PEs each.
    ///
    /// Links that colours share are arbitrated in the order of time, which is known within one strip only: programs with
    /// such links are not cut.
    pub fn of(net: &Network, strips: usize) -> Plan {
        let strips = if net.shared.is_empty() { strips.max(1) } else { 1 };
        let width = net.width.max(1) as usize;
        let rows: Vec<usize> =
            net.class_of.chunks(width).map(|row| row.iter().filter(|c| **c != NOBODY).count()).collect();
        let all: usize = rows.iter().sum();
        let (mut first_row, mut seen) = (vec![0], 0);
        for (y, row) in rows.iter().enumerate() {
            if seen * strips >= all * first_row.len() && first_row.len() < strips && y > 0 {
                first_row.push(y as u32);
            }
            seen += row;
        }
        first_row.push(net.height);
        Plan { actors: Actors::of(net), first_row }
    }

    /// Number of strips.
    pub fn strips(&self) -> usize {
        self.first_row.len() - 1
    }

    /// The strip of a row.
    pub fn strip_of_row(&self, y: u32) -> u16 {
        (self.first_row.partition_point(|first| *first <= y) - 1).min(self.strips() - 1) as u16
    }

    /// The strip of an actor.
    pub fn strip_of(&self, net: &Network, actor: u32) -> u16 {
        match self.strips() {
            1 => 0,
            _ => self.strip_of_row(self.actors.place(net, actor) / net.width.max(1)),
        }
    }
}

//! Sums over a row of PEs: they run eastwards, every PE adding its own; the last column makes something of them and
//! sends that back over the row at once.

use super::super::channel::Channel;
use super::super::code::{dims, from, op, send, slice, to, words};
use super::super::site::Site;
use lapidary_runtime_sim::program::{OpKind, Slice, Stmt, Wire};

/// Channels: along the row, and back over all of it.
pub const CHANNELS: [Channel; 3] = [Channel::East(0), Channel::East(1), Channel::Back];

/// Sums in f32 from the beginning of a buffer on.
pub struct RowSums<'a> {
    /// The PE.
    pub site: &'a Site<'a>,
    /// The buffer with the own sums, which takes what comes back.
    pub buffer: &'a str,
    /// How two of them become one.
    pub kind: OpKind,
    /// How many.
    pub count: i64,
}

impl RowSums<'_> {
    /// Sums of the row end in the last column, which goes on with `finish`.
    pub fn collect(&self, finish: Vec<Stmt>) -> Vec<Stmt> {
        let come = words(self.site.previous_column(), Wire::F32);
        let on = send(self.site.next_column(), Wire::F32);
        if self.site.is_last() {
            let sum = op(self.kind, to(self.own()), [from(self.own()), come], dims([self.count]));
            return std::iter::once(sum).chain(finish).collect();
        }
        vec![match self.site.at.x {
            0 => op(OpKind::Mov, on, [from(self.own())], dims([self.count])),
            _ => op(self.kind, on, [from(self.own()), come], dims([self.count])),
        }]
    }

    /// As [`Self::collect`], and then the first `back` elements of the buffer go to every column.
    pub fn share(&self, finish: Vec<Stmt>, back: i64) -> Vec<Stmt> {
        let (channel, count) = (self.site.channel(Channel::Back), || dims([back]));
        let mut body = self.collect(finish);
        body.push(match self.site.is_last() {
            true => op(OpKind::Mov, send(channel, Wire::F32), [from(self.own())], count()),
            false => op(OpKind::Mov, to(self.own()), [words(channel, Wire::F32)], count()),
        });
        body
    }

    fn own(&self) -> Slice {
        slice(self.buffer, 0)
    }
}

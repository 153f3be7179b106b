//! Runs a step in which ranks meet: rows out of a buffer, through the peers, into another.

use crate::model::Model;
use crate::peers::{Group, PeerError, Peers};
use crate::program::{BufferId, Collective};
use crate::rows::pitch;
use crate::step::Memory;

/// A meeting of ranks.
pub(crate) struct Meeting<'s> {
    /// Name of the step.
    pub name: &'s str,
    /// Rows that are passed on.
    pub rows: usize,
    /// What is said.
    pub op: Collective,
    /// What is told.
    pub x: Option<BufferId>,
    /// What is heard.
    pub out: BufferId,
}

impl Meeting<'_> {
    /// Meets the others; the buffers are of the forms that the program's check asks for.
    pub fn hold(&self, model: &Model, memory: &mut Memory, peers: &mut dyn Peers) -> Result<(), PeerError> {
        let buffer = |id: BufferId| &model.program.buffers[id];
        let out = buffer(self.out);
        let mut heard = std::mem::take(&mut memory.slots[out.slot]);
        let length = self.rows * pitch(out.width);
        let (x_pitch, told) = match self.x.map(buffer) {
            Some(x) => (pitch(x.width), &memory.slots[x.slot][..self.rows * pitch(x.width)]),
            None => (0, &[][..]),
        };
        let met = match self.op {
            Collective::AllReduce => {
                heard[..length].copy_from_slice(told);
                peers.all_reduce(Group::Tensor, self.name, &mut heard[..length])
            }
            Collective::AllGather => {
                let ranks = model.program.share.as_ref().map_or(1, |share| share.tensor.of) as usize;
                let width = self.x.map_or(0, |x| buffer(x).width as usize);
                let parts = &mut memory.gathered;
                parts.resize(told.len() * ranks, 0.0);
                let met = peers.all_gather(Group::Tensor, self.name, told, parts);
                side_by_side(parts, (x_pitch, width), &mut heard[..length], out.width as usize);
                met
            }
            Collective::Send { stage } => {
                heard[..length].copy_from_slice(told);
                peers.room(2, told.len()).and_then(|()| peers.send(self.name, stage, 0, told))
            }
            Collective::Receive { stage } => peers.receive(self.name, stage, 0, &mut heard[..length]),
        };
        memory.slots[out.slot] = heard;
        met
    }
}

/// `[rank][row][part]` to `[row][rank part]`, cut off at `width`.
pub(crate) fn side_by_side(
    parts: &[f32],
    (part_pitch, part): (usize, usize),
    into: &mut [f32],
    width: usize,
) {
    let step = pitch(width as u64);
    let rows = into.len() / step.max(1);
    for (rank, rows_of) in parts.chunks((rows * part_pitch).max(1)).enumerate() {
        let first = (rank * part).min(width);
        let length = part.min(width - first);
        for (row, values) in rows_of.chunks(part_pitch).enumerate() {
            into[row * step + first..][..length].copy_from_slice(&values[..length]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_side_by_side_and_the_padding_goes() {
        // Two ranks, two rows of two values 16 apart, for rows of three.
        let mut parts = vec![9.0; 64];
        for (rank, row, value) in [(0, 0, 1.0), (0, 1, 3.0), (1, 0, 5.0), (1, 1, 7.0)] {
            parts[rank * 32 + row * 16..][..2].copy_from_slice(&[value, value + 1.0]);
        }
        let mut rows = vec![0.0; 32];
        side_by_side(&parts, (16, 2), &mut rows, 3);
        assert_eq!(rows[..4], [1.0, 2.0, 5.0, 0.0]);
        assert_eq!(rows[16..20], [3.0, 4.0, 7.0, 0.0]);
    }
}

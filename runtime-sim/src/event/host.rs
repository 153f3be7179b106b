//! The host's side of the edges: lanes that feed words in tensor order and lanes that collect them.

use super::links::{Content, Links};
use super::ops::Wait;
use super::values::{decode, encode};
use crate::network::HostLane;
use crate::program::{Affine, HostStream, Var, WaferProgram};

/// Elements of a host stream or tensor map on one lane or PE: `(number of elements, index of element n)`.
pub struct Walk<'a> {
    lengths: Vec<u64>,
    index: &'a Affine,
    x: u32,
    y: u32,
}

impl<'a> Walk<'a> {
    /// Walks `dims` in row-major order at a place.
    pub fn new(dims: &[Affine], index: &'a Affine, x: u32, y: u32) -> Self {
        let at = |var: Var| var.at_place(x, y).unwrap_or(0);
        Walk { lengths: dims.iter().map(|d| d.eval(at).max(0) as u64).collect(), index, x, y }
    }

    /// Number of elements.
    pub fn len(&self) -> u64 {
        self.lengths.iter().product()
    }

    /// Tensor index of element `n`.
    pub fn at(&self, n: u64) -> i64 {
        let mut dims = [0i64; 4];
        let mut rest = n;
        for (k, length) in self.lengths.iter().enumerate().rev() {
            dims[k.min(3)] = (rest % length) as i64;
            rest /= length;
        }
        self.index.eval(|var| match var {
            Var::Dim(k) => dims.get(usize::from(k)).copied().unwrap_or(0),
            _ => var.at_place(self.x, self.y).unwrap_or(0),
        })
    }
}

/// State of a lane.
#[derive(Clone, Copy, Debug, Default)]
pub struct LaneState {
    part: usize,
    element: u64,
    /// When the next word can leave (inputs) or when the last one arrived (outputs).
    pub time: u64,
    /// Words so far.
    pub words: u64,
    /// Everything is done.
    pub finished: bool,
}

/// Feeds words as long as there is room; returns what it waits for.
pub fn feed(
    lane: &HostLane,
    state: &mut LaneState,
    program: &WaferProgram,
    tensors: &[(&str, Vec<f32>)],
    links: &mut Links,
) -> Option<Wait> {
    while let Some(&part) = lane.parts.get(state.part) {
        let host = &program.host[part as usize];
        let walk = Walk::new(&host.dims, &host.index, lane.at.x, lane.at.y);
        let (elements, lanes) = (walk.len(), u64::from(host.wire.lanes()));
        let tensor = tensor(tensors, host);
        while state.element < elements {
            let free = links.room(lane.link, 0);
            let Some(free) = free else { return Some(Wait::Room(lane.link)) };
            let time = state.time.max(free);
            let value = |n: u64| tensor.get(walk.at(n) as usize).copied().unwrap_or(0.0);
            let second = if lanes == 2 { value(state.element + 1) } else { 0.0 };
            let word = encode(host.wire, value(state.element), second);
            links.send(lane.link, time, Content::Data(word));
            state.element += lanes;
            state.words += 1;
            state.time = time + u64::from(host.interval.max(1));
        }
        if let Some(command) = host.then {
            let Some(free) = links.room(lane.link, 0) else { return Some(Wait::Room(lane.link)) };
            let time = state.time.max(free);
            links.send(lane.link, time, Content::Control(command));
            state.time = time + u64::from(host.interval.max(1));
        }
        state.part += 1;
        state.element = 0;
    }
    state.finished = true;
    None
}

fn tensor<'t>(tensors: &'t [(&str, Vec<f32>)], host: &HostStream) -> &'t [f32] {
    tensors.iter().find(|(name, _)| *name == host.tensor).map_or(&[], |(_, values)| values)
}

/// Collects words as they arrive; returns what it waits for.
pub fn drain(
    lane: &HostLane,
    state: &mut LaneState,
    program: &WaferProgram,
    tensors: &mut [(&str, Vec<f32>)],
    links: &mut Links,
) -> Option<Wait> {
    while let Some(&part) = lane.parts.get(state.part) {
        let host = &program.host[part as usize];
        let walk = Walk::new(&host.dims, &host.index, lane.at.x, lane.at.y);
        while state.element < walk.len() {
            let Some((arrival, word)) = links.front(lane.link) else { return Some(Wait::Word(lane.link)) };
            let time = arrival.max(state.time + 1);
            links.take(lane.link, time);
            if word.control {
                continue;
            }
            let (_, values) = tensors.iter_mut().find(|(name, _)| *name == host.tensor)?;
            for k in 0..host.wire.lanes() {
                if let Some(place) = values.get_mut(walk.at(state.element) as usize) {
                    *place = decode(host.wire, word.value, k);
                }
                state.element += 1;
            }
            state.time = time;
            state.words += 1;
        }
        state.part += 1;
        state.element = 0;
    }
    state.finished = true;
    None
}

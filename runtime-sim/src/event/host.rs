//! The host's side of the edges: lanes that feed words in tensor order and lanes that collect them.

use super::cause::{Cause, Causes};
use super::flow::Kind;
use super::links::{Links, control};
use super::ops::Wait;
use super::values::{decode, encode};
use super::walk::Walk;
use crate::network::{HostLane, NONE};
use crate::program::{HostStream, WaferProgram};

/// State of a lane.
#[derive(Clone, Debug, Default)]
pub struct LaneState {
    part: usize,
    element: u64,
    walk: Option<Walk>,
    /// When the next word can leave (inputs) or when the last one arrived (outputs).
    pub time: u64,
    /// Why not earlier.
    pub causes: Causes,
    /// Words so far.
    pub words: u64,
    /// Everything is done.
    pub finished: bool,
    /// What arrived: tensor, element and value, in order.
    pub collected: Vec<(u32, u64, f32)>,
}

impl LaneState {
    /// The part at work and its elements; none at the end.
    fn part<'p>(&mut self, lane: &HostLane, program: &'p WaferProgram) -> Option<&'p HostStream> {
        let part = *lane.parts.get(self.part)?;
        let host = &program.host[part as usize];
        if self.walk.is_none() {
            self.walk = Some(Walk::new(&host.dims, &host.index, lane.at.x, lane.at.y));
        }
        Some(host)
    }

    fn next_part(&mut self) {
        self.part += 1;
        self.element = 0;
        self.walk = None;
    }

    fn left(&self) -> bool {
        self.walk.as_ref().is_some_and(|walk| self.element < walk.len())
    }

    fn index(&self) -> usize {
        self.walk.as_ref().map_or(0, |walk| walk.at(self.element)) as usize
    }
}

/// Feeds words as long as there is room; returns what it waits for.
pub fn feed(
    lane: &HostLane,
    state: &mut LaneState,
    program: &WaferProgram,
    tensors: &[(&str, Vec<f32>)],
    links: &mut Links,
) -> Option<Wait> {
    while let Some(host) = state.part(lane, program) {
        let tensor = tensors.iter().find(|(name, _)| *name == host.tensor).map_or(&[][..], |(_, v)| v);
        while state.left() {
            let Some(free) = links.next_room(lane.link) else { return Some(Wait::Room(lane.link)) };
            let mut pair = [0.0; 2];
            for value in pair.iter_mut().take(host.wire.lanes() as usize) {
                *value = tensor.get(state.index()).copied().unwrap_or(0.0);
                state.element += 1;
            }
            emit(lane.link, state, host, free, encode(host.wire, pair[0], pair[1]), Kind::default(), links);
            state.words += 1;
        }
        if let Some(command) = host.then {
            let Some(free) = links.next_room(lane.link) else { return Some(Wait::Room(lane.link)) };
            emit(lane.link, state, host, free, 0, control(command), links);
        }
        state.next_part();
    }
    state.finished = true;
    None
}

fn emit(
    stream: u32,
    state: &mut LaneState,
    host: &HostStream,
    free: u64,
    value: u32,
    kind: Kind,
    links: &mut Links,
) {
    if free > state.time {
        state.causes = links.room_causes(stream);
        state.time = free;
    }
    links.send(stream, state.time, value, kind, state.causes);
    state.time += u64::from(host.interval.max(1));
    state.causes.add(Cause::Ingress, u64::from(host.interval.max(1)));
}

/// Collects words as they arrive; returns what it waits for.
pub fn drain(
    lane: &HostLane,
    state: &mut LaneState,
    program: &WaferProgram,
    tensors: &[(&str, Vec<f32>)],
    links: &mut Links,
) -> Option<Wait> {
    if lane.link == NONE {
        return Some(Wait::Word(NONE));
    }
    while let Some(host) = state.part(lane, program) {
        let tensor = tensors.iter().position(|(name, _)| *name == host.tensor);
        while state.left() {
            let Some(word) = links.front(lane.link) else { return Some(Wait::Word(lane.link)) };
            let time = word.time.max(state.time + 1);
            let causes = match word.time > state.time {
                true => links.arrival_causes(lane.link),
                false => state.causes.and(Cause::Egress, 1),
            };
            links.take(lane.link, time, causes);
            if word.kind.control {
                continue;
            }
            for k in 0..host.wire.lanes() {
                let value = decode(host.wire, word.value, k);
                state.collected.extend(tensor.map(|t| (t as u32, state.index() as u64, value)));
                state.element += 1;
            }
            (state.time, state.causes) = (time, causes);
            state.words += 1;
        }
        state.next_part();
    }
    state.finished = true;
    None
}

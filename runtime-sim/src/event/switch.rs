//! Routers with switch positions: they forward from one port until a control word makes them turn.

use super::cause::{Cause, Causes};
use super::links::Links;
use super::ops::Wait;
use crate::network::{NONE, SwitchNode};
use crate::program::{Command, Route};

/// State of a switched router.
#[derive(Clone, Copy, Debug, Default)]
pub struct SwitchState {
    /// Active position.
    pub position: usize,
    next: u64,
    causes: Causes,
}

/// Forwards words as long as there are any and there is room; returns what it waits for.
pub fn forward(node: &SwitchNode, route: &Route, state: &mut SwitchState, links: &mut Links) -> Wait {
    loop {
        let position = &route.positions[state.position];
        let end = node.ends[position.from as usize];
        if end == NONE {
            return Wait::Word(NONE);
        }
        let Some(word) = links.front(end) else { return Wait::Word(end) };
        let (mut time, mut causes) = (state.next, state.causes);
        if word.time > time {
            (time, causes) = (word.time, links.arrival_causes(end));
        }
        for port in &position.to {
            let stream = node.streams[*port as usize];
            match links.next_room(stream) {
                Some(free) if free > time => (time, causes) = (free, links.room_causes(stream)),
                Some(_) => {}
                None => return Wait::Room(stream),
            }
        }
        links.take(end, time, causes);
        for port in &position.to {
            links.send(node.streams[*port as usize], time, word.value, word.kind, causes);
        }
        state.next = time + 1;
        state.causes = causes.and(Cause::Contention, 1);
        turn(state, route, word.kind.command);
    }
}

/// Applies a command to the switch.
fn turn(state: &mut SwitchState, route: &Route, command: Option<Command>) {
    match command {
        Some(Command::Advance) => state.position = (state.position + 1).min(route.positions.len() - 1),
        Some(Command::Reset) => state.position = 0,
        Some(Command::Nothing) | None => {}
    }
}

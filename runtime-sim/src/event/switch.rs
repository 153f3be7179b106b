//! Routers with switch positions: they forward from one port until a control word makes them turn.

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
}

/// Forwards words as long as there are any and there is room; returns what it waits for.
pub fn forward(node: &SwitchNode, route: &Route, state: &mut SwitchState, links: &mut Links) -> Wait {
    loop {
        let position = &route.positions[state.position];
        let end = node.ends[position.from as usize];
        if end == NONE {
            return Wait::Word(NONE);
        }
        let Some((arrival, word)) = links.front(end) else { return Wait::Word(end) };
        let mut time = arrival.max(state.next);
        for port in &position.to {
            let stream = node.streams[*port as usize];
            match links.room(stream, 0) {
                Some(free) => time = time.max(free),
                None => return Wait::Room(stream),
            }
        }
        links.take(end, time);
        for port in &position.to {
            links.send(node.streams[*port as usize], time, word.content());
        }
        state.next = time + 1;
        turn(state, route, word.command);
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

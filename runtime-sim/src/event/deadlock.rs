//! Who waits for whom when nothing can go on.

use super::engine::Engine;
use super::ops::Wait;
use crate::network::NONE;

/// An explanation of a standstill.
#[derive(Clone, Debug, PartialEq)]
pub struct Standstill {
    /// One sentence per participant, each waiting for the next.
    pub chain: Vec<String>,
    /// Whether the last waits for one of the others.
    pub circular: bool,
}

/// Follows the waits from the first actor that is stuck.
pub fn explain(engine: &Engine) -> Standstill {
    let (mut chain, mut seen) = (Vec::new(), Vec::new());
    let mut next = engine.first_stuck();
    while let Some(actor) = next {
        if seen.contains(&actor) {
            return Standstill { chain, circular: true };
        }
        seen.push(actor);
        let Some(wait) = engine.waits_of(actor).first().copied() else {
            chain.push(format!("{} has finished", engine.actor_name(actor)));
            break;
        };
        chain.push(sentence(engine, actor, wait));
        next = blamed(engine, wait);
    }
    Standstill { chain, circular: false }
}

fn sentence(engine: &Engine, actor: u32, wait: Wait) -> String {
    let who = engine.actor_name(actor);
    match wait {
        Wait::Word(NONE) => format!("{who} waits for a word on a colour that nobody sends"),
        Wait::Word(end) => {
            let e = engine.net.ends[end as usize];
            let stream = &engine.net.streams[e.stream as usize];
            let taken = engine.links.taken(end);
            let from = engine.actor_name(engine.actors.sender(stream.origin));
            format!("{who} waits for word {taken} on colour {} from {from}", stream.colour.0)
        }
        Wait::Room(stream) => {
            let sent = engine.links.sent(stream);
            let colour = engine.net.streams[stream as usize].colour.0;
            let to = slowest(engine, stream).map_or("nobody".into(), |actor| engine.actor_name(actor));
            format!("{who} waits for room for word {sent} on colour {colour}, to be taken by {to}")
        }
    }
}

fn blamed(engine: &Engine, wait: Wait) -> Option<u32> {
    match wait {
        Wait::Word(NONE) => None,
        Wait::Word(end) => {
            let stream = engine.net.ends[end as usize].stream;
            Some(engine.actors.sender(engine.net.streams[stream as usize].origin))
        }
        Wait::Room(stream) => slowest(engine, stream),
    }
}

/// The receiver that has the fullest queue.
fn slowest(engine: &Engine, stream: u32) -> Option<u32> {
    let s = &engine.net.streams[stream as usize];
    let ends = s.first_end..s.first_end + s.ends;
    let room = |end: &u32| engine.links.taken(*end) + u64::from(engine.net.ends[*end as usize].depth);
    ends.min_by_key(room).map(|end| engine.actors.receiver(engine.net.ends[end as usize].target))
}

/// A readable name of an actor.
pub fn name(engine: &Engine, actor: u32) -> String {
    let a = engine.actors;
    if actor < a.switches {
        let at = engine.net.coord(actor);
        let class = &engine.classes[engine.net.class_of[actor as usize] as usize];
        return format!("PE {at} of class `{}`", class.name);
    }
    if actor < a.host_in {
        let node = &engine.net.switches[(actor - a.switches) as usize];
        return format!("the switch of PE {} on colour {}", engine.net.coord(node.pe), node.colour.0);
    }
    let lane = if actor < a.host_out {
        &engine.net.host_in[(actor - a.host_in) as usize]
    } else {
        &engine.net.host_out[(actor - a.host_out) as usize]
    };
    let part = lane.parts.first().copied().unwrap_or(0);
    format!("host stream `{}` at PE {}", engine.program.host[part as usize].name, lane.at)
}

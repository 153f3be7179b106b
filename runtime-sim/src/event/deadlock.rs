//! Who waits for whom when nothing can go on.

use super::engine::Setup;
use super::ops::Wait;
use super::strip::Strip;
use crate::network::NONE;

/// An explanation of a standstill.
#[derive(Clone, Debug, PartialEq)]
pub struct Standstill {
    /// One sentence per participant, each waiting for the next.
    pub chain: Vec<String>,
    /// Whether the last waits for one of the others.
    pub circular: bool,
}

/// PEs and lanes that are not done, in order.
pub fn stuck(setup: &Setup, strips: &[Strip]) -> Vec<u32> {
    let a = setup.plan.actors;
    let done = |actor: &u32| {
        let strip = &strips[usize::from(setup.plan.strip_of(setup.net, *actor))];
        if *actor < a.switches {
            strip.pe(*actor).finished
        } else if *actor < a.host_in {
            true
        } else if *actor < a.host_out {
            strip.host_in[(*actor - a.host_in) as usize].finished
        } else {
            strip.host_out[(*actor - a.host_out) as usize].finished
        }
    };
    (0..a.end).filter(|actor| !done(actor)).collect()
}

/// Follows the waits from the first actor that is stuck.
pub fn explain(setup: &Setup, strips: &mut [Strip]) -> Standstill {
    let (mut chain, mut seen) = (Vec::new(), Vec::new());
    let mut next = stuck(setup, strips).first().copied();
    while let Some(actor) = next {
        if seen.contains(&actor) {
            return Standstill { chain, circular: true };
        }
        seen.push(actor);
        let strip = &mut strips[usize::from(setup.plan.strip_of(setup.net, actor))];
        let Some(wait) = strip.act(actor).first().copied() else {
            chain.push(format!("{} has finished", name(setup, actor)));
            break;
        };
        chain.push(sentence(setup, strips, actor, wait));
        next = blamed(setup, strips, wait);
    }
    Standstill { chain, circular: false }
}

fn sentence(setup: &Setup, strips: &[Strip], actor: u32, wait: Wait) -> String {
    let who = name(setup, actor);
    match wait {
        Wait::Word(NONE) => format!("{who} waits for a word on a colour that nobody sends"),
        Wait::Word(end) => {
            let stream = &setup.net.streams[setup.net.ends[end as usize].stream as usize];
            let taken = taken(setup, strips, end);
            let from = name(setup, setup.plan.actors.sender(stream.origin));
            format!("{who} waits for word {taken} on colour {} from {from}", stream.colour.0)
        }
        Wait::Room(stream) => {
            let described = &setup.net.streams[stream as usize];
            let home = setup.plan.strip_of(setup.net, setup.plan.actors.sender(described.origin));
            let sent = strips[usize::from(home)].links.sent(stream);
            let to = slowest(setup, strips, stream).map_or("nobody".into(), |actor| name(setup, actor));
            format!(
                "{who} waits for room for word {sent} on colour {}, to be taken by {to}",
                described.colour.0
            )
        }
    }
}

fn taken(setup: &Setup, strips: &[Strip], end: u32) -> u64 {
    let receiver = setup.plan.actors.receiver(setup.net.ends[end as usize].target);
    strips[usize::from(setup.plan.strip_of(setup.net, receiver))].links.taken(end)
}

fn blamed(setup: &Setup, strips: &[Strip], wait: Wait) -> Option<u32> {
    match wait {
        Wait::Word(NONE) => None,
        Wait::Word(end) => {
            let stream = setup.net.ends[end as usize].stream;
            Some(setup.plan.actors.sender(setup.net.streams[stream as usize].origin))
        }
        Wait::Room(stream) => slowest(setup, strips, stream),
    }
}

/// The receiver that has the fullest queue.
fn slowest(setup: &Setup, strips: &[Strip], stream: u32) -> Option<u32> {
    let s = &setup.net.streams[stream as usize];
    let ends = s.first_end..s.first_end + s.ends;
    let room = |end: &u32| taken(setup, strips, *end) + u64::from(setup.net.ends[*end as usize].depth);
    let fullest = ends.min_by_key(room)?;
    Some(setup.plan.actors.receiver(setup.net.ends[fullest as usize].target))
}

/// A readable name of an actor.
fn name(setup: &Setup, actor: u32) -> String {
    let (a, net) = (setup.plan.actors, setup.net);
    if actor < a.switches {
        let class = &setup.classes[usize::from(net.class_of[actor as usize])];
        return format!("PE {} of class `{}`", net.coord(actor), class.name);
    }
    if actor < a.host_in {
        let node = &net.switches[(actor - a.switches) as usize];
        return format!("the switch of PE {} on colour {}", net.coord(node.pe), node.colour.0);
    }
    let lane = match actor < a.host_out {
        true => &net.host_in[(actor - a.host_in) as usize],
        false => &net.host_out[(actor - a.host_out) as usize],
    };
    let part = lane.parts.first().copied().unwrap_or(0);
    format!("host stream `{}` at PE {}", setup.program.host[part as usize].name, lane.at)
}

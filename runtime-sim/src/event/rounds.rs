//! Strips on threads. Each runs until nothing in it can go on, then all meet and exchange words and room; when there is
//! nothing to exchange either, the earliest decisions are taken.
//!
//! What a strip does depends on its words only, not on when it hears of them, so that the number of threads does not
//! change a cycle or a number.

use super::engine::Setup;
use super::images;
use super::links::Message;
use super::strip::Strip;
use std::mem;
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;

/// What a strip says when all meet.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    /// It has sent messages.
    sent: bool,
    /// The time of its next decision.
    next: Option<u64>,
}

/// Where strips meet; messages of one round lie apart from those of the next.
struct Meeting {
    barrier: Barrier,
    said: [Vec<Mutex<Said>>; 2],
    inbox: [Vec<Mutex<Vec<Message>>>; 2],
}

fn locked<T, R>(mutex: &Mutex<T>, work: impl FnOnce(&mut T) -> R) -> R {
    work(&mut mutex.lock().unwrap_or_else(PoisonError::into_inner))
}

fn each<T: Default>(count: usize) -> Vec<Mutex<T>> {
    (0..count).map(|_| Mutex::default()).collect()
}

/// Runs all strips of a plan to their end.
pub fn run<'a>(setup: &'a Setup<'a>) -> Vec<Strip<'a>> {
    let count = setup.plan.strips();
    if count == 1 {
        let mut strip = begin(setup, 0);
        strip.go();
        while let Some(now) = strip.links.next_decision() {
            strip.links.decide(now);
            strip.go();
        }
        return vec![strip];
    }
    let meeting = Meeting {
        barrier: Barrier::new(count),
        said: [each(count), each(count)],
        inbox: [each(count), each(count)],
    };
    thread::scope(|scope| {
        let meeting = &meeting;
        let others: Vec<_> =
            (1..count).map(|own| scope.spawn(move || live(setup, own as u16, meeting))).collect();
        let first = live(setup, 0, meeting);
        let rest = others.into_iter().map(|other| match other.join() {
            Ok(strip) => strip,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        std::iter::once(first).chain(rest).collect()
    })
}

fn begin<'a>(setup: &'a Setup<'a>, own: u16) -> Strip<'a> {
    let mut strip = Strip::new(setup, own);
    images::preload(setup, &mut strip);
    strip
}

/// The life of one strip.
fn live<'a>(setup: &'a Setup<'a>, own: u16, meeting: &Meeting) -> Strip<'a> {
    let mut strip = begin(setup, own);
    for round in 0usize.. {
        strip.go();
        let (said, inbox) = (&meeting.said[round % 2], &meeting.inbox[round % 2]);
        let mut sent = false;
        for (outbox, inbox) in strip.links.outbox.iter_mut().zip(inbox) {
            sent |= !outbox.is_empty();
            locked(inbox, |inbox| inbox.append(outbox));
        }
        locked(&said[usize::from(own)], |mine| *mine = Said { sent, next: strip.links.next_decision() });
        meeting.barrier.wait();
        let said: Vec<Said> = said.iter().map(|one| locked(one, |one| *one)).collect();
        let messages = locked(&inbox[usize::from(own)], mem::take);
        messages.into_iter().for_each(|message| strip.links.receive(message));
        if said.iter().any(|one| one.sent) {
            continue;
        }
        match said.iter().filter_map(|one| one.next).min() {
            Some(now) => strip.links.decide(now),
            None => break,
        }
    }
    strip
}

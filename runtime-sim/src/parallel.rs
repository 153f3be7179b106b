//! Independent pieces of work on all cores; results come in the order of the pieces, whatever the number of threads.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Fewest pieces worth a second thread.
const FEW: usize = 2;

/// `work` on each piece.
pub fn map<'a, T: Sync, R: Send>(pieces: &'a [T], work: impl Fn(&'a T) -> R + Sync) -> Vec<R> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    on_threads(cores, pieces, work)
}

fn on_threads<'a, T: Sync, R: Send>(
    threads: usize,
    pieces: &'a [T],
    work: impl Fn(&'a T) -> R + Sync,
) -> Vec<R> {
    let threads = threads.min(pieces.len());
    if threads < FEW {
        return pieces.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let take_turns = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = pieces.get(at) else { return done };
            done.push((at, work(piece)));
        }
    };
    let mut all: Vec<(usize, R)> = thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(take_turns)).collect();
        let own = take_turns();
        let theirs = helpers.into_iter().flat_map(|helper| match helper.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        own.into_iter().chain(theirs).collect()
    });
    all.sort_unstable_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_on_any_number_of_threads() {
        let pieces: Vec<u64> = (0..500).collect();
        let expected: Vec<u64> = pieces.iter().map(|n| n * n).collect();
        for threads in [1, 2, 3, 600] {
            assert_eq!(on_threads(threads, &pieces, |n| n * n), expected);
        }
        assert!(map(&[0u8; 0], |n| *n).is_empty());
    }
}

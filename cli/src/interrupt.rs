//! Ctrl-C on long work: what is done so far is told, then the command ends with 130.

use crate::failure::{Exit, Failure};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;

/// What came of work that can be interrupted.
pub struct Done<T> {
    /// The results in the order of the work; `None` for what was not finished.
    pub results: Vec<Option<T>>,
    /// Whether Ctrl-C came before all of it was done.
    pub interrupted: bool,
}

/// A flag that Ctrl-C raises, for work that looks at it and ends by itself with the best so far.
///
/// # Errors
/// Exit 1 when the signal cannot be watched.
pub fn flag() -> Result<Arc<AtomicBool>, Failure> {
    let raised = Arc::new(AtomicBool::new(false));
    let own = Arc::clone(&raised);
    ctrlc::set_handler(move || own.store(true, Ordering::Relaxed))
        .map_err(|error| Failure::new(Exit::Internal, format!("Ctrl-C cannot be watched: {error}")))?;
    Ok(raised)
}

enum News<T> {
    Finished(usize, T),
    Interrupted,
}

/// Does work `0..count` on up to `jobs` threads until all is done or Ctrl-C comes. Threads that are still at work then
/// end with the process.
///
/// # Errors
/// Exit 1 when the signal cannot be watched.
pub fn watched<T: Send + 'static>(
    count: usize,
    jobs: usize,
    work: impl Fn(usize) -> T + Send + Sync + 'static,
) -> Result<Done<T>, Failure> {
    let (send, receive) = channel();
    let signal = send.clone();
    ctrlc::set_handler(move || drop(signal.send(News::Interrupted)))
        .map_err(|error| Failure::new(Exit::Internal, format!("Ctrl-C cannot be watched: {error}")))?;
    tracing::info!("Ctrl-C ends with what is done so far");
    let shared = Arc::new((work, AtomicUsize::new(0)));
    for _ in 0..jobs.clamp(1, count.max(1)) {
        let (shared, send) = (Arc::clone(&shared), send.clone());
        thread::spawn(move || take_turns(count, &shared.0, &shared.1, &send));
    }
    let mut done = Done { results: (0..count).map(|_| None).collect(), interrupted: false };
    while done.results.iter().any(Option::is_none) && !done.interrupted {
        match receive.recv() {
            Ok(News::Finished(index, result)) => done.results[index] = Some(result),
            Ok(News::Interrupted) | Err(_) => done.interrupted = true,
        }
    }
    Ok(done)
}

fn take_turns<T>(count: usize, work: &impl Fn(usize) -> T, next: &AtomicUsize, send: &Sender<News<T>>) {
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        // Nobody listens any more after Ctrl-C.
        if index >= count || send.send(News::Finished(index, work(index))).is_err() {
            return;
        }
    }
}

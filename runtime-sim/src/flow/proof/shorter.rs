//! Which words of a stream a row has, of those that another row has that does the same with longer ops: the last steps of
//! each op are left out.

use super::skeleton::{Item, Skeleton};

/// Runs of words that a row has, and that it leaves out, so many times.
type Runs = Vec<(u64, u64, u64)>;

/// Most runs of the body of a loop, with all its turns, that are written out.
const WRITTEN: u64 = 1024;

/// Which words of the stream at a port a row has and which it leaves out.
pub fn runs(own: &Skeleton, most: &[Item], port: usize) -> Option<Runs> {
    let mut open: Vec<(u64, Runs)> = vec![(1, Runs::new())];
    let mut used = own.uses(port).peekable();
    for (at, (item, most)) in own.items.all.iter().zip(most).enumerate() {
        match (item, most) {
            (Item::Loop(times), _) => open.push((*times, Runs::new())),
            (Item::Next, _) => {
                let (times, body) = open.pop()?;
                again(&mut open.last_mut()?.1, times, &body)?;
            }
            (Item::Op(steps), Item::Op(most)) => {
                if let Some((_, words)) = used.next_if(|(item, _)| *item == at) {
                    push(&mut open.last_mut()?.1, (steps * words, (most - steps) * words, 1));
                }
            }
            _ => {}
        }
    }
    open.pop().map(|(_, runs)| runs)
}

fn again(runs: &mut Runs, times: u64, body: &Runs) -> Option<()> {
    match body[..] {
        _ if times == 0 => {}
        [] => {}
        [(has, 0, 1)] => push(runs, (has * times, 0, 1)),
        [(has, lacks, each)] if has > 0 => push(runs, (has, lacks, each * times)),
        _ if times.saturating_mul(body.len() as u64) <= WRITTEN => {
            (0..times).for_each(|_| body.iter().for_each(|run| push(runs, *run)));
        }
        _ => return None,
    }
    Some(())
}

/// Appends a run; every run but the last leaves something out.
fn push(runs: &mut Runs, (has, lacks, times): (u64, u64, u64)) {
    if has + lacks == 0 || times == 0 {
        return;
    }
    match runs.last_mut() {
        Some((before, 0, _)) => {
            let before = *before;
            runs.pop();
            push(runs, (before + has, lacks, 1));
            push(runs, (has, lacks, times - 1));
        }
        Some((_, left, 1)) if has == 0 => *left += lacks * times,
        Some((_, left, each)) if has == 0 => {
            let left = *left;
            *each -= 1;
            let before = runs[runs.len() - 1].0;
            push(runs, (before, left + lacks * times, 1));
        }
        Some((a, b, each)) if (*a, *b) == (has, lacks) => *each += times,
        _ => runs.push((has, lacks, times)),
    }
}

#[cfg(test)]
mod tests {
    use super::{Runs, again, push};

    #[test]
    fn the_same_words_left_out_are_the_same_runs_however_ops_are_cut() {
        let whole: Runs = vec![(136, 1, 12)];
        let mut cut = Runs::new();
        let body: Runs = vec![(136, 1, 1)];
        again(&mut cut, 5, &body).unwrap();
        for _ in 0..7 {
            push(&mut cut, (6, 0, 1));
            push(&mut cut, (130, 1, 1));
        }
        assert_eq!(cut, whole);
        let mut early = Runs::new();
        (0..12).for_each(|_| {
            push(&mut early, (5, 1, 1));
            push(&mut early, (131, 0, 1));
        });
        assert_ne!(early, whole);
    }
}

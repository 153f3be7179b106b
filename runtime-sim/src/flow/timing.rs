//! From a program to its times: rows that do the same are timed once; a small program runs again until its queues and
//! shared links settle.

use super::critical::path;
use super::ends::LOOKED_AT;
use super::engine::{Engine, FlowError};
use super::exact::Exact;
use super::links::Delays;
#[cfg(test)]
use super::passes::Members;
use super::rows::Rows;
use super::run::{Ran, Setting, Timed, Trust, least_cycles, outcome, run};
use super::skip::Skip;
use super::stretches::Stretches;
use super::work::{Works, works};
use crate::check::Checked;
use crate::fabric::FabricSpec;
use crate::lower::{Code, Env, Instr, LoweredClass, Source};
use crate::network::{Links, Network, cover};
use crate::program::{Class, Trigger, WaferProgram};
use crate::report::Report;
use crate::trace::Trace;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::OnceLock;
use std::thread;

/// Times a checked program without computing its numbers.
pub fn time(program: &Checked<WaferProgram>) -> Result<Report, FlowError> {
    timed(program, false).map(|(report, _)| report)
}

/// Whether queues have room for all PEs to go on, without asking when: what is not known of it.
///
/// # Errors
/// [`FlowError::Standstill`] where PEs wait for room for ever, and what [`time`] refuses.
pub fn room(program: &Checked<WaferProgram>) -> Result<Option<String>, FlowError> {
    Job::new(program)?.must_end()
}

/// As [`time`], with the phases of one PE of each class as tracks, and with the critical path however many PEs there are.
pub fn time_traced(program: &Checked<WaferProgram>) -> Result<(Report, Trace), FlowError> {
    timed(program, true)
}

fn timed(program: &Checked<WaferProgram>, traced: bool) -> Result<Timed, FlowError> {
    let job = Job { traced, ..Job::new(program)? };
    if !job.is_large() {
        let (steps, endless) = job.with_endless_queues(Sharing::Rows)?;
        let settled = if steps <= MEDIUM { job.settled()? } else { None };
        return settled.map_or_else(|| unsettled(endless, job.must_end()), Ok);
    }
    // When everybody ends, and whether there is room for that, are two questions.
    thread::scope(|scope| {
        let room = scope.spawn(|| job.must_end());
        let (steps, endless) = job.with_endless_queues(Sharing::Rows)?;
        if steps <= SMALL
            && let Some(settled) = job.settled()?
        {
            return Ok(settled);
        }
        let room = room.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        unsettled(endless, room)
    })
}

/// Times as if queues never filled, with what is known of the room in them.
fn unsettled(mut endless: Timed, room: Result<Option<String>, FlowError>) -> Result<Timed, FlowError> {
    endless.0.limits.push(ENDLESS.into());
    endless.0.limits.extend(room?);
    Ok(endless)
}

/// A program of more instructions, as they are executed with endless queues, runs only once.
const SMALL: u64 = 100_000;

/// The same where all PEs can be looked at.
const MEDIUM: u64 = 2_000_000;

/// Most instructions of all runs of a program.
const MOST_STEPS: u64 = 12_000_000;

/// Runs of more instructions are enough when they end within [`NEARLY`] of the one before.
const CHEAP: u64 = 60_000;

/// A share of all cycles.
const NEARLY: f64 = 1e-3;

/// A run of more instructions reads words on credit; so does one of more PEs, each counted once a stretch.
const UNTRUSTING: u64 = 250_000;

/// Words read on credit that come later by more than this share of the time that the busiest takes if nothing makes it wait
/// are waited for in another run.
const BELIEVED: f64 = 5e-3;

/// PEs begin alike if they do so within this share of the time that the busiest takes if nothing makes it wait.
const ALIKE: f64 = 1e-4;

/// Most runs of a program.
const MOST_RUNS: usize = 64;

/// Most PEs whose critical path is followed unasked: keeping what held PEs up takes up to a fifth more time.
pub const FOLLOWED: u64 = 16_384;

/// What a single run leaves out.
pub const ENDLESS: &str = "queues never fill and words of different colours never wait for a link: \
    level event follows both, and level flow does in programs small enough to run until they settle";

/// What rows of PEs that do the same have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharing {
    /// They are timed once, for as long as they do the same.
    Rows,
    /// Each is timed alone.
    #[cfg(test)]
    Nothing,
}

/// A program to be timed.
pub(super) struct Job<'a> {
    pub program: &'a WaferProgram,
    pub spec: &'a FabricSpec,
    pub classes: Cow<'a, [LoweredClass]>,
    /// Whether what happened when is wanted.
    traced: bool,
    first: OnceLock<Option<Seen>>,
}

/// Rows that stand for all, and the code of their PEs.
pub(super) struct Seen {
    pub net: Network,
    pub rows: Rows,
    /// As phases cut them, and joined where that makes no larger groups.
    pub stretches: Option<[Stretches; 2]>,
}

/// Periods of rows in a line that are looked at first.
const KNOWN: u32 = 2;

impl<'a> Job<'a> {
    /// A program, unless it has something that this level leaves out.
    pub fn new(checked: &'a Checked<WaferProgram>) -> Result<Self, FlowError> {
        let (program, spec) = (checked.get(), checked.fabric());
        supported(program)?;
        let classes = Cow::Borrowed(checked.classes());
        Ok(Job { program, spec, classes, traced: false, first: OnceLock::new() })
    }

    /// A program that the checker has not seen.
    #[cfg(test)]
    pub fn unchecked(program: &'a WaferProgram, spec: &'a FabricSpec) -> Self {
        let classes = Cow::Owned(crate::lower::lower(program, spec));
        Job { program, spec, classes, traced: false, first: OnceLock::new() }
    }

    /// Times with all PEs alone, as if queues never filled, words read on credit from the start; none if some come too late.
    #[cfg(test)]
    pub fn on_credit(&self, most_late: f64) -> Result<Option<Timed>, FlowError> {
        let Some((net, rows)) = self.chosen(None) else { return Ok(Some(Default::default())) };
        let trust = Trust { known: None, credit: true, most_steps: u64::MAX, most_late, explains: true };
        let (classes, works) = (&self.classes[..], works(&self.classes));
        let setting = Setting { net: &net, classes, works: &works, rows: &rows, likeness: None };
        match run(self.program, self.spec, &setting, (trust, false))? {
            Ran::Well(_, timed) => Ok(Some(*timed)),
            Ran::TooLate => Ok(None),
            Ran::Otherwise | Ran::TooLong => {
                panic!("nothing is foretold, and there is no end of instructions")
            }
        }
    }

    /// All PEs of a network as if queues never filled, those that begin within `most` cycles timed once: instructions, the
    /// time of the last PE and by how much it may be off.
    #[cfg(test)]
    pub fn followed(&self, net: &Network, most: Option<f64>) -> (u64, f64, f64) {
        let (works, stretches) = (works(&self.classes), Stretches::of(net, &self.classes).unwrap());
        let mut engine = Engine::new(self.program, self.spec, net, &self.classes, &works, &[]);
        engine.streams.credit = false;
        engine.feed();
        let first = engine.members(&[], false);
        let members = Members { first: &first, behind: &[], skips: &[] };
        engine.run_members(members, most.map(|most| (&stretches, most)));
        super::run::finished(&engine).unwrap();
        let last = engine.pes.iter().flatten().map(|pe| pe.time).fold(0.0, f64::max);
        (engine.steps, last, engine.strayed)
    }

    /// Instructions executed by the rows before those that are skipped, and by all.
    #[cfg(test)]
    pub fn instructions(&self, net: &Network, rows: &Rows) -> [u64; 2] {
        let (works, stretches) = (works(&self.classes), Stretches::of(net, &self.classes).unwrap());
        [false, true].map(|all| {
            let mut engine = Engine::new(self.program, self.spec, net, &self.classes, &works, &rows.skips);
            engine.feed();
            let [first, behind] = [false, true].map(|behind| engine.members(&rows.skips, behind));
            let behind: &[u32] = if all { &behind } else { &[] };
            engine
                .run_members(Members { first: &first, behind, skips: &rows.skips }, Some((&stretches, 0.0)));
            engine.steps
        })
    }

    /// Times as if queues never filled, and the number of instructions executed.
    pub fn with_endless_queues(&self, sharing: Sharing) -> Result<(u64, Timed), FlowError> {
        let known = (sharing == Sharing::Rows).then_some(KNOWN);
        let mut trust = Trust {
            known,
            credit: false,
            most_steps: UNTRUSTING,
            most_late: f64::INFINITY,
            explains: self.explains(),
        };
        loop {
            let later;
            let seen = match trust.known {
                Some(KNOWN) => self.first(),
                known => {
                    later = self.seen(known);
                    &later
                }
            };
            let Some(Seen { net, rows, stretches }) = seen else { return Ok(Default::default()) };
            let works = works(&self.classes);
            let least = least_cycles(net, &self.classes);
            let likeness = stretches.as_ref().map(|[_, joined]| (joined, (ALIKE * least).floor()));
            let setting = Setting { net, classes: &self.classes, works: &works, rows, likeness };
            let on_credit =
                Trust { credit: true, most_steps: u64::MAX, most_late: BELIEVED * least, ..trust };
            let at_once =
                stretches.as_ref().map_or(0, |[all, _]| (net.traced_pes().count() * all.count) as u64);
            if at_once > UNTRUSTING && trust.most_steps == UNTRUSTING {
                trust = on_credit;
            }
            let mut ran = run(self.program, self.spec, &setting, (trust, self.traced))?;
            if let Ran::TooLong = ran {
                trust = on_credit;
                ran = run(self.program, self.spec, &setting, (trust, self.traced))?;
            }
            match ran {
                Ran::Well(steps, timed) => return Ok((steps, *timed)),
                Ran::TooLate => {
                    trust = Trust { credit: false, most_late: f64::INFINITY, ..on_credit };
                }
                // The first periods of a line said nothing of the last: more of them are looked at.
                Ran::Otherwise | Ran::TooLong => trust.known = trust.known.map(|known| 2 * known),
            }
        }
    }

    /// Times with the queues and the shared links that there are; none if that takes too many instructions.
    pub fn settled(&self) -> Result<Option<Timed>, FlowError> {
        let Some((net, rows)) = self.chosen(None) else { return Ok(None) };
        if takes_more_than(MOST_STEPS, &net, &self.classes) {
            return Ok(None);
        }
        let (net, works) = (net.thinned(), works(&self.classes));
        let mut exact = Exact::new(&net, Delays::default());
        let (mut left, mut before) = (MOST_STEPS, f64::NAN);
        for runs in 1.. {
            let mut engine = Engine::new(self.program, self.spec, &net, &self.classes, &works, &[]);
            engine.streams.follow(exact);
            engine.streams.explains = true;
            engine.most_steps = left;
            engine.feed();
            engine.run_all();
            // Nobody goes on: some wait for room for ever, as far as this level sees it.
            if engine.steps > left || engine.first_stuck().is_some() {
                return Ok(None);
            }
            left -= engine.steps;
            let Some((next, settled)) = engine.streams.learn(u64::from(self.spec.link_words_per_cycle))
            else {
                return Ok(None);
            };
            let end = engine.pes.iter().flatten().map(|pe| pe.time).fold(0.0, f64::max);
            let enough = engine.steps > CHEAP && (end - before).abs() <= NEARLY * end;
            let last = engine.steps > left;
            if settled || enough || last || runs == MOST_RUNS {
                let mut timed = outcome(&engine, &rows, self.traced);
                timed.0.critical_path = path(&engine, &rows, None, timed.0.cycles);
                if !settled {
                    timed.0.limits.push(match runs {
                        1 => "words of different colours never wait for a link: another run with the turns that \
                              they take would be too long"
                            .into(),
                        _ => format!(
                            "shared links had not settled after {runs} runs: the last two end {:.0} cycles apart",
                            (end - before).abs()
                        ),
                    });
                }
                return Ok(Some(timed));
            }
            before = end;
            exact = next;
        }
        Ok(None)
    }

    /// The rows that are looked at first.
    pub fn first(&self) -> &Option<Seen> {
        self.first.get_or_init(|| self.seen(Some(KNOWN)))
    }

    /// The rows that stand for all, and their code in stretches where of rows that do the same only some are looked at.
    fn seen(&self, known: Option<u32>) -> Option<Seen> {
        let (net, rows) = self.chosen(known)?;
        let stretches = known.and_then(|_| {
            let stretches = Stretches::of(&net, &self.classes)?;
            let joined = stretches.joined(&net, &self.classes);
            Some([stretches, joined])
        });
        Some(Seen { net, rows, stretches })
    }

    /// Whether it is worth a second thread.
    fn is_large(&self) -> bool {
        self.program.width as usize * self.program.height as usize > LOOKED_AT
    }

    /// Whether the critical path is followed.
    fn explains(&self) -> bool {
        self.traced || self.program.classes.iter().map(Class::count).sum::<u64>() <= FOLLOWED
    }

    /// The streams of the rows that stand for all rows of a program.
    pub fn chosen(&self, known: Option<u32>) -> Option<(Network, Rows)> {
        chosen(self.program, self.spec, &self.classes, known)
    }
}

/// Whether PEs execute more instructions that read or send words, where these are the same in all iterations.
fn takes_more_than(most: u64, net: &Network, classes: &[LoweredClass]) -> bool {
    let mut steps = 0u64;
    net.traced_pes().any(|(pe, class)| {
        let at = net.coord(pe);
        let env = Env { x: i64::from(at.x), y: i64::from(at.y), ..Env::default() };
        for task in &classes[usize::from(class)].tasks {
            steps = steps.saturating_add(streaming(&task.code, 0..task.code.len(), &env));
        }
        steps > most
    })
}

fn streaming(code: &Code, range: Range<usize>, env: &Env) -> u64 {
    let scalar = |source: &Source| matches!(source, Source::Scalar { .. });
    let (mut steps, mut pc) = (0u64, range.start);
    while pc < range.end {
        let more = match &code[pc] {
            Instr::Loop { count, length, .. } => {
                let inside = pc + 1..pc + length;
                pc += length;
                streaming(code, inside, env).saturating_mul(count.at(env).max(0) as u64)
            }
            Instr::Op(op) => u64::from(op.streams() || op.src.iter().any(scalar)),
            Instr::Par(_) => 1,
            _ => 0,
        };
        steps = steps.saturating_add(more);
        pc += 1;
    }
    steps
}

fn chosen(
    program: &WaferProgram,
    spec: &FabricSpec,
    classes: &[LoweredClass],
    known: Option<u32>,
) -> Option<(Network, Rows)> {
    let class_of = cover(program).ok()?;
    let rows = Rows::choose(program, &class_of, classes, known);
    let traced = (0..program.height).map(|y| rows.chosen.contains(&y)).collect();
    // Where rows are foretold, queues are endless and links are wide enough.
    let links = if known.is_some() { Links::Untold } else { Links::Shared };
    let net = Network::of_rows(program, spec, class_of, traced, links).ok()?;
    Some((net, rows))
}

/// Times a program by something that sets the times of all PEs and sends all their words, those of rows that are foretold
/// like the rows before them; the host has sent its own. Whether there is room for that is another question, which is asked
/// as for level flow.
pub fn timed_by(
    program: &Checked<WaferProgram>,
    solve: &mut dyn FnMut(&mut Engine, &[Skip]),
) -> Result<Timed, FlowError> {
    let job = Job::new(program)?;
    let (mut known, works) = (KNOWN, Works::new());
    loop {
        let Some((net, rows)) = job.chosen(Some(known)) else { return Ok(Default::default()) };
        let mut engine = Engine::new(job.program, job.spec, &net, &job.classes, &works, &rows.skips);
        engine.feed();
        solve(&mut engine, &rows.skips);
        if rows.skips.iter().all(|skip| engine.came_true(skip)) {
            return unsettled(outcome(&engine, &rows, true), job.must_end());
        }
        known *= 2;
    }
}

/// Whether the PEs of the traced rows can all finish if queues never fill. No word is read before it was sent: a wait in a
/// circle may come in any iteration.
pub fn finishes(
    program: &WaferProgram,
    spec: &FabricSpec,
    net: &Network,
    classes: &[LoweredClass],
) -> Result<(), FlowError> {
    supported(program)?;
    let shape_of = (0..classes.len() as u16).collect();
    let rows = Rows { shape_of, ..Rows::default() };
    let stretches = Stretches::of(net, classes).map(|stretches| stretches.joined(net, classes));
    // Whether they finish is no matter of time.
    let likeness = stretches.as_ref().map(|stretches| (stretches, f64::INFINITY));
    let trust =
        Trust { known: None, credit: false, most_steps: u64::MAX, most_late: f64::INFINITY, explains: false };
    let works = works(classes);
    let setting = Setting { net, classes, works: &works, rows: &rows, likeness };
    run(program, spec, &setting, (trust, false)).map(|_| ())
}

fn supported(program: &WaferProgram) -> Result<(), FlowError> {
    for class in &program.classes {
        let switches = class.routes.values().any(|r| r.positions.len() > 1);
        let control = class.tasks.iter().any(|t| matches!(t.trigger, Trigger::Control { .. }));
        let what = match (switches, control) {
            (true, _) => "routes with switch positions",
            (_, true) => "a control task",
            _ => continue,
        };
        return Err(FlowError::LeftOut { class: class.name.clone(), what });
    }
    Ok(())
}

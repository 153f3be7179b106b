//! One run of the rows that stand for all, with what it takes for granted; and how it ended.

use super::critical::path;
use super::engine::{Engine, FlowError};
use super::passes::Members;
use super::profile::Profile;
use super::rows::Rows;
use super::stretches::Stretches;
use super::work::Works;
use crate::fabric::FabricSpec;
use crate::lower::{Code, Env, LoweredClass, Segment, segments};
use crate::network::Network;
use crate::program::WaferProgram;
use crate::report::Report;
use crate::trace::Trace;
use std::sync::Arc;

/// Words read on credit may be later than they were needed by this share of all cycles before the report says so.
const ON_TIME: f64 = 1e-3;

/// Times and phases.
pub type Timed = (Report, Trace);

/// What a run takes for granted.
#[derive(Clone, Copy, Debug)]
pub struct Trust {
    /// Periods of rows in a line that say what the others do.
    pub known: Option<u32>,
    /// Words that are not there come in the rhythm of those before.
    pub credit: bool,
    /// Most instructions.
    pub most_steps: u64,
    /// By how many cycles words read on credit may be later than they were needed.
    pub most_late: f64,
    /// Whether it is told why the last PE ended when it did.
    pub explains: bool,
}

/// How a run ended.
pub enum Ran {
    /// As foretold: instructions executed, and what was timed.
    Well(u64, Box<Timed>),
    /// Rows in a line did not do what was foretold.
    Otherwise,
    /// It took more instructions than it may.
    TooLong,
    /// Words that were read on credit came so late that nobody knows what became of those who went on without them.
    TooLate,
}

/// What runs.
pub struct Setting<'s> {
    pub net: &'s Network,
    pub classes: &'s [LoweredClass],
    pub works: &'s Works,
    pub rows: &'s Rows,
    pub likeness: Option<(&'s Stretches, f64)>,
}

/// Runs what was chosen.
pub fn run(
    program: &WaferProgram,
    spec: &FabricSpec,
    setting: &Setting,
    (trust, traced): (Trust, bool),
) -> Result<Ran, FlowError> {
    let Setting { net, classes, works, rows, likeness } = *setting;
    let mut engine = Engine::new(program, spec, net, classes, works, &rows.skips);
    engine.streams.keeps |= traced;
    engine.spans.keeps = traced;
    engine.streams.credit = trust.credit;
    (engine.most_steps, engine.most_late) = (trust.most_steps, trust.most_late);
    engine.streams.explains = trust.explains;
    engine.feed();
    let [first, behind] = [false, true].map(|behind| engine.members(&rows.skips, behind));
    let told = engine.run_members(Members { first: &first, behind: &behind, skips: &rows.skips }, likeness);
    if engine.steps > engine.most_steps {
        return Ok(Ran::TooLong);
    }
    if engine.streams.late > engine.most_late {
        return Ok(Ran::TooLate);
    }
    if !told {
        return Ok(Ran::Otherwise);
    }
    finished(&engine)?;
    if !rows.skips.iter().all(|skip| engine.came_true(skip)) {
        return Ok(Ran::Otherwise);
    }
    let mut timed = outcome(&engine, rows, traced);
    if trust.explains {
        timed.0.critical_path = path(&engine, rows, likeness.map(|(stretches, _)| stretches), timed.0.cycles);
    }
    let (late, cycles) = (engine.streams.late, timed.0.cycles as f64);
    if late > ON_TIME * cycles {
        timed.0.limits.push(format!(
            "words were taken to come in the rhythm of those before, and some came up to {late:.0} cycles later: {:.1} % of all",
            100.0 * late / cycles
        ));
    }
    if engine.strayed > ON_TIME * cycles {
        timed.0.limits.push(format!(
            "PEs that do the same were timed once where they began alike; some may be off by up to {:.0} cycles: {:.1} % of all",
            engine.strayed,
            100.0 * engine.strayed / cycles
        ));
    }
    Ok(Ran::Well(engine.steps, Box::new(timed)))
}

/// Cycles of the PE with most work, if nothing makes it wait.
pub fn least_cycles(net: &Network, classes: &[LoweredClass]) -> f64 {
    let code = |segment: &Arc<Segment>| {
        let mut code = Code::default();
        code.push(Arc::clone(segment));
        code
    };
    let codes: Vec<Code> = segments(classes).into_iter().map(code).collect();
    // Code whose counts and lengths depend on nothing costs the same everywhere.
    let mut known: Vec<Option<f64>> = vec![None; codes.len()];
    let mut seen = vec![false; classes.len()];
    let firsts =
        net.traced_pes().filter(|(_, class)| !std::mem::replace(&mut seen[usize::from(*class)], true));
    let mut alone = |(pe, class): (u32, u16)| {
        let at = net.coord(pe);
        let mut env = Env { x: i64::from(at.x), y: i64::from(at.y), ..Env::default() };
        let mut work = |segment: &Segment| {
            let number = segment.number as usize;
            known[number].unwrap_or_else(|| {
                let code = &codes[number];
                let work = Profile::of(code, 0..code.len(), &mut env).work;
                known[number] = segment.placed().is_empty().then_some(work);
                work
            })
        };
        let tasks = classes[usize::from(class)].tasks.iter();
        tasks.flat_map(|task| task.code.segments()).map(&mut work).sum::<f64>()
    };
    firsts.map(&mut alone).fold(0.0, f64::max)
}

/// That all PEs came to their end.
pub fn finished(engine: &Engine) -> Result<(), FlowError> {
    match engine.first_stuck() {
        Some(pe) => Err(FlowError::Deadlock { chain: engine.explain(pe) }),
        None => Ok(()),
    }
}

/// What was timed.
pub fn outcome(engine: &Engine, rows: &Rows, traced: bool) -> Timed {
    let report = super::outcome::report(engine, rows);
    let trace = if traced { super::trace::trace(engine, &report) } else { Trace::default() };
    (report, trace)
}

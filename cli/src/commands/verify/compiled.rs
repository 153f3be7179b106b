//! The host's program as a device.

use super::device::{Ask, Device, Trace, traced};
use crate::commands::run::load_failure;
use crate::failure::{Exit, Failure};
use crate::host::Lowered;
use crate::memory::Needs;
use lapidary_passes::cpu::HostModule;
use lapidary_runtime_cpu::{
    Engine, Generation, LoadOptions, Model, Observation, Prepared, RunError, Sampling, Session, Weights,
    Which, generate,
};

/// A loaded program and the module that it came from.
pub struct Compiled {
    module: HostModule,
    model: Model,
}

impl Compiled {
    /// Finds the weights, checks that what has to be copied fits beside what the runs need, and loads.
    ///
    /// # Errors
    /// Exit 3 for weights that do not fit the model, 4 when memory does not suffice.
    pub fn load(
        lowered: Lowered,
        weights: &dyn Weights,
        needs: &Needs,
        engine: Engine,
        jobs: usize,
    ) -> Result<Compiled, Failure> {
        let Lowered { module, program } = lowered;
        let options = LoadOptions { jobs, engine, ..LoadOptions::default() };
        let prepared = Prepared::new(program, weights, options).map_err(|error| load_failure(&error))?;
        needs.check(prepared.program(), prepared.footprint().copied)?;
        let model = prepared.load(weights).map_err(|error| load_failure(&error))?;
        Ok(Compiled { module, model })
    }

    /// Runs one sequence per list, token lists split at `cuts` (the same for all), and shows every value that leaves a
    /// step, with the position of its rows' first token; returns the logits of all tokens, sequence by sequence.
    ///
    /// # Errors
    /// When the session has no room.
    pub fn watch(
        &self,
        ids: &[Vec<u32>],
        cuts: &[usize],
        see: &mut dyn FnMut(usize, Observation),
    ) -> Result<Vec<Vec<f32>>, Failure> {
        let mut session = self.model.session(ids.len(), ids[0].len()).map_err(no_room)?;
        let mut logits: Vec<Vec<f32>> = vec![Vec::new(); ids.len()];
        let mut from = 0;
        for to in cuts.iter().copied().chain([ids[0].len()]) {
            let part: Vec<&[u32]> = ids.iter().map(|ids| &ids[from..to]).collect();
            let made = session.watch(&part, Which::All, &mut |o| see(from, o)).map_err(no_room)?;
            for row in 0..made.rows() {
                logits[row / (to - from)].extend_from_slice(made.row(row));
            }
            from = to;
        }
        Ok(logits)
    }
}

fn no_room(error: RunError) -> Failure {
    Failure::new(Exit::DoesNotFit, error.to_string())
}

impl Device for Compiled {
    fn module(&self) -> &HostModule {
        &self.module
    }

    fn trace(&self, ids: &[Vec<u32>], wanted: &dyn Fn(&str) -> bool) -> Result<Trace, Failure> {
        let mut trace = Trace::default();
        let logits = self.watch(ids, &[], &mut |_, o| {
            let name = traced(o.layer, o.value);
            if wanted(&name) {
                let rows = (0..o.rows).flat_map(|row| &o.data[row * o.pitch..][..o.width]);
                trace.values.insert(name, rows.map(|x| f64::from(*x)).collect());
            }
        })?;
        trace.logits = logits.iter().flatten().map(|x| f64::from(*x)).collect();
        Ok(trace)
    }

    fn continuations(&self, asked: &[Ask<'_>]) -> Result<Vec<Vec<u32>>, Failure> {
        let most = self.model.program().model.max_seq as usize;
        continued(most, asked, |sequences, positions| self.model.session(sequences, positions))
            .map_err(no_room)
    }
}

/// The likeliest ids after each prompt, of at most `most` positions, in a session that `open` makes for so many sequences
/// and positions.
///
/// # Errors
/// As of the session.
pub fn continued<'m>(
    most: usize,
    asked: &[Ask<'_>],
    open: impl FnOnce(usize, usize) -> Result<Session<'m>, RunError>,
) -> Result<Vec<Vec<u32>>, RunError> {
    let prompts: Vec<&[u32]> = asked.iter().map(|ask| ask.prompt).collect();
    let longest = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0);
    let count = asked.iter().map(|ask| ask.count).max().unwrap_or(0);
    let mut session = open(prompts.len(), (longest + count).min(most))?;
    let ask = Generation { max_new: count, stop: Vec::new(), sampling: Sampling::GREEDY };
    let made = generate(&mut session, &prompts, &ask, |_, _| {})?;
    let cut = |(ids, ask): ((Vec<u32>, _), &Ask<'_>)| ids.0.into_iter().take(ask.count).collect();
    Ok(made.into_iter().zip(asked).map(cut).collect())
}

//! The simulated wafer as a device: every number through PEs, routers and queues, at level event.

use super::device::{Answers, Ask, Device, Trace, traced};
use crate::failure::Failure;
use crate::wafer::{Session, Simulator};
use lapidary_models::{Op, ValueId};
use lapidary_passes::cpu::{HostFunction, HostModule};
use lapidary_reference::largest;

/// A simulator and the module that its programs come from.
pub struct Simulated {
    /// The model as the passes left it.
    pub module: HostModule,
    /// What runs it.
    pub simulator: Simulator,
}

impl Device for Simulated {
    fn module(&self) -> &HostModule {
        &self.module
    }

    /// Between the stages only the residual stream is in memory, so nothing else is traced.
    fn trace(&self, ids: &[Vec<u32>], wanted: &dyn Fn(&str) -> bool) -> Result<Trace, Failure> {
        let made = self.simulator.trace(ids)?;
        let names = stream_names(&self.module);
        let values = names.into_iter().zip(made.stream).filter(|(name, _)| wanted(name));
        let wide = |rows: Vec<f32>| rows.into_iter().map(f64::from).collect::<Vec<f64>>();
        Ok(Trace {
            values: values.map(|(name, rows)| (name, wide(rows))).collect(),
            logits: wide(made.logits),
        })
    }

    /// One prompt on a wafer with a cache is continued token by token. Otherwise, and for several prompts, which stream one
    /// behind the other, every pass runs the whole sequences, the shorter ones with ids behind them that nothing before
    /// them sees. Drafts make that cheap: a pass answers for every position, so ids are accepted up to and including the
    /// first that the draft has otherwise.
    fn continuations(&self, asked: &[Ask<'_>]) -> Result<Vec<Vec<u32>>, Failure> {
        if let ([ask], true) = (asked, self.simulator.caches()) {
            return Ok(vec![self.cached(ask)?]);
        }
        let mut answers: Vec<Vec<u32>> = vec![Vec::new(); asked.len()];
        loop {
            let open = |index: &usize| answers[*index].len() < asked[*index].count;
            let open: Vec<usize> = (0..asked.len()).filter(open).collect();
            if open.is_empty() {
                break;
            }
            self.answer(asked, &open, &mut answers)?;
        }
        Ok(answers)
    }

    /// On a wafer without a cache all prompts share their passes, each of which streams all weights.
    fn answers(&self, alone: &[Ask<'_>], together: &[Ask<'_>]) -> Result<Answers, Failure> {
        if self.simulator.caches() {
            let alone = alone.iter().map(|ask| self.cached(ask)).collect::<Result<_, _>>()?;
            return Ok((alone, self.continuations(together)?));
        }
        let mut alone_found = self.continuations(&[alone, together].concat())?;
        let together_found = alone_found.split_off(alone.len());
        Ok((alone_found, together_found))
    }
}

impl Simulated {
    /// The likeliest ids one by one: the prompt's keys and values, and then those of each new id, stay on the wafer.
    fn cached(&self, ask: &Ask<'_>) -> Result<Vec<u32>, Failure> {
        let mut answer = Vec::new();
        if ask.count == 0 {
            return Ok(answer);
        }
        let (mut session, logits) = Session::begin(&self.simulator, ask.prompt, ask.length())?;
        answer.push(largest(&logits));
        while answer.len() < ask.count {
            let logits = session.next(answer[answer.len() - 1])?;
            answer.push(largest(&logits));
        }
        Ok(answer)
    }

    /// One pass over prompts; at least one more id of each is known afterwards.
    fn answer(&self, asked: &[Ask<'_>], which: &[usize], answers: &mut [Vec<u32>]) -> Result<(), Failure> {
        let length = which.iter().map(|at| asked[*at].length()).max().unwrap_or(0);
        let fed = |at: &usize| {
            let (ask, known) = (&asked[*at], &answers[*at]);
            let guess = ask.draft.iter().copied().chain(std::iter::repeat(0)).skip(known.len());
            let ids = ask.prompt.iter().copied().chain(known.iter().copied()).chain(guess);
            ids.take(length).collect::<Vec<u32>>()
        };
        let ids: Vec<Vec<u32>> = which.iter().map(fed).collect();
        let logits = self.simulator.forward(&ids)?.logits;
        let vocab = self.module.model.vocab as usize;
        let sequences = ids.iter().zip(logits.chunks_exact(vocab * ids[0].len()));
        for (at, (ids, logits)) in which.iter().zip(sequences) {
            let (ask, answer) = (&asked[*at], &mut answers[*at]);
            while answer.len() < ask.count {
                let next = ask.prompt.len() + answer.len();
                answer.push(largest(&logits[(next - 1) * vocab..][..vocab]));
                if ids.get(next) != answer.last() {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// What the input of the first layer and the result of every layer are called in a trace.
pub fn stream_names(module: &HostModule) -> Vec<String> {
    let main = &module.main;
    let repeat = main.function.nodes.iter().find(|node| matches!(node.op, Op::Repeat { .. }));
    let first = repeat.and_then(|node| maker(main, *node.inputs.first()?));
    let result = module.layer.function.results.first().and_then(|id| maker(&module.layer, *id));
    let layers =
        (0..module.model.layers as usize).filter_map(|layer| Some(traced(Some(layer), &result.clone()?)));
    std::iter::once(first.unwrap_or_default()).chain(layers).collect()
}

fn maker(host: &HostFunction, value: ValueId) -> Option<String> {
    host.function.nodes.iter().find(|node| node.output == value).map(|node| node.name.clone())
}

//! Where a difference begins: in what is stored, in a pass, or in a step of the device.
//!
//! Three comparisons, each of two things that should be one. The reference interpreter runs the model's own graph
//! against the stored tensors; then the graph after every pass against the model's own; then the device's steps, value
//! by value in the order in which they run, against the interpreter on the very graph that the steps were made from.

use super::check::{Checks, Tolerances};
use super::compiled::Compiled;
use super::device::{Device, traced};
use super::directory::{Directory, Expected};
use super::interpreted::Interpreted;
use super::views::Views;
use crate::failure::Failure;
use crate::host::{self, Switches};
use lapidary_passes::Fusion;
use lapidary_passes::cpu::HostModule;
use lapidary_reference::{Params, Run, Tensor};
use lapidary_runtime_cpu::Observation;
use serde::Serialize;

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Bisection {
    /// One sentence.
    pub verdict: String,
    /// The first stored tensor that the reference does not reproduce.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored: Option<Place>,
    /// The first pass after which the graph computes something else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pass: Option<Place>,
    /// The first value of the device that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<Place>,
    /// The first value of the same program without fusion that differs, where the step is a fused one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unfused: Option<Place>,
}

/// Where two things differ.
#[derive(Clone, Debug, Serialize)]
pub struct Place {
    /// Stored tensor, pass, or step of the program.
    pub at: String,
    /// Node of the graph, with its layer filled in.
    pub node: String,
    /// The node's op.
    pub op: String,
    /// Ops of the kernel that the step belongs to, where they are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernel: Vec<String>,
    /// Position of the first row's token in its sequence.
    pub token: usize,
    /// Largest difference; none where there are values that are no numbers.
    pub max_abs: Option<f64>,
}

/// Everything a bisection needs.
pub struct Suspects<'a> {
    /// What is stored.
    pub directory: &'a Directory,
    /// The published parameters.
    pub params: &'a Params<f64>,
    /// How the device's program was compiled.
    pub switches: &'a Switches,
    /// The device; none when the reference is verified itself.
    pub device: Option<&'a Compiled>,
    /// Compiles the program with other switches.
    pub compile: &'a dyn Fn(&Switches) -> Result<Compiled, Failure>,
    /// How far values may be off.
    pub allowed: Tolerances,
}

impl Suspects<'_> {
    /// Finds the first thing that differs, given what the checks found.
    ///
    /// # Errors
    /// When something cannot be compiled or run.
    pub fn bisect(&self, checks: &Checks) -> Result<Bisection, Failure> {
        let stages = host::stages(&self.directory.spec, self.switches)?;
        let stored = self.stored(&stages[0].1);
        let pass = self.pass(&stages);
        let mut found = Bisection { stored, pass, ..Bisection::default() };
        if let Some(device) = self.device {
            let feed = self.feed(checks);
            found.step = self.step(device, &feed)?;
            if found.step.as_ref().is_some_and(|place| !place.kernel.is_empty()) {
                let plain = (self.compile)(&Switches { fusion: Fusion::Off, ..self.switches.clone() })?;
                found.unfused = self.step(&plain, &feed)?;
            }
        }
        found.verdict = found.sentence();
        Ok(found)
    }

    /// The reference on the model's own graph against what is stored.
    fn stored(&self, module: &HostModule) -> Option<Place> {
        let views = Views::new(&self.directory.spec, module);
        let interpreted = Interpreted::new(module.clone(), self.params);
        let trace = interpreted.trace(&self.directory.ids, &|_| true).ok()?;
        self.directory.expected.iter().find_map(|expected| {
            let view = views.of(&expected.name);
            let max_abs = difference(expected, &view.find(&trace)?.data);
            let tolerance = if expected.name == "logits" { self.allowed.logits } else { self.allowed.hidden };
            let (node, op) = view.node;
            let place = Place {
                at: expected.name.clone(),
                node,
                op: op.into(),
                kernel: Vec::new(),
                token: 0,
                max_abs: finite(max_abs),
            };
            (max_abs.is_nan() || max_abs > tolerance).then_some(place)
        })
    }

    /// The reference after each pass against the reference before all.
    fn pass(&self, stages: &[(String, HostModule)]) -> Option<Place> {
        let logits = |module: &HostModule| {
            Interpreted::new(module.clone(), self.params).run(&self.directory.ids).logits
        };
        let before = logits(&stages[0].1);
        stages[1..].iter().find_map(|(pass, module)| {
            let max_abs = logits(module).max_abs_diff(&before);
            let place = || Place {
                at: pass.clone(),
                node: "logits".into(),
                op: String::new(),
                kernel: Vec::new(),
                token: 0,
                max_abs: finite(max_abs),
            };
            (max_abs.is_nan() || max_abs > self.allowed.logits).then(place)
        })
    }

    /// Sequences of one length, and where they are cut so that the cache is used as it was when something differed.
    fn feed(&self, checks: &Checks) -> Feed {
        let directory = self.directory;
        let whole = Feed { ids: directory.ids.clone(), cuts: Vec::new() };
        if checks.first_difference().is_some() {
            return whole;
        }
        let one_by_one = |prompt: &[u32], rest: &[u32]| {
            let ids = vec![[prompt, rest].concat()];
            let last = ids[0].len();
            Feed { ids, cuts: (prompt.len()..last).collect() }
        };
        let greedy = checks.greedy.iter().find(|check| check.differs.is_some());
        if let (Some(check), Some(stored)) = (greedy, &directory.greedy) {
            let case = &stored.cases[check.index];
            return one_by_one(&case.prompt, &case.continuation[..case.continuation.len() - 1]);
        }
        let remembered = checks.memorization.iter().find(|check| check.differs.is_some());
        if let (Some(check), Some(stored)) = (remembered, &directory.memorization) {
            let case = &stored.sequences[check.index];
            return one_by_one(&case.prompt, &case.generated[..case.generated.len() - 1]);
        }
        whole
    }

    /// The device, step by step, against the interpreter on the graph that the steps were made from.
    fn step(&self, device: &Compiled, feed: &Feed) -> Result<Option<Place>, Failure> {
        let reference = Interpreted::new(device.module().clone(), self.params).run(&feed.ids);
        let mut first = None;
        device.watch(&feed.ids, &feed.cuts, &mut |from, seen| {
            if first.is_none() {
                first = self.differs(device.module(), &reference, feed, from, &seen);
            }
        })?;
        Ok(first)
    }

    fn differs(
        &self,
        module: &HostModule,
        reference: &Run<f64>,
        feed: &Feed,
        from: usize,
        seen: &Observation<'_>,
    ) -> Option<Place> {
        let name = traced(seen.layer, seen.value);
        let wanted = reference.get(&name)?;
        let rows = Rows { from, seq: feed.ids[0].len(), count: seen.rows / feed.ids.len() };
        let (max_abs, scale) = rows.compare(wanted, seen);
        let within = max_abs <= self.allowed.hidden * scale.max(1.0);
        let host = if seen.layer.is_some() { &module.layer } else { &module.main };
        let node = host.function.nodes.iter().position(|node| node.name == seen.value)?;
        let kernel = host.kernels.iter().find(|kernel| kernel.contains(&node))?;
        let names = kernel.iter().map(|n| host.function.nodes[*n].name.clone());
        (!within).then(|| Place {
            at: seen.step.into(),
            node: name,
            op: host.function.nodes[node].op.name().into(),
            kernel: if kernel.len() > 1 { names.collect() } else { Vec::new() },
            token: from,
            max_abs: finite(max_abs),
        })
    }
}

/// What is run on the device.
struct Feed {
    ids: Vec<Vec<u32>>,
    cuts: Vec<usize>,
}

/// Rows of an observation: `count` tokens of each sequence of `seq`, from token `from` on.
struct Rows {
    from: usize,
    seq: usize,
    count: usize,
}

impl Rows {
    /// Largest difference, and largest value of the reference.
    fn compare(&self, wanted: &Tensor<f64>, seen: &Observation<'_>) -> (f64, f64) {
        let (mut worst, mut scale) = (0.0f64, 0.0f64);
        for row in 0..seen.rows {
            let (sequence, token) = (row / self.count, self.from + row % self.count);
            for (column, found) in seen.data[row * seen.pitch..][..seen.width].iter().enumerate() {
                let Some(value) = self.value(wanted, sequence, token, column, seen.width) else { continue };
                let found = f64::from(*found);
                let difference = if found == value { 0.0 } else { (found - value).abs() };
                worst = if difference.is_nan() { difference } else { worst.max(difference) };
                if worst.is_nan() {
                    return (worst, scale);
                }
                scale = if value.is_finite() { scale.max(value.abs()) } else { scale };
            }
        }
        (worst, scale)
    }

    /// The reference's value; scores lie as `[sequence, head, token, key]` there and `[row][head][key]` here.
    fn value(
        &self,
        t: &Tensor<f64>,
        sequence: usize,
        token: usize,
        column: usize,
        width: usize,
    ) -> Option<f64> {
        let at = match t.shape[..] {
            [_, heads, seq, keys] => {
                let here = width / heads;
                let (head, key) = (column / here, column % here);
                ((sequence * heads + head) * seq + token) * keys + key
            }
            _ => (sequence * self.seq + token) * t.width() + column,
        };
        t.data.get(at).copied()
    }
}

fn difference(expected: &Expected, found: &[f64]) -> f64 {
    let stored = expected.shape[2];
    let width = found.len() * stored / expected.data.len();
    let rows = expected.data.chunks_exact(stored).zip(found.chunks_exact(width));
    let all = rows.flat_map(|(e, f)| e.iter().zip(f)).map(|(e, f)| (e - f).abs());
    all.fold(0.0, |worst: f64, d| if d.is_nan() || worst.is_nan() { f64::NAN } else { worst.max(d) })
}

fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

impl Bisection {
    fn sentence(&self) -> String {
        if let Some(Place { at, node, op, .. }) = &self.stored {
            return format!(
                "the reference itself does not give {at}, made by {node} ({op}): the configuration, the weights or \
                 what is stored is not that of one model"
            );
        }
        if let Some(Place { at, .. }) = &self.pass {
            return format!("the pass `{at}` changed what the graph computes");
        }
        let Some(step) = &self.step else { return "nothing differs".into() };
        let begins =
            format!("the first value that differs is {} ({}), of step `{}`", step.node, step.op, step.at);
        match (&self.unfused, step.kernel.is_empty()) {
            (_, true) => begins,
            (None, false) => {
                let ops = step.kernel.join(", ");
                format!("{begins}; without fusion nothing differs, so its kernel is at fault: {ops}")
            }
            (Some(plain), false) => format!("{begins}; without fusion it is {} ({})", plain.node, plain.op),
        }
    }
}

//! What `verify` prints.

use super::bisect::Bisection;
use super::check::{Checks, SequenceCheck, TensorCheck, Tolerances};
use super::directory::{Directory, Skipped};
use super::gradients::GradientChecks;
use crate::show;
use serde::Serialize;

/// One set of switches and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// How the program was made: `mup`, `fuse`, `engine`, `precision`.
    pub switches: Vec<(&'static str, String)>,
    /// How far its numbers may be off.
    #[serde(skip)]
    pub allowed: Tolerances,
    /// What was found.
    #[serde(flatten)]
    pub checks: Checks,
}

/// One set of switches whose program the device has no room for.
#[derive(Clone, Debug, Serialize)]
pub struct LeftOut {
    /// How it would have been made.
    #[serde(serialize_with = "as_map")]
    pub switches: Vec<(&'static str, String)>,
    /// What there is too little of.
    pub why: String,
}

/// The document of `verify --json`.
#[derive(Serialize)]
pub struct Document<'a> {
    schema: &'static str,
    version: u32,
    model: &'a str,
    device: &'static str,
    tolerances: Tolerances,
    #[serde(flatten)]
    checks: Checks,
    first_difference: Option<TensorCheck>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bisection: Option<&'a Bisection>,
    runs: Vec<Summary>,
    #[serde(skip_serializing_if = "<[LeftOut]>::is_empty")]
    left_out: &'a [LeftOut],
    #[serde(skip_serializing_if = "<[GradientChecks]>::is_empty")]
    gradients: &'a [GradientChecks],
}

/// A run in the document, in short.
#[derive(Serialize)]
struct Summary {
    switches: serde_json::Map<String, serde_json::Value>,
    worst: Option<TensorCheck>,
    loss: Option<f64>,
    greedy_match: Option<bool>,
    memorization_match: Option<bool>,
    ok: bool,
}

/// Everything that is told about a directory.
pub struct Report<'a> {
    /// The directory.
    pub directory: &'a Directory,
    /// Name of the device.
    pub device: &'static str,
    /// Every run; at least one.
    pub runs: Vec<Run>,
    /// What every switch would have been but for the room.
    pub left_out: Vec<LeftOut>,
    /// Gradients, where they were asked for.
    pub gradients: Vec<GradientChecks>,
    /// Where a difference begins.
    pub bisection: Option<Bisection>,
}

impl Report<'_> {
    /// Whether nothing differs in any run.
    pub fn ok(&self) -> bool {
        self.runs.iter().all(|run| run.checks.ok) && self.gradients.iter().all(|checks| checks.ok)
    }

    /// The run that is told in full: the first that differs, or else the first.
    pub fn told(&self) -> &Run {
        self.runs.iter().find(|run| !run.checks.ok).unwrap_or(&self.runs[0])
    }

    /// The document. With several runs, each tensor's entry is its worst.
    pub fn document(&self) -> Document<'_> {
        let told = self.told();
        let mut checks = told.checks.clone();
        for tensor in &mut checks.tensors {
            let same = self.runs.iter().flat_map(|run| &run.checks.tensors).filter(|t| t.name == tensor.name);
            if let Some(worst) = same.max_by(|a, b| gap(a).total_cmp(&gap(b))) {
                *tensor = worst.clone();
            }
        }
        checks.not_checked.extend(self.directory.not_checked.iter().cloned());
        Document {
            schema: "lapidary/verification",
            version: 1,
            model: &self.directory.spec.name,
            device: self.device,
            tolerances: told.allowed,
            checks,
            first_difference: told.checks.first_difference().cloned(),
            bisection: self.bisection.as_ref(),
            runs: self.runs.iter().map(summary).collect(),
            left_out: &self.left_out,
            gradients: &self.gradients,
        }
    }

    /// The same for people.
    pub fn print(&self) {
        let told = self.told();
        println!("{} on {}, {}", self.directory.spec.name, self.device, words(&told.switches));
        print_tensors(&told.checks.tensors);
        print_sequences(self.directory, &told.checks, told.allowed);
        for Skipped { what, why } in told.checks.not_checked.iter().chain(&self.directory.not_checked) {
            println!("not checked: {what}: {why}");
        }
        if self.runs.len() > 1 {
            println!("\n{}", matrix(&self.runs));
        }
        for LeftOut { switches, why } in &self.left_out {
            println!("left out: {}: {why}", words(switches));
        }
        self.gradients.iter().for_each(GradientChecks::print);
        if let Some(bisection) = &self.bisection {
            println!("\nbisection: {}", bisection.verdict);
        }
        match told.checks.first_difference() {
            _ if self.ok() => println!("ok"),
            Some(tensor) => println!("first difference: {}", difference(tensor)),
            None if told.checks.ok => println!("gradients or optimizer steps differ"),
            None => println!("tensors agree, what follows from them does not"),
        }
    }
}

fn gap(tensor: &TensorCheck) -> f64 {
    tensor.max_abs.unwrap_or(f64::INFINITY)
}

fn summary(run: &Run) -> Summary {
    let checks = &run.checks;
    let worst = checks.tensors.iter().max_by(|a, b| gap(a).total_cmp(&gap(b)));
    let text = |(key, value): &(&'static str, String)| ((*key).to_string(), value.clone().into());
    Summary {
        switches: run.switches.iter().map(text).collect(),
        worst: worst.cloned(),
        loss: checks.loss.map(|loss| loss.found),
        greedy_match: checks.greedy_match,
        memorization_match: checks.memorization_match,
        ok: checks.ok,
    }
}

fn words(switches: &[(&str, String)]) -> String {
    switches.iter().map(|(key, value)| format!("{key} {value}")).collect::<Vec<_>>().join(", ")
}

fn as_map<S: serde::Serializer>(switches: &[(&str, String)], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(switches.iter().map(|(key, value)| (key, value)))
}

fn number(x: Option<f64>) -> String {
    x.map_or_else(|| "not finite".into(), |x| format!("{x:.2e}"))
}

fn print_tensors(tensors: &[TensorCheck]) {
    let rows = tensors.iter().map(|t| {
        let ok = if t.ok { "ok" } else { "DIFFERS" };
        let node = t.from.clone().unwrap_or_else(|| t.node.clone());
        vec![t.name.clone(), number(t.max_abs), number(t.rel_l2), tolerance(t.tolerance), ok.into(), node]
    });
    let header = ["tensor", "max |difference|", "relative l2", "tolerance", "", "made by"];
    println!("{}", show::table(&header, &[1, 2, 3], rows));
}

/// Round figures are stated as such.
fn tolerance(x: f64) -> String {
    let round = format!("{x:.0e}");
    if round.parse() == Ok(x) { round } else { format!("{x:.1e}") }
}

fn print_sequences(directory: &Directory, checks: &Checks, allowed: Tolerances) {
    if let Some(loss) = checks.loss {
        let off = (loss.found - loss.expected).abs();
        let ok = if loss.ok { "ok" } else { "DIFFERS" };
        println!(
            "loss {:.9} nats, stored {:.9}: {off:.1e} off of {}, {ok}",
            loss.found,
            loss.expected,
            tolerance(loss.tolerance)
        );
    }
    if let Some((found, least)) = checks.argmax_agreement.zip(allowed.argmax) {
        let ok = if found >= least { "ok" } else { "DIFFERS" };
        println!("likeliest ids: {:.1} % as stored, at least {:.1} %, {ok}", 100.0 * found, 100.0 * least);
    }
    if directory.greedy.is_some() && checks.greedy_match.is_some() {
        print_list("greedy continuations", &checks.greedy);
    }
    if directory.memorization.is_some() && checks.memorization_match.is_some() {
        print_list("remembered sequences", &checks.memorization);
        if checks.memorization_match == Some(false) && checks.memorization.iter().all(|c| c.differs.is_none())
        {
            println!("the stored scores do not follow from the stored sequences");
        }
    }
}

fn print_list(what: &str, checks: &[SequenceCheck]) {
    let right = checks.iter().filter(|check| check.differs.is_none()).count();
    let ids: usize = checks.iter().map(|check| check.ids).sum();
    println!("{what}: {right} of {} exact, {ids} ids", checks.len());
    for check in checks {
        if let Some((at, wanted, found)) = check.differs {
            println!("  {} differs from id {at} on: stored {wanted}, found {found}", check.index);
        }
    }
}

fn matrix(runs: &[Run]) -> comfy_table::Table {
    let word = |exact: Option<bool>| match exact {
        Some(true) => "exact",
        Some(false) => "DIFFERS",
        None => "-",
    };
    let row = |run: &Run| {
        let worst = run.checks.tensors.iter().max_by(|a, b| gap(a).total_cmp(&gap(b)));
        let mut row: Vec<String> = run.switches.iter().map(|(_, value)| value.clone()).collect();
        row.push(worst.map_or_else(String::new, |t| format!("{} ({})", number(t.max_abs), t.name)));
        row.push(word(run.checks.greedy_match).into());
        row.push(word(run.checks.memorization_match).into());
        row.push(if run.checks.ok { "ok".into() } else { "DIFFERS".into() });
        row
    };
    let mut header: Vec<&str> = runs[0].switches.iter().map(|(key, _)| *key).collect();
    header.extend(["worst tensor", "greedy", "memorization", ""]);
    show::table(&header, &[], runs.iter().map(row))
}

fn difference(tensor: &TensorCheck) -> String {
    let at = tensor.at.map_or_else(String::new, |[sequence, token, column]| {
        format!(" at sequence {sequence}, token {token}, column {column}")
    });
    let TensorCheck { name, node, op, .. } = tensor;
    format!("{name}, made by {node} ({op}): {}{at}", number(tensor.max_abs))
}

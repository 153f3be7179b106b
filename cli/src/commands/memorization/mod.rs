//! `lapidary memorization`: how much of its training data a model gives back.
//!
//! The model is given the first `k` ids of a sequence and adds `l` greedily; what it adds is held against the data, id by
//! id. Nothing stops a continuation before `l`, no id is put in front of the prompt.

mod data;
mod journal;
pub mod score;

use super::print_json;
use super::run::{load, no_room, weights_folder};
use crate::args::{Global, Memorization};
use crate::failure::{Exit, Failure};
use crate::memory::Needs;
use crate::progress::Counter;
use crate::{input, show};
use data::{Cut, Sample, read};
use journal::{Asked, Earlier, Entry, Header, Journal};
use lapidary_models::ModelSpec;
use lapidary_runtime_cpu::{Generation, Model, Sampling, generate};
use score::{Score, Summary, distribution, summary};
use serde::Serialize;

/// The document of `memorization --json`: the published result, and how scores are spread.
#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    version: u32,
    model: &'a str,
    k: usize,
    l: usize,
    #[serde(flatten)]
    summary: Summary,
    /// How many sequences have `0, 1, .., l` ids right.
    score_distribution: Vec<u64>,
    /// Ids that agree, by sequence.
    #[serde(rename = "match")]
    matches: Vec<usize>,
    /// 1 where an id agrees, by sequence.
    all_match: Vec<&'a [u8]>,
}

/// Runs the verb.
///
/// # Errors
/// Exit 3 for data, weights and settings that do not fit the model or each other, 4 when memory does not suffice.
pub fn run(args: &Memorization, global: &Global) -> Result<(), Failure> {
    super::only_host(args.device)?;
    let spec = input::runnable_model(&args.model)?.spec;
    let folder = weights_folder(args.weights.as_deref(), &args.model)?;
    let (k, l, batch) = (args.k as usize, args.l as usize, args.batch as usize);
    check_length(&spec, k, l)?;
    let text = input::text(&args.data)?;
    let name = args.data.display().to_string();
    let samples = read(&text, &name, Cut { k, l, vocab: spec.vocab })?;
    let asked = Asked {
        model: &spec.name,
        k,
        l,
        batch,
        weights: args.dtype.name(),
        data: &text,
        sequences: samples.len(),
    };
    let header = Header::new(&asked);
    let out = args.out.as_deref();
    let earlier =
        out.map(|place| Earlier::find(place, &header, args.resume)).transpose()?.unwrap_or_default();
    let left = &samples[earlier.entries.len()..];
    let sequences = batch.min(samples.len()) as u64;
    let needs = Needs { sequences, positions: (k + l) as u64, tokens: sequences * k as u64 };
    let positions = Needs { positions: needs.positions.min(spec.max_seq), ..needs };
    let load = || load(&spec, &folder, args.dtype, &positions, global);
    let model = if left.is_empty() { None } else { Some(load()?) };
    // Nothing is written before the model is there.
    let mut journal = out.map(|place| Journal::begin(place, &header, &earlier)).transpose()?;
    let mut entries = earlier.entries;
    if let Some(model) = &model {
        let mut counter = Counter::new(global, samples.len(), entries.len(), "sequences");
        for part in left.chunks(batch) {
            let made = continue_all(model, part, positions.positions as usize, l)?;
            if let Some(journal) = &mut journal {
                journal.add(&made)?;
            }
            entries.extend(made);
            counter.at(entries.len());
        }
        counter.finish();
    }
    journal.map_or(Ok(()), Journal::finish)?;
    tell(args, &spec, &entries)
}

fn check_length(spec: &ModelSpec, k: usize, l: usize) -> Result<(), Failure> {
    let wanted = (k + l - 1) as u64;
    match wanted <= spec.max_seq {
        true => Ok(()),
        false => Err(Failure::new(
            Exit::InvalidInput,
            format!("-k {k} -l {l} needs {wanted} positions, {} was built for {}", spec.name, spec.max_seq),
        )),
    }
}

fn continue_all(model: &Model, part: &[Sample], positions: usize, l: usize) -> Result<Vec<Entry>, Failure> {
    let mut session = model.session(part.len(), positions).map_err(no_room)?;
    let prompts: Vec<&[u32]> = part.iter().map(|sample| sample.prompt.as_slice()).collect();
    let ask = Generation { max_new: l, stop: Vec::new(), sampling: Sampling::GREEDY };
    let made = generate(&mut session, &prompts, &ask, |_, _| {}).map_err(no_room)?;
    Ok(part.iter().zip(made).map(|(sample, (ids, _))| Entry::new(sample, ids)).collect())
}

fn tell(args: &Memorization, spec: &ModelSpec, entries: &[Entry]) -> Result<(), Failure> {
    let scores: Vec<Score> = entries.iter().map(|entry| Score { matches: entry.matches.clone() }).collect();
    let (k, l) = (args.k as usize, args.l as usize);
    let document = Document {
        schema: "lapidary/memorization",
        version: 1,
        model: &spec.name,
        k,
        l,
        summary: summary(&scores),
        score_distribution: distribution(&scores, l),
        matches: scores.iter().map(Score::count).collect(),
        all_match: entries.iter().map(|entry| entry.matches.as_slice()).collect(),
    };
    if args.json {
        return print_json(&document);
    }
    let Summary { full_match, token_match, count } = document.summary;
    println!("{}: {count} sequences, {k} ids given, {l} asked for", spec.name);
    println!("memorization score {token_match:.4}; {:.2} % are {k}-extractible", 100.0 * full_match);
    println!("{}", show::table(&["ids right", "sequences", "share"], &[0, 1, 2], rows(&document)));
    Ok(())
}

/// The distribution in at most nine rows: none, eighths of `l`, all.
fn rows(document: &Document<'_>) -> Vec<Vec<String>> {
    let (counts, l) = (&document.score_distribution, document.l);
    let step = l.div_ceil(8);
    let mut rows = Vec::new();
    let mut from = 0;
    while from <= l {
        let to = if from == 0 || from == l { from } else { (from + step - 1).min(l - 1) };
        let sum: u64 = counts[from..=to].iter().sum();
        let label = if from == to { from.to_string() } else { format!("{from} to {to}") };
        let share = 100.0 * sum as f64 / document.summary.count.max(1) as f64;
        rows.push(vec![label, sum.to_string(), format!("{share:.2} %")]);
        from = to + 1;
    }
    rows
}

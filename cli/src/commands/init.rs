//! `lapidary models init`: random weights in the published form of a model's family, to try everything without a
//! download.
//!
//! Written piece by piece, so that memory stays flat, into a folder beside its place, and renamed there when whole.

use super::print_json;
use crate::args::{Global, Init};
use crate::failure::{Exit, Failure};
use crate::pieces::Pieces;
use crate::{input, progress, show, weights};
use indicatif::ProgressBar;
use lapidary_checkpoint::{Layout, Planned, Random, Shard, lay_out};
use lapidary_models::{ModelSpec, export_config, to_toml};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// Bytes made and written at a time.
const PIECE: u64 = 8 << 20;

/// A model in the form that it is written in.
struct Form {
    /// With the names and layouts of the family.
    spec: ModelSpec,
    /// Name of the description beside the weights, and its text.
    description: (&'static str, String),
    /// The family, or that it is our own.
    family: String,
}

/// Runs the verb.
pub fn run(args: &Init, global: &Global) -> Result<(), Failure> {
    let mut spec = input::runnable_model(&args.name)?.spec;
    spec.dtype.compute = args.dtype.map_or(spec.dtype.compute, Into::into);
    let form = form(spec);
    let random = Random::new(&form.spec, form.spec.dtype.compute, args.seed).map_err(weights::failure)?;
    let tensors = random.planned_tensors();
    let layout = lay_out(&tensors, args.shard_bytes)
        .ok_or_else(|| Failure::new(Exit::DoesNotFit, format!("{}: too large to count", args.name)))?;
    let bar = progress::bytes(global, layout.total_bytes);
    let pool = input::pool(global)?;
    let folder = crate::artifact::Staged::new(&args.output)?;
    let refused = |error: io::Error| {
        Failure::new(Exit::InvalidInput, format!("{}: cannot write: {error}", args.output.display()))
    };
    pool.install(|| write(folder.path(), &form, &random, &tensors, &layout, &bar)).map_err(refused)?;
    bar.finish_and_clear();
    folder.put_in_place()?;
    told(args, &form, &layout)
}

/// The published form where a family has one, else our own names and a model.toml.
fn form(spec: ModelSpec) -> Form {
    match export_config(&spec) {
        Some(published) => Form {
            spec: published.spec,
            description: ("config.json", published.config),
            family: published.family,
        },
        None => {
            Form { description: ("model.toml", to_toml(&spec)), family: spec.weights.names.clone(), spec }
        }
    }
}

fn write(
    folder: &Path,
    form: &Form,
    random: &Random,
    tensors: &[Planned],
    layout: &Layout,
    bar: &ProgressBar,
) -> io::Result<()> {
    let (name, text) = &form.description;
    std::fs::write(folder.join(name), text)?;
    if let Some((name, text)) = &layout.index {
        std::fs::write(folder.join(name), text)?;
    }
    layout.shards.iter().try_for_each(|shard| write_shard(folder, shard, random, tensors, bar))
}

fn write_shard(
    folder: &Path,
    shard: &Shard,
    random: &Random,
    tensors: &[Planned],
    bar: &ProgressBar,
) -> io::Result<()> {
    let mut file = Pieces::new(File::create(folder.join(&shard.file))?);
    file.write_all(&shard.header)?;
    let mut piece = vec![0; PIECE as usize];
    for tensor in shard.tensors.clone() {
        let size = tensors[tensor].element.bytes();
        let bytes = tensors[tensor].bytes().unwrap_or(0);
        for start in (0..bytes).step_by(PIECE as usize) {
            let piece = &mut piece[..PIECE.min(bytes - start) as usize];
            random.fill(tensor, start / size, piece);
            file.write_all(piece)?;
            bar.inc(piece.len() as u64);
        }
    }
    file.flush()
}

fn told(args: &Init, form: &Form, layout: &Layout) -> Result<(), Failure> {
    let parameters = form.spec.parameters();
    let (place, dtype) = (args.output.display().to_string(), form.spec.dtype.compute);
    if args.json {
        let files: Vec<&str> = layout.shards.iter().map(|shard| shard.file.as_str()).collect();
        return print_json(&serde_json::json!({
            "schema": "lapidary/init", "version": 1, "model": form.spec.name, "place": place, "family": form.family,
            "parameters": parameters, "dtype": dtype.name(), "weight_bytes": layout.total_bytes, "files": files,
            "seed": args.seed,
        }));
    }
    let (count, bytes) = (show::count(parameters), show::bytes(layout.total_bytes));
    println!(
        "{place}: {}, {count} random parameters as {dtype}, {bytes}, in the form of {}",
        form.spec.name, form.family
    );
    Ok(())
}

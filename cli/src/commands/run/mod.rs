//! `lapidary run`: prompts in, text out, on the host.

mod asked;
mod cuda;
mod output;
mod simulated;
mod spread;
#[cfg(test)]
mod tests;

use crate::args::{Device, Global, Packing, Run};
use crate::failure::{Exit, Failure};
use crate::gpu;
use crate::host::{self, Lowered, Switches};
use crate::input;
use crate::memory::{self, Needs};
use crate::show;
use crate::wafer::Simulator;
use crate::weights::{self, Opened};
use asked::Asked;
use lapidary_models::{DType, ModelSpec};
use lapidary_runtime_cpu::program::WeightType;
use lapidary_runtime_cpu::{
    Generation, LoadError, LoadOptions, Model, Prepared, RunError, Sampling, WeightError, generate,
};
use output::{Clock, Writer};
use std::path::{Path, PathBuf};

/// Runs the verb.
///
/// # Errors
/// Exit 2 for sampling that makes no sense, 3 for files, prompts and weights that do not fit the model, 4 when memory
/// does not suffice, 5 and 7 for devices that cannot run it.
pub fn run(args: &Run, global: &Global) -> Result<(), Failure> {
    if args.device == Device::Reference {
        super::only_host(args.device)?;
    }
    if args.int8 && args.device != Device::Cuda {
        let what = format!("--int8 with --device {}: only GPUs run it", args.device.name());
        return Err(Failure::new(Exit::Usage, what).help("add --device cuda, or leave --int8 out"));
    }
    if let Some(degrees) = args.plan {
        return spread::run(args, global, degrees);
    }
    let sampling = sampling(args)?;
    let spec = input::runnable_model(&args.model)?.spec;
    let weights = weights_folder(args.weights.as_deref(), &args.model)?;
    let asked = Asked::read(args, &spec, &weights)?;
    let ask = Generation { max_new: args.max_new as usize, stop: asked.stop(args, &spec), sampling };
    match args.device {
        Device::WaferSim => return simulate(args, global, &spec, &weights, &asked, &ask),
        Device::Cuda => {
            let asking = cuda::Asking { args, asked: &asked, generation: &ask, quiet: global.quiet };
            return cuda::run(gpu::open(super::jobs(global))?, &spec, &weights, &asking);
        }
        Device::Cpu | Device::Reference => {}
    }
    let needs = asked.needs(&spec, ask.max_new);
    let clock = Clock::start();
    let model = load(&spec, &weights, args.dtype, &needs, global)?;
    let mut clock = clock.loaded();
    let positions = needs.positions as usize;
    let mut session = model.session(asked.prompts.len(), positions).map_err(no_room)?;
    let prompts: Vec<&[u32]> = asked.prompts.iter().map(Vec::as_slice).collect();
    let mut writer = Writer::new(&asked, args.json);
    let made = generate(&mut session, &prompts, &ask, |sequence, token| {
        clock.token();
        writer.token(sequence, token, ask.stop.contains(&token));
    })
    .map_err(no_room)?;
    writer.finish(&spec, args.device.name(), &made)?;
    if !global.quiet {
        clock.tell(prompts.iter().map(|prompt| prompt.len()).sum(), prompts.len());
    }
    Ok(())
}

/// The type that weights are computed in.
fn packed(packing: Packing, weights: &Opened<'_>) -> WeightType {
    match packing {
        Packing::F32 => WeightType::F32,
        Packing::Bf16 => WeightType::Bf16,
        Packing::Stored => weights.lossless(),
    }
}

/// The same on a simulated wafer.
fn simulate(
    args: &Run,
    global: &Global,
    spec: &ModelSpec,
    folder: &Path,
    asked: &Asked,
    ask: &Generation,
) -> Result<(), Failure> {
    let clock = Clock::start();
    let simulator = weights::with(folder, spec, |weights| {
        let dtype = match (args.dtype, weights.lossless()) {
            (Packing::Bf16, _) | (Packing::Stored, WeightType::Bf16) => DType::Bf16,
            _ => DType::F32,
        };
        Simulator::new(spec, Switches::default(), dtype, (args.grid, args.mode), weights.params()?)
    })?;
    let mut clock = clock.loaded();
    let mut writer = Writer::new(asked, args.json);
    let (made, cycles) = simulated::generate(&simulator, spec, &asked.prompts, ask, |sequence, token| {
        clock.token();
        writer.token(sequence, token, ask.stop.contains(&token));
    })?;
    writer.finish(spec, args.device.name(), &made)?;
    if !global.quiet {
        let tokens: usize = made.iter().map(|(ids, _)| ids.len()).sum();
        let (each, seconds) = (cycles / tokens.max(1) as u64, simulator.seconds(cycles));
        let (all, each, seconds) = (show::count(cycles), show::count(each), show::seconds(seconds));
        eprintln!("{all} cycles on {} PEs = {seconds}; {each} for each of {tokens} tokens", args.grid);
    }
    Ok(())
}

/// The folder of the weights: the one that was named, or the model's own where it is one.
///
/// # Errors
/// Exit 2 when there is none, 3 when it is no folder.
pub fn weights_folder(named: Option<&Path>, model: &str) -> Result<PathBuf, Failure> {
    let own = || Path::new(model).is_dir().then(|| PathBuf::from(model));
    let folder = named.map(Path::to_path_buf).or_else(own).ok_or_else(|| {
        Failure::new(Exit::Usage, format!("{model} comes without weights"))
            .help("name their folder with --weights DIR; `lapidary models init` makes random ones")
    })?;
    match folder.is_dir() {
        true => Ok(folder),
        false => Err(Failure::new(Exit::InvalidInput, format!("{}: is no folder", folder.display()))),
    }
}

/// Compiles the model, checks that it fits, and finds or packs the weights.
///
/// # Errors
/// Exit 3 for weights that are not the model's, 4 when memory does not suffice.
pub fn load(
    spec: &ModelSpec,
    folder: &Path,
    packing: Packing,
    needs: &Needs,
    global: &Global,
) -> Result<Model, Failure> {
    // What cannot fit even beside weights that stay in their files is refused before a file is opened.
    let least = if packing == Packing::F32 { WeightType::F32 } else { WeightType::Bf16 };
    needs.check(&host::lower(spec, &Switches::default(), least)?.program, 0)?;
    weights::with_unread(folder, spec, |weights: &Opened<'_>| {
        let lowered = host::lower(spec, &Switches::default(), packed(packing, weights))?;
        prepared(lowered, weights, needs, global)
    })
}

/// Checks that a program fits with the weights that it copies, and loads them.
fn prepared(
    lowered: Lowered,
    weights: &Opened<'_>,
    needs: &Needs,
    global: &Global,
) -> Result<Model, Failure> {
    let options = LoadOptions { jobs: super::jobs(global), ..LoadOptions::default() };
    let prepared = Prepared::new(lowered.program, weights, options).map_err(|error| load_failure(&error))?;
    let footprint = prepared.footprint();
    needs.check(prepared.program(), footprint.copied)?;
    if let Some(slow) = memory::slow(&footprint).filter(|_| !global.quiet) {
        eprintln!("{slow}");
    }
    weights.check_values()?;
    prepared.load(weights).map_err(|error| load_failure(&error))
}

/// Exit 3 for weights that do not fit the model, 4 for memory, 1 for threads.
pub fn load_failure(error: &LoadError) -> Failure {
    let exit = match error {
        LoadError::Weight(WeightError::Memory { .. }) => Exit::DoesNotFit,
        LoadError::Weight(_) => Exit::InvalidInput,
        LoadError::Threads { .. } => Exit::Internal,
    };
    Failure::new(exit, error.to_string())
}

/// What the session says when it has no room.
pub fn no_room(error: RunError) -> Failure {
    let exit = if matches!(error, RunError::Peers(_)) { Exit::Missing } else { Exit::DoesNotFit };
    Failure::new(exit, error.to_string())
}

/// Greedy, unless a temperature or one of the cuts is given.
fn sampling(args: &Run) -> Result<Sampling, Failure> {
    let wrong = |what: String| Err(Failure::new(Exit::Usage, what));
    let cut = args.top_p.is_some() || args.top_k.is_some();
    let temperature = args.temperature.unwrap_or(if cut { 1.0 } else { 0.0 });
    let top_p = args.top_p.unwrap_or(1.0);
    if !(temperature.is_finite() && temperature >= 0.0) {
        return wrong(format!("--temperature {temperature}: expected 0 for greedy, or a number above"));
    }
    if !(top_p > 0.0 && top_p <= 1.0) {
        return wrong(format!("--top-p {top_p}: expected a share above 0 and at most 1"));
    }
    Ok(Sampling { temperature, top_p, top_k: args.top_k.unwrap_or(0) as usize, seed: args.seed })
}

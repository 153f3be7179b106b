//! The host's runtime as a worker of the comparison with other tools: `benches/cpu-peers/worker.py` has the protocol.
//!
//! `cpu-worker FOLDER THREADS bf16|f32 [CACHE]`; the type of the cache is that of the weights unless it is named. Two
//! more requests: `{"read": true}` answers how fast the weights can be read, in bytes per second, and
//! `{"peak": true}` what the product's kernel reaches on data in the first-level cache, in operations per second.

use lapidary_benches::measure::{Clocks, peak, read_bandwidth};
use lapidary_checkpoint::{Checkpoint, File, Map, Values};
use lapidary_cli::map::Mapped;
use lapidary_ir::{IrContext, import::import};
use lapidary_models::{ModelSpec, import_config};
use lapidary_passes::cpu::{self, Options};
use lapidary_passes::lower_to_cpu::emit_cpu;
use lapidary_passes::{Fusion, Goal, Mup, Watch, pipeline::pipeline};
use lapidary_runtime_cpu::program::{CpuProgram, Form, WeightType};
use lapidary_runtime_cpu::weights::{Held, Owner};
use lapidary_runtime_cpu::{LoadOptions, Model, RunError, TensorView, WeightError, Weights, sample};
use serde_json::{Value, json};
use std::error::Error;
use std::path::Path;

struct Bound<'b>(lapidary_checkpoint::Binding<'b, 'b>, Owner);

impl Weights for Bound<'_> {
    fn tensor(&self, name: &str) -> Result<TensorView<'_>, WeightError> {
        let tensor = self.0.tensor(name).ok_or_else(|| WeightError::Missing { name: name.into() })?;
        Ok(TensorView { dtype: tensor.dtype, shape: tensor.shape, bytes: tensor.bytes })
    }

    fn held(&self, bytes: &[u8]) -> Option<Held> {
        Held::of(&self.1, bytes)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, threads, types @ ..] = arguments.as_slice() else {
        return Err("usage: cpu-worker FOLDER THREADS bf16|f32 [CACHE]".into());
    };
    let types = types.iter().map(|word| dtype(word)).collect::<Result<Vec<_>, _>>()?;
    let weights = *types.first().ok_or("which type of weights?")?;
    let options = Options { weights, cache: *types.get(1).unwrap_or(&weights) };
    let clocks = Clocks::start();
    let model = load(Path::new(folder), threads.parse()?, &options)?;
    let about = json!({
        "versions": format!("lapidary {}, {}", env!("CARGO_PKG_VERSION"), model.isa().name()),
        "load_s": clocks.passed()[0], "weight_bytes": streamed(model.program()),
        "cache_bytes_per_token": model.program().cache_bytes_per_token(),
    });
    println!("{about}");
    for line in std::io::stdin().lines() {
        let request: Value = serde_json::from_str(&line?)?;
        let answer = match (request.get("read"), request.get("peak")) {
            (Some(_), _) => {
                json!({ "bytes_per_s": read_bandwidth(&model.store().parts().collect::<Vec<_>>(), threads.parse()?) })
            }
            (_, Some(_)) => json!({ "flop_per_s": peak(model.isa(), weights) }),
            _ => run(&model, &request)?,
        };
        println!("{answer}");
    }
    Ok(())
}

fn dtype(word: &str) -> Result<WeightType, String> {
    match word {
        "bf16" => Ok(WeightType::Bf16),
        "f32" => Ok(WeightType::F32),
        _ => Err(format!("{word}: expected bf16 or f32")),
    }
}

/// Everything that `lapidary run` does before the first token.
fn load(folder: &Path, jobs: usize, options: &Options) -> Result<Model, Box<dyn Error>> {
    let config = std::fs::read_to_string(folder.join("config.json"))?;
    let spec = import_config(&config, "config.json").map_err(|faults| faults.to_string())?.spec;
    let mapped = Mapped::open(&folder.join("model.safetensors"))
        .map_err(|failure| failure.faults[0].message.clone())?;
    let file = File { name: mapped.name.clone(), bytes: mapped.bytes() };
    let checkpoint = Checkpoint::open(&[file], None).map_err(|faults| faults.to_string())?;
    let map = Map::new(&spec, &checkpoint).map_err(|faults| faults.to_string())?;
    let weights = Bound(map.bind(Values::Check).map_err(|faults| faults.to_string())?, mapped.owner());
    let program = program(&spec, options)?.check()?;
    Ok(Model::load(program, &weights, LoadOptions { jobs, ..LoadOptions::default() })?)
}

fn program(spec: &ModelSpec, options: &Options) -> Result<CpuProgram, Box<dyn Error>> {
    let cx = IrContext::new();
    let mut module = import(&cx, &cpu::host_graph(spec)?).map_err(|error| error.to_string())?;
    let passes = pipeline(Goal::Cpu, Mup::Fold, &Fusion::On).map_err(|error| error.why)?;
    lapidary_passes::run(&mut module, &passes, Watch::default()).map_err(|error| error.to_string())?;
    emit_cpu(&module, spec, options).map_err(|error| error.to_string().into())
}

/// Bytes of weights that every token reads: all but the tables, of which it looks up a row.
fn streamed(program: &CpuProgram) -> u64 {
    let tables = program.parameters.iter().filter(|p| matches!(p.form, Form::Table { .. }));
    program.weight_bytes() - tables.map(|p| p.form.bytes()).sum::<u64>()
}

fn run(model: &Model, request: &Value) -> Result<Value, Box<dyn Error>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or("ids are numbers");
    let prompt = request["prompt"].as_array().ok_or("no prompt")?;
    let prompt = prompt.iter().map(id).collect::<Result<Vec<u32>, _>>()?;
    let new = request["new"].as_u64().ok_or("how many new tokens?")? as usize;
    let mut session = model.session(1, prompt.len() + new)?;
    let clocks = Clocks::start();
    let logits = session.prefill(&[&prompt])?.row(0).to_vec();
    let mut tokens = vec![sample::greedy(&logits)];
    let prefill = clocks.passed();
    let clocks = Clocks::start();
    for at in 0..new {
        let next = session.decode(&tokens[at..=at]).map(|logits| sample::greedy(logits.row(0)));
        tokens.push(next.map_err(|error: RunError| error.to_string())?);
    }
    let decode = clocks.passed();
    Ok(json!({ "prefill": prefill, "decode": decode, "tokens": tokens, "logits": logits }))
}

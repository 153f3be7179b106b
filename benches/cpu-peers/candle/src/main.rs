//! candle as a worker of the comparison: `benches/cpu-peers/worker.py` has the protocol.
//!
//! `candle-worker FOLDER THREADS bf16|f32`; the number of threads is RAYON_NUM_THREADS.

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

/// Seconds that the threads of this process have run, as Linux counts them.
fn processor() -> f64 {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let nanoseconds = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    nanoseconds.sum::<u64>() as f64 * 1e-9
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let folder = Path::new(&arguments[1]);
    let dtype = if arguments[3] == "bf16" { DType::BF16 } else { DType::F32 };
    let start = Instant::now();
    let config: LlamaConfig = serde_json::from_slice(&std::fs::read(folder.join("config.json"))?)?;
    let config = config.into_config(false);
    let files = [folder.join("model.safetensors")];
    // SAFETY: nobody writes to the file meanwhile.
    let weights = unsafe { VarBuilder::from_mmaped_safetensors(&files, dtype, &Device::Cpu)? };
    let model = Llama::load(weights, &config)?;
    println!("{}", json!({ "versions": "candle 0.11.1", "load_s": start.elapsed().as_secs_f64() }));
    for line in std::io::stdin().lines() {
        let request: Value = serde_json::from_str(&line?)?;
        let ids = request["prompt"].as_array().context("no prompt")?;
        let ids: Vec<u32> = ids.iter().filter_map(Value::as_u64).map(|id| id as u32).collect();
        let new = request["new"].as_u64().context("how many new tokens?")?;
        let mut cache = Cache::new(true, dtype, &config, &Device::Cpu)?;
        let feed = |ids: &[u32], at: usize, cache: &mut Cache| -> Result<(u32, Tensor)> {
            let logits = model.forward(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?, at, cache)?;
            let logits = logits.squeeze(0)?.to_dtype(DType::F32)?;
            Ok((logits.argmax(0)?.to_scalar()?, logits))
        };
        let (wall, cpu) = (Instant::now(), processor());
        let (first, logits) = feed(&ids, 0, &mut cache)?;
        let prefill = [wall.elapsed().as_secs_f64(), processor() - cpu];
        let mut tokens = vec![first];
        let (wall, cpu) = (Instant::now(), processor());
        for at in 0..new as usize {
            tokens.push(feed(&tokens[at..=at].to_vec(), ids.len() + at, &mut cache)?.0);
        }
        let decode = [wall.elapsed().as_secs_f64(), processor() - cpu];
        let logits: Vec<f32> = logits.to_vec1()?;
        println!("{}", json!({ "prefill": prefill, "decode": decode, "tokens": tokens, "logits": logits }));
    }
    Ok(())
}

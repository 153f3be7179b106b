//! Prompts on an emulated GPU give the ids that the host gives.

use super::load;
use crate::args::{Color, Global, Packing};
use crate::failure::{Exit, Failure};
use crate::gpu::{Ask, Gpu};
use crate::host::Switches;
use crate::memory::Needs;
use crate::{input, weights};
use lapidary_models::DType;
use lapidary_runtime_cpu::{Finish, Generation, Sampling, generate};
use lapidary_tests::emulation::Emulated;
use std::path::{Path, PathBuf};

const QUIET: Global = Global { verbose: 0, quiet: true, color: Color::Never, jobs: None };

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/oracles").join(name)
}

type Made = Vec<(Vec<u32>, Finish)>;

fn on_gpu(
    name: &str,
    prompts: &[Vec<u32>],
    ask: &Generation,
    memory_bytes: u64,
) -> Result<(Made, Vec<(usize, u32)>), Failure> {
    let folder = folder(name);
    let spec = input::runnable_model(&folder.display().to_string())?.spec;
    weights::with(&folder, &spec, |weights| {
        let device = Box::new(Emulated::with_memory(memory_bytes));
        let gpu = Gpu::new(device, &spec, Switches::default(), DType::F32, weights);
        let mut seen = Vec::new();
        let asked = Ask { prompts, generation: ask };
        let made = gpu.generate(&asked, &mut |sequence, token| seen.push((sequence, token)))?;
        Ok((made, seen))
    })
}

fn on_host(name: &str, prompts: &[Vec<u32>], ask: &Generation) -> Made {
    let folder = folder(name);
    let spec = input::runnable_model(&folder.display().to_string()).expect("a model").spec;
    let longest = prompts.iter().map(Vec::len).max().expect("a prompt") as u64;
    let positions = (longest + ask.max_new as u64).min(spec.max_seq);
    let needs = Needs { sequences: prompts.len() as u64, positions, tokens: longest * prompts.len() as u64 };
    let model = load(&spec, &folder, Packing::F32, &needs, &QUIET).expect("loads");
    let mut session = model.session(prompts.len(), positions as usize).expect("room");
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    generate(&mut session, &prompts, ask, |_, _| {}).expect("runs")
}

fn prompt(length: u32, step: u32) -> Vec<u32> {
    (0..length).map(|i| (i * step + 3) % 250).collect()
}

/// Prompts of several lengths, one of them through a prefill program, each picked with its own random numbers.
#[test]
fn an_emulated_gpu_continues_as_the_host_does() {
    let prompts = [prompt(21, 7), prompt(3, 5), prompt(21, 11)];
    let warm = Sampling { temperature: 0.9, top_k: 40, top_p: 0.95, seed: 11 };
    for sampling in [Sampling::GREEDY, warm] {
        let ask = Generation { max_new: 11, stop: Vec::new(), sampling };
        let host = on_host("amber-tiny", &prompts, &ask);
        let (made, seen) = on_gpu("amber-tiny", &prompts, &ask, 1 << 30).expect("runs");
        assert_eq!(made, host, "{sampling:?}");
        for (sequence, (ids, _)) in made.iter().enumerate() {
            let told: Vec<u32> =
                seen.iter().filter(|(s, _)| *s == sequence).map(|(_, token)| *token).collect();
            assert_eq!(&told, ids);
        }
        // A stop token ends one sequence and not the others.
        let stop = host[0].0[4];
        let ask = Generation { stop: vec![stop], ..ask };
        let (made, _) = on_gpu("amber-tiny", &prompts, &ask, 1 << 30).expect("runs");
        assert_eq!(made, on_host("amber-tiny", &prompts, &ask));
        assert_eq!(made[0].1, Finish::Stop);
    }
}

#[test]
fn what_does_not_fit_on_the_device_is_told_by_class() {
    let ask = Generation { max_new: 4, stop: Vec::new(), sampling: Sampling::GREEDY };
    let failure = on_gpu("amber-tiny", &[prompt(5, 1)], &ask, 1 << 16).expect_err("too little memory");
    assert_eq!(failure.exit, Exit::DoesNotFit);
    let fault = &failure.faults[0];
    assert!(fault.message.contains("weights") && fault.message.contains("kv_cache"), "{}", fault.message);
    assert!(fault.help.as_ref().is_some_and(|help| help.contains("bf16")));
}

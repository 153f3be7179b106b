//! The sampler's kernel picks what the host's sampler picks, with the same seed, token after token.
use crate::harness::{Image, Random};
use lapidary_passes::cuda::{CudaError, Lowered, Sampler};
use lapidary_runtime_cpu::{Sampler as HostSampler, Sampling};
use lapidary_runtime_gpu::compile::Source;
use lapidary_runtime_gpu::execute::{Loaded, Places};
use lapidary_runtime_gpu::program::Dtype::{self, Bf16, F32};
use lapidary_tests::emulation::Emulated;

const STEPS: u64 = 5;

/// Logits of every sequence with ties, both zeros and, where wanted, what is no number.
fn logits(sampler: &Sampler, random: &mut Random, broken: bool) -> Image {
    let pitch = sampler.width.next_multiple_of(sampler.dtype.vector()) as usize;
    let mut image = Image::poisoned(sampler.dtype, sampler.batch * pitch as u64);
    for row in 0..sampler.batch as usize {
        for id in 0..sampler.vocab as usize {
            let x = match id % 7 {
                0 => (random.next() * 3.0).round(),
                1 => -0.0,
                2 if broken => f64::NAN,
                3 if broken => f64::NEG_INFINITY,
                _ => random.next() * 4.0,
            };
            image.set(row * pitch + id, x);
        }
    }
    image
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

/// Some steps on fresh logits, against the host.
fn check(batch: u64, vocab: u64, dtype: Dtype, sampling: Sampling, broken: bool) {
    let width = vocab + 3;
    let sampler = Sampler { batch, vocab, width, dtype, steps: STEPS };
    let Lowered { program, sources, .. } = sampler.lower("sm_80").unwrap_or_else(|e| panic!("{e}"));
    let texts: Vec<Source> = sources.into_iter().map(|s| Source { name: s.name, text: s.text }).collect();
    let mut device = Emulated::new();
    let program = program.check().expect("a program that passes its check");
    let loaded = Loaded::new(&mut device, &program, &texts, &Places::new()).unwrap_or_else(|e| panic!("{e}"));
    let mut write = |name: &str, bytes: &[u8]| loaded.write(&mut device, name, bytes).expect("memory");
    let settings = [sampling.temperature, sampling.top_p, sampling.top_k as f32];
    write("settings", &settings.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
    write("random", &sampling.seed.to_le_bytes().repeat(batch as usize));
    write("cached", &7u32.to_le_bytes());
    let mut hosts = vec![HostSampler::new(sampling); batch as usize];
    let mut picked: Vec<Vec<u32>> = vec![Vec::new(); batch as usize];
    let mut random = Random(vocab + sampling.seed);
    for step in 0..STEPS {
        let pitch = loaded.program().buffer("logits").expect("logits").pitch as usize;
        let image = logits(&sampler, &mut random, broken);
        loaded.write(&mut device, "logits", &image.bytes).expect("memory");
        device.backwards = step % 2 == 1;
        loaded.run(&mut device).unwrap_or_else(|e| panic!("{e}"));
        for (row, host) in hosts.iter_mut().enumerate() {
            let row_of: Vec<f32> = (0..vocab as usize).map(|id| image.get(row * pitch + id) as f32).collect();
            picked[row].push(host.pick(&row_of));
        }
        let mut ids = vec![0; 4 * batch as usize];
        loaded.read(&mut device, "ids", &mut ids).expect("memory");
        let last: Vec<u32> = picked.iter().map(|tokens| tokens[step as usize]).collect();
        assert_eq!(words(&ids), last, "step {step} of {sampling:?} over {vocab}");
    }
    let mut history = vec![0; (4 * batch * STEPS) as usize];
    loaded.read(&mut device, "history", &mut history).expect("memory");
    assert_eq!(words(&history), picked.concat());
    let mut cached = [0; 4];
    loaded.read(&mut device, "cached", &mut cached).expect("memory");
    assert_eq!(u32::from_le_bytes(cached), 7 + STEPS as u32, "the position moves on once a step");
}

#[test]
fn the_device_picks_what_the_host_picks() {
    let warm = Sampling { temperature: 0.8, seed: 3, ..Sampling::GREEDY };
    check(3, 1000, Bf16, Sampling::GREEDY, true);
    check(1, 61, F32, Sampling::GREEDY, false);
    check(2, 1001, F32, warm, true);
    check(1, 300, Bf16, Sampling { top_k: 5, ..warm }, false);
    check(2, 61, F32, Sampling { top_p: 0.5, seed: 1 << 40, ..warm }, true);
    check(1, 61, F32, Sampling { top_k: 1000, top_p: 1e-9, ..warm }, false);
    check(1, 1, F32, warm, false);
    check(2, 700, F32, Sampling { top_k: 40, top_p: 0.9, temperature: 1.5, ..warm }, false);
}

#[test]
fn what_no_kernel_picks_from_is_refused() {
    let sampler = Sampler { batch: 1, vocab: 1 << 21, width: 1 << 21, dtype: F32, steps: 1 };
    assert!(matches!(sampler.lower("sm_80"), Err(CudaError::Unsupported { .. })));
    let sampler = Sampler { vocab: 8, width: 4, ..sampler };
    assert!(matches!(sampler.lower("sm_80"), Err(CudaError::Malformed { .. })));
}

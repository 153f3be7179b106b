//! Random checkpoints of every family and form: what is written reads back, parameter by parameter.

use lapidary_checkpoint::{Binding, Checkpoint, File, Index, Map, Random, Shard, Values, lay_out};
use lapidary_models::spec::{Attention, Mup, Position, Rope, Tokens};
use lapidary_models::weights::matches_wildcard;
use lapidary_models::{DType, ModelSpec, builtin, builtin_names, export_config, mup};
use std::collections::BTreeMap;

/// A model with the form of a built-in one and small, odd sizes.
fn small(name: &str) -> ModelSpec {
    let spec = builtin(name).expect("a built-in model");
    let pos = match spec.pos {
        Position::Rope(rope) => Position::Rope(Rope { rot_dims: 4, ..rope }),
        other => other,
    };
    ModelSpec {
        vocab: 50,
        vocab_padded_to: spec.vocab_padded_to.map(|_| 52),
        d_model: 20,
        n_layers: 11,
        n_heads: 4,
        n_kv_heads: if spec.n_kv_heads < spec.n_heads { 2 } else { 4 },
        head_dim: 5,
        d_ff: 22,
        max_seq: 16,
        tokens: Tokens::default(),
        pos,
        attn: Attention { window: spec.attn.window.map(|_| 8), ..spec.attn },
        mup: spec.mup.map(|mup| Mup { base_width: 5.0, ..mup }),
        ..spec
    }
}

type Files = Vec<(String, Vec<u8>)>;

/// Every file of a random checkpoint, made in pieces of `piece` bytes.
fn written(random: &Random, limit: u64, piece: usize) -> (Files, Option<Index>) {
    let tensors = random.planned_tensors();
    let layout = lay_out(&tensors, limit).expect("sizes that can be counted");
    let file = |shard: &Shard| {
        let mut bytes = shard.header.clone();
        for tensor in shard.tensors.clone() {
            let size = tensors[tensor].bytes().expect("a size") as usize;
            for start in (0..size).step_by(piece) {
                let mut part = vec![0; piece.min(size - start)];
                random.fill(tensor, start as u64 / tensors[tensor].element.bytes(), &mut part);
                bytes.extend(part);
            }
        }
        (shard.file.clone(), bytes)
    };
    let index = layout.index.as_ref().map(|(name, text)| Index::parse(text, name).expect("an index"));
    (layout.shards.iter().map(file).collect(), index)
}

/// Every parameter as f32, read back by name.
fn read(spec: &ModelSpec, files: &Files, index: Option<&Index>) -> BTreeMap<String, Vec<f32>> {
    let files: Vec<File<'_>> = files.iter().map(|(name, bytes)| File { name: name.clone(), bytes }).collect();
    let checkpoint = Checkpoint::open(&files, index).expect("whole files");
    let map = Map::new(spec, &checkpoint).expect("a named form");
    let binding = map.bind(Values::Check).expect("it fits");
    binding.names().map(|name| (name.to_string(), floats(&binding, name))).collect()
}

fn floats(binding: &Binding<'_, '_>, name: &str) -> Vec<f32> {
    let tensor = binding.tensor(name).expect("a parameter");
    match tensor.dtype {
        DType::F32 => tensor.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        DType::Bf16 => {
            tensor.bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
        }
        _ => tensor.bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
    }
}

/// A parameter's values depend on seed, name and place only. So every published form of a model, every cut into
/// shards and every size of pieces must give back what the plainest form gives: canonical names, one file, one piece.
#[test]
fn every_published_form_holds_the_same_parameters() {
    for name in builtin_names() {
        let spec = small(name);
        let mut plain = spec.clone();
        plain.weights = Default::default();
        let (files, index) =
            written(&Random::new(&plain, DType::F32, 7).expect("a form"), u64::MAX, usize::MAX);
        assert!(index.is_none() && files.len() == 1);
        let expected = read(&plain, &files, None);
        assert_eq!(expected.values().map(Vec::len).sum::<usize>() as u64, spec.parameters(), "{name}");
        let published = export_config(&spec).map_or(spec.clone(), |published| published.spec);
        let random = Random::new(&published, DType::F32, 7).expect("a form");
        let (files, index) = written(&random, 3000, 64);
        assert!(files.len() > 3, "{name}");
        assert_eq!(read(&published, &files, index.as_ref()), expected, "{name}");
    }
}

#[test]
fn the_values_follow_the_table_of_initial_values() {
    for name in ["amber", "crystalcoder", "btlm-3b-8k", "pythia-6.9b"] {
        let spec = small(name);
        let random = Random::new(&spec, DType::F32, 3).expect("a form");
        let parameters = read(&spec, &written(&random, u64::MAX, usize::MAX).0, None);
        for rule in mup::parameter_table(&spec) {
            let values: Vec<f64> = parameters
                .iter()
                .filter(|(parameter, _)| matches_wildcard(&rule.name, parameter))
                .flat_map(|(_, values)| values.iter().map(|x| f64::from(*x)))
                .collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let std = (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
            // 0.8796: what cutting a normal distribution at two deviations leaves of its own. A tenth is four
            // deviations of the estimate from the 1000 values of the smallest matrix here.
            let expected = 0.8796 * rule.init_std;
            assert!((std - expected).abs() <= 0.1 * expected, "{name} {}: {std}, not {expected}", rule.name);
            assert!((mean - rule.init_mean).abs() <= 0.2 * rule.init_std, "{name} {}: {mean}", rule.name);
            assert!(values.iter().all(|x| (x - rule.init_mean).abs() <= 2.000_001 * rule.init_std));
        }
    }
}

#[test]
fn seeds_types_and_names_make_a_difference() {
    let spec = small("llama-3-8b");
    let made = |dtype, seed| {
        let random = Random::new(&spec, dtype, seed).expect("a form");
        read(&spec, &written(&random, u64::MAX, usize::MAX).0, None)
    };
    let first = made(DType::F32, 1);
    assert_eq!(first, made(DType::F32, 1));
    assert_ne!(first["embed.weight"], made(DType::F32, 2)["embed.weight"]);
    assert_ne!(first["layers.1.attn.q.weight"], first["layers.10.attn.q.weight"]);
    assert_ne!(first["layers.0.attn.k.weight"], first["layers.0.attn.v.weight"]);
    for (name, rounded) in made(DType::Bf16, 1) {
        let expected: Vec<f32> = first[&name].iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect();
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= a.abs() / 128.0;
        assert!(rounded.iter().zip(&expected).all(near), "{name}");
    }
    assert!(made(DType::F16, 1)["layers.0.mlp.up.weight"].iter().any(|x| *x != 0.0));
    assert!(Random::new(&spec, DType::I32, 1).is_err());
}

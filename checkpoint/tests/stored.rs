//! Checkpoints of public implementations: every parameter is where the family publishes it.

use lapidary_checkpoint::{Checkpoint, Fate, Faults, File, Index, Map, Values};
use lapidary_models::weights::sources;
use lapidary_models::{ModelSpec, import_config};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const STORED: [&str; 5] = ["amber-tiny", "crystal-tiny", "llama3-tiny", "llama32-tiny", "pythia-tiny"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/oracles").join(name)
}

fn open(name: &str) -> (ModelSpec, Vec<u8>) {
    let config = std::fs::read_to_string(folder(name).join("config.json")).expect("a stored config");
    let spec = import_config(&config, "config.json").expect("a known family").spec;
    (spec, std::fs::read(folder(name).join("model.safetensors")).expect("stored weights"))
}

fn file<'a>(name: &str, bytes: &'a [u8]) -> File<'a> {
    File { name: name.into(), bytes }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// A file made of tensors by the reference crate.
fn written(tensors: &BTreeMap<String, (Vec<usize>, Vec<u8>)>) -> Vec<u8> {
    let view = |(shape, bytes): &(Vec<usize>, Vec<u8>)| {
        TensorView::new(Dtype::F32, shape.clone(), bytes).map(|view| (view.shape().to_vec(), bytes.clone()))
    };
    assert!(tensors.values().all(|tensor| view(tensor).is_ok()));
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a view"))
    });
    safetensors::serialize(views, None).expect("it can be written")
}

/// The stored tensors as the reference crate reads them, f32 only.
fn reference(bytes: &[u8]) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let file = safetensors::SafeTensors::deserialize(bytes).expect("a valid file");
    let floats = file.iter().filter(|(_, view)| view.dtype() == Dtype::F32);
    floats.map(|(name, view)| (name.to_string(), (view.shape().to_vec(), view.data().to_vec()))).collect()
}

fn faults(spec: &ModelSpec, bytes: &[u8]) -> Faults {
    let checkpoint = Checkpoint::open(&[file("m.safetensors", bytes)], None).expect("a whole file");
    Map::new(spec, &checkpoint).expect("a named form").bind(Values::Check).expect_err("a fault")
}

/// The reference crate reads the tensor, `Source::extract` picks the rows; both only through public doors.
#[test]
fn every_parameter_of_the_stored_models_is_found() {
    for name in STORED {
        let (spec, bytes) = open(name);
        let checkpoint = Checkpoint::open(&[file("model.safetensors", &bytes)], None).expect("whole");
        let binding = Map::new(&spec, &checkpoint).unwrap().bind(Values::Check).expect("it fits");
        let reference = reference(&bytes);
        let sources = sources(&spec).unwrap();
        assert_eq!(binding.names().count(), sources.len());
        for source in sources {
            let tensor = binding.tensor(&source.canonical).expect("a parameter");
            let expected = source.extract(&floats(&reference[&source.published].1)).unwrap();
            assert_eq!(tensor.shape, source.shape, "{name} {}", source.canonical);
            assert_eq!(floats(&tensor.bytes), expected, "{name} {}", source.canonical);
        }
        assert!(binding.tensor("layers.99.attn.q.weight").is_none());
    }
}

#[test]
fn what_is_not_a_parameter_is_known_for_what_it_is() {
    let (spec, bytes) = open("crystal-tiny");
    let checkpoint = Checkpoint::open(&[file("model.safetensors", &bytes)], None).expect("whole");
    let map = Map::new(&spec, &checkpoint).unwrap();
    let fate = |name: &str| {
        let entry = map.entries.iter().find(|entry| entry.stored.name == name).expect("a stored tensor");
        entry.fate.clone()
    };
    assert_eq!(fate("lm_head.weight"), Fate::Repeats("transformer.wte.weight".into()));
    assert!(matches!(fate("transformer.h.0.attn.bias"), Fate::Ignored(_)));
    assert!(matches!(fate("transformer.h.0.attn.masked_bias"), Fate::Ignored(_)));
    let Fate::Parameters(fused) = fate("transformer.h.1.attn.c_attn.weight") else { panic!("parameters") };
    let names: Vec<&str> = fused.iter().map(|source| source.canonical.as_str()).collect();
    assert_eq!(names, ["layers.1.attn.q.weight", "layers.1.attn.k.weight", "layers.1.attn.v.weight"]);
}

#[test]
fn a_checkpoint_of_the_bare_model_has_no_prefix() {
    for (name, prefix) in
        [("crystal-tiny", "transformer."), ("llama32-tiny", "model."), ("pythia-tiny", "gpt_neox.")]
    {
        let (spec, bytes) = open(name);
        let bare = reference(&bytes).into_iter();
        let bare =
            bare.map(|(name, tensor)| (name.strip_prefix(prefix).unwrap_or(&name).to_string(), tensor));
        let bytes_bare = written(&bare.collect());
        let whole = Checkpoint::open(&[file("a", &bytes)], None).expect("whole");
        let bare = Checkpoint::open(&[file("b", &bytes_bare)], None).expect("whole");
        let whole = Map::new(&spec, &whole).unwrap().bind(Values::Check).expect("it fits");
        let map = Map::new(&spec, &bare).unwrap();
        assert_eq!(map.without_prefix.as_deref(), Some(prefix));
        let bare = map.bind(Values::Check).expect("it fits");
        for parameter in whole.names() {
            assert_eq!(whole.tensor(parameter), bare.tensor(parameter), "{name} {parameter}");
        }
    }
}

#[test]
fn a_tied_table_may_stand_under_the_name_of_the_head() {
    let (spec, bytes) = open("llama32-tiny");
    let mut tensors = reference(&bytes);
    let table = tensors.remove("model.embed_tokens.weight").expect("the table");
    tensors.insert("lm_head.weight".into(), table.clone());
    let bytes = written(&tensors);
    let checkpoint = Checkpoint::open(&[file("m", &bytes)], None).expect("whole");
    let binding = Map::new(&spec, &checkpoint).unwrap().bind(Values::Check).expect("it fits");
    assert_eq!(binding.tensor("embed.weight").unwrap().bytes, table.1);
}

#[test]
fn everything_that_does_not_fit_is_told_at_once() {
    let (spec, bytes) = open("crystal-tiny");
    let mut tensors = reference(&bytes);
    tensors.remove("transformer.h.0.attn.c_attn.bias");
    tensors.insert("transformer.h.0.attn.c_attn.scale".into(), (vec![1], vec![0; 4]));
    tensors.get_mut("transformer.h.1.mlp.c_fc.weight").unwrap().0.reverse();
    tensors.get_mut("transformer.ln_f.weight").unwrap().1[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    let bias = tensors.get_mut("transformer.h.0.ln_1.bias").unwrap();
    bias.1[..4].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes());
    tensors.get_mut("lm_head.weight").unwrap().1[3] ^= 1;
    let told = faults(&spec, &written(&tensors)).to_string();
    for line in [
        "m.safetensors: tensor `transformer.h.0.attn.c_attn.bias`: missing; it holds layers.0.attn.q.bias, \
         layers.0.attn.k.bias, layers.0.attn.v.bias as [192]",
        "m.safetensors: tensor `transformer.h.0.attn.c_attn.scale`: the model has no place for it",
        "m.safetensors: tensor `transformer.h.1.mlp.c_fc.weight`: found shape [170, 64], expected [64, 170]",
        "m.safetensors: tensor `transformer.ln_f.weight`: NaN at [1], expected finite values",
        "m.safetensors: tensor `transformer.h.0.ln_1.bias`: -inf at [0], expected finite values",
        "m.safetensors: tensor `lm_head.weight`: repeats `transformer.wte.weight` but differs at [0, 0]",
    ] {
        assert!(told.contains(line), "no `{line}` in\n{told}");
    }
    assert_eq!(told.lines().count(), 6, "{told}");
}

#[test]
fn a_weight_of_another_type_is_refused() {
    let (spec, bytes) = open("amber-tiny");
    let header = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let text = String::from_utf8(bytes[8..8 + header].to_vec()).unwrap();
    // I32 has the size of F32, so only the type is wrong.
    let text = text.replacen("\"F32\"", "\"I32\"", 1);
    let mut changed = bytes.clone();
    changed[8..8 + header].copy_from_slice(text.as_bytes());
    let told = faults(&spec, &changed).to_string();
    assert!(told.contains("found I32 elements, expected F32, BF16 or F16"), "{told}");
}

/// Two shards and their index, which say the same as one file.
#[test]
fn shards_are_read_as_one() {
    let (spec, bytes) = open("pythia-tiny");
    let tensors = reference(&bytes);
    let (mut first, mut second) = (BTreeMap::new(), BTreeMap::new());
    let mut index = String::new();
    for (i, (name, tensor)) in tensors.into_iter().enumerate() {
        let shard = if i % 2 == 0 { "a.safetensors" } else { "b.safetensors" };
        index.push_str(&format!("{}\"{name}\": \"{shard}\"", if i > 0 { ", " } else { "" }));
        if i % 2 == 0 {
            first.insert(name, tensor)
        } else {
            second.insert(name, tensor)
        };
    }
    let text = format!("{{\"metadata\": {{}}, \"weight_map\": {{{index}}}}}");
    let index = Index::parse(&text, "model.safetensors.index.json").unwrap();
    let (first, second) = (written(&first), written(&second));
    let files = [file("x/a.safetensors", &first), file("x/b.safetensors", &second)];
    let sharded = Checkpoint::open(&files, Some(&index)).expect("whole");
    let sharded = Map::new(&spec, &sharded).unwrap().bind(Values::Check).expect("it fits");
    let single = Checkpoint::open(&[file("m", &bytes)], None).expect("whole");
    let single = Map::new(&spec, &single).unwrap().bind(Values::Check).expect("it fits");
    for parameter in single.names() {
        assert_eq!(single.tensor(parameter), sharded.tensor(parameter), "{parameter}");
    }
    let swapped = [file("x/b.safetensors", &first), file("x/a.safetensors", &second)];
    let told = Checkpoint::open(&swapped, Some(&index)).expect_err("swapped").to_string();
    assert!(told.contains("is in x/b.safetensors, not in a.safetensors"), "{told}");
    let twice = [file("x/a.safetensors", &first), file("x/b.safetensors", &first)];
    let told = Checkpoint::open(&twice, Some(&index)).expect_err("twice").to_string();
    assert!(told.contains("also stands in x/a.safetensors"), "{told}");
    let half = Checkpoint::open(&files[..1], Some(&index)).expect_err("half").to_string();
    assert!(half.contains("model.safetensors.index.json: tensor `gpt_neox."), "{half}");
    assert!(half.contains("is not in b.safetensors"), "{half}");
}

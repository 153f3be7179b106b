//! Reads stored checkpoints and random parameters for the oracle.

use crate::oracle::{Params, Real, Tensor};
use lapidary_checkpoint::{Checkpoint, Element, File};
use lapidary_models::{ModelSpec, import_config, weights};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A directory with a model, what a public implementation computes with it, and the model's specification.
pub struct Stored {
    /// Name of the directory.
    pub name: &'static str,
    /// The model, from `config.json`.
    pub spec: ModelSpec,
    /// Published tensors, as f64.
    pub published: BTreeMap<String, Tensor<f64>>,
    /// `expected.safetensors`, without the ids.
    pub expected: BTreeMap<String, Tensor<f64>>,
    /// The token ids that `expected` was computed from.
    pub ids: Vec<Vec<u32>>,
    folder: PathBuf,
}

/// The stored directories.
pub const STORED: [&str; 5] = ["amber-tiny", "crystal-tiny", "llama3-tiny", "llama32-tiny", "pythia-tiny"];

impl Stored {
    /// Reads a directory of `tests/data/oracles`.
    pub fn open(name: &'static str) -> Stored {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/oracles").join(name);
        let config = std::fs::read_to_string(folder.join("config.json")).expect("a stored config");
        let import =
            import_config(&config, "config.json").unwrap_or_else(|faults| panic!("{name}: {faults}"));
        let published = floats(&folder.join("model.safetensors"));
        let expected = floats(&folder.join("expected.safetensors"));
        let ids = ids(&folder.join("expected.safetensors"));
        Stored { name, spec: import.spec, published, expected, ids, folder }
    }

    /// A JSON file of the directory.
    pub fn json(&self, file: &str) -> serde_json::Value {
        let text = std::fs::read_to_string(self.folder.join(file)).expect("a stored file");
        serde_json::from_str(&text).expect("stored JSON")
    }

    /// The values of every parameter of `spec`, which may differ from the directory's own.
    pub fn params<T: Real>(&self, spec: &ModelSpec) -> Params<T> {
        canonical(spec, &self.published)
    }

    /// The stored derivative of the loss by every parameter.
    pub fn gradients(&self) -> Params<f64> {
        canonical(&self.spec, &floats(&self.folder.join("grads.safetensors")))
    }
}

/// Published tensors as the parameters of a specification.
fn canonical<T: Real>(spec: &ModelSpec, published: &BTreeMap<String, Tensor<f64>>) -> Params<T> {
    let sources = weights::sources(spec).expect("a named form");
    let value = |source: &weights::Source| {
        let published = &published[&source.published];
        let shape: Vec<u64> = published.shape.iter().map(|n| *n as u64).collect();
        assert_eq!(shape, source.published_shape, "{}", source.published);
        let data = source.extract(&published.data).expect("checked shape");
        let shape = source.shape.iter().map(|n| *n as usize).collect();
        Tensor::new(shape, data.into_iter().map(T::from_f64).collect())
    };
    sources.iter().map(|source| (source.canonical.clone(), value(source))).collect()
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every f32 tensor of a file.
fn floats(path: &Path) -> BTreeMap<String, Tensor<f64>> {
    let bytes = read(path);
    let file = open(path, &bytes);
    let weights = file.tensors().iter().filter(|stored| stored.element == Element::F32);
    weights
        .map(|stored| {
            let shape = stored.shape.iter().map(|n| *n as usize).collect();
            let data = stored.floats().expect("f32").into_iter().map(f64::from).collect();
            (stored.name.clone(), Tensor::new(shape, data))
        })
        .collect()
}

fn ids(path: &Path) -> Vec<Vec<u32>> {
    let bytes = read(path);
    let file = open(path, &bytes);
    let stored = file.get("input_ids").expect("stored ids");
    let ids: Vec<u32> = stored.integers().expect("whole numbers").into_iter().map(|id| id as u32).collect();
    ids.chunks_exact(stored.shape[1] as usize).map(<[u32]>::to_vec).collect()
}

fn open<'a>(path: &Path, bytes: &'a [u8]) -> Checkpoint<'a> {
    let name = path.display().to_string();
    Checkpoint::open(&[File { name, bytes }], None).unwrap_or_else(|faults| panic!("{faults}"))
}

/// Random values for every parameter: matrices around 0, weights of norms around 1; the same for the same seed.
pub fn random_params<T: Real>(spec: &ModelSpec, seed: u64) -> Params<T> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0
    };
    let sources = weights::sources(spec).expect("a named form");
    let mut params = Params::new();
    for source in sources {
        let shape: Vec<usize> = source.shape.iter().map(|n| *n as usize).collect();
        let center = if source.canonical.ends_with("norm.weight") { 1.0 } else { 0.0 };
        let spread = if shape.len() == 2 { (3.0 / shape[1] as f64).sqrt() } else { 0.3 };
        let tensor = Tensor::build(shape, |_| T::from_f64(center + spread * uniform()));
        params.insert(source.canonical, tensor);
    }
    params
}

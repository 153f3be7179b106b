//! Directories of the same form as the stored ones, of any size, made by the reference interpreter in f64.

use crate::checkpoint::random_params;
use crate::oracle::{Cache, Oracle, Params, Tensor, continuation, next_token_loss};
use lapidary_models::{Dims, Graph, Mode, ModelSpec, import_config, weights};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// What a directory holds.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// Start of the random weights.
    pub seed: u64,
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub seq: usize,
    /// Ids of the continuations.
    pub new: usize,
}

/// Writes `config.json`, `model.safetensors`, `expected.safetensors`, `greedy.json`, `memorization.json` and `meta.json`.
pub fn write(folder: &Path, config: &Value, form: Form) {
    let text = serde_json::to_string_pretty(config).expect("JSON");
    let spec = import_config(&text, "config.json").unwrap_or_else(|faults| panic!("{faults}")).spec;
    let params = rounded(random_params::<f64>(&spec, form.seed));
    std::fs::create_dir_all(folder).expect("a folder");
    let put = |name: &str, text: String| std::fs::write(folder.join(name), text).expect("a file");
    put("config.json", text);
    tensors(&folder.join("model.safetensors"), &published(&spec, &params), &[]);
    let ids = ids(&spec, form);
    let dims = Dims { batch: form.batch as u64, seq: form.seq as u64, cached: 0 };
    let graph = Graph::build(&spec, Mode::Forward, dims).expect("a graph");
    let run = Oracle { graph: &graph, params: &params }.run(&ids, &mut Cache::new());
    let mut expected: BTreeMap<String, Tensor<f64>> =
        (0..=spec.n_layers).map(|i| format!("hidden.{i}")).map(|n| (n.clone(), of(&run.trace, &n))).collect();
    let parts = [("norm1", "attn_norm"), ("attn", "attn.out"), ("norm2", "mlp_norm"), ("mlp", "mlp.down")];
    for (part, node) in parts {
        expected.insert(format!("block0.{part}"), of(&run.trace, &format!("layers.0.{node}")));
    }
    expected.insert("final_norm".into(), of(&run.trace, "final_norm"));
    expected.insert("logits".into(), run.logits.clone());
    tensors(&folder.join("expected.safetensors"), &expected, &ids);
    let add = |prompt: &[u32]| continuation(&spec, &params, prompt, form.new).expect("room");
    let case = |prompt: &[u32]| json!({"prompt": prompt, "continuation": add(prompt)});
    put(
        "greedy.json",
        json!({"new_tokens": form.new, "cases": [case(&ids[0][..1]), case(&ids[0])]}).to_string(),
    );
    put("memorization.json", json!({"sequences": [remembered(&ids[0], &add(&ids[0]))]}).to_string());
    put("meta.json", json!({"loss": next_token_loss(&run.logits, &ids)}).to_string());
}

/// The weights are stored in f32, so that is what everything is computed from.
fn rounded(params: Params<f64>) -> Params<f64> {
    params.into_iter().map(|(name, t)| (name, t.map(|x| f64::from(x as f32)))).collect()
}

fn published(spec: &ModelSpec, params: &Params<f64>) -> BTreeMap<String, Tensor<f64>> {
    let mut published: BTreeMap<String, Tensor<f64>> = BTreeMap::new();
    for source in weights::sources(spec).expect("a named form") {
        let shape: Vec<usize> = source.published_shape.iter().map(|n| *n as usize).collect();
        let tensor =
            published.entry(source.published.clone()).or_insert_with(|| Tensor::build(shape, |_| 0.0));
        source.place(&params[&source.canonical].data, &mut tensor.data).expect("the same size");
    }
    published
}

fn tensors(path: &Path, tensors: &BTreeMap<String, Tensor<f64>>, ids: &[Vec<u32>]) {
    let bytes =
        |t: &Tensor<f64>| -> Vec<u8> { t.data.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect() };
    let mut stored: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> =
        tensors.iter().map(|(name, t)| (name.clone(), Dtype::F32, t.shape.clone(), bytes(t))).collect();
    if let Some(first) = ids.first() {
        let bytes = ids.iter().flatten().flat_map(|id| i64::from(*id).to_le_bytes()).collect();
        stored.push(("input_ids".into(), Dtype::I64, vec![ids.len(), first.len()], bytes));
    }
    let views = stored.iter().map(|(name, dtype, shape, bytes)| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor"))
    });
    serialize_to_file(views, None, path).expect("a file");
}

/// A node's result, with its bias where it has one.
fn of(trace: &[(String, Tensor<f64>)], node: &str) -> Tensor<f64> {
    let named = |name: &str| trace.iter().find(|(traced, _)| traced == name).map(|(_, t)| t.clone());
    named(&format!("{node}.bias")).or_else(|| named(node)).unwrap_or_else(|| panic!("no {node}"))
}

fn ids(spec: &ModelSpec, form: Form) -> Vec<Vec<u32>> {
    let id =
        |b: usize, s: usize| ((b * 11 + s * s * 5 + 3 * s + form.seed as usize) as u64 % spec.vocab) as u32;
    (0..form.batch).map(|b| (0..form.seq).map(|s| id(b, s)).collect()).collect()
}

fn remembered(prompt: &[u32], generated: &[u32]) -> Value {
    let mut data = generated.to_vec();
    data[0] = if data[0] == 0 { 1 } else { 0 };
    let matches: Vec<u8> = generated.iter().zip(&data).map(|(a, b)| u8::from(a == b)).collect();
    let score = matches.iter().map(|one| f64::from(*one)).sum::<f64>() / matches.len() as f64;
    json!({"prompt": prompt, "continuation": data, "generated": generated, "match": matches, "score": score})
}

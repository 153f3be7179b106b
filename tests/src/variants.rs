//! The thirteen ways to misread CrystalCoder that the stored `meta.json` knows.

use crate::checkpoint::Stored;
use crate::oracle::{Params, Tensor};
use lapidary_models::ModelSpec;
use lapidary_models::spec::{AttentionScale, Block, GateHalf, Pairing, Position, Residual, Rope};

/// A model that is CrystalCoder but for one fact.
pub struct WrongReading {
    /// Its name in `meta.json`.
    pub name: &'static str,
    /// The specification.
    pub spec: ModelSpec,
    /// The parameters.
    pub params: Params<f64>,
}

/// Every wrong reading of a stored CrystalCoder.
pub fn wrong_readings(stored: &Stored) -> Vec<WrongReading> {
    let with_spec =
        |(name, spec): (&'static str, ModelSpec)| WrongReading { name, params: stored.params(&spec), spec };
    let right = stored.params::<f64>(&stored.spec);
    let with_params = |name, change: &dyn Fn(&str, &Tensor<f64>) -> Tensor<f64>| WrongReading {
        name,
        spec: stored.spec.clone(),
        params: right.iter().map(|(name, tensor)| (name.clone(), change(name, tensor))).collect(),
    };
    let mut readings: Vec<WrongReading> = specs(&stored.spec).into_iter().map(with_spec).collect();
    readings.push(with_params("no-proj-bias", &without_bias_of_projections));
    let turned = |name: &str, tensor: &Tensor<f64>| last_dimensions_first(&stored.spec, name, tensor);
    readings.push(with_params("rotary-last-quarter", &turned));
    readings
}

fn specs(right: &ModelSpec) -> Vec<(&'static str, ModelSpec)> {
    let rope = |change: fn(&mut Rope)| {
        let mut spec = right.clone();
        if let Position::Rope(rope) = &mut spec.pos {
            change(rope);
        }
        spec
    };
    let with = |change: fn(&mut ModelSpec)| {
        let mut spec = right.clone();
        change(&mut spec);
        spec
    };
    vec![
        ("1/sqrt(d)", with(|spec| spec.attn.scale = AttentionScale::HeadDimPower(-0.5))),
        ("half-split-rotary", rope(|rope| rope.pairing = Pairing::Half)),
        ("full-rotary", rope(|rope| rope.rot_dims = 32)),
        ("silu-on-c_fc", with(|spec| spec.mlp.gate = GateHalf::First)),
        ("no-embedding-scale", with(|spec| spec.multipliers.embedding = 1.0)),
        ("no-output-scale", with(|spec| spec.multipliers.logits = 1.0)),
        ("alpha-only", with(|spec| spec.multipliers.logits = 2.22)),
        ("eps-1e-6", with(|spec| spec.norm.eps = 1e-6)),
        ("no-qkv-bias", with(|spec| spec.bias.qkv = false)),
        ("no-ln-bias", with(|spec| spec.norm.bias = false)),
        (
            "parallel-residual",
            with(|spec| spec.block = Block { residual: Residual::Parallel, shared_norm: true }),
        ),
    ]
}

fn without_bias_of_projections(name: &str, tensor: &Tensor<f64>) -> Tensor<f64> {
    let projection = name.ends_with("attn.out.bias") || name.ends_with("mlp.down.bias");
    if projection { tensor.map(|_| 0.0) } else { tensor.clone() }
}

/// Queries and keys with the last `rot_dims` dimensions of every head in front: products of queries and keys are the
/// same, but what rotates are the dimensions that stood last.
fn last_dimensions_first(spec: &ModelSpec, name: &str, tensor: &Tensor<f64>) -> Tensor<f64> {
    let Position::Rope(rope) = spec.pos else { return tensor.clone() };
    if !name.contains("attn.q.") && !name.contains("attn.k.") {
        return tensor.clone();
    }
    let row = tensor.data.len() / tensor.shape[0];
    let (head, back) = (spec.head_dim as usize, (spec.head_dim - rope.rot_dims) as usize);
    Tensor::build(tensor.shape.clone(), |i| {
        let (r, column) = (i / row, i % row);
        let from = r / head * head + (r % head + back) % head;
        tensor.data[from * row + column]
    })
}

//! Places one layer of a model.

use super::WaferSpec;
use super::error::WaferError;
use super::kernel::attention::distance::slopes;
use super::layout::{HeadShape, fit_tokens, place_heads, place_tokens};
use super::placed::{
    Activation, Attention, Layout, Linear, Map, Norm, NormKind, OpKind, Pairing, Parameter, Path, Placed,
    PlacedOp, Rope, Segment, Source, Step,
};
use lapidary_models::dtype::DType;
use lapidary_models::spec::{self, AttentionScale, ModelSpec, Position, Residual};

/// What a layer runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Columns of PEs.
    pub width: u32,
    /// Rows of PEs.
    pub height: u32,
    /// Sequences that want to be on the wafer at once.
    pub sequences: u32,
    /// Tokens of a sequence.
    pub length: u32,
    /// Element type of activations and weights.
    pub dtype: DType,
}

/// Places one layer of a model, residual stream in and out, and gives it as many of the sequences at once as fit.
/// Parameters have the names of the graph, `layers.*.attn.q.weight`.
///
/// # Errors
/// [`WaferError::Memory`] if one sequence does not fit; [`WaferError::Size`] for sizes beyond a wafer program.
pub fn place_layer(model: &ModelSpec, work: Workload, spec: &WaferSpec) -> Result<Placed, WaferError> {
    let shape = HeadShape {
        heads: size("n_heads", model.n_heads)?,
        kv_heads: size("n_kv_heads", model.n_kv_heads)?,
        dim: size("head_dim", model.head_dim)?,
    };
    let mut layer = Layer { model, ops: vec![], values: vec![] };
    layer.build()?;
    let placed = Placed { heads: Some(place_heads(work.width, shape)), ..layer.placed(work) };
    fit_tokens(placed, work.sequences, spec)
}

/// Places what stands behind the layers: the last norm and the logits.
///
/// # Errors
/// [`WaferError::Size`] for sizes beyond a wafer program.
pub fn place_head(model: &ModelSpec, work: Workload) -> Result<Placed, WaferError> {
    let mut head = Layer { model, ops: vec![], values: vec![] };
    head.logits()?;
    Ok(head.placed(work))
}

/// A count that fits the generator's 32 bits.
fn size(what: &str, found: u64) -> Result<u32, WaferError> {
    let hint = "it must be 1 to 2^24".to_owned();
    let small = u32::try_from(found).ok().filter(|n| (1..=1 << 24).contains(n));
    small.ok_or_else(|| WaferError::Size { what: what.into(), found, hint })
}

struct Layer<'a> {
    model: &'a ModelSpec,
    ops: Vec<PlacedOp>,
    values: Vec<(&'static str, Layout)>,
}

impl Layer<'_> {
    fn placed(self, work: Workload) -> Placed {
        Placed {
            width: work.width,
            height: work.height,
            tokens: place_tokens(work.height, work.sequences, work.length, 1),
            micro_batches: 1,
            resident: false,
            heads: None,
            dtype: work.dtype,
            values: self.values.into_iter().map(|(name, layout)| (name.to_owned(), layout)).collect(),
            ops: self.ops,
        }
    }

    fn logits(&mut self) -> Result<(), WaferError> {
        let columns = Layout::Columns { features: size("d_model", self.model.d_model)? };
        let logits = Layout::Columns { features: size("vocab", self.model.vocab_rows())? };
        self.values = vec![("x", columns), ("final", columns), ("logits", logits)];
        let (value, path) = ("x".to_owned(), Path::Resident);
        self.push("input", OpKind::Input { value, tensor: "input".into(), source: Source::Caller, path });
        self.norm("final_norm", "final");
        let outputs = vec![segment("logits", "head", false, 1.0)];
        self.push("head", OpKind::Linear(Linear { input: "final".into(), outputs, accumulate: false }));
        let value = "logits".to_owned();
        self.push("output", OpKind::Output { value, tensor: "output".into(), path });
        Ok(())
    }

    fn build(&mut self) -> Result<(), WaferError> {
        let columns = Layout::Columns { features: size("d_model", self.model.d_model)? };
        self.values = vec![("x", columns), ("attn_in", columns), ("mlp_in", columns)];
        let stream = || ("x".to_owned(), Path::Resident);
        let ((value, path), tensor) = (stream(), "input".to_owned());
        self.push("input", OpKind::Input { value, tensor, source: Source::Caller, path });
        let parallel = self.model.block.residual == Residual::Parallel;
        let shared = self.model.block.shared_norm;
        self.norm("attn_norm", "attn_in");
        if parallel && !shared {
            self.norm("mlp_norm", "mlp_in");
        }
        self.attention();
        if !parallel {
            self.norm("mlp_norm", "mlp_in");
        }
        self.mlp(if shared { "attn_in" } else { "mlp_in" })?;
        let ((value, path), tensor) = (stream(), "output".to_owned());
        self.push("output", OpKind::Output { value, tensor, path });
        Ok(())
    }

    fn push(&mut self, name: &str, kind: OpKind) {
        self.ops.push(PlacedOp { name: name.into(), kind });
    }

    fn norm(&mut self, name: &str, output: &str) {
        let norm = self.model.norm;
        let kind = match norm.kind {
            spec::NormKind::Rms => NormKind::Rms,
            spec::NormKind::Layer => NormKind::Layer,
        };
        let parameter = |part: &str| format!("layers.*.{name}.{part}");
        let plain = |part: &str| Parameter::plain(parameter(part));
        let (weight, bias) = (plain("weight"), norm.bias.then(|| plain("bias")));
        self.push(
            name,
            OpKind::Norm(Norm {
                input: "x".into(),
                output: output.into(),
                kind,
                eps: norm.eps,
                weight,
                bias,
            }),
        );
    }

    fn attention(&mut self) {
        let keys = Layout::HeadTokens { queries: false };
        self.values.extend([
            ("q", Layout::HeadTokens { queries: true }),
            ("k", keys),
            ("v", keys),
            ("attn", Layout::HeadColumns { queries: true }),
        ]);
        let bias = self.model.bias;
        let part = |value: &str| segment(value, &format!("layers.*.attn.{value}"), bias.qkv, 1.0);
        let outputs = vec![part("q"), part("k"), part("v")];
        self.push("qkv", OpKind::Linear(Linear { input: "attn_in".into(), outputs, accumulate: false }));
        if let Position::Rope(rope) = self.model.pos {
            self.push("rope_q", OpKind::Rope(rope_of("q", &rope)));
            self.push("rope_k", OpKind::Rope(rope_of("k", &rope)));
        }
        let scale = match self.model.attn.scale {
            AttentionScale::HeadDimPower(power) => (self.model.head_dim as f64).powf(power),
            AttentionScale::Value(value) => value,
        };
        let [query, key, value, output] = ["q", "k", "v", "attn"].map(str::to_owned);
        let heads = u32::try_from(self.model.n_heads).unwrap_or(u32::MAX);
        let slopes = match self.model.pos {
            Position::Alibi { scaling } => slopes(heads, scaling),
            _ => vec![],
        };
        let window = self.model.attn.window.and_then(|window| u32::try_from(window).ok());
        let attention = Attention { query, key, value, output, scale, slopes, window };
        self.push("attention", OpKind::Attention(attention));
        let out = segment("x", "layers.*.attn.out", bias.attn_out, self.model.multipliers.residual);
        self.push(
            "attn_out",
            OpKind::Linear(Linear { input: "attn".into(), outputs: vec![out], accumulate: true }),
        );
    }

    fn mlp(&mut self, input: &str) -> Result<(), WaferError> {
        let columns = Layout::Columns { features: size("d_ff", self.model.d_ff)? };
        let (gated, bias) = (self.model.mlp.gated, self.model.bias.mlp);
        let part = |value: &str| segment(value, &format!("layers.*.mlp.{value}"), bias, 1.0);
        let activation = Step::Activation(match self.model.mlp.act {
            spec::Activation::Silu => Activation::Silu,
            spec::Activation::Gelu => Activation::Gelu,
            spec::Activation::GeluTanh => Activation::GeluTanh,
            spec::Activation::Relu => Activation::Relu,
            spec::Activation::Relu2 => Activation::Relu2,
        });
        self.values.push(("up", columns));
        let (outputs, inner, steps) = if gated {
            self.values.push(("gate", columns));
            (vec![part("gate"), part("up")], "gate", vec![activation, Step::Mul("up".into())])
        } else {
            (vec![part("up")], "up", vec![activation])
        };
        self.push("mlp_in", OpKind::Linear(Linear { input: input.into(), outputs, accumulate: false }));
        self.push("mlp_act", OpKind::Map(Map { input: inner.into(), output: inner.into(), steps }));
        let down = segment("x", "layers.*.mlp.down", bias, self.model.multipliers.residual);
        self.push(
            "mlp_down",
            OpKind::Linear(Linear { input: inner.into(), outputs: vec![down], accumulate: true }),
        );
        Ok(())
    }
}

fn segment(value: &str, parameter: &str, bias: bool, scale: f64) -> Segment {
    let part = |part: &str| Parameter { name: format!("{parameter}.{part}"), scale };
    let (weight, bias) = (part("weight"), bias.then(|| part("bias")));
    Segment { value: value.into(), weight, transposed: false, bias }
}

fn rope_of(value: &str, rope: &spec::Rope) -> Rope {
    let pairing = match rope.pairing {
        spec::Pairing::Half => Pairing::Half,
        spec::Pairing::Interleaved => Pairing::Interleaved,
    };
    let frequencies = rope.inverse_frequencies().into_iter().map(f64::from).collect();
    Rope {
        value: value.into(),
        rotated: u32::try_from(rope.rot_dims).unwrap_or(u32::MAX),
        pairing,
        frequencies,
        offset: 0,
        back: false,
    }
}

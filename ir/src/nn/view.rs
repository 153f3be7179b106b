//! A view per op: named operands, attributes in the types of models.
//!
//! Views are made of ops that verify, so what the dialect demands is there; an accessor of something the dialect
//! demands panics on an op that was broken by hand and not verified since.

use super::word::{Anchor, Word};
use super::{FusedParameters, MaskParameters, RopeParameters};
use crate::handle::View;
use crate::raw::{Block, Op, Value};
use lapidary_models::op::{Cache, HeadRun, ScaleRole};
use lapidary_models::spec::{Activation, NormKind, Pairing, RopeScaling};

const VERIFIED: &str = "the dialect demands it and the op was verified";

/// Declares the views and [`Any`], the closed set of them.
macro_rules! views {
    ($($(#[$doc:meta])* $view:ident = $name:literal { $($operand:ident: $index:literal),* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub struct $view<'c>(Op<'c>);

            impl<'c> View<'c> for $view<'c> {
                const NAME: &'static str = $name;
                fn of(op: Op<'c>) -> Option<Self> {
                    op.is($name).then_some($view(op))
                }
                fn op(self) -> Op<'c> {
                    self.0
                }
            }

            impl<'c> $view<'c> {
                $(
                    #[doc = concat!("Operand ", $index, ", `", stringify!($operand), "`.")]
                    pub fn $operand(self) -> Value<'c> {
                        self.0.operand($index).expect(VERIFIED)
                    }
                )*
                /// The (first) result.
                pub fn result(self) -> Value<'c> {
                    self.0.result(0).expect(VERIFIED)
                }
            }
        )*

        /// Any op of the dialect but `nn.yield`; a match on it is led by the compiler when the dialect grows.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Any<'c> {
            $($(#[$doc])* $view($view<'c>),)*
        }

        impl<'c> Any<'c> {
            /// The view of an op of this dialect.
            pub fn of(op: Op<'c>) -> Option<Self> {
                match op.name() {
                    $($name => Some(Any::$view($view(op))),)*
                    _ => None,
                }
            }

            /// The operation.
            pub fn op(self) -> Op<'c> {
                match self {
                    $(Any::$view(view) => view.0,)*
                }
            }
        }
    };
}

views! {
    /// A weight of the model.
    Param = "nn.param" {}
    /// One table row per token.
    Embed = "nn.embed" { ids: 0, table: 1 }
    /// A learned position, added.
    Position = "nn.position" { x: 0, table: 1 }
    /// The last position only.
    LastToken = "nn.last_token" { x: 0 }
    /// A product with a weight matrix.
    Linear = "nn.linear" { x: 0, weight: 1 }
    /// A vector added to every row.
    Bias = "nn.bias" { x: 0, bias: 1 }
    /// A sum of two tensors.
    Add = "nn.add" { a: 0, b: 1 }
    /// A product of two tensors.
    Mul = "nn.mul" { a: 0, b: 1 }
    /// A product with a constant.
    Scale = "nn.scale" { x: 0 }
    /// A function of every element.
    Activate = "nn.activation" { x: 0 }
    /// A normalisation of every row.
    Norm = "nn.norm" { x: 0, weight: 1 }
    /// Softmax over the last axis.
    Softmax = "nn.softmax" { x: 0 }
    /// A rotation of pairs of features.
    Rope = "nn.rope" { x: 0 }
    /// A write to the key/value cache.
    KvAppend = "nn.kv_append" { x: 0, layer: 1 }
    /// Dot products of queries and keys.
    Scores = "nn.scores" { q: 0, k: 1 }
    /// Minus infinity where a query may not look.
    Mask = "nn.mask" { x: 0 }
    /// Weighted sums of values.
    Values = "nn.values" { p: 0, v: 1 }
    /// Mean cross entropy.
    CrossEntropy = "nn.cross_entropy" { logits: 0, labels: 1 }
    /// Its derivative by the logits.
    CrossEntropyDx = "nn.cross_entropy_dx" { logits: 0, labels: 1 }
    /// Derivative of a linear by its operand.
    LinearDx = "nn.linear_dx" { dy: 0, weight: 1 }
    /// Derivative of a linear by its weight.
    LinearDw = "nn.linear_dw" { dy: 0, x: 1 }
    /// The sum of all rows.
    ColumnSum = "nn.column_sum" { x: 0 }
    /// Derivative of an activation.
    ActivationDx = "nn.activation_dx" { x: 0, dy: 1 }
    /// Derivative of a norm by its operand.
    NormDx = "nn.norm_dx" { x: 0, weight: 1, dy: 2 }
    /// Derivative of a norm by its weight.
    NormDw = "nn.norm_dw" { x: 0, dy: 1 }
    /// A rotation back.
    RopeDx = "nn.rope_dx" { dy: 0 }
    /// Zero where a query may not look.
    MaskDx = "nn.mask_dx" { ds: 0 }
    /// Derivative of a softmax.
    SoftmaxDx = "nn.softmax_dx" { p: 0, dp: 1 }
    /// Weighted sums over queries.
    ValuesDv = "nn.values_dv" { p: 0, y: 1 }
    /// Derivative of a lookup by its table.
    EmbedDw = "nn.embed_dw" { ids: 0, dy: 1 }
    /// Derivative of a learned position by its table.
    PositionDw = "nn.position_dw" { dy: 0 }
    /// Derivative of the choice of the last position.
    LastTokenDx = "nn.last_token_dx" { dy: 0 }
    /// A value kept for the backward pass.
    Save = "nn.save" { x: 0, layer: 1 }
    /// What a layer kept.
    Saved = "nn.saved" { layer: 0 }
    /// An addition to the gradient of a weight.
    Gradient = "nn.gradient" { dw: 0 }
    /// One table row per token, from the rank's rows.
    EmbedPart = "nn.embed_part" { ids: 0, table: 1 }
    /// A sum over ranks.
    AllReduce = "nn.all_reduce" { x: 0 }
    /// The parts of all ranks.
    AllGather = "nn.all_gather" { x: 0 }
    /// The rank's rows of a sum over ranks.
    ReduceScatter = "nn.reduce_scatter" { x: 0 }
    /// The rows of all ranks.
    GatherRows = "nn.gather_rows" { x: 0 }
    /// A run of rows.
    TakeRows = "nn.take_rows" { x: 0 }
    /// A run of columns.
    Take = "nn.take" { x: 0 }
    /// Derivative of a lookup by the rank's rows of its table.
    EmbedPartDw = "nn.embed_part_dw" { ids: 0, dy: 1 }
    /// A value handed to another stage.
    Send = "nn.send" { x: 0 }
    /// What another stage sent.
    Receive = "nn.receive" {}
    /// A layer called N times.
    Repeat = "nn.repeat" {}
    /// Ops that become one kernel.
    Fused = "nn.fused" {}
}

fn word<W: Word>(op: Op<'_>, name: &str) -> Option<W> {
    op.word(name).and_then(W::of_word)
}

fn count(op: Op<'_>, name: &str) -> u64 {
    op.i64(name).and_then(|value| u64::try_from(value).ok()).unwrap_or(0)
}

impl<'c> Param<'c> {
    /// The layer's number, for a parameter of every layer.
    pub fn layer(self) -> Option<Value<'c>> {
        self.0.operand(0)
    }

    /// Canonical name, such as `layers.*.attn.q.weight`.
    pub fn name(self) -> &'c str {
        self.0.text("name").unwrap_or("")
    }

    /// Factor applied when the weight is loaded.
    pub fn scale(self) -> f64 {
        self.0.f64("scale").unwrap_or(1.0)
    }

    /// Multiplies the load-time factor.
    pub fn fold_scale(self, by: f64) {
        self.0.set_attribute("scale", self.0.context().f64(self.scale() * by));
    }
}

impl Position<'_> {
    /// Position of the first token.
    pub fn offset(self) -> u64 {
        count(self.0, "offset")
    }
}

impl Scale<'_> {
    /// The factor.
    pub fn by(self) -> f64 {
        self.0.f64("by").expect(VERIFIED)
    }

    /// Why it is there.
    pub fn role(self) -> ScaleRole {
        self.0.text("role").and_then(ScaleRole::of_word).expect(VERIFIED)
    }
}

impl Activate<'_> {
    /// The function.
    pub fn function(self) -> Activation {
        word(self.0, "fn").expect(VERIFIED)
    }
}

impl<'c> Norm<'c> {
    /// What is added after the product with the weight, if anything.
    pub fn bias(self) -> Option<Value<'c>> {
        self.0.operand(2)
    }

    /// RMSNorm or LayerNorm.
    pub fn kind(self) -> NormKind {
        word(self.0, "kind").expect(VERIFIED)
    }

    /// Added to the mean square or the variance.
    pub fn eps(self) -> f64 {
        self.0.f64("eps").expect(VERIFIED)
    }

    /// Changes eps.
    pub fn set_eps(self, eps: f64) {
        self.0.set_attribute("eps", self.0.context().f64(eps));
    }
}

impl Rope<'_> {
    /// Everything but the operand.
    pub fn parameters(self) -> RopeParameters {
        RopeParameters {
            head_dim: count(self.0, "head_dim"),
            rot_dims: count(self.0, "rot_dims"),
            pairing: word::<Pairing>(self.0, "pairing").expect(VERIFIED),
            theta: self.0.f64("theta").expect(VERIFIED),
            scaling: self.scaling(),
            offset: count(self.0, "offset"),
        }
    }

    fn scaling(self) -> RopeScaling {
        let value = |name| self.0.f64(name).expect(VERIFIED);
        match self.0.word("scaling") {
            Some("linear") => RopeScaling::Linear { factor: value("factor") },
            Some("llama3") => RopeScaling::Llama3 {
                factor: value("factor"),
                low_freq: value("low_freq"),
                high_freq: value("high_freq"),
                original_max: count(self.0, "original_max"),
            },
            _ => RopeScaling::None,
        }
    }
}

impl KvAppend<'_> {
    /// Keys or values.
    pub fn cache(self) -> Cache {
        word(self.0, "cache").expect(VERIFIED)
    }

    /// Rows that are there already.
    pub fn cached(self) -> u64 {
        count(self.0, "cached")
    }
}

impl Scores<'_> {
    /// Query heads.
    pub fn heads(self) -> u64 {
        count(self.0, "heads")
    }

    /// Key heads.
    pub fn kv_heads(self) -> u64 {
        count(self.0, "kv_heads")
    }
}

impl Mask<'_> {
    /// Everything but the operand.
    pub fn parameters(self) -> MaskParameters {
        MaskParameters {
            causal: self.0.flag("causal"),
            window: count(self.0, "window"),
            alibi: self.0.flag("alibi").then(|| self.0.f64("alibi_scaling").unwrap_or(1.0)),
            heads: head_run(self.0),
            offset: count(self.0, "offset"),
        }
    }
}

/// Which heads of the model a mask is for, where it says so.
pub fn head_run(mask: Op<'_>) -> Option<HeadRun> {
    let of = count(mask, "alibi_heads");
    (of > 0).then(|| HeadRun { first: count(mask, "alibi_first"), of })
}

impl Values<'_> {
    /// Query heads.
    pub fn heads(self) -> u64 {
        count(self.0, "heads")
    }

    /// Value heads.
    pub fn kv_heads(self) -> u64 {
        count(self.0, "kv_heads")
    }
}

impl<'c> Repeat<'c> {
    /// Name of the function that is called.
    pub fn body(self) -> &'c str {
        self.0.symbol("body").unwrap_or("")
    }

    /// How often it is called.
    pub fn times(self) -> u64 {
        count(self.0, "times")
    }
}

impl<'c> Fused<'c> {
    /// Name, anchor, bytes saved, reason.
    pub fn parameters(self) -> FusedParameters {
        FusedParameters {
            name: self.0.text("name").unwrap_or("").to_owned(),
            anchor: self.anchor(),
            saved_bytes: count(self.0, "saved_bytes"),
            reason: self.0.text("reason").unwrap_or("").to_owned(),
        }
    }

    /// The op that gives the kernel its loop.
    pub fn anchor(self) -> Anchor {
        word(self.0, "anchor").expect(VERIFIED)
    }

    /// The block whose arguments are the inputs.
    pub fn body(self) -> Block<'c> {
        self.0.region_block(0).expect(VERIFIED)
    }

    /// The ops of the body, without `nn.yield`.
    pub fn ops(self) -> Vec<Op<'c>> {
        self.body().ops().into_iter().filter(|op| !op.is("nn.yield")).collect()
    }

    /// What the body yields, one value per result.
    pub fn yielded(self) -> Vec<Value<'c>> {
        self.body().terminator().map_or_else(Vec::new, Op::operands)
    }

    /// Pairs of outer value and block argument.
    pub fn inputs(self) -> Vec<(Value<'c>, Value<'c>)> {
        self.0.operands().into_iter().zip(self.body().arguments()).collect()
    }

    /// What a value of the body is outside, if it is a block argument.
    pub fn outer(self, inner: Value<'c>) -> Option<Value<'c>> {
        let (block, index) = inner.block_argument()?;
        (block == self.body()).then(|| self.0.operand(index)).flatten()
    }
}

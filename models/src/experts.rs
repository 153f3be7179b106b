//! Models whose MLPs are experts: each token goes through some of them (arXiv 1701.06538, 2101.03961).
//!
//! Graphs have no op for them yet; what does not need one, sizes and plans, counts from the model without experts.

use crate::spec::ModelSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Experts in the place of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Experts {
    /// Experts of a layer, each an MLP of `d_ff`.
    pub count: u64,
    /// Experts that a token goes to.
    pub top_k: u64,
    /// Places of an expert over an even share of the tokens; absent where none is dropped and none padded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<f64>,
    /// One layer of so many has experts, the others one MLP; divides `n_layers`.
    #[serde(default = "one")]
    pub every: u64,
}

fn one() -> u64 {
    1
}

impl Experts {
    /// Rows that experts work on for each token of a layer that has them.
    pub fn rows(&self) -> f64 {
        self.top_k as f64 * self.capacity.unwrap_or(1.0)
    }
}

impl ModelSpec {
    /// The model with one MLP in the place of its experts.
    pub fn dense(&self) -> ModelSpec {
        ModelSpec { experts: None, ..self.clone() }
    }

    /// Parameters of one MLP.
    pub fn mlp_parameters(&self) -> u64 {
        let ups = if self.mlp.gated { 2 } else { 1 };
        let biases = if self.bias.mlp { ups * self.d_ff + self.d_model } else { 0 };
        (ups + 1) * self.d_model * self.d_ff + biases
    }

    /// Parameters of experts and routers beyond those of one MLP a layer.
    pub(crate) fn expert_parameters(&self) -> u64 {
        self.experts.map_or(0, |experts| {
            let layers = self.n_layers / experts.every.max(1);
            layers * ((experts.count - 1) * self.mlp_parameters() + experts.count * self.d_model)
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::{Dims, Graph, Mode, parse_model, to_toml};

    fn text(experts: &str) -> String {
        let mixtral = "name = 'mixtral'\nvocab = 32000\nd_model = 4096\nn_layers = 32\nn_heads = 32\n\
            n_kv_heads = 8\nd_ff = 14336\nmax_seq = 4096\n[norm]\nkind = 'rms'\neps = 1e-5\n\
            [mlp]\nact = 'silu'\ngated = true\n[pos]\nkind = 'rope'\ntheta = 1e6\nrot_dims = 128\npairing = 'half'\n";
        format!("{mixtral}[experts]\n{experts}")
    }

    #[test]
    fn mixtral_has_the_parameters_it_is_published_with() {
        let spec = parse_model(&text("count = 8\ntop_k = 2\n"), "m.toml").unwrap();
        // 46.7 B in all (arXiv 2401.04088); the weights on Hugging Face hold 46,702,792,704.
        assert_eq!(spec.parameters(), 46_702_792_704);
        assert_eq!(parse_model(&to_toml(&spec), "again.toml").unwrap(), spec);
        assert_eq!(spec.experts.unwrap().rows(), 2.0);
    }

    #[test]
    fn what_does_not_go_together_is_told() {
        let told = |experts: &str| parse_model(&text(experts), "m.toml").unwrap_err().to_string();
        assert!(told("count = 8\ntop_k = 9\n").contains("experts.top_k"));
        assert!(told("count = 1\ntop_k = 1\n").contains("experts.count"));
        assert!(told("count = 8\ntop_k = 2\nevery = 5\n").contains("experts.every"));
        assert!(told("count = 8\ntop_k = 2\ncapacity = 0.0\n").contains("experts.capacity"));
        assert!(told("count = 8\n").contains("top_k"));
    }

    #[test]
    fn a_graph_of_experts_is_refused() {
        let spec = parse_model(&text("count = 8\ntop_k = 2\n"), "m.toml").unwrap();
        let error = Graph::build(&spec, Mode::Forward, Dims { batch: 1, seq: 8, cached: 0 }).unwrap_err();
        assert!(error.to_string().contains("experts"), "{error}");
    }
}

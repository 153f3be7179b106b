//! Models for the planner's tests.

use lapidary_models::{ModelSpec, builtin};

/// A built-in model.
pub fn model(name: &str) -> ModelSpec {
    builtin(name).unwrap_or_else(|error| panic!("{error}"))
}

/// LLM360's Amber: the shape of LLaMA 7B.
pub fn amber() -> ModelSpec {
    model("amber")
}

/// LLM360's CrystalCoder: 10922 MLP features, biases, a tied head.
pub fn crystalcoder() -> ModelSpec {
    model("crystalcoder")
}

/// GPT-3 of 175 B parameters.
pub fn gpt3() -> ModelSpec {
    model("gpt3-175b")
}

//! The JSON schema of `model.toml`, for editors.

use crate::check::limits;
use crate::spec::ModelSpec;
use serde_json::{Value, json};

/// Keys that a reader fills in when they are absent.
const OPTIONAL: [&str; 2] = ["n_kv_heads", "head_dim"];

const RANGES: [(&str, u64); 9] = [
    ("vocab", limits::VOCAB),
    ("vocab_padded_to", limits::VOCAB),
    ("d_model", limits::WIDTH),
    ("n_layers", limits::LAYERS),
    ("n_heads", limits::HEADS),
    ("n_kv_heads", limits::HEADS),
    ("head_dim", limits::HEAD_DIM),
    ("d_ff", limits::FFN),
    ("max_seq", limits::SEQUENCE),
];

/// The JSON schema of `model.toml`. Rules across keys are not in it: `check` knows them.
pub fn model_schema() -> Value {
    let mut schema = schemars::schema_for!(ModelSpec).to_value();
    schema["title"] = json!("model.toml");
    if let Some(required) = schema["required"].as_array_mut() {
        required.retain(|key| !OPTIONAL.iter().any(|optional| key == optional));
    }
    for (key, max) in RANGES {
        schema["properties"][key]["minimum"] = json!(1);
        schema["properties"][key]["maximum"] = json!(max);
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::builtin;

    #[test]
    fn the_schema_knows_every_key_and_requires_what_the_reader_requires() {
        let schema = model_schema();
        let written = serde_json::to_value(builtin("crystalcoder").unwrap()).unwrap();
        for key in written.as_object().unwrap().keys() {
            assert!(schema["properties"][key].is_object(), "{key}");
        }
        let mut required: Vec<&str> =
            schema["required"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        required.sort_unstable();
        let wanted =
            ["d_ff", "d_model", "max_seq", "mlp", "n_heads", "n_layers", "name", "norm", "pos", "vocab"];
        assert_eq!(required, wanted);
        assert_eq!(schema["additionalProperties"], json!(false));
        assert_eq!(schema["properties"]["d_model"]["maximum"], json!(1 << 20));
    }
}

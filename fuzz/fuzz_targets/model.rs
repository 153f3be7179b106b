//! A model.toml: parsed, and what is valid has a graph, sources of weights and a text that parses back equal.
#![no_main]

use lapidary_models::weights::sources;
use lapidary_models::{Dims, Graph, Mode, export_config, mup, parse_model, to_toml};
use libfuzzer_sys::fuzz_target;

/// More layers only repeat the same names.
const LAYERS: u64 = 64;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match parse_model(text, "model.toml") {
        Ok(spec) => {
            let graph = Graph::build(&spec, Mode::Forward, Dims { batch: 1, seq: 1, cached: 0 });
            let graph = graph.expect("a valid model");
            if let Some(fold) = mup::inference_fold(&spec) {
                let _ = fold.apply(&graph);
            }
            assert_eq!(parse_model(&to_toml(&spec), "model.toml").as_ref(), Ok(&spec));
            if spec.n_layers <= LAYERS {
                let _ = sources(&spec).map_err(|error| error.to_string());
            }
            if let Some(published) = export_config(&spec) {
                assert_eq!(published.spec.parameters(), spec.parameters());
            }
        }
        Err(faults) => assert!(!faults.to_string().is_empty()),
    }
});

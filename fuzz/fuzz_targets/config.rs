//! A Hugging Face config.json: imported, and what is imported has a graph, weights and a config of its own.
#![no_main]

use lapidary_models::weights::sources;
use lapidary_models::{Dims, Graph, Mode, export_config, import_config, to_toml};
use libfuzzer_sys::fuzz_target;

/// More layers only repeat the same names.
const LAYERS: u64 = 64;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match import_config(text, "config.json") {
        Ok(import) => {
            let spec = import.spec;
            let _ = import.report.to_string();
            Graph::build(&spec, Mode::Forward, Dims { batch: 1, seq: 1, cached: 0 }).expect("a valid model");
            let written = lapidary_models::parse_model(&to_toml(&spec), "model.toml").expect("its own text");
            assert_eq!(written, spec);
            if spec.n_layers <= LAYERS {
                sources(&spec).expect("published names");
            }
            if let Some(published) = export_config(&spec) {
                assert_eq!(published.spec.parameters(), spec.parameters());
            }
        }
        Err(faults) => assert!(!faults.to_string().is_empty()),
    }
});

//! A safetensors file, or the index of a sharded one: read, mapped to a model, every element looked at.
//!
//! The first byte chooses: 0 an index, 1 a file as it is, others a header whose length is put before it, followed by
//! that many times eight bytes of elements.
#![no_main]

use lapidary_checkpoint::{Checkpoint, File, Index, Map, Values};
use lapidary_models::ModelSpec;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static SPEC: LazyLock<ModelSpec> = LazyLock::new(|| {
    let text = include_str!("../../tests/data/oracles/llama32-tiny/config.json");
    lapidary_models::import_config(text, "config.json").expect("a stored config").spec
});

fuzz_target!(|input: &[u8]| {
    match input {
        [0, rest @ ..] => index(rest),
        [1, rest @ ..] => file(rest),
        [data, header @ ..] => {
            let length = (header.len() as u64).to_le_bytes();
            file(&[&length, header, &vec![*data; 8 * usize::from(*data)]].concat());
        }
        [] => {}
    }
});

fn index(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Index::parse(text, "index.json") {
        Ok(index) => {
            assert!(index.shards().iter().all(|shard| !shard.contains(['/', '\\']) && *shard != ".."));
            let _ = Checkpoint::open(&[], Some(&index)).map_err(|faults| faults.to_string());
        }
        Err(faults) => assert!(!faults.to_string().is_empty()),
    }
}

fn file(bytes: &[u8]) {
    match Checkpoint::open(&[File { name: "m".into(), bytes }], None) {
        Ok(checkpoint) => {
            for stored in checkpoint.tensors() {
                assert_eq!(stored.row_major().len() as u64, stored.size_bytes());
                let _ = (stored.floats(), stored.integers());
            }
            let map = Map::new(&SPEC, &checkpoint).expect("a named form");
            let _ = map.bind(Values::Check).map_err(|faults| faults.to_string());
        }
        Err(faults) => assert!(!faults.to_string().is_empty()),
    }
}

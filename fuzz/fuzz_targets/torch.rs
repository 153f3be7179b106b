//! A PyTorch file: read, every element looked at.
//!
//! The first byte chooses: 0 a file as it is, others a pickle, which is put into an archive with right checksums and
//! storages "0" to "3" of 0, 8, 96 and 24 bytes.
#![no_main]

use lapidary_checkpoint::{Checkpoint, File};
use libfuzzer_sys::fuzz_target;
use std::io::{Cursor, Write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

fuzz_target!(|input: &[u8]| {
    match input {
        [0, rest @ ..] => file(rest),
        [_, pickle @ ..] => file(&archive(pickle)),
        [] => {}
    }
});

fn archive(pickle: &[u8]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let storages = [0, 8, 96, 24].map(|length| vec![1; length]);
    let mut entry = |name: &str, bytes: &[u8]| {
        zip.start_file(name, stored).expect("an entry");
        zip.write_all(bytes).expect("it is written");
    };
    entry("m/data.pkl", pickle);
    storages.iter().enumerate().for_each(|(key, bytes)| entry(&format!("m/data/{key}"), bytes));
    zip.finish().expect("a whole archive").into_inner()
}

fn file(bytes: &[u8]) {
    match Checkpoint::open(&[File { name: "m".into(), bytes }], None) {
        Ok(checkpoint) => {
            for stored in checkpoint.tensors() {
                assert_eq!(stored.row_major().len() as u64, stored.size_bytes());
                assert!(stored.size_bytes() <= bytes.len() as u64);
                let _ = (stored.floats(), stored.integers());
            }
        }
        Err(faults) => assert!(!faults.to_string().is_empty()),
    }
}

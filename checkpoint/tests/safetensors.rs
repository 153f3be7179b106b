//! Safetensors files that nobody should read: each fault is told with its tensor, all at once.

use lapidary_checkpoint::{Checkpoint, File};

fn file(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat()
}

/// The reference crate refuses the file too; here with these lines.
fn refused(bytes: &[u8], lines: &[&str]) {
    assert!(safetensors::SafeTensors::deserialize(bytes).is_err(), "the reference crate reads it");
    told(bytes, lines);
}

fn told(bytes: &[u8], lines: &[&str]) {
    let faults =
        Checkpoint::open(&[File { name: "m".into(), bytes }], None).expect_err("a fault").to_string();
    for line in lines {
        assert!(faults.contains(line), "no `{line}` in\n{faults}");
    }
    assert_eq!(faults.lines().count(), lines.len(), "{faults}");
}

fn read(bytes: &[u8]) -> Vec<String> {
    let checkpoint = Checkpoint::open(&[File { name: "m".into(), bytes }], None).expect("a whole file");
    checkpoint.tensors().iter().map(|stored| stored.name.clone()).collect()
}

const A: &str = r#""a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}"#;

#[test]
fn a_file_without_tensors_and_one_with_scalars_are_whole() {
    assert_eq!(read(&file("{}", 0)), [""; 0]);
    assert_eq!(read(&file(r#"{"__metadata__": {"format": "pt"}}  "#, 0)), [""; 0]);
    let scalar = r#"{"s": {"dtype": "BF16", "shape": [], "data_offsets": [0, 2]},
        "e": {"dtype": "U8", "shape": [0, 5], "data_offsets": [2, 2]}}"#;
    assert_eq!(read(&file(scalar, 2)), ["s", "e"]);
}

#[test]
fn a_file_that_is_cut_off_is_refused() {
    let whole = file(&format!("{{{A}}}"), 8);
    assert_eq!(read(&whole), ["a"]);
    refused(b"", &["m: expected at least 8 bytes of safetensors, found 0"]);
    refused(&whole[..7], &["found 7"]);
    refused(&whole[..20], &["bytes, but only 12 follow"]);
    refused(
        &whole[..whole.len() - 1],
        &["tensor `a`: data_offsets [0, 8] reach past the 7 bytes of elements"],
    );
    refused(&[whole.as_slice(), &[0]].concat(), &["the last 1 bytes belong to no tensor"]);
}

#[test]
fn a_header_longer_than_any_is_refused() {
    let bytes = [&u64::MAX.to_le_bytes(), b"{}".as_slice()].concat();
    refused(&bytes, &["m: byte 0: a header of 18446744073709551615 bytes, expected at most 100000000"]);
    refused(&file("[]", 0), &["the header is a list, expected an object"]);
    refused(&file("{", 0), &["the header is not JSON"]);
    refused(&[&3u64.to_le_bytes(), b"{\xff}".as_slice()].concat(), &["byte 9: the header is not UTF-8"]);
}

#[test]
fn entries_that_say_the_wrong_thing_are_told_together() {
    let header = r#"{
        "type": {"dtype": "F3", "shape": [2], "data_offsets": [0, 8]},
        "kind": {"dtype": 3, "shape": [2], "data_offsets": [0, 8]},
        "lacks": {"dtype": "F32", "data_offsets": [0, 8]},
        "minus": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        "float": {"dtype": "F32", "shape": [2.5], "data_offsets": [0, 8]},
        "three": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 9]},
        "twice": {"dtype": "F32", "shape": [2], "shape": [2], "data_offsets": [0, 8]},
        "list": []
    }"#;
    refused(
        &file(header, 0),
        &[
            "tensor `type`: the element type \"F3\" is not read",
            "tensor `kind`: dtype: expected a string, found a whole number",
            "tensor `lacks`: `shape` is missing",
            "tensor `minus`: shape: expected whole numbers, found a number that is negative",
            "tensor `float`: shape: expected whole numbers",
            "tensor `three`: data_offsets: expected two numbers, found 3",
            "tensor `twice`: `shape` stands twice",
            "tensor `list`: expected an object, found a list",
        ],
    );
}

#[test]
fn sizes_that_overflow_are_refused() {
    let header = r#"{
        "huge": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 8]},
        "most": {"dtype": "U8", "shape": [18446744073709551615], "data_offsets": [0, 18446744073709551615]},
        "back": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        "small": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}
    }"#;
    let bytes = file(header, 8);
    assert!(safetensors::SafeTensors::deserialize(&bytes).is_err());
    let faults = Checkpoint::open(&[File { name: "m".into(), bytes: &bytes }], None).expect_err("faults");
    let faults = faults.to_string();
    for line in [
        "tensor `huge`: the shape [4294967296, 4294967296] has more elements than can be counted",
        "tensor `most`: data_offsets [0, 18446744073709551615] reach past the 8 bytes of elements",
        "tensor `back`: data_offsets [8, 0] do not hold the 8 bytes of F32 [2]",
        "tensor `small`: data_offsets [0, 8] do not hold the 12 bytes of F32 [3]",
    ] {
        assert!(faults.contains(line), "no `{line}` in\n{faults}");
    }
}

#[test]
fn tensors_that_overlap_or_leave_gaps_are_refused() {
    let b = r#""b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}"#;
    refused(&file(&format!("{{{A}, {b}}}"), 12), &["tensor `b`: bytes [4, 12] overlap those of `a`"]);
    let c = r#""c": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]}"#;
    refused(
        &file(&format!("{{{A}, {c}}}"), 16),
        &["tensor `c`: bytes [8, 12] before it belong to no tensor"],
    );
}

/// The reference crate takes the last of two equal names, and so do others the first: here neither.
#[test]
fn a_name_that_stands_twice_is_refused() {
    told(&file(&format!("{{{A}, {A}}}"), 8), &["tensor `a`: the name stands twice in the header"]);
}

#[test]
fn metadata_is_an_object_of_strings() {
    refused(&file(r#"{"__metadata__": {"a": 1}}"#, 0), &["`__metadata__`: expected an object of strings"]);
    refused(&file(r#"{"__metadata__": 3}"#, 0), &["`__metadata__`: expected an object of strings"]);
}

#[test]
fn names_are_shown_without_control_characters() {
    let header = format!(r#"{{"\u001b[31m{}": 0}}"#, "x".repeat(500));
    let bytes = file(&header, 0);
    let faults = Checkpoint::open(&[File { name: "m".into(), bytes: &bytes }], None).expect_err("a fault");
    let shown = faults.to_string();
    assert!(shown.contains("\\u{1b}[31mxxx") && !shown.contains('\u{1b}') && shown.len() < 300, "{shown}");
}

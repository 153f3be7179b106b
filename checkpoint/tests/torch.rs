//! PyTorch's files: those that PyTorch itself wrote (`data/make.py`), and those that nobody should read.

use lapidary_checkpoint::{Checkpoint, Element, File, Map, Stored, Values};
use std::io::Write;
use zip::write::SimpleFileOptions;

fn fixture(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    std::fs::read(path).expect("a stored file")
}

fn open(bytes: &[u8]) -> Result<Checkpoint<'_>, String> {
    Checkpoint::open(&[File { name: "m.bin".into(), bytes }], None).map_err(|faults| faults.to_string())
}

/// An archive with a pickle and one storage "0" of the elements 1 and 2.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let storage = [1f32.to_le_bytes(), 2f32.to_le_bytes()].concat();
    zipped(&[("m/data.pkl", pickle), ("m/byteorder", b"little"), ("m/data/0", &storage)])
}

fn zipped(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in entries {
        zip.start_file(*name, stored).expect("an entry");
        zip.write_all(bytes).expect("it is written");
    }
    zip.finish().expect("a whole archive").into_inner()
}

fn text(text: &str) -> Vec<u8> {
    [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

fn int(value: i32) -> Vec<u8> {
    [b"J".as_slice(), &value.to_le_bytes()].concat()
}

fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(".to_vec(), items.concat(), b"t".to_vec()].concat()
}

/// `_rebuild_tensor_v2` on `elements` floats of a storage.
fn tensor(key: &str, elements: i32, offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let class = b"ctorch\nFloatStorage\n".to_vec();
    let id = tuple(&[text("storage"), class, text(key), text("cpu"), int(elements)]);
    let ints = |items: &[i32]| tuple(&items.iter().map(|n| int(*n)).collect::<Vec<_>>());
    let hooks = [b"ccollections\nOrderedDict\n".as_slice(), b")R"].concat();
    let storage = [id, b"Q".to_vec()].concat();
    let arguments = tuple(&[storage, int(offset), ints(shape), ints(strides), vec![0x89], hooks]);
    [b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(), arguments, b"R".to_vec()].concat()
}

fn dict(rows: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let rows = rows.iter().flat_map(|(key, value)| [text(key), value.clone()].concat());
    [b"\x80\x02}(".to_vec(), rows.collect(), b"u.".to_vec()].concat()
}

/// Expects one fault with all of these words.
fn refused(bytes: &[u8], words: &[&str]) {
    let told = open(bytes).map(|checkpoint| format!("{checkpoint:?}")).expect_err("a fault");
    for word in words {
        assert!(told.contains(word), "no `{word}` in {told}");
    }
}

fn get<'c, 'a>(checkpoint: &'c Checkpoint<'a>, name: &str) -> &'c Stored<'a> {
    checkpoint.get(name).unwrap_or_else(|| panic!("no tensor `{name}`"))
}

#[test]
fn every_kind_of_tensor_that_pytorch_writes_is_read() {
    let bytes = fixture("torch.bin");
    let checkpoint = open(&bytes).expect("a whole file");
    let base: Vec<f32> = (0..24).map(|i| i as f32).collect();
    let floats = |name| get(&checkpoint, name).floats().expect("floats");
    let shape = |name| get(&checkpoint, name).shape.clone();
    let times = |factor: f32| base.iter().map(|x| x * factor).collect::<Vec<_>>();
    assert_eq!(floats("float"), times(0.5));
    assert_eq!(floats("half"), times(0.25));
    assert_eq!(floats("brain"), times(0.125));
    let doubles = floats("double");
    assert!(doubles.iter().zip(times(0.1)).all(|(a, b)| (a - b).abs() < 1e-6));
    assert_eq!(get(&checkpoint, "double").element, Element::F64);
    assert_eq!(get(&checkpoint, "long").integers(), Some(vec![-3, -2, -1, 0, 1, 2]));
    assert_eq!(get(&checkpoint, "byte").integers(), Some(vec![1, 0, 0, 1, 1, 0, 1, 1, 1]));
    assert_eq!(get(&checkpoint, "bool").element, Element::Bool);
    assert_eq!((shape("scalar"), floats("scalar")), (vec![], vec![-1e4]));
    assert_eq!((shape("empty"), floats("empty")), (vec![0, 3], vec![]));
    let turned: Vec<f32> = (0..6).flat_map(|c| (0..4).map(move |r| (r * 6 + c) as f32)).collect();
    assert_eq!((shape("turned"), floats("turned")), (vec![6, 4], turned));
    assert_eq!((shape("rows"), floats("rows")), (vec![2, 6], base[6..18].to_vec()));
    assert_eq!((shape("column"), floats("column")), (vec![4], vec![2.0, 8.0, 14.0, 20.0]));
    assert_eq!(floats("parameter"), [7.0, 7.0]);
    assert_eq!((shape("typed"), floats("typed")), (vec![2, 3], vec![3.0; 6]));
    assert_eq!(floats("tied"), floats("float"));
    assert_eq!(checkpoint.tensors().len(), 15);
}

#[test]
fn state_dicts_of_both_protocols_are_read_with_and_without_checksums() {
    for name in ["module.bin", "protocol4.bin", "no-crc.bin"] {
        let bytes = fixture(name);
        let checkpoint = open(&bytes).expect("a whole file");
        assert_eq!(get(&checkpoint, "weight").floats(), Some(vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), "{name}");
        assert_eq!(get(&checkpoint, "bias").floats(), Some(vec![8.0, 9.0]), "{name}");
    }
}

#[test]
fn other_things_that_pytorch_writes_are_told_apart() {
    refused(&fixture("nested.bin"), &["tensor `state_dict`: a dict, expected a tensor"]);
    refused(&fixture("legacy.bin"), &["PyTorch's form before version 1.6", "save it again"]);
    refused(&fixture("whole-module.bin"), &["data.pkl", "byte 2", "`torch.nn.modules.linear.Linear`"]);
}

/// The model that the stored amber-tiny is, in PyTorch's form, fits like the safetensors.
#[test]
fn a_whole_model_in_pytorch_form_binds() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/oracles/amber-tiny");
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let spec = lapidary_models::import_config(&config, "config.json").unwrap().spec;
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let single = open(&bytes).unwrap();
    let (mut rows, mut entries) = (Vec::new(), Vec::new());
    for (i, stored) in single.tensors().iter().enumerate() {
        let shape: Vec<i32> = stored.shape.iter().map(|n| *n as i32).collect();
        let strides: Vec<i32> =
            (0..shape.len()).map(|axis| shape[axis + 1..].iter().product::<i32>()).collect();
        let elements = stored.elements() as i32;
        rows.push((stored.name.as_str(), tensor(&i.to_string(), elements, 0, &shape, &strides)));
        entries.push((format!("m/data/{i}"), stored.row_major().into_owned()));
    }
    let pickle = dict(&rows);
    let storages = entries.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice()));
    let all: Vec<(&str, &[u8])> =
        std::iter::once(("m/data.pkl", pickle.as_slice())).chain(storages).collect();
    let mut file = zipped(&all);
    let converted = open(&file).unwrap();
    let converted = Map::new(&spec, &converted).unwrap().bind(Values::Check).expect("it fits");
    let single = Map::new(&spec, &single).unwrap().bind(Values::Check).expect("it fits");
    for name in single.names() {
        assert_eq!(single.tensor(name), converted.tensor(name), "{name}");
    }
    // One flipped bit in a storage: the checksum tells.
    let needle = &entries[3].1;
    let at = file.windows(needle.len()).position(|window| window == needle.as_slice()).expect("the storage");
    file[at] ^= 1;
    let damaged = open(&file).unwrap();
    let faults = Map::new(&spec, &damaged).unwrap().bind(Values::Check).expect_err("damaged").to_string();
    assert!(faults.contains("`m/data/3` does not have its checksum"), "{faults}");
}

#[test]
fn a_pickle_that_calls_something_is_refused_by_name_and_place() {
    let system = |opening: &[u8]| [opening, &text("true"), b"\x85R."].concat();
    refused(
        &archive(&system(b"\x80\x02cposix\nsystem\n")),
        &["byte 2", "`posix.system`", "nothing is called"],
    );
    let stacked = [b"\x80\x04".to_vec(), text("builtins"), text("eval"), vec![0x93]].concat();
    refused(&archive(&system(&stacked)), &["`builtins.eval`"]);
    refused(&archive(&system(b"\x80\x02cos\nsystem\n")), &["`os.system`"]);
    refused(&archive(b"\x80\x02ctorch._utils\n_rebuild_tensor\n."), &["`torch._utils._rebuild_tensor`"]);
    // Known names in places where they would be something else.
    refused(&archive(b"\x80\x02ctorch\nFloatStorage\n)R."), &["byte 23", "refused: a call"]);
    refused(&archive(b"\x80\x02ctorch\nTensor\n)R."), &["refused: a call"]);
    let smuggled = [b"ccollections\nOrderedDict\n".as_slice(), b"ctorch\nTensor\n)}t"].concat();
    let smuggled =
        [b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(".as_slice(), &smuggled, b"R."].concat();
    refused(&archive(&smuggled), &["refused: _rebuild_from_type_v2 of something other"]);
    refused(&archive(b"\x80\x02ctorch\nTensor\n}b."), &["refused: attributes of a class"]);
}

#[test]
fn opcodes_that_make_other_objects_are_refused_by_name() {
    for (code, name) in [
        (0x81, "NEWOBJ"),
        (0x92, "NEWOBJ_EX"),
        (b'i', "INST"),
        (b'o', "OBJ"),
        (0x82, "EXT1"),
        (b'P', "PERSID"),
        (0x97, "NEXT_BUFFER"),
    ] {
        refused(&archive(&[0x80, 2, code, b'.']), &["byte 2", &format!("refused: the opcode {name} ")]);
    }
    refused(&archive(&[0x80, 2, 0xff]), &["0xff is no pickle opcode"]);
    refused(&archive(&[0x80, 9]), &["pickle protocol 9"]);
}

#[test]
fn a_broken_pickle_is_told_with_its_place() {
    refused(&archive(b""), &["cut off"]);
    refused(&archive(b"\x80\x02X\xff\xff\xff\xffabc"), &["byte 2", "cut off"]);
    refused(&archive(b"\x80\x02."), &["the stack is empty"]);
    refused(&archive(b"\x80\x02Nt."), &["no mark is open"]);
    refused(&archive(b"\x80\x02h\x05."), &["nothing was kept under 5"]);
    refused(&archive(b"\x80\x02N."), &["data.pkl holds None, expected a dict"]);
    refused(&archive(b"\x80\x02N(0."), &["the stack is empty"]);
    refused(&archive(b"\x80\x02N(Nuu."), &["cannot be put into"]);
    refused(&archive(&dict(&[("a", b"N".to_vec())])), &["tensor `a`: None, expected a tensor"]);
}

#[test]
fn tensors_that_reach_past_their_storage_are_refused() {
    let one = |tensor: Vec<u8>| archive(&dict(&[("t", tensor)]));
    assert!(open(&one(tensor("0", 2, 0, &[2], &[1]))).is_ok());
    refused(&one(tensor("1", 2, 0, &[2], &[1])), &["tensor `t`: there is no storage `1`"]);
    refused(&one(tensor("../0", 2, 0, &[2], &[1])), &["no storage `../0`"]);
    refused(&one(tensor("0", 3, 0, &[2], &[1])), &["storage `0` of 3 F32 elements has 8 bytes"]);
    refused(&one(tensor("0", -1, 0, &[2], &[1])), &["negative length"]);
    refused(&one(tensor("0", 2, 1, &[2], &[1])), &["elements 1 to 3 of a storage that has 2"]);
    refused(&one(tensor("0", 2, 0, &[2], &[5])), &["elements 0 to 6"]);
    refused(&one(tensor("0", 2, 0, &[2], &[-1])), &["negative length -1"]);
    refused(&one(tensor("0", 2, 0, &[2, 1], &[1])), &["2 axes with 1 strides"]);
    refused(&one(tensor("0", 2, 0, &[1 << 30, 1 << 30, 1 << 30], &[0, 0, 0])), &["a view of shape"]);
    refused(&one(tensor("0", 2, 0, &[3], &[0])), &["a view of shape [3] on 2 elements"]);
    refused(&one(tensor("0", 2, 0, &[1; 65], &[1; 65])), &["65 axes"]);
}

#[test]
fn a_name_that_stands_twice_is_refused() {
    let twice = dict(&[("t", tensor("0", 2, 0, &[2], &[1])), ("t", tensor("0", 2, 0, &[1], &[1]))]);
    refused(&archive(&twice), &["tensor `t`: the name stands twice"]);
    // The zip writer refuses to write one name twice, so that it is patched in.
    let mut bytes = zipped(&[("m/data.pkl", b"\x80\x02}."), ("m/data.pkk", b"\x80\x02}.")]);
    let places: Vec<usize> = (0..bytes.len()).filter(|i| bytes[*i..].starts_with(b"m/data.pkk")).collect();
    assert_eq!(places.len(), 2);
    places.into_iter().for_each(|at| bytes[at + 9] = b'l');
    refused(&bytes, &["two entries have one name"]);
}

#[test]
fn damaged_archives_are_told() {
    let good = archive(&dict(&[("t", tensor("0", 2, 0, &[2], &[1]))]));
    for cut in [4, 20, good.len() / 2, good.len() - 1] {
        refused(&good[..cut], &["m.bin: ", "not a whole zip archive"]);
    }
    let mut changed = good.clone();
    let at = changed.windows(6).position(|window| window == b"_rebui").expect("the pickle");
    changed[at] = b'-';
    refused(&changed, &["data.pkl does not have its checksum"]);
    refused(&zipped(&[("m/x", b"")]), &["without data.pkl"]);
    refused(
        &zipped(&[("m/data.pkl", b"\x80\x02}."), ("n/data.pkl", b"\x80\x02}.")]),
        &["more than one data.pkl"],
    );
    refused(&zipped(&[("m/data.pkl", b"\x80\x02}."), ("m/byteorder", b"big")]), &["not little-endian"]);
}

/// A method number other than "stored" at every place where the archive says it.
#[test]
fn a_compressed_entry_is_refused_before_it_is_unpacked() {
    let mut bytes = zipped(&[("m/data.pkl", b"\x80\x02}.")]);
    for (magic, method) in [(b"PK\x03\x04", 8), (b"PK\x01\x02", 10)] {
        let at = bytes.windows(4).position(|window| window == magic).expect("a header");
        bytes[at + method] = 8;
    }
    refused(&bytes, &["entry `m/data.pkl` is compressed"]);
}

/// Pickles that grow by naming what they kept: every step has to stay small.
#[test]
fn a_pickle_bomb_stays_small() {
    let mut pickle = b"\x80\x02]q\x00".to_vec();
    pickle.extend(b"(h\x00h\x00e".repeat(1000));
    refused(&archive(&[pickle.as_slice(), b"."].concat()), &["data.pkl holds a list"]);
    // One long list, called into dicts again and again.
    let pairs = [b"(".to_vec(), b"NN\x86".repeat(5000), b"e".to_vec()].concat();
    let list = [b"\x80\x02]q\x00".as_slice(), &pairs, b"0"].concat();
    let calls = b"ccollections\nOrderedDict\nh\x00\x85R0".repeat(5000);
    refused(&archive(&[list, calls, b"N.".to_vec()].concat()), &["one list for many an OrderedDict"]);
}

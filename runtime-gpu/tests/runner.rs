//! The runner of bundles, on machines without a GPU: it says what is missing and how it ends.

use lapidary_runtime_gpu::bench::{CheckJob, Jobs, Text};
use lapidary_runtime_gpu::compile::{Source, digest};
use lapidary_runtime_gpu::program::{
    Access, Arg, Buffer, BufferKind, Dtype, GpuProgram, Kernel, KernelKind, Launch, RowOrder, SCHEMA, Step,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn runner(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lapidary-gpu"))
        .args(args)
        .env("CUDA_VISIBLE_DEVICES", "")
        .output()
        .expect("the binary runs")
}

fn told(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn what_is_missing_is_said_and_nothing_panics() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |path: &Path| path.to_str().expect("a path").to_string();
    let (code, text) = told(&runner(&[]));
    assert_eq!(code, Some(2), "{text}");
    let (code, text) = told(&runner(&[&path(folder.path()), "many"]));
    assert_eq!(code, Some(2), "{text}");
    let nowhere = path(&folder.path().join("nowhere"));
    let (code, text) = told(&runner(&[&nowhere]));
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("nowhere"), "{text}");
    let (code, text) = told(&runner(&[&path(folder.path())]));
    assert_eq!(code, Some(7), "{text}");
    assert!(!text.contains("panic"), "{text}");
}

/// A driver of nothing (driver/fake.c), compiled into a folder.
fn fake(folder: &Path, flags: &[&str]) -> PathBuf {
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/driver/fake.c");
    let place = folder.join("driver");
    std::fs::create_dir_all(&place).expect("a folder");
    let mut gcc = Command::new("gcc");
    let made =
        gcc.args(["-shared", "-fPIC", "-w", "-o"]).arg(place.join("libcuda.so.1")).args(flags).arg(text);
    assert!(made.status().expect("gcc runs").success());
    place
}

fn with_driver(driver: &Path, what: &str, bundle: &Path) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary-gpu"));
    command.arg(bundle).args(["1", "5"]).env("LD_LIBRARY_PATH", driver).env("FAKE_DRIVER", what);
    told(&command.output().expect("the binary runs"))
}

/// A bundle of one check: `y`, 4 rows of 104 elements, is written by the kernel `k`.
fn bundle(folder: &Path) -> PathBuf {
    let source = Source { name: "k".into(), text: "none".into() };
    let bytes = 4 * 104 * 2;
    let buffer = Buffer {
        name: "y".into(),
        kind: BufferKind::Output,
        dtype: Dtype::Bf16,
        shape: vec![4, 104],
        pitch: 104,
        bytes,
        offset: None,
        layers: None,
        packing: None,
        column_order: RowOrder::Natural,
        per_replica: false,
    };
    let kernel = Kernel {
        name: "k".into(),
        file: Some("kernels/k.cu".into()),
        entry: "k".into(),
        kind: KernelKind::Generated,
        anchor: "row".into(),
        ops: vec!["norm".into()],
        reason: String::new(),
        choice: None,
        registers: None,
        shared_bytes: 0,
        spill_bytes: None,
        flops: 1,
        bytes: 1,
    };
    let arg = Arg {
        buffer: "y".into(),
        access: Access::Write,
        offset_bytes: 0,
        layer_stride_bytes: 0,
        extent_bytes: bytes,
        boxes: None,
    };
    let launch =
        Launch { kernel: "k".into(), grid: [4, 1, 1], block: [32, 1, 1], shared_bytes: 0, args: vec![arg] };
    let program = GpuProgram {
        share: None,
        schema: SCHEMA.into(),
        version: 1,
        name: "hand".into(),
        arch: "sm_80".into(),
        arena_bytes: 0,
        arena_naive_bytes: 0,
        buffers: vec![buffer],
        kernels: vec![kernel],
        steps: vec![Step::Launch(launch)],
    };
    let check = CheckJob {
        name: "hand".into(),
        program,
        sources: vec![Text { name: source.name.clone(), text: source.text.clone() }],
        shapes: BTreeMap::new(),
        dtype: Dtype::Bf16,
        ids: Vec::new(),
        output: "y".into(),
        width: 104,
        expected: vec![1.0; 4 * 104],
        tolerance: 0.1,
    };
    let place = folder.join("bundle");
    let code = place.join("sm_80");
    std::fs::create_dir_all(&code).expect("folders");
    let jobs = Jobs { checks: vec![check], ..Jobs::default() };
    std::fs::write(code.join("jobs.json"), serde_json::to_string(&jobs).expect("JSON")).expect("a file");
    std::fs::write(code.join(format!("{}.cubin", digest(&source, "sm_80"))), b"\x7fELF").expect("a file");
    place
}

/// What a machine can be like that has a driver, each with the fix and exit code 7; where a check could not be made, 6.
#[test]
fn each_kind_of_unfit_machine_is_told_with_its_fix() {
    let folder = tempfile::tempdir().expect("a folder");
    let (driver, place) = (fake(folder.path(), &[]), bundle(folder.path()));
    for (what, code, parts) in [
        ("old", 7, ["too old: it knows CUDA 11.4", "install driver 525 or later"]),
        ("start", 7, ["does not start", "nvidia-smi"]),
        ("none", 7, ["no GPU 0: the driver sees 0", "CUDA_VISIBLE_DEVICES"]),
        ("volta", 7, ["Fake A100 is sm_70", "use an A100, H100 or H200"]),
        (
            "image",
            7,
            ["kernel `k`: its machine code does not load on Fake A100 (sm_80)", "compile the kernels"],
        ),
        ("fine", 6, ["Fake A100: 1 checks", "1 skipped"]),
    ] {
        let (found, text) = with_driver(&driver, what, &place);
        assert_eq!(found, Some(code), "{what}: {text}");
        assert!(parts.iter().all(|part| text.contains(part)), "{what}: {text}");
        assert!(!text.contains("panic"), "{what}: {text}");
    }
    let lacks = fake(folder.path(), &["-DLACKS"]);
    let (found, text) = with_driver(&lacks, "fine", &place);
    assert!(found == Some(7) && text.contains("too old: it has no cuTensorMapEncodeTiled"), "{text}");
    std::fs::remove_dir_all(place.join("sm_80")).expect("removed");
    std::fs::create_dir(place.join("sm_90a")).expect("a folder");
    let driver = fake(folder.path(), &[]);
    let (found, text) = with_driver(&driver, "fine", &place);
    assert!(found == Some(7) && text.contains("has no kernels for sm_80"), "{text}");
}

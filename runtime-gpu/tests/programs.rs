//! The check accepts a small program written by hand and finds each fault put into it; programs survive JSON.
use lapidary_runtime_gpu::execute::{Needs, Places};
use lapidary_runtime_gpu::program::packing::PackGroup;
use lapidary_runtime_gpu::program::{
    Access, Arg, Buffer, BufferKind, Dtype, Fault, Gemm, GpuProgram, Kernel, KernelKind,
    LIBRARY_WORKSPACE_BYTES, Launch, Layers, PackForm, PackSource, Packing, RowOrder, SCHEMA, Step,
};

fn buffer(name: &str, kind: BufferKind, offset: Option<u64>) -> Buffer {
    Buffer {
        name: name.into(),
        kind,
        dtype: Dtype::Bf16,
        shape: vec![4, 100],
        pitch: 104,
        bytes: 4 * 104 * 2,
        offset,
        layers: None,
        packing: None,
        column_order: RowOrder::Natural,
        per_replica: false,
    }
}

fn weights(rounds: u64) -> Buffer {
    let source = PackSource { name: "layers.*.w".into(), rows: 4, scale: 1.0, order: RowOrder::Natural };
    let groups = vec![PackGroup { first_row: 0, sources: vec![source] }];
    let layers = Some(Layers { count: rounds, stride_bytes: 1024 });
    let packing = Some(Packing { groups, rows: 4, cols: 100, pitch: 104, form: PackForm::Values });
    Buffer { bytes: rounds * 1024, layers, packing, ..buffer("w", BufferKind::Param, None) }
}

fn arg(buffer: &str, access: Access, layer_stride_bytes: u64) -> Arg {
    Arg {
        buffer: buffer.into(),
        access,
        offset_bytes: 0,
        layer_stride_bytes,
        extent_bytes: 4 * 104 * 2,
        boxes: None,
    }
}

fn launch(args: Vec<Arg>) -> Step {
    Step::Launch(Launch { kernel: "k".into(), grid: [4, 1, 1], block: [128, 1, 1], shared_bytes: 0, args })
}

/// a = k(x); three times: b = k(a, w[i]), a = k(b); y = k(a).
fn program() -> GpuProgram {
    let body = vec![
        launch(vec![arg("a", Access::Read, 0), arg("w", Access::Read, 1024), arg("b", Access::Write, 0)]),
        launch(vec![arg("b", Access::Read, 0), arg("a", Access::Write, 0)]),
    ];
    let kernel = Kernel {
        name: "k".into(),
        file: Some("kernels/k.cu".into()),
        entry: "k".into(),
        kind: KernelKind::Generated,
        anchor: "row".into(),
        ops: vec!["norm".into()],
        reason: String::new(),
        choice: None,
        registers: Some(40),
        shared_bytes: 0,
        spill_bytes: Some(0),
        flops: 1,
        bytes: 1,
    };
    GpuProgram {
        schema: SCHEMA.into(),
        version: 1,
        name: "hand".into(),
        arch: "sm_80".into(),
        arena_bytes: 2048,
        arena_naive_bytes: 2048,
        buffers: vec![
            buffer("x", BufferKind::Input, None),
            buffer("a", BufferKind::Arena, Some(0)),
            buffer("b", BufferKind::Arena, Some(1024)),
            weights(3),
            buffer("y", BufferKind::Output, None),
        ],
        kernels: vec![kernel],
        steps: vec![
            launch(vec![arg("x", Access::Read, 0), arg("a", Access::Write, 0)]),
            Step::Repeat { times: 3, reverse: false, body },
            launch(vec![arg("a", Access::Read, 0), arg("y", Access::Write, 0)]),
        ],
        share: None,
    }
}

fn faults(change: impl Fn(&mut GpuProgram)) -> Vec<String> {
    let mut program = program();
    change(&mut program);
    program.check().err().unwrap_or_default().iter().map(Fault::to_string).collect()
}

fn body(program: &mut GpuProgram) -> &mut Vec<Step> {
    match &mut program.steps[1] {
        Step::Repeat { body, .. } => body,
        _ => unreachable!("the second step repeats"),
    }
}

#[test]
fn a_sound_program_passes_and_survives_json() -> Result<(), Box<dyn std::error::Error>> {
    let checked = program().check().map_err(|faults| format!("{faults:?}"))?;
    let text = serde_json::to_string(checked.get())?;
    assert_eq!(serde_json::from_str::<GpuProgram>(&text)?, program());
    for field in ["\"registers\":40", "\"shared_bytes\":0", "\"spill_bytes\":0", "\"flops\":1", "\"bytes\":1"]
    {
        assert!(text.contains(field), "{field} in {text}");
    }
    Ok(())
}

#[test]
fn every_fault_is_found() {
    let one = |found: Vec<String>, part: &str| {
        assert!(found.iter().any(|fault| fault.contains(part)), "{part}: {found:?}")
    };
    one(faults(|p| p.buffers[2].offset = Some(512)), "`a` and `b` overlap");
    one(faults(|p| p.buffers[2].offset = Some(1536)), "ends at byte");
    one(faults(|p| p.buffers[2].offset = None), "no place in the arena");
    one(faults(|p| p.steps.truncate(2)), "`y` is never written");
    one(faults(|p| drop(p.steps.remove(0))), "`a` is read before it is written");
    one(faults(|p| p.buffers[3].bytes -= 1024), "reaches byte");
    one(faults(|p| p.buffers[3].packing = None), "have a packing");
    one(faults(|p| p.kernels[0].name = "other".into()), "no kernel named `k`");
    one(faults(|p| drop(p.buffers.remove(4))), "no buffer named `y`");
    one(faults(|p| p.buffers[1].name = "b".into()), "defined twice");
    one(faults(|p| p.arch = "sm_12".into()), "sm_12");
    one(faults(|p| p.kernels[0].registers = Some(256)), "registers per thread 256");
    one(faults(|p| body(p)[0] = launch(vec![arg("w", Access::Write, 1024)])), "may not be written");
    one(faults(|p| body(p)[0] = launch(vec![arg("w", Access::Read, 8)])), "multiple of 16");
    let wide = |p: &mut GpuProgram| {
        let Step::Launch(launch) = &mut p.steps[0] else { return };
        (launch.block, launch.shared_bytes) = ([2048, 0, 1], 200_000);
    };
    one(faults(wide), "shared bytes 200000");
    one(faults(wide), "threads in x 2048");
    one(faults(wide), "threads in y 0");
}

/// A value that one round leaves for the next is alive in the whole repeat, even where it is not named.
#[test]
fn what_a_round_carries_keeps_its_place() {
    let found = faults(|p| {
        p.buffers.push(buffer("c", BufferKind::Arena, Some(0)));
        body(p).insert(1, launch(vec![arg("b", Access::Read, 0), arg("c", Access::Write, 0)]));
        body(p).insert(0, launch(vec![arg("a", Access::Read, 0)]));
    });
    assert!(found.iter().any(|fault| fault.contains("`a` and `c` overlap")), "{found:?}");
}

/// What a product of the library's works in is a class of memory of its own, until the device has it.
#[test]
fn the_workspace_of_the_library_is_counted_where_it_is_used() {
    let class = |program: &GpuProgram, has: bool| {
        let needs = Needs::of(program, &Places::new(), has);
        needs.classes.into_iter().find(|(name, _)| name == "library_workspace").map(|(_, bytes)| bytes)
    };
    let mut program = program();
    assert_eq!(class(&program, false), None);
    body(&mut program).push(Step::Gemm(Box::new(Gemm {
        kernel: "k".into(),
        m: 4,
        n: 4,
        k: 100,
        transpose_a: false,
        transpose_w: true,
        lda: 104,
        ldw: 104,
        ldo: 104,
        alpha: 1.0,
        beta: 0.0,
        dtype: Dtype::Bf16,
        out_dtype: None,
        a: arg("a", Access::Read, 0),
        w: arg("w", Access::Read, 1024),
        residual: None,
        bias: None,
        out: arg("b", Access::Write, 0),
    })));
    assert_eq!(class(&program, false), Some(LIBRARY_WORKSPACE_BYTES));
    assert_eq!(class(&program, true), None);
}

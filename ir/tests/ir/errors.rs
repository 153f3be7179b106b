//! What is wrong is refused where it stands, with the sizes that do not fit.

use crate::in_function;
use lapidary_ir::{IrContext, IrError, Module, Severity};

/// The diagnostics of a text that must not parse or verify, as `line: message`.
fn refusals(text: &str) -> Vec<String> {
    let cx = IrContext::new();
    match Module::parse(&cx, text, "t.mlir") {
        Ok(module) => panic!("accepted:\n{module}"),
        Err(error @ IrError::Invalid { .. }) => error
            .diagnostics()
            .iter()
            .inspect(|diagnostic| assert_eq!(diagnostic.severity, Severity::Error))
            .map(|diagnostic| {
                let (file, line, _) =
                    diagnostic.place.file.as_ref().unwrap_or_else(|| panic!("no place: {diagnostic}"));
                assert_eq!(file, "t.mlir");
                format!("{line}: {}", diagnostic.message)
            })
            .collect(),
        Err(other) => panic!("{other}"),
    }
}

/// The op on line 2 is refused with exactly this message, after its name.
fn op_refused(table: &[(&str, &str)]) {
    for (op, message) in table {
        let name = op
            .split_whitespace()
            .find_map(|word| word.trim_matches('"').split('"').next().filter(|word| word.starts_with("nn.")))
            .expect("an op");
        let found = refusals(&in_function(op));
        let wanted = format!("2: '{name}' op {message}");
        assert!(found.contains(&wanted), "wanted {wanted}\nfound {found:#?}\nfor {op}");
    }
}

#[test]
fn linear_algebra() {
    op_refused(&[
        (
            "%r = nn.linear %x, %w9 : (tensor<2x8x64xf32>, tensor<64x9xf32>) -> tensor<2x8x64xf32>",
            "contraction mismatch: x K = 64 but weight K = 9",
        ),
        (
            "%r = nn.linear %h, %w : (tensor<2x8x64xbf16>, tensor<64x64xf32>) -> tensor<2x8x64xf32>",
            "element types differ: x has 'bf16' but weight has 'f32'",
        ),
        (
            "%r = nn.linear %x, %n : (tensor<2x8x64xf32>, tensor<64xf32>) -> tensor<2x8x64xf32>",
            "weight must be a tensor [N, K] with known sizes, found 'tensor<64xf32>'",
        ),
        (
            "%r = nn.linear %x, %w : (tensor<2x8x64xf32>, tensor<64x64xf32>) -> tensor<2x8x65xf32>",
            "inferred type(s) 'tensor<2x8x64xf32>' are incompatible with return type(s) of operation 'tensor<2x8x65xf32>'",
        ),
        (
            "%r = nn.bias %x, %n9 : (tensor<2x8x64xf32>, tensor<9xf32>) -> tensor<2x8x64xf32>",
            "width mismatch: x N = 64 but bias N = 9",
        ),
        (
            "%r = \"nn.add\"(%s, %s9) : (tensor<2x4x8x8xf32>, tensor<2x4x8x9xf32>) -> tensor<2x4x8x8xf32>",
            "requires all operands to have the same type",
        ),
        ("%r = nn.scale %x by 2.0 as \"magic\" : tensor<2x8x64xf32>", "does not know the role \"magic\""),
        (
            "%r = \"nn.scale\"(%x) {by = 0x7FF0000000000000 : f64, role = \"output\"} : (tensor<2x8x64xf32>) -> tensor<2x8x64xf32>",
            "factor must be finite, found INF",
        ),
    ]);
}

#[test]
fn gathers_and_rows() {
    op_refused(&[
        (
            "%r = nn.embed %ids, %n : (tensor<2x8xi32>, tensor<64xf32>) -> tensor<2x8x64xf32>",
            "table must be a tensor [V, D] with known sizes, found 'tensor<64xf32>'",
        ),
        (
            "%r = nn.position %x, %t offset = 121 : (tensor<2x8x64xf32>, tensor<128x64xf32>) -> tensor<2x8x64xf32>",
            "positions end at offset + S = 121 + 8 but the table has max_seq = 128 rows",
        ),
        (
            "%r = nn.position %x, %w9 : (tensor<2x8x64xf32>, tensor<64x9xf32>) -> tensor<2x8x64xf32>",
            "width mismatch: x D = 64 but table D = 9",
        ),
        (
            "%r = nn.last_token %s : (tensor<2x4x8x8xf32>) -> tensor<2x1x64xf32>",
            "x must be a tensor [B, S, D] with known sizes, found 'tensor<2x4x8x8xf32>'",
        ),
        (
            "%r = nn.norm rms %x, %n9 eps = 1.0e-6 : (tensor<2x8x64xf32>, tensor<9xf32>) -> tensor<2x8x64xf32>",
            "width mismatch: x D = 64 but weight D = 9",
        ),
        (
            "%r = nn.norm layer %x, %n, %n9 eps = 1.0e-6 : (tensor<2x8x64xf32>, tensor<64xf32>, tensor<9xf32>) -> tensor<2x8x64xf32>",
            "width mismatch: x D = 64 but bias D = 9",
        ),
        (
            "%r = nn.norm rms %x, %n eps = 0.0 : (tensor<2x8x64xf32>, tensor<64xf32>) -> tensor<2x8x64xf32>",
            "eps must be positive, found 0.000000e+00",
        ),
        ("%r = nn.param \"\" : tensor<2xf32>", "needs a name"),
        (
            "%r = nn.param \"../w\" : tensor<2xf32>",
            "name \"../w\" holds more than letters, digits, '_', '.' and '-'",
        ),
        ("%r = nn.param \"a.*.*\" : tensor<2xf32>", "name \"a.*.*\" has more than one layer number"),
        ("%r = nn.param \"layers.*.w\" : tensor<2xf32>", "name \"layers.*.w\" needs the layer index"),
        (
            "%r = nn.param \"head.weight\"[%i] : tensor<2xf32>",
            "name \"head.weight\" has no '*' for the layer index",
        ),
        (
            "%r = nn.param \"head.weight\" scale = 0.0 : tensor<2xf32>",
            "scale must be finite and not zero, found 0.000000e+00",
        ),
        (
            "%r = nn.param \"w\" : tensor<1000000000000x1000000000000xf32>",
            "has a result too large to count in 64 bits: 'tensor<1000000000000x1000000000000xf32>'",
        ),
        ("%r = nn.param \"w\" : tensor<4x0xf32>", "has a result with an empty axis: 'tensor<4x0xf32>'"),
        (
            "%r = nn.param \"w\" : tensor<4x?xf32>",
            "result #0 must be float tensor of known sizes, but got 'tensor<4x?xf32>'",
        ),
    ]);
}

#[test]
fn attention() {
    op_refused(&[
        (
            "%r = nn.rope half %x head_dim = 24 rot_dims = 8 theta = 1.0e4 : tensor<2x8x64xf32>",
            "head_dim = 24 does not divide width of x = 64",
        ),
        (
            "%r = nn.rope half %x head_dim = 16 rot_dims = 7 theta = 1.0e4 : tensor<2x8x64xf32>",
            "rot_dims must be even and at least 2, found 7",
        ),
        (
            "%r = nn.rope half %x head_dim = 16 rot_dims = 32 theta = 1.0e4 : tensor<2x8x64xf32>",
            "rot_dims = 32 exceeds head_dim = 16",
        ),
        (
            "%r = nn.rope half %x head_dim = 16 rot_dims = 8 theta = -1.0 : tensor<2x8x64xf32>",
            "theta must be positive, found -1.000000e+00",
        ),
        (
            "%r = nn.rope half %x head_dim = 16 rot_dims = 8 theta = 1.0e4 offset = -1 : tensor<2x8x64xf32>",
            "offset must be at least 0, found -1",
        ),
        (
            "%r = nn.rope half %x head_dim = 16 rot_dims = 8 theta = 1.0e4 scaling = linear : tensor<2x8x64xf32>",
            "needs factor for this scaling",
        ),
        (
            "%r = nn.rope half %x head_dim = 16 rot_dims = 8 theta = 1.0e4 factor = 2.0 : tensor<2x8x64xf32>",
            "factor belongs to scaling = linear or llama3",
        ),
        (
            "%r = nn.rope half %x head_dim = 16 rot_dims = 8 theta = 1.0e4 scaling = llama3 factor = 2.0 low_freq = 4.0 high_freq = 1.0 original_max = 64 : tensor<2x8x64xf32>",
            "high_freq must be above low_freq",
        ),
        (
            "%r = nn.kv_append k %k[%i] cached = -1 : tensor<2x8x32xf32> -> tensor<2x7x32xf32>",
            "cached must be at least 0, found -1",
        ),
        (
            "%r = nn.kv_append k %k[%i] cached = 5 : tensor<2x8x32xf32> -> tensor<2x8x32xf32>",
            "inferred type(s) 'tensor<2x13x32xf32>' are incompatible with return type(s) of operation 'tensor<2x8x32xf32>'",
        ),
        (
            "%r = nn.scores %x, %k heads = 4 kv_heads = 3 : (tensor<2x8x64xf32>, tensor<2x8x32xf32>) -> tensor<2x4x8x8xf32>",
            "kv_heads = 3 does not divide heads = 4",
        ),
        (
            "%r = nn.scores %x, %k heads = 4 kv_heads = 4 : (tensor<2x8x64xf32>, tensor<2x8x32xf32>) -> tensor<2x4x8x8xf32>",
            "head width mismatch: q d = 16 but k d = 8",
        ),
        (
            "%r = nn.scores %x, %k heads = 0 kv_heads = 0 : (tensor<2x8x64xf32>, tensor<2x8x32xf32>) -> tensor<2x4x8x8xf32>",
            "heads must be at least 1, found 0",
        ),
        (
            "%r = nn.mask %s causal offset = 1 : tensor<2x4x8x8xf32>",
            "offset must lie in 0..L-S = 0..0, found 1",
        ),
        (
            "%r = nn.mask %s causal window = -4 : tensor<2x4x8x8xf32>",
            "window must be at least 0 (0 = none), found -4",
        ),
        (
            "%r = nn.mask %s causal alibi_scaling = 2.0 : tensor<2x4x8x8xf32>",
            "alibi_scaling belongs to alibi",
        ),
        (
            "%r = nn.values %s9, %k heads = 4 kv_heads = 2 : (tensor<2x4x8x9xf32>, tensor<2x8x32xf32>) -> tensor<2x8x64xf32>",
            "length mismatch: p L = 9 but v L = 8",
        ),
        (
            "%r = nn.values %s, %k heads = 8 kv_heads = 2 : (tensor<2x4x8x8xf32>, tensor<2x8x32xf32>) -> tensor<2x8x64xf32>",
            "head count mismatch: p H = 4 but heads = 8",
        ),
    ]);
}

#[test]
fn structure() {
    op_refused(&[
        (
            "%r = nn.repeat @g times = 2 (%x) : (tensor<2x8x64xf32>) -> tensor<2x8x64xf32>",
            "calls @g, which is not a function of this module",
        ),
        (
            "%r = nn.repeat @f times = 0 (%x) : (tensor<2x8x64xf32>) -> tensor<2x8x64xf32>",
            "times must be at least 1, found 0",
        ),
        (
            "%r = nn.repeat @f times = 2 (%x) : (tensor<2x8x64xf32>) -> tensor<2x8x65xf32>",
            "returns other types than it takes: 'tensor<2x8x64xf32>' and 'tensor<2x8x65xf32>'",
        ),
        (
            "%r = nn.fused \"\" row(%a = %x : tensor<2x8x64xf32>) -> tensor<2x8x64xf32> {\n%1 = nn.softmax %a : tensor<2x8x64xf32>\nnn.yield %1 : tensor<2x8x64xf32>\n} saved_bytes = 0 reason = \"r\"",
            "needs a name",
        ),
        (
            "%r = nn.fused \"k\" row(%a = %x : tensor<2x8x64xf32>) -> tensor<2x8x64xf32> {\nnn.yield %a : tensor<2x8x64xf32>\n} saved_bytes = 0 reason = \"r\"",
            "computes nothing",
        ),
        (
            "%r = nn.fused \"k\" row(%a = %x : tensor<2x8x64xf32>) -> tensor<2x8x64xf32> {\n%1 = nn.softmax %a : tensor<2x8x64xf32>\nnn.yield %1 : tensor<2x8x64xf32>\n} saved_bytes = -1 reason = \"r\"",
            "saved_bytes must be at least 0, found -1",
        ),
        (
            "%r = nn.fused \"k\" row(%a = %s : tensor<2x4x8x8xf32>) -> tensor<2x8x64xf32> {\n%1 = nn.softmax %a : tensor<2x4x8x8xf32>\nnn.yield %1 : tensor<2x4x8x8xf32>\n} saved_bytes = 0 reason = \"r\"",
            "yields other types than it returns: 'tensor<2x4x8x8xf32>' and 'tensor<2x8x64xf32>'",
        ),
        (
            "%r = nn.fused \"k\" row(%a = %x : tensor<2x8x64xf32>) -> tensor<2x8x64xf32> {\n%1 = nn.param \"w\" : tensor<2x8x64xf32>\nnn.yield %1 : tensor<2x8x64xf32>\n} saved_bytes = 0 reason = \"r\"",
            "holds an op that cannot be part of a kernel: nn.param",
        ),
    ]);
    let endless = "func.func @a(%i: index, %x: tensor<2xf32>) -> tensor<2xf32> {\n%0 = nn.repeat @b times = 2 (%x) : (tensor<2xf32>) -> tensor<2xf32>\nreturn %0 : tensor<2xf32>\n}\nfunc.func @b(%i: index, %x: tensor<2xf32>) -> tensor<2xf32> {\n%0 = nn.repeat @a times = 2 (%x) : (tensor<2xf32>) -> tensor<2xf32>\nreturn %0 : tensor<2xf32>\n}";
    assert!(refusals(endless)[0].ends_with("again without end"));
    let repeat = "%r = nn.repeat @g times = 2 (%x) : (tensor<2x8x64xf32>) -> tensor<2x8x64xf32>";
    let found = refusals(&format!("{}func.func @g() {{\nreturn\n}}", in_function(repeat)));
    let wanted =
        "needs a body of type '(index, tensor<2x8x64xf32>) -> tensor<2x8x64xf32>', but @g is '() -> ()'";
    assert_eq!(found[0], format!("2: 'nn.repeat' op {wanted}"));
    let outside = "%r = nn.fused \"k\" row(%a = %x : tensor<2x8x64xf32>) -> tensor<2x8x64xf32> {\n%1 = nn.add %x, %a : tensor<2x8x64xf32>\nnn.yield %1 : tensor<2x8x64xf32>\n} saved_bytes = 0 reason = \"r\"";
    let found = refusals(&in_function(outside));
    assert!(found[0] == "3: 'nn.add' op using value defined outside the region", "{found:#?}");
}

#[test]
fn unknown_attributes() {
    op_refused(&[
        ("%r = nn.softmax %x {speed = 3 : i64} : tensor<2x8x64xf32>", "does not know the attribute 'speed'"),
        (
            "%r = nn.softmax %x {nn.speed = 3 : i64} : tensor<2x8x64xf32>",
            "does not know the attribute 'nn.speed'",
        ),
        (
            "%r = nn.softmax %x {tensorrt.speed = 3 : i64} : tensor<2x8x64xf32>",
            "does not know the attribute 'tensorrt.speed'",
        ),
    ]);
    let found = refusals("module attributes {nn.flavour = \"x\"} {\n}");
    assert_eq!(found, ["1: 'builtin.module' op does not know the attribute 'nn.flavour'"]);
    let found = refusals("func.func @f(%x: tensor<2xf32> {nn.flavour = 1 : i64}) {\nreturn\n}");
    assert_eq!(found, ["1: 'func.func' op argument 0 does not know the attribute 'nn.flavour'"]);
}

#[test]
fn unknown_words_and_broken_texts() {
    let start = |text: &str| refusals(text).into_iter().next().unwrap_or_default();
    assert_eq!(
        start(&in_function("%r = nn.sofmax %x : tensor<2xf32>")),
        "2: custom op 'nn.sofmax' is unknown"
    );
    assert!(
        start(&in_function("%r = tosa.add %x, %x : tensor<2xf32>"))
            .starts_with("2: Dialect `tosa' not found for custom op 'tosa.add'")
    );
    assert!(
        start(&in_function(
            "%r = nn.norm l2 %x, %n eps = 1.0 : (tensor<2x8x64xf32>, tensor<64xf32>) -> tensor<2x8x64xf32>"
        ))
        .contains("rms, layer")
    );
    let whole = in_function("%r = nn.softmax %x : tensor<2x8x64xf32>");
    for end in [1, 40, whole.len() / 2, whole.len() - 3] {
        assert!(!refusals(&whole[..end]).is_empty(), "cut at {end}");
    }
    assert_eq!(start("func.func @f() {\n\0return\n}"), "2: a NUL byte cannot be part of a module's text");
}

/// Wherever a text is cut off, the parser says where, or what is left is whole.
#[test]
fn every_cut_is_a_located_fault_or_a_module() {
    let text = "func.func @f(%i: index, %x: tensor<1x8x64xf32>, %n: tensor<64xf32>) -> tensor<1x8x64xf32> attributes {} {
  %w = nn.param \"layers.*.w\"[%i] scale = 0.5 : tensor<64x64xf32>
  %0 = nn.rope half %x head_dim = 16 rot_dims = 8 theta = 1.0e4 scaling = linear factor = 2.0 : tensor<1x8x64xf32>
  %1 = nn.fused \"k\" row(%a = %0 : tensor<1x8x64xf32>) -> tensor<1x8x64xf32> {
    %2 = nn.softmax %a : tensor<1x8x64xf32>
    nn.yield %2 : tensor<1x8x64xf32>
  } saved_bytes = 1 reason = \"r\"
  return %1 : tensor<1x8x64xf32>
}
wafer.program @p grid = [8, 8] (%ids: tensor<2x8xi32>, %t: tensor<64x64xf32>) {
  %x = wafer.embed %ids, %t at <0, 0, 8, 8> : (tensor<2x8xi32>, tensor<64x64xf32>) -> !wafer.tile<16x64xf32, <rows = 8, cols = 8>>
  wafer.return
}
cuda.program @c arch = \"sm_80\" {
  %b = cuda.buffer \"b\" arena bytes = 128 : memref<4x8xf32>
  cuda.repeat times = 3 (%l: index) {
  }
}
";
    let cx = IrContext::new();
    for end in 0..text.len() {
        match Module::parse(&cx, &text[..end], "t.mlir") {
            Ok(module) => module.verify().expect("what parses verifies"),
            Err(error) => {
                let found = error.diagnostics();
                assert!(
                    found.iter().any(|diagnostic| diagnostic.place.file.is_some()),
                    "cut at {end}: {error}"
                );
            }
        }
    }
    assert!(cx.take_diagnostics().is_empty());
}

/// Programs of the wafer: an op on line 4.
#[test]
fn wafer() {
    let program = |op: &str| {
        format!(
            "!t = !wafer.tile<16x64xf32, <rows = 16, cols = 8>>\nwafer.program @p grid = [8, 16] (%ids: tensor<2x8xi32>, %w: tensor<64x64xf32>, %g: tensor<64xf32>) {{\n%x = wafer.embed %ids, %w at <0, 0, 8, 16> : (tensor<2x8xi32>, tensor<64x64xf32>) -> !t\n{op}\nwafer.return\n}}"
        )
    };
    for (op, message) in [
        (
            "%r = wafer.map silu %x at <1, 0, 8, 16> : (!t) -> !t",
            "4: 'wafer.map' op rectangle <1, 0, 8, 16> leaves the grid [8, 16]",
        ),
        (
            "%r = wafer.map silu %x at <0, 0, 4, 16> : (!t) -> !t",
            "4: 'wafer.map' op result of 16 rows and 8 columns does not fit a rectangle of 16 rows and 4 columns",
        ),
        (
            "%r = wafer.map silu %x at <0, 0, 0, 16> : (!t) -> !t",
            "4: custom op 'wafer.map' rectangle <0, 0, 0, 16> is empty or outside",
        ),
        (
            "%r = wafer.map silu %x at <0, 0, 8, 16> sram = 49153 : (!t) -> !t",
            "4: 'wafer.map' op sram = 49153 bytes: a PE has 49152",
        ),
        (
            "%r = wafer.map silu %x at <0, 0, 8, 16> colours = [3, 24] : (!t) -> !t",
            "4: 'wafer.map' op colour 24 does not exist: there are 0..23",
        ),
        (
            "%r = wafer.map silu %x at <0, 0, 8, 16> colours = [3, 5, 3] : (!t) -> !t",
            "4: 'wafer.map' op uses colour 3 twice",
        ),
        (
            "%r = wafer.map add %x at <0, 0, 8, 16> : (!t) -> !t",
            "4: 'wafer.map' op add takes 2 tiles, found 1",
        ),
        (
            "%r = wafer.map silu %x by 2.0 at <0, 0, 8, 16> : (!t) -> !t",
            "4: 'wafer.map' op `by` and the function scale belong together",
        ),
        (
            "%r = wafer.linear %x, %w acc i32 at <0, 0, 8, 16> : (!t, tensor<64x64xf32>) -> !t",
            "4: 'wafer.linear' op accumulates in a float type, found 'i32'",
        ),
        (
            "%r = wafer.linear %x, %w acc f32 at <0, 0, 8, 16> : (!t, tensor<64x64xf32>) -> !wafer.tile<16x32xf32, <rows = 16, cols = 8>>",
            "4: 'wafer.linear' op feature mismatch: result features = 32 but expected = 64",
        ),
        (
            "%r = wafer.norm rms %x, %g eps = 0.0 at <0, 0, 8, 16> : (!t, tensor<64xf32>) -> !t",
            "4: 'wafer.norm' op eps must be positive, found 0.000000e+00",
        ),
        (
            "%r = wafer.rope half %x sequences = 3 head_dim = 16 rot_dims = 16 theta = 1.0e4 at <0, 0, 8, 16> : (!t) -> !t",
            "4: 'wafer.rope' op sequences = 3 does not divide tokens = 16",
        ),
        (
            "%r = wafer.attention %x, %x, %x sequences = 2 heads = 4 kv_heads = 3 scale = 1.0 at <0, 0, 8, 16> : (!t, !t, !t) -> !t",
            "4: 'wafer.attention' op kv_heads = 3 does not divide heads = 4",
        ),
        (
            "%r = wafer.weight \"layers.*.w\" streamed : tensor<2xf32>",
            "4: 'wafer.weight' op name \"layers.*.w\" means a layer, but no wafer.repeat is around",
        ),
        (
            "%r = wafer.map silu %x {speed = 1 : i64} at <0, 0, 8, 16> : (!t) -> !t",
            "4: custom op 'wafer.map' expected 'at'",
        ),
        (
            "%r = wafer.last_token %x sequences = 2 at <0, 0, 8, 16> : (!t) -> !wafer.tile<2x64xf32, <rows = 3, cols = 8>>",
            "4: tokens = 2 cannot spread over rows = 3",
        ),
    ] {
        let found = refusals(&program(op));
        assert!(found.iter().any(|line| line == message), "wanted {message}\nfound {found:#?}");
    }
    for (tile, message) in [
        ("16x64xf32, <rows = 16, cols = 8, blocks = 3>", "1: blocks = 3 does not divide cols = 8"),
        ("16x66xf32, <rows = 16, cols = 8, blocks = 4>", "1: blocks = 4 does not divide features = 66"),
        ("16x4xf32, <rows = 16, cols = 8>", "1: features = 4 cannot spread over cols = 8"),
        ("16x4xi32, <rows = 16, cols = 4>", "1: a tile's elements are floats, found 'i32'"),
        ("16xf32, <rows = 16, cols = 4>", "1: a tile is tokens x features x element"),
    ] {
        let found = refusals(&format!("!t = !wafer.tile<{tile}>"));
        assert!(found.iter().any(|line| line == message), "wanted {message}\nfound {found:#?}");
    }
    assert_eq!(
        refusals("wafer.program @p grid = [8] () {\nwafer.return\n}"),
        ["1: 'wafer.program' op grid is [width, height], both at least 1"]
    );
}

#[test]
fn cuda() {
    let program = |op: &str| {
        format!(
            "cuda.program @p arch = \"sm_80\" arena_bytes = 256 {{\ncuda.kernel @k row generated variant = \"v\" (%x: tensor<4x8xf32>) {{\n%y = nn.softmax %x : tensor<4x8xf32>\nnn.yield %y : tensor<4x8xf32>\n}}\n%a = cuda.buffer \"a\" arena bytes = 128 offset = 0 : memref<4x8xf32>\n%w = cuda.buffer \"w\" param bytes = 512 layers = 4 : memref<4x8xf32>\n%n = cuda.buffer \"n\" input bytes = 32 : memref<8xf32>\n{op}\n}}"
        )
    };
    for (op, message) in [
        (
            "%b = cuda.buffer \"a\" input bytes = 128 : memref<4x8xf32>",
            "9: 'cuda.buffer' op name \"a\" is taken",
        ),
        (
            "%b = cuda.buffer \"b\" input bytes = 127 : memref<4x8xf32>",
            "9: 'cuda.buffer' op bytes = 127 is less than the 128 of its shape",
        ),
        (
            "%b = cuda.buffer \"b\" input bytes = 128 offset = 0 : memref<4x8xf32>",
            "9: 'cuda.buffer' op offset belongs to kind arena",
        ),
        (
            "%b = cuda.buffer \"b\" arena bytes = 128 offset = 192 : memref<4x8xf32>",
            "9: 'cuda.buffer' op ends at 192 + 128, past arena_bytes = 256",
        ),
        (
            "cuda.launch @g grid = [1, 1, 1] block = [32, 1, 1] (%a) to (%a) : (memref<4x8xf32>) -> memref<4x8xf32>",
            "9: 'cuda.launch' op launches @g, which is not a kernel of this program",
        ),
        (
            "cuda.launch @k (%a) to (%a) : (memref<4x8xf32>) -> memref<4x8xf32>",
            "9: 'cuda.launch' op a generated kernel has grid and block, a library routine has neither",
        ),
        (
            "cuda.launch @k grid = [1, 1, 1] block = [32, 33, 1] (%a) to (%a) : (memref<4x8xf32>) -> memref<4x8xf32>",
            "9: 'cuda.launch' op block has 1056 threads, at most 1024",
        ),
        (
            "cuda.launch @k grid = [1, 65536, 1] block = [32, 1, 1] (%a) to (%a) : (memref<4x8xf32>) -> memref<4x8xf32>",
            "9: 'cuda.launch' op grid size 65536 is outside 1..65535",
        ),
        (
            "cuda.launch @k grid = [1, 1, 1] block = [32, 1, 1] (%n) to (%a) : (memref<8xf32>) -> memref<4x8xf32>",
            "9: 'cuda.launch' op input 0 of @k is 'tensor<4x8xf32>', found 'memref<8xf32>'",
        ),
        (
            "cuda.launch @k grid = [1, 1, 1] block = [32, 1, 1] (%a) to () : (memref<4x8xf32>) -> ()",
            "9: 'cuda.launch' op @k has 1 outputs, found 0",
        ),
        (
            "cuda.launch @k grid = [1, 1, 1] block = [32, 1, 1] (%w) to (%a) : (memref<4x8xf32>) -> memref<4x8xf32>",
            "9: 'cuda.launch' op reads buffer \"w\" of many layers outside cuda.repeat",
        ),
        (
            "cuda.repeat times = 3 (%l: index) {\ncuda.launch @k grid = [1, 1, 1] block = [32, 1, 1] (%w) to (%a) : (memref<4x8xf32>) -> memref<4x8xf32>\n}",
            "10: 'cuda.launch' op layer count mismatch: layers of \"w\" = 4 but times = 3",
        ),
        (
            "cuda.repeat times = 3 (%l: i32) {\n}",
            "9: 'cuda.repeat' op has one argument, the layer's number, of type index",
        ),
    ] {
        let found = refusals(&program(op));
        assert!(found.iter().any(|line| line == message), "wanted {message}\nfound {found:#?}");
    }
    assert_eq!(
        refusals("cuda.program @p arch = \"gfx90a\" {\n}"),
        ["1: 'cuda.program' op arch is written like sm_80, found \"gfx90a\""]
    );
}

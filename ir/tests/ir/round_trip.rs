//! Every op of every dialect, printed and read back.

use crate::{in_function, parse};
use lapidary_ir::IrContext;

/// Parses a text, prints it, and finds each of its lines that holds an op in what was printed.
fn comes_back(text: &str, shown: &[&str]) {
    let cx = IrContext::new();
    let once = parse(&cx, text).to_string();
    let twice = parse(&cx, &once).to_string();
    assert_eq!(once, twice);
    for line in shown {
        assert!(once.contains(line), "not printed: {line}\n{once}");
    }
}

#[test]
fn nn_ops() {
    let ops = [
        r#"nn.param "final_norm.weight" : tensor<64xf32>"#,
        r#"nn.param "layers.*.attn.q.weight"[%arg0] scale = 0.0078125 : tensor<64x64xf32>"#,
        "nn.embed %arg1, %arg4 : (tensor<2x8xi32>, tensor<128x64xf32>) -> tensor<2x8x64xf32>",
        "nn.position %arg2, %arg4 : (tensor<2x8x64xf32>, tensor<128x64xf32>) -> tensor<2x8x64xf32>",
        "nn.position %arg2, %arg4 offset = 120 : (tensor<2x8x64xf32>, tensor<128x64xf32>) -> tensor<2x8x64xf32>",
        "nn.last_token %arg2 : (tensor<2x8x64xf32>) -> tensor<2x1x64xf32>",
        "nn.linear %arg2, %arg4 : (tensor<2x8x64xf32>, tensor<128x64xf32>) -> tensor<2x8x128xf32>",
        "nn.bias %arg2, %arg7 : (tensor<2x8x64xf32>, tensor<64xf32>) -> tensor<2x8x64xf32>",
        "nn.add %arg2, %arg2 : tensor<2x8x64xf32>",
        "nn.mul %arg3, %arg3 : tensor<2x8x64xbf16>",
        r#"nn.scale %arg2 by 14.6 as "mup.embedding" : tensor<2x8x64xf32>"#,
        "nn.activation gelu_tanh %arg2 : tensor<2x8x64xf32>",
        "nn.norm rms %arg2, %arg7 eps = 1.0e-06 : (tensor<2x8x64xf32>, tensor<64xf32>) -> tensor<2x8x64xf32>",
        "nn.norm layer %arg2, %arg7, %arg7 eps = 1.0e-05 : (tensor<2x8x64xf32>, tensor<64xf32>, tensor<64xf32>) -> tensor<2x8x64xf32>",
        "nn.softmax %arg10 : tensor<2x4x8x8xf32>",
        "nn.rope half %arg2 head_dim = 16 rot_dims = 16 theta = 10000.0 : tensor<2x8x64xf32>",
        "nn.rope interleaved %arg2 head_dim = 16 rot_dims = 4 theta = 500000.0 offset = 7 scaling = llama3 factor = 8.0 low_freq = 1.0 high_freq = 4.0 original_max = 8192 : tensor<2x8x64xf32>",
        "nn.rope half %arg2 head_dim = 16 rot_dims = 16 theta = 10000.0 scaling = linear factor = 2.5 : tensor<2x8x64xf32>",
        "nn.kv_append k %arg9[%arg0] cached = 5 : tensor<2x8x32xf32> -> tensor<2x13x32xf32>",
        "nn.scores %arg2, %arg9 heads = 4 kv_heads = 2 : (tensor<2x8x64xf32>, tensor<2x8x32xf32>) -> tensor<2x4x8x8xf32>",
        "nn.mask %arg10 causal : tensor<2x4x8x8xf32>",
        "nn.mask %arg11 causal window = 4 alibi alibi_scaling = 0.5 offset = 1 : tensor<2x4x8x9xf32>",
        "nn.values %arg10, %arg9 heads = 4 kv_heads = 2 : (tensor<2x4x8x8xf32>, tensor<2x8x32xf32>) -> tensor<2x8x64xf32>",
    ];
    let names = ["i", "ids", "x", "h", "t", "w", "w9", "n", "n9", "k", "s", "s9"];
    let mut body = String::new();
    for (index, op) in ops.iter().enumerate() {
        // Longest numbers first, so that %arg1 does not eat the start of %arg11.
        let op = (0..names.len()).rev().fold((*op).to_string(), |op, arg| {
            op.replace(&format!("%arg{arg}"), &format!("%{}", names[arg]))
        });
        body += &format!("%r{index} = {op}\n");
    }
    comes_back(&in_function(&body), &ops);
}

#[test]
fn nn_structure() {
    let text = r#"module attributes {nn.batch = 1 : i64, nn.cached = 0 : i64, nn.mode = "forward", nn.model = "tiny", nn.seq = 8 : i64} {
func.func @layer(%layer: index, %x: tensor<1x8x64xbf16> {nn.name = "x"}) -> tensor<1x8x64xbf16> {
  %w = nn.param "layers.*.attn_norm.weight"[%layer] : tensor<64xbf16>
  %s, %y, %k = nn.fused "add_norm" row(%a = %x : tensor<1x8x64xbf16>, %g = %w : tensor<64xbf16>, %l = %layer : index)
      -> (tensor<1x8x64xbf16>, tensor<1x8x64xbf16>, tensor<1x8x64xbf16>) {
    %5 = nn.add %a, %a : tensor<1x8x64xbf16>
    %6 = nn.norm rms %5, %g eps = 1.0e-6 : (tensor<1x8x64xbf16>, tensor<64xbf16>) -> tensor<1x8x64xbf16>
    %7 = nn.kv_append k %6[%l] cached = 0 : tensor<1x8x64xbf16> -> tensor<1x8x64xbf16>
    nn.yield %5, %6, %7 : tensor<1x8x64xbf16>, tensor<1x8x64xbf16>, tensor<1x8x64xbf16>
  } saved_bytes = 1024 reason = "the sum is normalised where it is made"
  return %y : tensor<1x8x64xbf16>
}
func.func @main(%x: tensor<1x8x64xbf16>) -> tensor<1x8x64xbf16> {
  %y = nn.repeat @layer times = 32 (%x) : (tensor<1x8x64xbf16>) -> tensor<1x8x64xbf16>
  return %y : tensor<1x8x64xbf16>
}
}"#;
    comes_back(
        text,
        &[
            "%attn_norm.weight = nn.param \"layers.*.attn_norm.weight\"[%arg0] : tensor<64xbf16>",
            "= nn.fused \"add_norm\" row(%arg2 = %arg1 : tensor<1x8x64xbf16>, %arg3 = %attn_norm.weight : tensor<64xbf16>, %arg4 = %arg0 : index) -> (",
            "nn.yield %1, %2, %3 : ",
            "} saved_bytes = 1024 reason = \"the sum is normalised where it is made\"",
            "nn.repeat @layer times = 32 (%arg0) : (tensor<1x8x64xbf16>) -> tensor<1x8x64xbf16>",
        ],
    );
}

#[test]
fn wafer_program() {
    let text = r#"
!t = !wafer.tile<16x64xf32, <rows = 16, cols = 8>>
!k = !wafer.tile<32x64xf32, <rows = 16, cols = 8>>
wafer.program @tiny grid = [16, 20] (%ids: tensor<2x8xi32>) {
  %table = wafer.weight "embed.weight" streamed : tensor<128x64xf32>
  %e = wafer.embed %ids, %table at <0, 2, 8, 16> sram = 4096 colours = [0, 1, 23] : (tensor<2x8xi32>, tensor<128x64xf32>) -> !t
  %p = wafer.position %e, %table sequences = 2 offset = 3 at <0, 2, 8, 16> : (!t, tensor<128x64xf32>) -> !t
  %y = wafer.repeat times = 4 (%x = %p : !t) -> !t {
    %g = wafer.weight "layers.*.attn_norm.weight" resident scale = 0.5 : tensor<64xf32>
    %w = wafer.weight "layers.*.attn.q.weight" streamed : tensor<64x64xf32>
    %n = wafer.norm layer %x, %g, %g eps = 1.0e-05 at <0, 2, 8, 16> : (!t, tensor<64xf32>, tensor<64xf32>) -> !t
    %l = wafer.linear %n, %w bias %g plus %x acc f32 at <0, 2, 8, 16> : (!t, tensor<64x64xf32>, tensor<64xf32>, !t) -> !t
    %h = wafer.linear %n, %w acc f32 at <0, 2, 8, 16> : (!t, tensor<64x64xf32>) -> !wafer.tile<16x64xf32, <rows = 16, cols = 8, blocks = 4, inner = tokens>>
    %q = wafer.rope interleaved %l sequences = 2 head_dim = 16 rot_dims = 4 theta = 10000.0 at <0, 2, 8, 16> : (!t) -> !t
    %k = wafer.kv_append k %q sequences = 2 cached = 8 at <0, 2, 8, 16> : (!t) -> !k
    %a = wafer.attention %q, %k, %k sequences = 2 heads = 4 kv_heads = 4 scale = 0.25 causal offset = 8 at <0, 2, 8, 16> : (!t, !k, !k) -> !t
    %s = wafer.map silu %a at <0, 2, 8, 16> : (!t) -> !t
    %m = wafer.map mul %s, %x at <0, 2, 8, 16> : (!t, !t) -> !t
    %c = wafer.map scale %m by 0.5 at <0, 2, 8, 16> : (!t) -> !t
    wafer.yield %c : !t
  }
  %z = wafer.last_token %y sequences = 2 at <0, 2, 8, 2> : (!t) -> !wafer.tile<2x64xf32, <rows = 2, cols = 8>>
  wafer.return %z : !wafer.tile<2x64xf32, <rows = 2, cols = 8>>
}"#;
    comes_back(
        text,
        &[
            "!tile_16x64xf32 = !wafer.tile<16x64xf32, <rows = 16, cols = 8>>",
            "wafer.program @tiny grid = [16, 20] (%arg0: tensor<2x8xi32>) {",
            "wafer.weight \"layers.*.attn_norm.weight\" resident scale = 0.5 : tensor<64xf32>",
            " at <0, 2, 8, 16> sram = 4096 colours = [0, 1, 23] : (tensor<2x8xi32>, tensor<128x64xf32>) -> !tile_16x64xf32",
            "!tile_16x64xf32_1 = !wafer.tile<16x64xf32, <rows = 16, cols = 8, blocks = 4, inner = tokens>>",
            " bias %",
            " plus %",
            " acc f32 at <0, 2, 8, 16> : ",
            "wafer.map scale %",
            " by 0.5 at ",
        ],
    );
}

#[test]
fn cuda_program() {
    let text = r#"
cuda.program @tiny arch = "sm_80" arena_bytes = 4096 {
  cuda.kernel @double row generated variant = "row_warp" params = {threads = 128 : i64} reason = "rows are short"
      (%x: tensor<4x8xbf16>, %layer: index) {
    %y = nn.add %x, %x : tensor<4x8xbf16>
    nn.yield %y : tensor<4x8xbf16>
  }
  cuda.kernel @product matmul library variant = "cublasLtMatmul" (%x: tensor<4x8xbf16>, %w: tensor<8x8xbf16>) {
    %y = nn.linear %x, %w : (tensor<4x8xbf16>, tensor<8x8xbf16>) -> tensor<4x8xbf16>
    nn.yield %y : tensor<4x8xbf16>
  }
  %w = cuda.buffer "layers.*.w" param bytes = 512 layers = 4 : memref<8x8xbf16>
  %in = cuda.buffer "x" input bytes = 64 : memref<4x8xbf16>
  %tmp = cuda.buffer "t" arena bytes = 64 offset = 256 : memref<4x8xbf16>
  %out = cuda.buffer "y" output bytes = 64 : memref<4x8xbf16>
  cuda.repeat times = 4 (%layer: index) {
    cuda.launch @double grid = [4, 1, 1] block = [128, 1, 1] shared = 1024 (%in, %layer) to (%tmp) : (memref<4x8xbf16>, index) -> memref<4x8xbf16>
    cuda.launch @product (%tmp, %w) to (%in) : (memref<4x8xbf16>, memref<8x8xbf16>) -> memref<4x8xbf16>
  }
}"#;
    comes_back(
        text,
        &[
            "cuda.program @tiny arch = \"sm_80\" arena_bytes = 4096 {",
            "cuda.kernel @double row generated variant = \"row_warp\" params = {threads = 128 : i64} reason = \"rows are short\" (%arg0: tensor<4x8xbf16>, %arg1: index) {",
            "cuda.buffer \"layers.*.w\" param bytes = 512 layers = 4 : memref<8x8xbf16>",
            "cuda.repeat times = 4 (%arg0: index) {",
            "cuda.launch @double grid = [4, 1, 1] block = [128, 1, 1] shared = 1024 (%1, %arg0) to (%2) : (memref<4x8xbf16>, index) -> memref<4x8xbf16>",
            "cuda.launch @product (%2, %0) to (%1) : ",
        ],
    );
}

//! The ops of training: printed and read back, refused where they do not fit, imported from differentiated graphs.

use crate::{in_function, parse};
use lapidary_ir::{IrContext, IrError, Module, import, nn};
use lapidary_models::autodiff::{Policy, Recompute, training};
use lapidary_models::{Dims, Graph, builtin, builtin_names};

/// Operands as the tests of this crate have them: see `in_function`.
const OPS: [&str; 21] = [
    "nn.cross_entropy %x, %ids : (tensor<2x8x64xf32>, tensor<2x8xi32>) -> tensor<1xf32>",
    "nn.cross_entropy_dx %x, %ids : (tensor<2x8x64xf32>, tensor<2x8xi32>) -> tensor<2x8x64xf32>",
    "nn.linear_dx %x, %w : (tensor<2x8x64xf32>, tensor<64x64xf32>) -> tensor<2x8x64xf32>",
    "nn.linear_dw %x, %k : (tensor<2x8x64xf32>, tensor<2x8x32xf32>) -> tensor<64x32xf32>",
    "nn.column_sum %k : (tensor<2x8x32xf32>) -> tensor<32xf32>",
    "nn.activation_dx silu %x, %x : tensor<2x8x64xf32>",
    "nn.norm_dx rms %x, %n, %x eps = 1.0e-06 : (tensor<2x8x64xf32>, tensor<64xf32>, tensor<2x8x64xf32>) -> tensor<2x8x64xf32>",
    "nn.norm_dw layer %x, %x eps = 1.0e-05 : (tensor<2x8x64xf32>, tensor<2x8x64xf32>) -> tensor<64xf32>",
    "nn.rope_dx half %x head_dim = 16 rot_dims = 16 theta = 10000.0 : tensor<2x8x64xf32>",
    "nn.rope_dx interleaved %x head_dim = 16 rot_dims = 4 theta = 10000.0 scaling = linear factor = 2.5 : tensor<2x8x64xf32>",
    "nn.mask_dx %s causal : tensor<2x4x8x8xf32>",
    "nn.mask_dx %s causal window = 4 : tensor<2x4x8x8xf32>",
    "nn.softmax_dx %s, %s : tensor<2x4x8x8xf32>",
    "nn.values_dv %s, %x heads = 4 kv_heads = 2 : (tensor<2x4x8x8xf32>, tensor<2x8x64xf32>) -> tensor<2x8x32xf32>",
    "nn.embed_dw %ids, %x rows = 128 : (tensor<2x8xi32>, tensor<2x8x64xf32>) -> tensor<128x64xf32>",
    "nn.position_dw %x rows = 128 : (tensor<2x8x64xf32>) -> tensor<128x64xf32>",
    "nn.position_dw %x rows = 128 offset = 5 : (tensor<2x8x64xf32>) -> tensor<128x64xf32>",
    r#"nn.save "attn.q"[%i] %x : tensor<2x8x64xf32>"#,
    r#"nn.saved "attn.q"[%i] : tensor<2x8x64xf32>"#,
    r#"nn.gradient "layers.*.attn.q.weight"[%i] %w : tensor<64x64xf32>"#,
    r#"nn.gradient "final_norm.weight" %n : tensor<64xf32>"#,
];

#[test]
fn ops_come_back() {
    let body: String = OPS.iter().enumerate().map(|(at, op)| format!("%r{at} = {op}\n")).collect();
    let cx = IrContext::new();
    let once = parse(&cx, &in_function(&body)).to_string();
    assert_eq!(once, parse(&cx, &once).to_string());
    let names = ["i", "ids", "x", "h", "t", "w", "w9", "n", "n9", "k", "s", "s9"];
    for op in OPS {
        let words = op.split(' ').map(|word| {
            let end = word.trim_start_matches(|c| c != '%').trim_start_matches('%');
            let name: String = end.chars().take_while(char::is_ascii_alphanumeric).collect();
            match names.iter().position(|known| *known == name) {
                Some(at) if word.contains('%') => word.replace(&format!("%{name}"), &format!("%arg{at}")),
                _ => word.to_string(),
            }
        });
        let line = words.collect::<Vec<_>>().join(" ");
        assert!(once.contains(&line), "not printed: {line}\n{once}");
    }
}

#[test]
fn what_does_not_fit_is_refused_with_the_sizes() {
    let table = [
        (
            "nn.cross_entropy %k, %x : (tensor<2x8x32xf32>, tensor<2x8x64xf32>) -> tensor<1xf32>",
            "operand #1 must be i32 tensor of known sizes",
        ),
        (
            "nn.linear_dx %k, %w : (tensor<2x8x32xf32>, tensor<64x64xf32>) -> tensor<2x8x64xf32>",
            "contraction mismatch: dy N = 32 but weight N = 64",
        ),
        (
            "nn.linear_dw %x, %t : (tensor<2x8x64xf32>, tensor<128x64xf32>) -> tensor<64x64xf32>",
            "rank mismatch: rank of dy = 3 but rank of x = 2",
        ),
        (
            "nn.norm_dx rms %x, %n9, %x eps = 1.0e-06 : (tensor<2x8x64xf32>, tensor<9xf32>, tensor<2x8x64xf32>) -> tensor<2x8x64xf32>",
            "width mismatch: x D = 64 but weight D = 9",
        ),
        (
            "nn.norm_dw rms %x, %x eps = 0.0 : (tensor<2x8x64xf32>, tensor<2x8x64xf32>) -> tensor<64xf32>",
            "eps must be positive, found 0",
        ),
        (
            "nn.rope_dx half %x head_dim = 16 rot_dims = 18 theta = 10000.0 : tensor<2x8x64xf32>",
            "rot_dims = 18 exceeds head_dim = 16",
        ),
        (
            "nn.mask_dx %s causal offset = 1 : tensor<2x4x8x8xf32>",
            "offset must lie in 0..L-S = 0..0, found 1",
        ),
        (
            "nn.values_dv %s, %x heads = 8 kv_heads = 2 : (tensor<2x4x8x8xf32>, tensor<2x8x64xf32>) -> tensor<2x8x16xf32>",
            "head count mismatch: p H = 4 but heads = 8",
        ),
        (
            "nn.embed_dw %ids, %x rows = 0 : (tensor<2x8xi32>, tensor<2x8x64xf32>) -> tensor<0x64xf32>",
            "has a result with an empty axis",
        ),
        (
            "nn.position_dw %x rows = 7 : (tensor<2x8x64xf32>) -> tensor<7x64xf32>",
            "positions end at offset + S = 0 + 8 but the table has 7 rows",
        ),
        (
            r#"nn.save "attn q"[%i] %x : tensor<2x8x64xf32>"#,
            r#"name "attn q" holds more than letters, digits, '_', '.' and '-'"#,
        ),
        (
            r#"nn.gradient "layers.*.attn.q.weight" %w : tensor<64x64xf32>"#,
            r#"name "layers.*.attn.q.weight" needs the layer index"#,
        ),
    ];
    for (op, wanted) in table {
        let cx = IrContext::new();
        let error = match Module::parse(&cx, &in_function(&format!("%r = {op}")), "t.mlir") {
            Ok(_) => panic!("accepted: {op}"),
            Err(error @ IrError::Invalid { .. }) => error,
            Err(other) => panic!("{other}"),
        };
        let messages: Vec<&str> = error.diagnostics().iter().map(|d| d.message.as_str()).collect();
        assert!(messages.iter().any(|message| message.contains(wanted)), "{op}: {messages:?}");
    }
}

fn differentiated(model: &str, policy: Recompute) -> Graph {
    let dims = Dims { batch: 2, seq: 16, cached: 0 };
    training(&builtin(model).unwrap(), dims, &Policy::Uniform(policy)).unwrap().graph
}

#[test]
fn training_graphs_of_every_builtin_model_are_modules() {
    for name in builtin_names() {
        for policy in Recompute::ALL {
            let graph = differentiated(name, policy);
            let cx = IrContext::new();
            let module = import(&cx, &graph).unwrap_or_else(|error| panic!("{name}: {error}"));
            let nodes: usize = graph.functions.iter().map(|function| function.nodes.len()).sum();
            let ops = module.op().walk().into_iter().filter(|op| nn::Any::of(*op).is_some()).count();
            assert_eq!(ops, nodes, "{name}");
            let text = module.to_string();
            assert_eq!(parse(&cx, &text).to_string(), text);
        }
    }
}

#[test]
fn a_training_module_says_what_passes_between_forward_and_backward() {
    let cx = IrContext::new();
    let module = import(&cx, &differentiated("amber", Recompute::Selective)).unwrap();
    let text = module.to_string();
    for line in [
        "nn.repeat @layer times = 32 (",
        "nn.repeat @layer_backward times = 32 reverse (",
        "nn.save \"attn.values\"[%arg0]",
        "nn.saved \"attn.values\"[%arg0] : tensor<2x16x4096xbf16>",
        "nn.gradient \"layers.*.attn.q.weight\"[%arg0]",
        "nn.gradient \"embed.weight\" %",
        "func.func @main(%arg0: tensor<2x16xi32>, %arg1: tensor<2x16xi32>) -> tensor<1xf32>",
        "nn.mode = \"train\"",
    ] {
        assert!(text.contains(line), "not there: {line}\n{text}");
    }
}

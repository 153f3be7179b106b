//! Graphs of models become modules that verify, stay short, and name the parts of the model.

use lapidary_ir::{IrContext, View, import, nn};
use lapidary_models::{Dims, Graph, Mode, builtin, builtin_names};

fn graph(model: &str, mode: Mode, cached: u64) -> Graph {
    let spec = builtin(model).expect("a built-in model");
    Graph::build(&spec, mode, Dims { batch: 2, seq: 16, cached }).expect("a graph")
}

#[test]
fn every_builtin_model_in_every_mode() {
    for name in builtin_names() {
        for (mode, cached) in [(Mode::Forward, 0), (Mode::Prefill, 0), (Mode::Decode, 32)] {
            let graph = graph(name, mode, cached);
            let cx = IrContext::new();
            let module = import(&cx, &graph).unwrap_or_else(|error| panic!("{name}: {error}"));
            let text = module.to_string();
            assert!(text.lines().count() < 200, "{name}: {} lines", text.lines().count());
            let nodes: usize = graph.functions.iter().map(|function| function.nodes.len()).sum();
            let ops = module.op().walk().into_iter().filter(|op| nn::Any::of(*op).is_some()).count();
            assert_eq!(ops, nodes, "{name}");
            assert!(cx.take_diagnostics().is_empty());
        }
    }
}

#[test]
fn the_same_graph_gives_the_same_text() {
    let text = || {
        let cx = IrContext::new();
        let module = import(&cx, &graph("crystalcoder", Mode::Prefill, 0)).expect("imports");
        module.to_text(true)
    };
    assert_eq!(text(), text());
}

#[test]
fn ops_carry_the_names_of_nodes() {
    let cx = IrContext::new();
    let module = import(&cx, &graph("amber", Mode::Decode, 7)).expect("imports");
    let place = |op: lapidary_ir::Op| op.place().node.unwrap_or_default();
    let linears: Vec<String> =
        module.op().find::<nn::Linear>().into_iter().map(|view| place(view.op())).collect();
    assert!(linears.contains(&"layers.*.attn.q".to_owned()), "{linears:?}");
    assert!(linears.contains(&"head".to_owned()), "{linears:?}");
    let repeat = module.op().find::<nn::Repeat>()[0];
    assert_eq!((repeat.body(), repeat.times()), ("layer", 32));
    assert_eq!(module.op().text("nn.mode"), Some("decode"));
    assert_eq!(module.op().i64("nn.cached"), Some(7));
    assert!(module.op().find::<nn::KvAppend>().iter().all(|append| append.cached() == 7));
}

#[test]
fn a_decode_layer_of_amber() {
    let cx = IrContext::new();
    let module = import(&cx, &graph("amber", Mode::Decode, 7)).expect("imports");
    let text = module.lookup("layer").expect("a layer").to_string();
    for line in [
        "%attn.q.weight = nn.param \"layers.*.attn.q.weight\"[%arg0] : tensor<4096x4096xbf16>",
        "nn.rope half %2 head_dim = 128 rot_dims = 128 theta = 10000.0 offset = 7 : tensor<2x16x4096xbf16>",
        "nn.kv_append k %5[%arg0] cached = 7 : tensor<2x16x4096xbf16> -> tensor<2x23x4096xbf16>",
        "nn.mask %9 causal offset = 7 : tensor<2x32x16x23xbf16>",
    ] {
        assert!(text.contains(line), "not there: {line}\n{text}");
    }
}

//! model.toml: defaults, and every fault at once with its place and a hint.

use lapidary_models::spec::{AttentionScale, Position};
use lapidary_models::{FaultKind, Faults, parse_model};

const SMALL: &str = r#"name = "small"
vocab = 256
d_model = 64
n_layers = 2
n_heads = 4
d_ff = 172
max_seq = 128

[norm]
kind = "rms"
eps = 1e-6

[mlp]
act = "silu"
gated = true

[pos]
kind = "rope"
theta = 1e4
rot_dims = 16
pairing = "half"
"#;

fn faults(text: &str) -> Faults {
    parse_model(text, "m.toml").unwrap_err()
}

fn shown(text: &str) -> Vec<String> {
    faults(text).faults.iter().map(ToString::to_string).collect()
}

#[test]
fn what_is_left_out_has_its_usual_value() {
    let spec = parse_model(SMALL, "m.toml").unwrap();
    assert_eq!((spec.head_dim, spec.n_kv_heads), (16, 4));
    assert_eq!(spec.attn.scale, AttentionScale::HeadDimPower(-0.5));
    assert!(matches!(spec.pos, Position::Rope(rope) if rope.rot_dims == 16));
    assert!(!spec.head.tied && spec.mup.is_none() && spec.norm.final_norm);
}

#[test]
fn every_fault_is_told_at_once() {
    let text = SMALL
        .replace("vocab = 256", "vocab = \"256\"")
        .replace("n_layers = 2", "n_layer = 2")
        .replace("max_seq = 128", "max_seq = -1")
        .replace("eps = 1e-6", "eps = 0.0")
        .replace("act = \"silu\"", "act = \"silo\"");
    assert_eq!(
        shown(&text),
        [
            "1:1: n_layers: this key is missing (hint: add `n_layers = ...`)",
            "2:9: vocab: expected a whole number, found a string",
            "4:1: n_layer: this key means nothing here (hint: did you mean \"n_layers\"?)",
            "7:11: max_seq: expected a count from 0 to 2^64 - 1, found -1",
            "11:7: norm.eps: expected a number above 0 and at most 1e0, found 0",
            "14:7: mlp.act: expected one of silu, gelu, gelu_tanh, relu, relu2, found \"silo\" (hint: did you mean \"silu\"?)",
        ]
    );
}

#[test]
fn heads_that_do_not_divide_name_the_nearest_that_do() {
    let shown = shown(&SMALL.replace("n_heads = 4", "n_heads = 5"));
    assert_eq!(
        shown[0],
        "5:11: n_heads: a width of 64 does not divide into 5 heads (hint: use 4 or 8 heads, or give head_dim)"
    );
    let explicit = SMALL.replace("n_heads = 4", "n_heads = 5\nhead_dim = 16");
    assert_eq!(parse_model(&explicit, "m.toml").unwrap().q_width(), 80);
}

#[test]
fn rules_across_keys_are_kept() {
    for (from, to, wanted) in [
        (
            "d_ff = 172",
            "d_ff = 172\nn_kv_heads = 3",
            "n_kv_heads: 4 heads do not share 3 key and value heads evenly (hint: use 2 or 4)",
        ),
        (
            "rot_dims = 16",
            "rot_dims = 7",
            "pos.rot_dims: dimensions rotate in pairs, and 7 is odd (hint: use 6)",
        ),
        (
            "rot_dims = 16",
            "rot_dims = 18",
            "pos.rot_dims: 18 dimensions cannot rotate in a head of 16 (hint: use 16)",
        ),
        (
            "vocab = 256",
            "vocab = 256\nvocab_padded_to = 255",
            "vocab_padded_to: a table of 255 rows does not hold 256 ids (hint: use 256 or more)",
        ),
        ("kind = \"rms\"", "kind = \"rms\"\nbias = true", "norm.bias: RMSNorm has no bias"),
        (
            "[mlp]",
            "[block]\nshared_norm = true\n[mlp]",
            "block.shared_norm: a sequential block has two norms",
        ),
        (
            "[mlp]",
            "[tokens]\nbos = 256\n[mlp]",
            "tokens.bos: tokens.bos = 256, but the vocabulary has 256 ids",
        ),
        (
            "[mlp]",
            "[tokens]\nadd_bos = true\n[mlp]",
            "tokens.add_bos: no text can start with a token that is not named",
        ),
        ("[mlp]", "[attn]\nwindow = 129\n[mlp]", "attn.window: a window of 129 hides nothing"),
        ("[mlp]", "[attn]\nwindow = 0\n[mlp]", "attn.window: expected 1 to 134217728, found 0"),
        (
            "[mlp]",
            "[weights]\nnames = \"lama\"\n[mlp]",
            "weights.names: no naming scheme is called \"lama\" (hint: did you mean \"llama\"?)",
        ),
        (
            "[mlp]",
            "[weights]\nnames = \"gptj\"\n[mlp]",
            "weights.names: the naming scheme \"gptj\" has no name for layers.*.mlp_norm.weight",
        ),
        ("[mlp]", "[dtype]\ncompute = \"i32\"\n[mlp]", "dtype.compute: i32 is for token ids"),
        (
            "[mlp]",
            "[attn]\nscale = { value = 0.1, head_dim_power = -1 }\n[mlp]",
            "attn.scale.value: stands beside head_dim_power",
        ),
    ] {
        let found = shown(&SMALL.replacen(from, to, 1));
        assert_eq!(found.len(), 1, "{to}: {found:?}");
        assert!(found[0].contains(wanted), "{to}: {found:?}");
    }
}

#[test]
fn sizes_beyond_every_machine_are_refused() {
    for (from, to) in [
        ("d_model = 64", "d_model = 1_000_000_000_000"),
        ("d_model = 64", "d_model = 0"),
        ("vocab = 256", "vocab = 99999999999999999999999999999999999999999999"),
        ("n_layers = 2", "n_layers = 18446744073709551615"),
        ("n_heads = 4", "n_heads = 0"),
        ("d_ff = 172", "d_ff = 1_000_000_000_000"),
        ("theta = 1e4", "theta = inf"),
        ("eps = 1e-6", "eps = nan"),
    ] {
        let faults = faults(&SMALL.replace(from, to));
        assert_eq!(faults.faults.len(), 1, "{to}: {faults}");
        assert_eq!(faults.faults[0].kind, FaultKind::OutOfRange, "{to}: {faults}");
    }
}

#[test]
fn a_broken_text_shows_its_syntax_and_the_values_that_are_wrong_anyway() {
    let faults = faults("name = \"x\"\nvocab = [1,\nd_model = 'a'\n[norm\nkind = 3\n");
    assert!(faults.faults.iter().any(|fault| fault.kind == FaultKind::Syntax), "{faults}");
    assert!(faults.faults.iter().all(|fault| fault.kind != FaultKind::MissingKey), "{faults}");
}

#[test]
fn spans_are_bytes_of_the_text() {
    let text = SMALL.replace("vocab = 256", "# größer\nvocab = true");
    let faults = faults(&text);
    assert_eq!(&text[faults.faults[0].span.clone()], "true");
    assert_eq!((faults.faults[0].line, faults.faults[0].column), (3, 9));
}

#[test]
fn an_empty_file_misses_every_required_key_once() {
    let faults = faults("");
    let missing: Vec<&str> = faults.faults.iter().map(|fault| fault.key.as_str()).collect();
    let required = ["d_ff", "d_model", "max_seq", "mlp.act", "n_heads", "n_layers", "name"];
    assert_eq!(missing[..7], required);
    assert_eq!(missing[7..], ["norm.eps", "norm.kind", "pos.kind", "vocab"]);
}

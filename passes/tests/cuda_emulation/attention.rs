//! Attention: blocks of queries, single queries, split keys.
use crate::harness::Case;
use crate::products::notices;
use crate::region::Region;
use lapidary_passes::cuda::spec::*;
use lapidary_passes::cuda::{Options, forms, lower_kernel};
use lapidary_runtime_gpu::program::Dtype::{self, Bf16, F32};

struct Sizes {
    b: u64,
    s: u64,
    heads: u64,
    kv: u64,
    d: u64,
    offset: u64,
}

fn attention(dtype: Dtype, z: &Sizes, window: u64, alibi: bool) -> KernelSpec {
    with_sums(dtype, z, window, alibi, false)
}

fn with_sums(dtype: Dtype, z: &Sizes, window: u64, alibi: bool, sums: bool) -> KernelSpec {
    let mut r = Region::new("attention", Anchor::Attention, dtype);
    let l = z.offset + z.s;
    let q = r.input(&[z.b, z.s, z.heads * z.d]);
    let (k, v) = (r.input(&[z.b, l, z.kv * z.d]), r.input(&[z.b, l, z.kv * z.d]));
    let x = r.op(KernelOp::Scores { heads: z.heads, kv_heads: z.kv }, &[q, k]);
    let x = r.op(KernelOp::Scale { by: 1.0 / (z.d as f64).sqrt() }, &[x]);
    let mask = Mask { causal: true, window, alibi, alibi_scaling: 1.5, heads: None, offset: z.offset };
    let masked = r.op(KernelOp::Mask(mask), &[x]);
    let x = r.op(KernelOp::Softmax, &[masked]);
    let x = r.op(KernelOp::Values { heads: z.heads, kv_heads: z.kv }, &[x, v]);
    if !sums {
        return r.finish(&[x]);
    }
    let log_sums = r.shaped(KernelOp::Backward(Backward::LogSum), &[masked], &[z.b, z.heads, z.s]);
    r.finish(&[x, log_sums])
}

#[test]
fn blocks_of_queries_that_keep_the_log_of_their_sums() {
    for (z, window, alibi) in [
        (Sizes { b: 2, s: 150, heads: 4, kv: 2, d: 64, offset: 0 }, 0, false),
        (Sizes { b: 1, s: 17, heads: 3, kv: 1, d: 80, offset: 0 }, 5, true),
        (Sizes { b: 1, s: 70, heads: 1, kv: 1, d: 136, offset: 0 }, 0, false),
    ] {
        Case::new(&with_sums(Bf16, &z, window, alibi, true), 3).check(&Options::default());
    }
    let few = with_sums(Bf16, &Sizes { b: 1, s: 3, heads: 1, kv: 1, d: 8, offset: 0 }, 0, false, true);
    assert!(
        lower_kernel(&few, &Options::default()).is_err_and(|error| error.to_string().contains("few queries"))
    );
}

fn check(dtype: Dtype, z: Sizes, window: u64, alibi: bool, processors: u64) -> usize {
    let spec = attention(dtype, &z, window, alibi);
    Case::new(&spec, 3).check(&Options { processors, ..Options::default() }).kernels.len()
}

#[test]
fn blocks_of_queries_causal_with_grouped_heads() {
    check(Bf16, Sizes { b: 1, s: 150, heads: 2, kv: 1, d: 64, offset: 0 }, 0, false, 1);
    check(Bf16, Sizes { b: 2, s: 17, heads: 2, kv: 2, d: 80, offset: 0 }, 0, false, 1);
    check(Bf16, Sizes { b: 1, s: 65, heads: 1, kv: 1, d: 128, offset: 0 }, 0, false, 1);
    check(Bf16, Sizes { b: 1, s: 70, heads: 1, kv: 1, d: 8, offset: 0 }, 0, false, 1);
}

#[test]
fn blocks_of_wide_heads() {
    check(Bf16, Sizes { b: 1, s: 20, heads: 1, kv: 1, d: 256, offset: 0 }, 0, false, 1);
    check(Bf16, Sizes { b: 1, s: 33, heads: 1, kv: 1, d: 96, offset: 0 }, 0, false, 1);
}

#[test]
fn blocks_of_queries_behind_a_cache_with_a_window_and_slopes() {
    check(Bf16, Sizes { b: 1, s: 40, heads: 3, kv: 3, d: 16, offset: 100 }, 0, true, 1);
    check(Bf16, Sizes { b: 1, s: 140, heads: 1, kv: 1, d: 16, offset: 30 }, 37, false, 1);
}

fn hopper() -> Options {
    Options { hopper: true, form: Some("hopper".into()), processors: 2, ..Options::default() }
}

/// The copy engine and products of warpgroups: odd sequences, several of them, heads that share keys, heads of no multiple of
/// 64, windows, slopes, and all keys.
#[test]
fn blocks_of_queries_on_hopper() {
    let cases = [
        (Sizes { b: 1, s: 150, heads: 2, kv: 1, d: 64, offset: 0 }, 0, false),
        (Sizes { b: 2, s: 17, heads: 2, kv: 2, d: 80, offset: 0 }, 0, false),
        (Sizes { b: 1, s: 259, heads: 1, kv: 1, d: 128, offset: 0 }, 0, false),
        (Sizes { b: 2, s: 140, heads: 2, kv: 2, d: 8, offset: 0 }, 37, true),
        (Sizes { b: 1, s: 70, heads: 1, kv: 1, d: 200, offset: 0 }, 0, false),
        (Sizes { b: 1, s: 66, heads: 1, kv: 1, d: 256, offset: 0 }, 50, false),
    ];
    for (sizes, window, alibi) in cases {
        let spec = attention(Bf16, &sizes, window, alibi);
        assert_eq!(forms(&spec, &hopper()).expect("forms"), ["blocks", "hopper"]);
        let made = Case::new(&spec, 3).check(&hopper());
        assert_eq!(made.kernels[0].choice.as_ref().map(|choice| choice.form.as_str()), Some("hopper"));
    }
    let mut all = attention(Bf16, &Sizes { b: 2, s: 40, heads: 2, kv: 1, d: 24, offset: 0 }, 0, false);
    for op in &mut all.ops {
        if let KernelOp::Mask(mask) = &mut op.op {
            mask.causal = false;
        }
    }
    Case::new(&all, 3).check(&hopper());
    let cached = attention(Bf16, &Sizes { b: 1, s: 40, heads: 1, kv: 1, d: 16, offset: 100 }, 0, false);
    assert_eq!(forms(&cached, &hopper()).expect("forms"), ["blocks"], "the engine does not know its end");
}

/// The emulation is no test if it lets broken kernels pass.
#[test]
fn what_attention_on_hopper_forgets_is_noticed() {
    let spec = attention(Bf16, &Sizes { b: 2, s: 300, heads: 2, kv: 2, d: 72, offset: 0 }, 0, false);
    let changes = [
        ("lp_barrier_wait(keys + 8 * stage, parity);", ""),
        ("lp_barrier_wait(values + 8 * stage, parity);", ""),
        ("lp_barrier_wait(asked, 0);", ""),
        ("turn / STAGES % 2 ^ 1", "turn / STAGES % 2"),
        (
            "lp_products_wait<0>();\n        if (lane == 0) lp_barrier_arrive(values_used",
            "if (lane == 0) lp_barrier_arrive(values_used",
        ),
        ("c > 0)", "1)"),
        ("BKV * 128), 1)", "BKV * 64), 1)"),
        ("lp_product_held<true>", "lp_product_held<false>"),
        ("my_position + row < S && piece", "piece"),
        ("    __syncwarp();\n    out +=", "    out +="),
    ];
    notices(&spec, &hopper(), &changes);
}

#[test]
fn single_queries_in_one_part_and_in_several() {
    assert_eq!(check(Bf16, Sizes { b: 2, s: 1, heads: 4, kv: 2, d: 64, offset: 200 }, 0, false, 1), 1);
    assert_eq!(check(Bf16, Sizes { b: 1, s: 1, heads: 3, kv: 1, d: 80, offset: 300 }, 0, true, 108), 2);
    assert_eq!(check(Bf16, Sizes { b: 1, s: 3, heads: 5, kv: 1, d: 128, offset: 260 }, 50, false, 108), 2);
    assert_eq!(check(Bf16, Sizes { b: 1, s: 1, heads: 1, kv: 1, d: 256, offset: 129 }, 0, false, 108), 2);
}

#[test]
fn single_precision_and_odd_head_widths() {
    check(F32, Sizes { b: 2, s: 12, heads: 2, kv: 1, d: 10, offset: 0 }, 0, false, 1);
    check(F32, Sizes { b: 1, s: 5, heads: 2, kv: 2, d: 7, offset: 4 }, 0, true, 1);
}

/// Sequences of 1, 17 and 2047: blocks of queries, one query behind 2046 keys whole and in parts, single precision.
#[test]
fn attention_at_odd_sizes() {
    check(Bf16, Sizes { b: 1, s: 17, heads: 2, kv: 1, d: 128, offset: 0 }, 0, false, 1);
    check(Bf16, Sizes { b: 1, s: 2047, heads: 1, kv: 1, d: 8, offset: 0 }, 100, false, 1);
    for (dtype, processors) in [(Bf16, 1), (Bf16, 108), (F32, 108)] {
        check(dtype, Sizes { b: 1, s: 1, heads: 2, kv: 1, d: 64, offset: 2046 }, 0, false, processors);
        check(dtype, Sizes { b: 1, s: 1, heads: 2, kv: 1, d: 64, offset: 0 }, 0, false, processors);
    }
    check(F32, Sizes { b: 1, s: 17, heads: 2, kv: 1, d: 16, offset: 0 }, 0, false, 108);
}

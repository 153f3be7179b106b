//! Row, elementwise and gather kernels.
use crate::harness::Case;
use crate::region::Region;
use lapidary_passes::cuda::Options;
use lapidary_passes::cuda::spec::*;
use lapidary_runtime_gpu::program::Dtype::{Bf16, F32};

fn check(spec: &KernelSpec) {
    Case::new(spec, 7).check(&Options::default());
}

#[test]
fn residual_add_and_rms_norm_with_two_outputs() {
    for (dtype, d) in [(Bf16, 256), (F32, 96), (Bf16, 682), (Bf16, 17), (F32, 2100)] {
        let mut r = Region::new("add_norm", Anchor::Row, dtype);
        let (x, y, w) = (r.input(&[2, 3, d]), r.input(&[2, 3, d]), r.param("w", &[d]));
        let s = r.op(KernelOp::Add, &[x, y]);
        let n = r.op(KernelOp::Norm { kind: NormKind::Rms, eps: 1e-5 }, &[s, w]);
        let n = r.op(KernelOp::Scale { by: 0.75 }, &[n]);
        check(&r.finish(&[s, n]));
    }
}

#[test]
fn layer_norm_with_bias_of_the_last_token() {
    for d in [64, 1023] {
        let mut r = Region::new("last_norm", Anchor::Row, Bf16);
        let (x, w, b) = (r.input(&[3, 5, d]), r.param("w", &[d]), r.param("b", &[d]));
        let x = r.op(KernelOp::LastToken, &[x]);
        let n = r.op(KernelOp::Norm { kind: NormKind::Layer, eps: 1e-5 }, &[x, w, b]);
        check(&r.finish(&[n]));
    }
}

#[test]
fn embedding_with_scale_and_learned_positions_behind_a_cache() {
    for offset in [0, 6] {
        let mut r = Region::new("embed", Anchor::Gather, Bf16);
        let (ids, table, places) = (r.ids(&[2, 3]), r.param("t", &[11, 40]), r.param("p", &[9, 40]));
        let x = r.op(KernelOp::Embed, &[ids, table]);
        let x = r.op(KernelOp::Scale { by: 14.6 }, &[x]);
        let x = r.op(KernelOp::Position { offset }, &[x, places]);
        check(&r.finish(&[x]));
    }
}

/// A rank's rows of the table, from the fourth on: what it does not have is zero.
#[test]
fn embedding_in_a_part_of_the_table() {
    let mut r = Region::new("embed", Anchor::Gather, Bf16);
    let (ids, table) = (r.ids(&[2, 9]), r.param("t", &[11, 40]));
    let x = r.op(KernelOp::EmbedPart { first: 4 }, &[ids, table]);
    let x = r.op(KernelOp::Scale { by: 0.5 }, &[x]);
    check(&r.finish(&[x]));
}

#[test]
fn rotations_of_both_pairings_outside_a_product() {
    for (pairing, head_dim, rot_dims) in [
        (Pairing::Half, 32, 32),
        (Pairing::Half, 24, 8),
        (Pairing::Half, 10, 6),
        (Pairing::Interleaved, 16, 4),
    ] {
        let mut r = Region::new("rope", Anchor::Elementwise, F32);
        let (x, b) = (r.input(&[2, 4, 3 * head_dim]), r.param("b", &[3 * head_dim]));
        let x = r.op(KernelOp::Bias, &[x, b]);
        let rope = Rope { head_dim, rot_dims, pairing, theta: 1e4, offset: 100, scaling: RopeScaling::None };
        let x = r.op(KernelOp::Rope(rope), &[x]);
        check(&r.finish(&[x]));
    }
}

#[test]
fn every_activation_and_the_gated_product() {
    use ActivationFn::{Gelu, GeluTanh, Relu, Relu2, Silu};
    for f in [Silu, Gelu, GeluTanh, Relu, Relu2] {
        let mut r = Region::new("gate", Anchor::Elementwise, F32);
        let (g, u) = (r.input(&[1, 4, 171]), r.input(&[1, 4, 171]));
        let g = r.op(KernelOp::Activation(f), &[g]);
        let y = r.op(KernelOp::Mul, &[g, u]);
        check(&r.finish(&[y]));
    }
}

#[test]
fn appending_to_a_cache_keeps_what_is_there() {
    let mut r = Region::new("append", Anchor::Elementwise, Bf16);
    let x = r.input(&[2, 3, 24]);
    let k = r.op(KernelOp::KvAppend { cache: "k".into(), cached: 5 }, &[x]);
    check(&r.finish(&[k]));
}

#[test]
fn softmax_over_a_row() {
    let mut r = Region::new("softmax", Anchor::Row, F32);
    let x = r.input(&[1, 2, 3, 301]);
    let y = r.op(KernelOp::Softmax, &[x]);
    check(&r.finish(&[y]));
}

/// The widths that models are told to work at, and sequences of 1, 17 and 2047, in both types.
#[test]
fn rows_at_odd_sizes() {
    for (dtype, shape) in
        [(Bf16, [1, 1, 10922]), (F32, [1, 1, 32032]), (Bf16, [1, 17, 300]), (Bf16, [1, 2047, 6])]
    {
        let d = shape[2];
        let mut r = Region::new("add_norm", Anchor::Row, dtype);
        let (x, y, w) = (r.input(&shape), r.input(&shape), r.param("w", &[d]));
        let s = r.op(KernelOp::Add, &[x, y]);
        let n = r.op(KernelOp::Norm { kind: NormKind::Rms, eps: 1e-5 }, &[s, w]);
        check(&r.finish(&[s, n]));
        let mut r = Region::new("gate", Anchor::Elementwise, dtype);
        let (g, u) = (r.input(&shape), r.input(&shape));
        let g = r.op(KernelOp::Activation(ActivationFn::Silu), &[g]);
        let y = r.op(KernelOp::Mul, &[g, u]);
        check(&r.finish(&[y]));
    }
    for (dtype, vocab) in [(Bf16, 10922), (F32, 32032)] {
        let mut r = Region::new("softmax", Anchor::Row, dtype);
        let x = r.input(&[1, 1, 1, vocab]);
        let y = r.op(KernelOp::Softmax, &[x]);
        check(&r.finish(&[y]));
    }
    for (dtype, length) in [(Bf16, 2047), (F32, 17), (F32, 1)] {
        let mut r = Region::new("rope", Anchor::Elementwise, dtype);
        let x = r.input(&[1, length, 16]);
        let rope = Rope {
            head_dim: 16,
            rot_dims: 16,
            pairing: Pairing::Half,
            theta: 1e4,
            offset: 0,
            scaling: RopeScaling::None,
        };
        let y = r.op(KernelOp::Rope(rope), &[x]);
        check(&r.finish(&[y]));
    }
}

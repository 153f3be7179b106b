//! Products with their epilogues: tiles, streamed weights, single precision.
use crate::harness::Case;
use crate::region::Region;
use lapidary_passes::cuda::spec::*;
use lapidary_passes::cuda::{Choice, Options, lower_kernel};
use lapidary_runtime_gpu::program::Dtype::{self, Bf16, F32};

/// Nothing goes to the library.
fn check(spec: &KernelSpec, processors: u64) {
    Case::new(spec, 11).check(&Options { library: false, processors, tile: None });
}

fn rope(pairing: Pairing, head_dim: u64, rot_dims: u64, offset: u64) -> KernelOp {
    KernelOp::Rope(Rope { head_dim, rot_dims, pairing, theta: 1e4, offset, scaling: RopeScaling::None })
}

/// q, k and v in one product, biases, rotation, and k and v appended to their caches.
fn qkv(
    dtype: Dtype,
    (b, s, d): (u64, u64, u64),
    head: (u64, u64, u64),
    rot: u64,
    pairing: Pairing,
    cached: u64,
) -> KernelSpec {
    let (heads, kv_heads, head_dim) = head;
    let mut r = Region::new("qkv", Anchor::Matmul, dtype);
    let x = r.input(&[b, s, d]);
    let (nq, nk) = (heads * head_dim, kv_heads * head_dim);
    let w = [r.param("q", &[nq, d]), r.param("k", &[nk, d]), r.param("v", &[nk, d])];
    let bias = [r.param("qb", &[nq]), r.param("kb", &[nk]), r.param("vb", &[nk])];
    let mut out = Vec::new();
    for i in 0..3 {
        let y = r.op(KernelOp::Linear, &[x, w[i]]);
        out.push(r.op(KernelOp::Bias, &[y, bias[i]]));
    }
    for y in &mut out[..2] {
        *y = r.op(rope(pairing, head_dim, rot, cached), &[*y]);
    }
    for (i, name) in [(1, "k"), (2, "v")] {
        out[i] = r.op(KernelOp::KvAppend { cache: name.into(), cached }, &[out[i]]);
    }
    r.finish(&out)
}

#[test]
fn qkv_with_rotation_into_the_caches() {
    check(&qkv(Bf16, (2, 20, 72), (4, 2, 16), 16, Pairing::Half, 0), 1);
    check(&qkv(Bf16, (1, 13, 50), (3, 3, 24), 8, Pairing::Interleaved, 5), 1);
    check(&qkv(Bf16, (2, 1, 70), (4, 2, 16), 8, Pairing::Half, 9), 1);
    check(&qkv(F32, (1, 17, 40), (2, 1, 10), 6, Pairing::Half, 3), 1);
    check(&qkv(F32, (3, 1, 41), (2, 2, 8), 8, Pairing::Half, 3), 1);
}

/// gate and up in one product, activation and product of the two behind it.
fn swiglu(dtype: Dtype, rows: u64, d: u64, f: u64, bias: bool) -> KernelSpec {
    let mut r = Region::new("swiglu", Anchor::Matmul, dtype);
    let x = r.input(&[1, rows, d]);
    let (wg, wu) = (r.param("gate", &[f, d]), r.param("up", &[f, d]));
    let biases = if bias { vec![r.param("gb", &[f]), r.param("ub", &[f])] } else { vec![] };
    let (mut g, mut u) = (r.op(KernelOp::Linear, &[x, wg]), r.op(KernelOp::Linear, &[x, wu]));
    if bias {
        g = r.op(KernelOp::Bias, &[g, biases[0]]);
        u = r.op(KernelOp::Bias, &[u, biases[1]]);
    }
    let g = r.op(KernelOp::Activation(ActivationFn::Silu), &[g]);
    let y = r.op(KernelOp::Mul, &[g, u]);
    r.finish(&[y])
}

#[test]
fn gate_and_up_meet_in_the_epilogue_at_odd_widths() {
    check(&swiglu(Bf16, 30, 64, 85, true), 1);
    check(&swiglu(Bf16, 3, 72, 43, true), 1);
    check(&swiglu(F32, 9, 30, 21, false), 1);
    check(&swiglu(Bf16, 1, 200, 2 * 43, false), 1);
}

/// A product with bias, activation, and two residuals.
fn residual(dtype: Dtype, rows: u64, k: u64, n: u64) -> KernelSpec {
    let mut r = Region::new("down", Anchor::Matmul, dtype);
    let (x, a, b) = (r.input(&[1, rows, k]), r.input(&[1, rows, n]), r.input(&[1, rows, n]));
    let (w, bias) = (r.param("w", &[n, k]), r.param("b", &[n]));
    let y = r.op(KernelOp::Linear, &[x, w]);
    let y = r.op(KernelOp::Bias, &[y, bias]);
    let y = r.op(KernelOp::Scale { by: 0.5 }, &[y]);
    let y = r.op(KernelOp::Add, &[y, a]);
    let y = r.op(KernelOp::Add, &[b, y]);
    r.finish(&[y])
}

#[test]
fn every_tile_with_tails_in_all_three_sizes() {
    for tile in 0..5 {
        let spec = residual(Bf16, 150, 106, 140);
        let options = Options { library: false, tile: Some(tile), ..Options::default() };
        Case::new(&spec, 5).check(&options);
    }
    check(&residual(F32, 70, 33, 67), 1);
}

#[test]
fn a_few_rows_stream_the_weights() {
    for rows in [1, 2, 8] {
        check(&residual(Bf16, rows, 170, 37), 1);
    }
    check(&residual(Bf16, 1, 2310, 19), 1);
    check(&residual(F32, 2, 1142, 19), 1);
    check(&residual(F32, 5, 66, 19), 1);
}

#[test]
fn logits_of_the_last_tokens() {
    let mut r = Region::new("head", Anchor::Matmul, Bf16);
    let (x, w) = (r.input(&[3, 4, 72]), r.param("embed", &[101, 72]));
    let x = r.op(KernelOp::LastToken, &[x]);
    let y = r.op(KernelOp::Linear, &[x, w]);
    check(&r.finish(&[y]), 1);
}

#[test]
fn plain_products_go_to_the_library_and_others_do_not() {
    let chosen = |spec: &KernelSpec| match lower_kernel(spec, &Options::default()) {
        Ok(Choice::Library(product)) => product.reason,
        Ok(Choice::Generated(generated)) => generated.kernels[0].reason.clone(),
        Err(e) => e.to_string(),
    };
    let mut r = Region::new("out", Anchor::Matmul, Bf16);
    let (x, a, w, b) =
        (r.input(&[1, 64, 32]), r.input(&[1, 64, 48]), r.param("w", &[48, 32]), r.param("b", &[48]));
    let y = r.op(KernelOp::Linear, &[x, w]);
    let y = r.op(KernelOp::Bias, &[y, b]);
    let y = r.op(KernelOp::Add, &[a, y]);
    assert!(chosen(&r.finish(&[y])).contains("bias and residual"));
    assert!(chosen(&residual(Bf16, 64, 32, 48)).contains("more than a bias and a residual"));
    assert!(chosen(&swiglu(Bf16, 1, 64, 32, false)).contains("streamed"));
}

/// The emulation is no test if it lets broken kernels pass: each of these changes must be noticed.
#[test]
fn a_missing_wait_barrier_or_tail_is_noticed() {
    let spec = residual(Bf16, 150, 330, 140);
    let options = Options { library: false, tile: Some(1), ..Options::default() };
    let changes = [
        ("lp_copy_wait<STAGES - 2>()", "lp_copy_wait<STAGES - 1>()"),
        ("lp_copy_wait<STAGES - 2>();\n        __syncthreads();", "lp_copy_wait<STAGES - 2>();"),
        ("left >= 8 ? 16 : left > 0 ? 2 * left : 0", "16"),
        ("lane / 8 % 2) ^ right_key", "lane / 8 % 2) ^ left_key ^ 1"),
        ("row < M && col < N", "col < N"),
    ];
    for (from, to) in changes {
        let case = Case::new(&spec, 5);
        let change = |text: String| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        };
        let outcome =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case.check_changed(&options, change)));
        assert!(outcome.is_err(), "{from} -> {to} passes");
    }
}

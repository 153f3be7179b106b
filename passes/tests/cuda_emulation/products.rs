//! Products with their epilogues: tiles, streamed weights, single precision.
use crate::harness::Case;
use crate::region::Region;
use lapidary_passes::cuda::spec::*;
use lapidary_passes::cuda::{Choice, Options, forms, lower_kernel};
use lapidary_runtime_gpu::program::ChosenBy;
use lapidary_runtime_gpu::program::Dtype::{self, Bf16, F32};

/// Nothing goes to the library.
fn check(spec: &KernelSpec, processors: u64) {
    Case::new(spec, 11).check(&Options { library: false, processors, ..Options::default() });
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
    let spec = residual(Bf16, 150, 106, 140);
    let tiles = named(&spec, &Options::default(), "tiles-");
    assert_eq!(tiles.len(), 5);
    for form in tiles {
        Case::new(&spec, 5).check(&Options { form: Some(form), ..Options::default() });
    }
    check(&residual(F32, 70, 33, 67), 1);
}

/// Warps that share a depth: heights of 16, 32 and 64, depths that are no multiple of a slice, whole numbers too.
#[test]
fn some_rows_go_through_tiles_that_share_their_depth() {
    for (rows, expected) in [(9, 1), (17, 1), (50, 2)] {
        let spec = residual(Bf16, rows, 330, 70);
        let deep = named(&spec, &Options::default(), "deep-");
        assert_eq!(deep.len(), expected, "{rows} rows");
        for form in deep {
            Case::new(&spec, 5).check(&Options { form: Some(form), ..Options::default() });
        }
    }
    check(&qkv(Bf16, (12, 1, 136), (4, 2, 16), 16, Pairing::Half, 5), 1);
    check(&swiglu(Bf16, 64, 72, 43, true), 4);
    assert!(named(&residual(Bf16, 65, 64, 64), &Options::default(), "deep-").is_empty());
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
    assert!(chosen(&residual(Bf16, 64, 32, 48)).contains("everything that follows in its epilogue"));
    assert!(chosen(&swiglu(Bf16, 1, 64, 32, false)).contains("streamed"));
}

/// The emulation is no test if it lets broken kernels pass: each of these changes must be noticed.
#[test]
fn a_missing_wait_barrier_or_tail_is_noticed() {
    let spec = residual(Bf16, 150, 330, 140);
    let options = Options { form: Some("tiles-128x128".into()), ..Options::default() };
    let changes = [
        ("lp_copy_wait<STAGES - 2>()", "lp_copy_wait<STAGES - 1>()"),
        ("lp_copy_wait<STAGES - 2>();\n        __syncthreads();", "lp_copy_wait<STAGES - 2>();"),
        ("left <= 0 ? 0 : sizeof(T) == 1 ? 16 : left * int(sizeof(T))", "16"),
        ("2 * k + lane / 8 % 2)", "2 * k + lane / 8 % 2 ^ 1)"),
        (
            "lp_leave_rows<SLAB>(slab, sum[i], [&](int slab_row, int at, const float (&run)[P]) {\n            const int row = row0 + warp_m + i * 16 + slab_row, col = col0 + warp_n + at;\n            if (row < M && col < N)",
            "lp_leave_rows<SLAB>(slab, sum[i], [&](int slab_row, int at, const float (&run)[P]) {\n            const int row = row0 + warp_m + i * 16 + slab_row, col = col0 + warp_n + at;\n            if (col < N)",
        ),
        ("    }\n    __syncwarp();\n    for", "    }\n    for"),
        ("const T* source = from +", "const T* source = from + 1 +"),
    ];
    notices(&spec, &options, &changes);
}

/// Every change of a kernel's text must fail its check.
pub fn notices(spec: &KernelSpec, options: &Options, changes: &[(&str, &str)]) {
    for (from, to) in changes {
        let case = Case::new(spec, 5);
        let change = |text: String| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        };
        let outcome =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case.check_changed(options, change)));
        assert!(outcome.is_err(), "{from} -> {to} passes");
    }
}

/// Forms of a region whose names begin so.
fn named(spec: &KernelSpec, options: &Options, prefix: &str) -> Vec<String> {
    let forms = forms(spec, options).unwrap_or_else(|error| panic!("{error}"));
    forms.into_iter().filter(|form| form.starts_with(prefix)).collect()
}

fn hopper() -> Options {
    Options { hopper: true, processors: 2, ..Options::default() }
}

#[test]
fn hopper_copies_boxes_and_multiplies_by_warpgroup() {
    let spec = residual(Bf16, 70, 202, 274);
    let tiles = named(&spec, &hopper(), "hopper-");
    assert_eq!(tiles.len(), 3);
    for form in tiles {
        Case::new(&spec, 5).check(&Options { form: Some(form), ..hopper() });
    }
    let wide = Options { form: Some("hopper-64x256".into()), ..hopper() };
    Case::new(&qkv(Bf16, (2, 20, 72), (4, 2, 16), 16, Pairing::Half, 0), 5).check(&wide);
    Case::new(&swiglu(Bf16, 30, 64, 85, true), 5).check(&wide);
}

#[test]
fn what_hopper_forgets_to_wait_for_is_noticed() {
    let spec = residual(Bf16, 30, 266, 40);
    let options = Options { form: Some("hopper-64x256".into()), ..hopper() };
    let changes = [
        ("lp_products_wait<1>();", ""),
        ("lp_barrier_wait(full + 8 * stage, turn / STAGES % 2);", ""),
        ("turn / STAGES % 2 ^ 1", "turn / STAGES % 2"),
        ("slice > 0 || k > 0", "slice > 0"),
        ("row < M && col < N", "col < N"),
    ];
    notices(&spec, &options, &changes);
}

/// Held against the same whole numbers in f64: what quantising itself costs is tested where weights are packed.
#[test]
fn weights_as_whole_numbers_stream_and_go_through_every_tile() {
    let int8 = Options { int8: true, library: false, ..Options::default() };
    let layered = |mut spec: KernelSpec| {
        for input in &mut spec.inputs {
            if let Source::Param { name, .. } = &mut input.source {
                *name = format!("layers.*.{name}");
            }
        }
        spec
    };
    for form in ["stream-1", "stream-2", "stream-4", "tiles-16x128"] {
        let options = Options { form: Some(form.into()), ..int8.clone() };
        let made = Case::quantised(&layered(residual(Bf16, 2, 170, 37)), 5).check(&options);
        assert_eq!(made.kernels[0].choice.as_ref().map(|choice| choice.form.as_str()), Some(form));
    }
    let spec = layered(residual(Bf16, 150, 106, 140));
    for form in named(&spec, &int8, "tiles-") {
        Case::quantised(&spec, 5).check(&Options { form: Some(form), ..int8.clone() });
    }
    let some = layered(residual(Bf16, 20, 330, 70));
    for form in named(&some, &int8, "deep-") {
        Case::quantised(&some, 5).check(&Options { form: Some(form), ..int8.clone() });
    }
    Case::quantised(&layered(qkv(Bf16, (2, 20, 72), (4, 2, 16), 16, Pairing::Half, 0)), 5).check(&int8);
    Case::quantised(&layered(swiglu(Bf16, 1, 200, 86, true)), 5).check(&int8);
    let refused = lower_kernel(&layered(residual(F32, 2, 64, 32)), &int8).map(drop);
    assert!(refused.is_err_and(|error| error.to_string().contains("int8")));
}

#[test]
fn a_measured_form_is_taken_and_said_so() {
    let spec = residual(Bf16, 150, 106, 140);
    let choice = |options: &Options| match lower_kernel(&spec, options) {
        Ok(Choice::Generated(generated)) => generated.kernels[0].choice.clone().expect("a choice"),
        _ => panic!("a generated kernel"),
    };
    let rule = choice(&Options::default());
    assert_eq!(rule.by, ChosenBy::Rule);
    let measured = [(rule.product.clone(), "tiles-64x64".to_string())].into();
    let found = choice(&Options { measured, ..Options::default() });
    assert_eq!((found.form.as_str(), found.by), ("tiles-64x64", ChosenBy::Measured));
    // A form that this product cannot have is passed over.
    let measured = [(rule.product.clone(), "stream-4".to_string())].into();
    assert_eq!(choice(&Options { measured, ..Options::default() }), rule);
}

/// The sizes of the models that are told to work: widths of 10922 and 32032, sequences of 1, 17 and 2047.
#[test]
fn products_at_odd_sizes() {
    for (dtype, rows) in [(Bf16, 1), (Bf16, 17), (F32, 1)] {
        Case::new(&residual(dtype, rows, 10922, 24), 5).check(&Options::default());
    }
    Case::new(&residual(Bf16, 1, 24, 32032), 5).check(&Options::default());
    Case::new(&residual(Bf16, 2047, 10, 20), 5).check(&Options::default());
    Case::new(&swiglu(Bf16, 17, 16, 10922, false), 5).check(&Options::default());
}

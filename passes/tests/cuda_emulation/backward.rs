//! Kernels of a backward pass compute the derivatives.
use crate::harness::Case;
use crate::region::Region;
use lapidary_passes::cuda::spec::*;
use lapidary_passes::cuda::{Choice, Options, forms, lower_kernel};
use lapidary_runtime_gpu::program::{ChosenBy, Dtype};

fn no_library() -> Options {
    Options { library: false, ..Options::default() }
}
/// So few processors that products take the large tile.
fn large() -> Options {
    Options { library: false, processors: 1, ..Options::default() }
}

fn one(
    name: &str,
    (anchor, dtype): (Anchor, Dtype),
    op: Backward,
    operands: &[&[u64]],
    result: &[u64],
    gradient: bool,
) -> KernelSpec {
    let mut region = Region::new(name, anchor, dtype);
    let labels = |i: usize| match op {
        Backward::CrossEntropy | Backward::CrossEntropyDx => i == 1,
        Backward::EmbedDw { .. } => i == 0,
        _ => false,
    };
    let values: Vec<ValueId> = operands
        .iter()
        .enumerate()
        .map(|(i, shape)| if labels(i) { region.ids(shape) } else { region.input(shape) })
        .collect();
    let mut out = region.shaped(KernelOp::Backward(op), &values, result);
    if gradient {
        let op = Backward::Gradient { param: "w".into() };
        out = region.shaped(KernelOp::Backward(op), &[out], result);
    }
    region.finish(&[out])
}

fn check(spec: &KernelSpec, options: &Options) {
    Case::new(spec, 7).check(options);
}

const BF16: (Anchor, Dtype) = (Anchor::Row, Dtype::Bf16);
const F32: (Anchor, Dtype) = (Anchor::Row, Dtype::F32);

#[test]
fn activations_and_norms() {
    for (i, f) in [
        ActivationFn::Silu,
        ActivationFn::Gelu,
        ActivationFn::GeluTanh,
        ActivationFn::Relu,
        ActivationFn::Relu2,
    ]
    .into_iter()
    .enumerate()
    {
        let shape: &[u64] = &[2, 9, 43];
        let dtype = if i % 2 == 0 { Dtype::F32 } else { Dtype::Bf16 };
        let op = Backward::ActivationDx(f);
        check(&one("slope", (Anchor::Elementwise, dtype), op, &[shape, shape], shape, false), &no_library());
    }
    for (kind, form, d) in
        [(NormKind::Rms, BF16, 43), (NormKind::Layer, F32, 300), (NormKind::Layer, BF16, 64)]
    {
        let shape: &[u64] = &[3, 5, d];
        let mut region = Region::new("norm_dx", form.0, form.1);
        let (x, dy, r) = (region.input(shape), region.input(shape), region.input(shape));
        let w = region.param("norm.weight", &[d]);
        let dx = region.op(KernelOp::Backward(Backward::NormDx { kind, eps: 1e-5 }), &[x, w, dy]);
        let sum = region.op(KernelOp::Add, &[dx, r]);
        check(&region.finish(&[sum]), &no_library());
        let op = Backward::NormDw { kind, eps: 1e-5 };
        check(&one("norm_dw", form, op, &[&[40, 5, d], &[40, 5, d]], &[d], true), &no_library());
    }
    check(&one("db", BF16, Backward::ColumnSum, &[&[70, 3, 43]], &[43], true), &no_library());
    check(&one("db", F32, Backward::ColumnSum, &[&[7, 40]], &[40], false), &no_library());
}

#[test]
fn rotations_back() {
    for (pairing, rot_dims) in [(Pairing::Half, 16), (Pairing::Half, 8), (Pairing::Interleaved, 8)] {
        let rope =
            Rope { head_dim: 16, rot_dims, pairing, theta: 1e4, offset: 0, scaling: RopeScaling::None };
        let shape: &[u64] = &[1, 5, 32];
        let form = (Anchor::Elementwise, Dtype::F32);
        check(&one("rope_dx", form, Backward::RopeDx(rope), &[shape], shape, false), &no_library());
    }
}

#[test]
fn losses() {
    for (form, rows, vocab) in
        [(BF16, 9, 203), (F32, 9, 1000), (BF16, 1, 10922), (F32, 1, 32032), (BF16, 17, 5)]
    {
        let (logits, labels): (&[u64], &[u64]) = (&[2, rows, vocab], &[2, rows]);
        check(&one("loss", form, Backward::CrossEntropy, &[logits, labels], &[1], false), &no_library());
        check(
            &one("loss_dx", form, Backward::CrossEntropyDx, &[logits, labels], logits, false),
            &no_library(),
        );
    }
}

#[test]
fn tables() {
    let dy: &[u64] = &[3, 11, 43];
    check(
        &one("embed_dw", BF16, Backward::EmbedDw { first: 0 }, &[&[3, 11], dy], &[9, 43], true),
        &no_library(),
    );
    check(
        &one("embed_dw", F32, Backward::EmbedDw { first: 0 }, &[&[3, 11], dy], &[9, 43], false),
        &no_library(),
    );
    // Ids from 0 to 8, of which the rank has the rows from 4 on.
    check(
        &one("embed_dw", F32, Backward::EmbedDw { first: 4 }, &[&[3, 11], dy], &[9, 43], true),
        &no_library(),
    );
    let op = Backward::PositionDw { offset: 0 };
    check(&one("position_dw", BF16, op.clone(), &[dy], &[13, 43], true), &no_library());
    check(&one("position_dw", F32, op, &[dy], &[13, 43], false), &no_library());
}

#[test]
fn products_by_weights() {
    for (dtype, n, k, options) in [
        (Dtype::Bf16, 72, 136, no_library()),
        (Dtype::Bf16, 43, 50, no_library()),
        (Dtype::Bf16, 150, 200, large()),
        (Dtype::F32, 43, 70, no_library()),
    ] {
        let (dy, x): (&[u64], &[u64]) = (&[2, 35, n], &[2, 35, k]);
        let mut region = Region::new("dx", Anchor::Matmul, dtype);
        let (dy_in, gate) = (region.input(dy), region.input(x));
        let w = region.param("w", &[n, k]);
        let dx = region.shaped(KernelOp::Backward(Backward::LinearDx), &[dy_in, w], x);
        let slope = region.op(KernelOp::Backward(Backward::ActivationDx(ActivationFn::Silu)), &[gate, dx]);
        check(&region.finish(&[dx, slope]), &options);
        let form = (Anchor::Matmul, dtype);
        check(&one("dw", form, Backward::LinearDw, &[dy, x], &[n, k], true), &options);
        check(&one("dw", form, Backward::LinearDw, &[dy, x], &[n, k], false), &options);
    }
}

/// Every form of a product by weights, dX with a tail and dW into a gradient: tiles, parts of the depth, Hopper's.
#[test]
fn products_by_weights_in_every_form() {
    let hopper = Options { hopper: true, processors: 2, ..no_library() };
    let (dy, x): (&[u64], &[u64]) = (&[1, 517, 72], &[1, 517, 136]);
    let mut region = Region::new("dx", Anchor::Matmul, Dtype::Bf16);
    let (short, gate) = (&[1, 150, 1030], &[1, 150, 76]);
    let (dy_in, gate_in) = (region.input(short), region.input(gate));
    let w = region.param("w", &[1030, 76]);
    let dx = region.shaped(KernelOp::Backward(Backward::LinearDx), &[dy_in, w], gate);
    let slope = region.op(KernelOp::Backward(Backward::ActivationDx(ActivationFn::Silu)), &[gate_in, dx]);
    let dx = region.finish(&[slope]);
    let dw = one("dw", (Anchor::Matmul, Dtype::Bf16), Backward::LinearDw, &[dy, x], &[72, 136], true);
    for (spec, splits) in [(dx, 2), (dw, 1)] {
        let names = forms(&spec, &hopper).unwrap_or_else(|error| panic!("{error}"));
        let count = |prefix: &str| names.iter().filter(|name| name.starts_with(prefix)).count();
        assert_eq!((count("tiles-"), count("split-"), count("hopper-")), (3, splits, 3), "{names:?}");
        for name in names.into_iter().filter(|name| name != "library") {
            let made = Case::new(&spec, 7).check(&Options { form: Some(name.clone()), ..hopper.clone() });
            let choice = made.kernels[0].choice.clone().expect("a choice");
            assert_eq!((choice.form, choice.by), (name, ChosenBy::Asked));
        }
    }
}

/// The library stays the rule where it is allowed, a measured form is taken instead of it, and both are said.
#[test]
fn a_measured_form_of_a_backward_product_is_taken() {
    let (dy, x): (&[u64], &[u64]) = (&[1, 300, 64], &[1, 300, 64]);
    let dw = one("dw", (Anchor::Matmul, Dtype::Bf16), Backward::LinearDw, &[dy, x], &[64, 64], true);
    let chosen = |options: &Options| match lower_kernel(&dw, options) {
        Ok(Choice::Library(product)) => product.choice.clone().expect("a choice"),
        Ok(Choice::Generated(generated)) => generated.kernels[0].choice.clone().expect("a choice"),
        Err(error) => panic!("{error}"),
    };
    let rule = chosen(&Options::default());
    assert_eq!((rule.form.as_str(), rule.by), ("library", ChosenBy::Rule));
    let measured = [(rule.product, "tiles-64x64".to_string())].into();
    let found = chosen(&Options { measured, ..Options::default() });
    assert_eq!((found.form.as_str(), found.by), ("tiles-64x64", ChosenBy::Measured));
}

#[test]
fn products_of_attention_one_by_one() {
    for (dtype, d, heads, kv_heads) in
        [(Dtype::Bf16, 16, 4, 2), (Dtype::Bf16, 5, 3, 3), (Dtype::F32, 8, 4, 1)]
    {
        let (b, s) = (2, 37);
        let (q, k, p) = ([b, s, heads * d], [b, s, kv_heads * d], [b, heads, s, s]);
        let mut scores = Region::new("scores", Anchor::Matmul, dtype);
        let (x, y) = (scores.input(&q), scores.input(&k));
        let product = scores.op(KernelOp::Scores { heads, kv_heads }, &[x, y]);
        let scaled = scores.op(KernelOp::Scale { by: 0.3 }, &[product]);
        let mask = Mask { causal: true, window: 5, alibi: true, alibi_scaling: 1.0, heads: None, offset: 0 };
        let masked = scores.op(KernelOp::Mask(mask.clone()), &[scaled]);
        check(&scores.finish(&[masked]), &no_library());
        let mut values = Region::new("values", Anchor::Matmul, dtype);
        let (x, y) = (values.input(&p), values.input(&k));
        let product = values.op(KernelOp::Values { heads, kv_heads }, &[x, y]);
        check(&values.finish(&[product]), &no_library());
        let op = Backward::ValuesDv { heads, kv_heads };
        check(&one("dv", (Anchor::Matmul, dtype), op, &[&p, &q], &k, false), &no_library());
        let mut softmax = Region::new("softmax_dx", Anchor::Row, dtype);
        let (x, y) = (softmax.input(&p), softmax.input(&p));
        let dx = softmax.op(KernelOp::Backward(Backward::SoftmaxDx), &[x, y]);
        let masked = softmax.op(KernelOp::Backward(Backward::MaskDx(mask)), &[dx]);
        check(&softmax.finish(&[masked]), &no_library());
    }
}

/// The region `attention.backward`, as fusion makes it.
pub fn attention(name: &str, dtype: Dtype, [b, s, d, heads, kv_heads]: [u64; 5], mask: Mask) -> KernelSpec {
    let (q, k, p) = ([b, s, heads * d], [b, s, kv_heads * d], [b, heads, s, s]);
    let mut region = Region::new(name, Anchor::Attention, dtype);
    let [q_in, dy] = [0; 2].map(|_| region.input(&q));
    let [k_in, v_in] = [0; 2].map(|_| region.input(&k));
    let by = (d as f64).sqrt().recip();
    let back = |op: Backward| KernelOp::Backward(op);
    let scores = region.op(KernelOp::Scores { heads, kv_heads }, &[q_in, k_in]);
    let scaled = region.op(KernelOp::Scale { by }, &[scores]);
    let masked = region.op(KernelOp::Mask(mask.clone()), &[scaled]);
    let weights = region.op(KernelOp::Softmax, &[masked]);
    let dp = region.op(KernelOp::Scores { heads, kv_heads }, &[dy, v_in]);
    let dv = region.shaped(back(Backward::ValuesDv { heads, kv_heads }), &[weights, dy], &k);
    let ds = region.shaped(back(Backward::SoftmaxDx), &[weights, dp], &p);
    let hidden = region.op(back(Backward::MaskDx(Mask { alibi: false, ..mask })), &[ds]);
    let last = region.op(KernelOp::Scale { by }, &[hidden]);
    let dq = region.op(KernelOp::Values { heads, kv_heads }, &[last, k_in]);
    let dk = region.shaped(back(Backward::ValuesDv { heads, kv_heads }), &[last, q_in], &k);
    region.finish(&[dv, dq, dk])
}

/// The same where the forward pass kept its result and the log of its sums.
fn attention_with_sums([b, s, d, heads, kv_heads]: [u64; 5], mask: Mask) -> KernelSpec {
    let (q, k, p, row) = ([b, s, heads * d], [b, s, kv_heads * d], [b, heads, s, s], [b, heads, s]);
    let mut region = Region::new("attention_backward", Anchor::Attention, Dtype::Bf16);
    let [q_in, dy, y] = [0; 3].map(|_| region.input(&q));
    let [k_in, v_in] = [0; 2].map(|_| region.input(&k));
    let log_sums = region.given(Dtype::F32, &row);
    let by = (d as f64).sqrt().recip();
    let back = |op: Backward| KernelOp::Backward(op);
    let products = region.shaped(back(Backward::RowProducts { heads }), &[dy, y], &row);
    let scores = region.op(KernelOp::Scores { heads, kv_heads }, &[q_in, k_in]);
    let scaled = region.op(KernelOp::Scale { by }, &[scores]);
    let masked = region.op(KernelOp::Mask(mask.clone()), &[scaled]);
    let weights = region.shaped(back(Backward::SoftmaxOf), &[masked, log_sums], &p);
    let dp = region.op(KernelOp::Scores { heads, kv_heads }, &[dy, v_in]);
    let dv = region.shaped(back(Backward::ValuesDv { heads, kv_heads }), &[weights, dy], &k);
    let ds = region.shaped(back(Backward::SoftmaxDx), &[weights, dp, products], &p);
    let hidden = region.op(back(Backward::MaskDx(Mask { alibi: false, ..mask })), &[ds]);
    let last = region.op(KernelOp::Scale { by }, &[hidden]);
    let dq = region.op(KernelOp::Values { heads, kv_heads }, &[last, k_in]);
    let dk = region.shaped(back(Backward::ValuesDv { heads, kv_heads }), &[last, q_in], &k);
    region.finish(&[dv, dq, dk])
}

#[test]
fn attention_from_what_the_forward_pass_kept() {
    let plain = Mask { causal: true, window: 0, alibi: false, alibi_scaling: 1.0, heads: None, offset: 0 };
    let all = Mask { causal: false, ..plain.clone() };
    for (sizes, mask) in [
        ([1, 129, 24, 4, 2], Mask { window: 7, ..plain.clone() }),
        ([1, 300, 8, 1, 1], Mask { window: 150, ..plain.clone() }),
        ([1, 65, 128, 1, 1], Mask { alibi: true, ..plain.clone() }),
        ([1, 30, 104, 2, 1], plain),
        ([2, 130, 16, 2, 1], all.clone()),
        ([1, 270, 8, 1, 1], Mask { window: 100, ..all }),
    ] {
        let made = Case::new(&attention_with_sums(sizes, mask), 7).check(&no_library());
        assert_eq!(made.kernels.len(), 2);
    }
}

#[test]
fn attention_in_blocks_and_query_by_query() {
    let plain = Mask { causal: true, window: 0, alibi: false, alibi_scaling: 1.0, heads: None, offset: 0 };
    let cases = [
        (Dtype::Bf16, [1, 70, 16, 2, 2], plain.clone()),
        (Dtype::Bf16, [2, 33, 24, 4, 2], Mask { window: 7, ..plain.clone() }),
        (Dtype::Bf16, [1, 80, 144, 1, 1], Mask { alibi: true, ..plain.clone() }),
        (Dtype::Bf16, [1, 20, 16, 2, 1], Mask { causal: false, ..plain.clone() }),
        (Dtype::Bf16, [1, 9, 5, 2, 1], plain.clone()),
        (Dtype::F32, [2, 21, 8, 4, 2], Mask { window: 6, alibi: true, ..plain }),
    ];
    for (dtype, sizes, mask) in cases {
        check(&attention("attention_backward", dtype, sizes, mask), &no_library());
    }
}

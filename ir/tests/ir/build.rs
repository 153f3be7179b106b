//! Handles and builders: walking, rewriting, erasing.

use crate::{in_function, parse};
use lapidary_ir::{At, IrContext, IrError, Value, View, nn};
use lapidary_models::op::ScaleRole;
use lapidary_models::spec::{NormKind, Pairing, RopeScaling};

const X: &str = "tensor<2x8x64xf32>";

fn argument<'c>(module: &lapidary_ir::Module<'c>, index: usize) -> Value<'c> {
    let body = module.functions()[0].region_block(0).expect("a body");
    body.argument(index).expect("an argument")
}

#[test]
fn a_rewrite_reads_like_a_sentence() {
    let cx = IrContext::new();
    let text = in_function(&format!(
        "%0 = nn.add %x, %x : {X}\n%1 = nn.norm rms %0, %n eps = 1.0e-6 : ({X}, tensor<64xf32>) -> {X}\n%2 = nn.softmax %1 : {X}"
    ));
    let module = parse(&cx, &text);
    for norm in module.op().find::<nn::Norm>() {
        let add: nn::Add = norm.x().defined_by().expect("a sum");
        assert_eq!((norm.kind(), norm.eps(), norm.bias()), (NormKind::Rms, 1e-6, None));
        let at = At::before(norm.op()).named("mine");
        let scaled = nn::scale(at, add.a(), 2.0, ScaleRole::Residual).expect("a scale");
        let y =
            nn::norm(at, scaled, norm.weight(), Some(norm.weight()), NormKind::Layer, 1e-5).expect("a norm");
        assert_eq!(y.defining_op().expect("a norm").place().node.as_deref(), Some("mine"));
        norm.op().replace_with(&[y]).expect("replaced");
        add.op().erase().expect("nobody reads the sum");
    }
    module.verify().expect("still right");
    let names: Vec<&str> = module.op().walk().into_iter().map(|op| op.name()).collect();
    assert_eq!(names, ["builtin.module", "func.func", "nn.scale", "nn.norm", "nn.softmax", "func.return"]);
}

#[test]
fn shapes_and_uses() {
    let cx = IrContext::new();
    let module = parse(&cx, &in_function(&format!("%0 = nn.add %x, %x : {X}\n%1 = nn.mul %x, %0 : {X}")));
    let x = argument(&module, 2);
    assert_eq!((x.shape(), x.rows(), x.width()), (vec![2, 8, 64], 16, 64));
    assert_eq!(x.tensor().map(|ty| ty.to_string()).as_deref(), Some(X));
    assert_eq!(argument(&module, 0).tensor(), None);
    assert_eq!(x.block_argument().map(|(_, index)| index), Some(2));
    assert_eq!(
        x.uses().iter().map(|usage| (usage.op.name(), usage.index)).collect::<Vec<_>>(),
        [("nn.add", 0), ("nn.add", 1), ("nn.mul", 0)]
    );
    assert_eq!(x.users().len(), 2);
    let add = x.users()[0];
    assert!(add.is_before(x.users()[1]) && !x.users()[1].is_before(add));
    assert_eq!(add.result(0).and_then(Value::only_user).map(|op| op.name()), Some("nn.mul"));
}

#[test]
fn what_is_read_is_not_erased() {
    let cx = IrContext::new();
    let module = parse(&cx, &in_function(&format!("%0 = nn.softmax %x : {X}\n%1 = nn.softmax %0 : {X}")));
    let first = module.op().find::<nn::Softmax>()[0];
    assert!(matches!(first.op().erase(), Err(IrError::StillRead { .. })));
    assert!(matches!(first.op().replace_with(&[]), Err(IrError::Missing { .. })));
    module.verify().expect("nothing changed");
}

#[test]
fn a_builder_refuses_and_leaves_nothing() {
    let cx = IrContext::new();
    let module = parse(&cx, &in_function(""));
    let body = module.functions()[0].region_block(0).expect("a body");
    let at = At::before(body.first().expect("the return")).named("layers.*.attn.q");
    let before = module.to_string();
    let error = nn::linear(at, argument(&module, 2), argument(&module, 6)).expect_err("K differs");
    assert!(error.to_string().starts_with("create nn.linear:\nlayers.*.attn.q: error: "), "{error}");
    assert!(error.to_string().contains("contraction mismatch: x K = 64 but weight K = 9"), "{error}");
    let error = nn::scale(at, argument(&module, 2), f64::NAN, ScaleRole::Output).expect_err("not a number");
    assert!(error.to_string().contains("factor must be finite"), "{error}");
    assert_eq!(module.to_string(), before);
    assert!(cx.take_diagnostics().is_empty());
}

#[test]
fn a_fused_region_is_filled_and_read() {
    let cx = IrContext::new();
    let module = parse(
        &cx,
        &in_function(&format!(
            "%0 = nn.add %x, %x : {X}\n%1 = nn.softmax %0 : {X}\n%2 = nn.mul %1, %1 : {X}"
        )),
    );
    let (add, softmax) = (module.op().find::<nn::Add>()[0], module.op().find::<nn::Softmax>()[0]);
    let parameters = nn::FusedParameters {
        name: "soft".into(),
        anchor: nn::Anchor::Row,
        saved_bytes: 4096,
        reason: "the sum stays in registers".into(),
    };
    let (fused, body) =
        nn::fused(At::after(softmax.op()), &parameters, &[add.a()], &[softmax.result().ty()]).expect("made");
    let inner = body.argument(0).expect("one input");
    let sum = At::end_of(body).copy(add.op(), &[inner, inner]);
    let soft = At::end_of(body).copy(softmax.op(), &[sum.result(0).expect("a sum")]);
    nn::yield_values(At::end_of(body), &soft.results()).expect("a terminator");
    softmax.op().replace_with(&[fused.result()]).expect("replaced");
    add.op().erase().expect("unread");
    module.verify().expect("right");
    assert_eq!(fused.parameters(), parameters);
    assert_eq!(fused.ops().len(), 2);
    assert_eq!(fused.outer(inner), Some(argument(&module, 2)));
    assert_eq!(fused.yielded(), soft.results());
    let kinds: Vec<nn::Any> = fused.ops().into_iter().filter_map(nn::Any::of).collect();
    assert!(matches!(kinds.as_slice(), [nn::Any::Add(_), nn::Any::Softmax(_)]));
}

#[test]
fn rope_and_mask_keep_their_parameters() {
    let cx = IrContext::new();
    let module = parse(&cx, &in_function(""));
    let at =
        At::before(module.functions()[0].region_block(0).and_then(|body| body.first()).expect("the return"));
    let rope = nn::RopeParameters {
        head_dim: 16,
        rot_dims: 4,
        pairing: Pairing::Interleaved,
        theta: 5e5,
        scaling: RopeScaling::Llama3 { factor: 8.0, low_freq: 1.0, high_freq: 4.0, original_max: 8192 },
        offset: 3,
    };
    let rotated = nn::rope(at, argument(&module, 2), &rope).expect("a rotation");
    assert_eq!(rotated.defined_by::<nn::Rope>().map(|view| view.parameters()), Some(rope));
    let mask = nn::MaskParameters { causal: true, window: 4, alibi: Some(0.5), heads: None, offset: 1 };
    let masked = nn::mask(at, argument(&module, 11), &mask).expect("a mask");
    assert_eq!(masked.defined_by::<nn::Mask>().map(|view| view.parameters()), Some(mask));
}

#[test]
fn wafer_and_cuda_programs_are_built() {
    use lapidary_ir::{Module, New, cuda, wafer};
    use lapidary_models::{DType, TensorType};
    let cx = IrContext::new();
    let module = Module::new(&cx);
    let at = At::end_of(module.body());
    let tile = wafer::Tile::new(16, 64, DType::F32, 16, 8);
    let placement =
        wafer::Placement { rect: wafer::Rect { x: 0, y: 2, w: 8, h: 16 }, sram_bytes: 0, colours: vec![] };
    let ids = cx.tensor(&TensorType::new(DType::I32, [2, 8]));
    let (_, body) = wafer::program(at, "p", (8, 18), &[ids]).expect("a program");
    let inside = At::end_of(body);
    let table = wafer::weight(
        inside,
        "embed.weight",
        wafer::Source::Streamed,
        1.0,
        cx.tensor(&TensorType::new(DType::F32, [128, 64])),
    )
    .expect("a weight");
    let ty = tile.ty(&cx).expect("a tile");
    let new = New::of("wafer.embed", &[ty]).reads(&[body.arguments()[0], table]);
    let embed = inside.create(&wafer::placed(&cx, new, &placement).expect("placed")).expect("an embedding");
    inside.create(&New::of("wafer.return", &[]).reads(&embed.results())).expect("an end");
    let routed = wafer::Placement { sram_bytes: 4096, colours: vec![1, 5], ..placement };
    routed.store(embed);
    assert_eq!(wafer::Placement::of(embed), Some(routed));
    assert_eq!(wafer::Tile::of(ty), Some(tile));
    assert_eq!(tile.block_bytes(), 8 * 4);
    let heads = wafer::Tile { tokens: 32, blocks: 4, inner: wafer::Inner::Tokens, ..tile };
    assert_eq!(heads.ty(&cx).ok().and_then(wafer::Tile::of), Some(heads));
    assert_eq!(heads.block_bytes(), 16 * 4);

    let (_, body) = cuda::program(at, "g", "sm_80").expect("a program");
    let rows = TensorType::new(DType::F32, [4, 8]);
    let form = cuda::Kernel {
        name: "k".into(),
        anchor: nn::Anchor::Row,
        library: false,
        variant: "row".into(),
        params: vec![("threads".into(), cx.i64(128))],
        reason: "short rows".into(),
    };
    let (_, inner) = cuda::kernel(At::end_of(body), &form, &[cx.tensor(&rows)]).expect("a kernel");
    let soft = nn::softmax(At::end_of(inner), inner.arguments()[0]).expect("softmax");
    nn::yield_values(At::end_of(inner), &[soft]).expect("a terminator");
    let buffer = cuda::Buffer {
        name: "x".into(),
        kind: cuda::BufferKind::Cache,
        bytes: 512,
        layers: Some(4),
        ty: rows,
    };
    let memory = cuda::buffer(At::end_of(body), &buffer).expect("a buffer");
    assert_eq!(memory.defining_op().and_then(cuda::BufferKind::of), Some(cuda::BufferKind::Cache));
    let (_, round) = cuda::repeat(At::end_of(body), 4).expect("a repeat");
    let extent = cuda::Extent { grid: [4, 1, 1], block: [128, 1, 1], shared_bytes: 0 };
    cuda::launch(At::end_of(round), "k", Some(extent), &[memory], &[memory]).expect("a launch");
    module.verify().unwrap_or_else(|error| panic!("{error}\n{module}"));
    assert_eq!(parse(&cx, &module.to_string()).to_string(), module.to_string());
}

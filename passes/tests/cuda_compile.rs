//! Kernels of the built-in models compile for sm_80 without spills, and use the instructions they were written for.
//!
//! Needs NVRTC and nvdisasm in the project's `.deps/cuda` (`make setup`); without them the tests say so and pass.
#[path = "cuda_compile/machine_code.rs"]
mod machine_code;
#[path = "cuda_emulation/models.rs"]
mod models;
#[path = "cuda_emulation/region.rs"]
mod region;
#[path = "cuda_compile/training.rs"]
mod training;

use lapidary_ir::{IrContext, import::import};
use lapidary_models::spec::DTypes;
use lapidary_models::{DType, Dims, Graph, Mode, ModelSpec, builtin, builtin_names};
use lapidary_passes::cuda::spec::*;
use lapidary_passes::cuda::{Choice, Lowered, ModuleSpec, Node, Options, Sampler, lower, lower_kernel};
use lapidary_passes::lower_to_cuda::emit_gpu;
use lapidary_passes::pipeline::{Fusion, Goal, Mup, pipeline};
use lapidary_passes::{Watch, run};
use lapidary_runtime_gpu::compile::{
    CompileOptions, Compiled, Nvrtc, Source, apply, compile_all, library_folder,
};
use lapidary_runtime_gpu::program::{Dtype, KernelKind};
use machine_code::instructions;
use models::{Model, Run};
use region::Region;
use std::path::PathBuf;

const PREFILL: Run = Run { batch: 8, new: 2048, cached: 0 };
const DECODE: Run = Run { batch: 1, new: 1, cached: 2047 };

fn wheels() -> Option<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().map(|folder| folder.join(".deps/cuda")).find(|folder| folder.is_dir())
}

/// Earlier results count where text, options and compiler are the same: they are its name.
fn options(arch: &str) -> CompileOptions {
    let cache = Some(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("kernels"));
    CompileOptions { jobs: 2, cache, ..CompileOptions::new(arch) }
}

/// Compiles all kernels; none where NVRTC is not there.
fn compiled(lowered: &mut Lowered) -> Option<Vec<(String, Compiled)>> {
    let nvrtc = nvrtc()?;
    let source =
        |s: &lapidary_passes::cuda::KernelSource| Source { name: s.name.clone(), text: s.text.clone() };
    let sources: Vec<Source> = lowered.sources.iter().map(source).collect();
    let results = compile_all(&nvrtc, &sources, &options(&lowered.program.arch));
    let results = sources.iter().zip(results).map(|(source, result)| {
        let result = result.unwrap_or_else(|e| panic!("{e}"));
        apply(&mut lowered.program, &source.name, &result.resources);
        (source.name.clone(), result)
    });
    Some(results.collect())
}

/// The instructions of every kernel.
fn sass(arch: &str, results: &[(String, Compiled)]) -> Vec<String> {
    instructions(&wheels().expect("the wheels"), arch, results)
}

fn bf16(name: &str) -> ModelSpec {
    let spec = builtin(name).unwrap();
    ModelSpec { dtype: DTypes { params: DType::Bf16, compute: DType::Bf16, ..spec.dtype }, ..spec }
}

/// A built-in model in bf16, fused, as `compile` makes it.
fn built_in(name: &str, mode: Mode, dims: Dims) -> Lowered {
    let cx = IrContext::new();
    let mut module = import(&cx, &Graph::build(&bf16(name), mode, dims).unwrap()).unwrap();
    let passes = pipeline(Goal::Gpu, Mup::Fold, &Fusion::On).unwrap();
    run(&mut module, &passes, Watch::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
    emit_gpu(&module, "sm_80", &Options::default()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Compiles built-in models at their own sizes, eight prompts as long as they go, and tokens behind as much: every kernel is
/// held to the rules and against the file of the model's name.
fn check(names: &[&str]) {
    for name in names {
        let spec = builtin(name).unwrap();
        let mut runs = vec![
            ("prefill", Mode::Prefill, Dims { batch: 8, seq: spec.max_seq, cached: 0 }),
            ("decode", Mode::Decode, Dims { batch: 1, seq: 1, cached: spec.max_seq - 1 }),
        ];
        if *name == "llama-3-8b" {
            runs.push(("decode of 64", Mode::Decode, Dims { batch: 64, seq: 1, cached: 1000 }));
        }
        let mut found = String::new();
        for (what, mode, dims) in runs {
            let mut lowered = built_in(name, mode, dims);
            let Some(results) = compiled(&mut lowered) else { return };
            let texts = sass("sm_80", &results);
            found.push_str(&format!("{what}\n"));
            for ((kernel, result), text) in results.iter().zip(&texts) {
                found.push_str(&told(kernel, result, text));
                let r = &result.resources;
                assert_eq!(r.spill_stores + r.spill_loads, 0, "{name}: {kernel} spills");
                assert!(r.registers <= 255);
                uses_its_instructions(&lowered, kernel, text, spec.d_model);
            }
            let generated = lowered.program.kernels.iter().filter(|k| k.kind == KernelKind::Generated);
            assert!(generated.into_iter().all(|k| k.spill_bytes == Some(0) && k.registers.is_some()));
            lowered.program.check().expect("the program holds with its registers known");
        }
        golden(name, &found);
    }
}

/// Instructions whose presence says how a kernel works: tensor cores, copies in the background, accesses of 16 bytes.
const TOLD: [&str; 7] = ["HMMA", "LDGSTS", "LDSM", "LDG.E.128", "STG.E.128", "HGMMA", "UTMALDG"];

/// Registers, shared memory, spills and instructions of a kernel in a line.
fn told(kernel: &str, result: &Compiled, text: &str) -> String {
    let r = &result.resources;
    let there = |word: &&str| text.contains(&format!("{word} ")) || text.contains(&format!("{word}."));
    let has: Vec<&str> = TOLD.into_iter().filter(there).collect();
    let spilled = r.spill_stores + r.spill_loads;
    format!(
        "  {kernel}: {} registers, {} shared, {spilled} spilled, {}\n",
        r.registers,
        r.shared_bytes,
        has.join(" ")
    )
}

/// Holds what was found against the file of that name: what the pinned NVRTC makes of a text is always the same. BLESS=1
/// writes it.
fn golden(name: &str, found: &str) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/kernels").join(format!("{name}.txt"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        std::fs::write(&file, found).expect("a file");
    }
    let wanted = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(found, wanted, "{}: BLESS=1 writes it", file.display());
}

fn uses_its_instructions(lowered: &Lowered, name: &str, text: &str, width: u64) {
    let kernel = lowered.program.kernel(name).expect("a kernel");
    let tensor = kernel.shared_bytes > 20_000;
    match kernel.anchor.as_str() {
        "matmul" | "attention" if tensor => {
            assert!(
                text.contains("HMMA.16816.F32.BF16") && text.contains("LDGSTS") && text.contains("LDSM"),
                "{name}"
            );
        }
        "row" | "gather" if width.is_multiple_of(8) => {
            assert!(text.contains("LDG.E.128") && text.contains("STG.E.128"), "{name}")
        }
        "matmul" => assert!(text.contains("LDG.E.128"), "{name}"),
        _ => {}
    }
    for (word, why) in
        [("LDL", "reads local memory"), ("STL", "writes local memory"), ("RET", "calls a subroutine")]
    {
        assert!(!text.contains(word), "{name} {why}");
    }
}

/// Built-in models by test, so that tests share the work.
const SEVENS: [&str; 5] = ["amber", "crystalcoder", "llama-2-7b", "mistral-7b", "llama-3-8b"];
const OTHERS: [&str; 5] = ["btlm-3b-8k", "gpt-j-6b", "jais-13b", "k2-65b", "pythia-6.9b"];
const CEREBRAS: [&str; 7] = [
    "cerebras-gpt-111m",
    "cerebras-gpt-256m",
    "cerebras-gpt-590m",
    "cerebras-gpt-1.3b",
    "cerebras-gpt-2.7b",
    "cerebras-gpt-6.7b",
    "cerebras-gpt-13b",
];
const GPT3: [&str; 8] =
    ["gpt3-125m", "gpt3-350m", "gpt3-760m", "gpt3-1.3b", "gpt3-2.7b", "gpt3-6.7b", "gpt3-13b", "gpt3-175b"];

#[test]
fn every_built_in_model_is_compiled() {
    let mut named: Vec<&str> = [&SEVENS[..], &OTHERS, &CEREBRAS, &GPT3].concat();
    let mut known: Vec<&str> = builtin_names().collect();
    named.sort_unstable();
    known.sort_unstable();
    assert_eq!(named, known);
}

#[test]
fn kernels_of_seven_billion_parameters() {
    check(&SEVENS);
}

#[test]
fn kernels_with_slopes_wide_heads_and_parallel_residuals() {
    check(&OTHERS);
}

#[test]
fn kernels_of_cerebras_gpt() {
    check(&CEREBRAS);
}

#[test]
fn kernels_of_gpt_3() {
    check(&GPT3);
}

fn amber() -> Model {
    Model {
        name: "amber",
        vocab: 32000,
        d: 4096,
        layers: 32,
        heads: 32,
        kv_heads: 32,
        head_dim: 128,
        ff: 11008,
        rope: Some((Pairing::Half, 128)),
        ..Model::tiny()
    }
}

fn crystal() -> Model {
    Model {
        name: "crystal",
        vocab: 32032,
        ff: 10922,
        norm: NormKind::Layer,
        bias: true,
        rope: Some((Pairing::Interleaved, 32)),
        tied: true,
        ..amber()
    }
}

/// The same texts for Hopper, whose assembler schedules otherwise: no spills there either.
#[test]
fn amber_on_hopper_and_the_sampler_on_both() {
    for run in [PREFILL, DECODE] {
        let module = ModuleSpec { arch: "sm_90a".into(), ..amber().module(run, Dtype::Bf16) };
        let options = Options { library: false, processors: 132, ..Options::default() };
        compiles_clean(lower(&module, &options).unwrap_or_else(|e| panic!("{e}")));
    }
    for arch in ["sm_80", "sm_90a"] {
        let sampler = Sampler { batch: 8, vocab: 32000, width: 32000, dtype: Dtype::Bf16, steps: 64 };
        compiles_clean(sampler.lower(arch).unwrap_or_else(|e| panic!("{e}")));
    }
}

/// The heaviest epilogues in every form of Hopper: its copies and products are in the machine code, nothing is spilled, and
/// the compiler takes no product out of its pipeline.
#[test]
fn hopper_copies_and_multiplies_by_its_own_instructions() {
    for form in ["128x256", "128x128", "64x256"] {
        for (model, run) in [(amber(), PREFILL), (crystal(), Run { batch: 3, new: 333, cached: 1000 })] {
            let module = ModuleSpec { arch: "sm_90a".into(), ..model.module(run, Dtype::Bf16) };
            let form = Some(format!("hopper-{form}"));
            let options =
                Options { library: false, processors: 132, form: form.clone(), ..Options::default() };
            let lowered = lower(&module, &options).unwrap_or_else(|e| panic!("{e}"));
            let chosen = |name: &str| {
                let choice = lowered.program.kernel(name).and_then(|kernel| kernel.choice.clone());
                choice.is_some_and(|choice| Some(choice.form) == form)
            };
            let products: Vec<String> =
                lowered.sources.iter().map(|s| s.name.clone()).filter(|name| chosen(name)).collect();
            assert!(products.len() >= 4, "{products:?}");
            works_on_hopper(&compiles_clean(lowered), &products);
        }
    }
}

/// Those of some kernels fetch boxes and multiply by warpgroup, and the assembler takes no product out of its pipeline.
fn works_on_hopper(results: &[(String, Compiled)], names: &[String]) {
    if results.is_empty() {
        return;
    }
    let mut seen = 0;
    for ((name, result), text) in results.iter().zip(sass("sm_90a", results)) {
        if names.contains(name) {
            assert!(text.contains("HGMMA.64x") && text.contains("UTMALDG"), "{name}");
            assert!(!result.log.contains("serialized"), "{name}: {}", result.log);
            seen += 1;
        }
    }
    assert_eq!(seen, names.len(), "{names:?}");
}

/// Attention of every width on Hopper: the same is asked of it.
#[test]
fn attention_on_hopper_copies_and_multiplies_by_its_own_instructions() {
    let mut specs = Vec::new();
    for head_dim in [16, 64, 72, 80, 96, 128, 192, 256] {
        specs.push(attention(&format!("causal_{head_dim}"), head_dim, 32, PREFILL, |_| {}));
        specs.push(attention(&format!("window_{head_dim}"), head_dim, 4, PREFILL, |mask| {
            (mask.window, mask.alibi) = (333, true)
        }));
    }
    hopper_regions(&specs, "hopper");
}

/// Products of a backward pass by Hopper's instructions, dX with a tail and dW into a gradient.
#[test]
fn backward_products_on_hopper_copy_and_multiply_by_its_own_instructions() {
    let specs = [backward("dx", Backward::LinearDx), backward("dw", Backward::LinearDw)];
    for form in ["hopper-128x256", "hopper-128x128", "hopper-64x256"] {
        hopper_regions(&specs, form);
    }
    for form in ["tiles-128x256", "tiles-128x128", "tiles-64x64", "split-2", "split-8"] {
        let options = Options { library: false, form: Some(form.into()), ..Options::default() };
        check_regions(&specs, &options);
    }
}

/// A derivative by what went into a product, with a sum behind it, or by its weight, into a gradient.
fn backward(name: &str, op: Backward) -> KernelSpec {
    let mut region = Region::new(name, Anchor::Matmul, Dtype::Bf16);
    let (dy, x): (&[u64], &[u64]) = (&[2, 2048, 11008], &[2, 2048, 4096]);
    let (dy_in, x_in) = (region.input(dy), region.input(x));
    let out = match op {
        Backward::LinearDx => {
            let w = region.param("w", &[11008, 4096]);
            let dx = region.shaped(KernelOp::Backward(op), &[dy_in, w], x);
            region.op(KernelOp::Add, &[dx, x_in])
        }
        _ => {
            let dw = region.shaped(KernelOp::Backward(op), &[dy_in, x_in], &[11008, 4096]);
            let gradient = KernelOp::Backward(Backward::Gradient { param: "w".into() });
            region.shaped(gradient, &[dw], &[11008, 4096])
        }
    };
    region.finish(&[out])
}

/// Regions in one of Hopper's forms, compiled for it.
fn hopper_regions(specs: &[KernelSpec], form: &str) {
    let Some(nvrtc) = nvrtc() else { return };
    let form = Some(form.to_string());
    let options = Options { library: false, processors: 132, hopper: true, form, ..Options::default() };
    let sources = sources_of(specs, &options);
    let made = compile_all(&nvrtc, &sources, &self::options("sm_90a"));
    let results: Vec<(String, Compiled)> = sources
        .iter()
        .zip(made)
        .map(|(source, result)| (source.name.clone(), result.unwrap_or_else(|e| panic!("{e}"))))
        .collect();
    for (name, result) in &results {
        let r = &result.resources;
        println!("{name:32} {:3} registers", r.registers);
        assert_eq!(r.spill_stores + r.spill_loads + r.stack_bytes, 0, "{name} spills");
    }
    let names: Vec<String> = results.iter().map(|(name, _)| name.clone()).collect();
    works_on_hopper(&results, &names);
}

#[test]
fn weights_as_whole_numbers_in_prefill_and_decode() {
    for run in [PREFILL, DECODE, Run { batch: 64, new: 1, cached: 1000 }] {
        let options = Options { library: false, int8: true, ..Options::default() };
        let lowered = lower(&crystal().module(run, Dtype::Bf16), &options).unwrap_or_else(|e| panic!("{e}"));
        let whole = lowered.program.buffers.iter().filter(|buffer| buffer.dtype == Dtype::I8).count();
        assert_eq!(whole, 4, "qkv, out, gate and up, down");
        compiles_clean(lowered);
    }
}

/// No spills, and a program that still holds once its registers are known.
fn compiles_clean(mut lowered: Lowered) -> Vec<(String, Compiled)> {
    let Some(results) = compiled(&mut lowered) else { return Vec::new() };
    for (name, result) in &results {
        let r = &result.resources;
        println!("{} {name:32} {:3} registers", lowered.program.arch, r.registers);
        assert_eq!(r.spill_stores + r.spill_loads, 0, "{name} spills");
    }
    lowered.program.check().expect("the program holds with its registers known");
    results
}

fn nvrtc() -> Option<Nvrtc> {
    let Some(wheels) = wheels() else {
        eprintln!("skipped: no .deps/cuda; `make setup` fetches NVRTC");
        return None;
    };
    Some(Nvrtc::open(&library_folder(&wheels)).expect("NVRTC opens where its wheel is"))
}

fn sources_of(specs: &[KernelSpec], options: &Options) -> Vec<Source> {
    let mut sources = Vec::new();
    for spec in specs {
        match lower_kernel(spec, options).unwrap_or_else(|e| panic!("{e}")) {
            Choice::Generated(generated) => {
                sources.extend(generated.kernels.into_iter().map(|k| Source { name: k.name, text: k.source }))
            }
            Choice::Library(_) => panic!("{} became a library call", spec.name),
        }
    }
    sources
}

/// Regions, compiled; the widest use of registers is where spills would show.
fn check_regions(specs: &[KernelSpec], options: &Options) {
    let Some(nvrtc) = nvrtc() else { return };
    let sources = sources_of(specs, options);
    for (source, result) in sources.iter().zip(compile_all(&nvrtc, &sources, &self::options("sm_80"))) {
        let r = result.unwrap_or_else(|e| panic!("{e}")).resources;
        println!(
            "{:32} {:3} registers {:4} spilled",
            source.name,
            r.registers,
            r.spill_stores + r.spill_loads
        );
        assert_eq!(r.spill_stores + r.spill_loads + r.stack_bytes, 0, "{} spills", source.name);
    }
}

fn attention(name: &str, head_dim: u64, kv_heads: u64, run: Run, change: impl Fn(&mut Mask)) -> KernelSpec {
    let model = Model { head_dim, heads: 32, kv_heads, d: 32 * head_dim, rope: None, ..amber() };
    let module = model.module(run, Dtype::Bf16);
    let Node::Repeat { body, .. } = &module.body[1] else { panic!("the second node is the repeat") };
    let Node::Kernel { spec, .. } = &body[2] else { panic!("the third node is attention") };
    let mut spec = KernelSpec { name: name.into(), ..spec.clone() };
    for op in &mut spec.ops {
        if let KernelOp::Mask(mask) = &mut op.op {
            change(mask);
        }
    }
    spec
}

#[test]
fn attention_of_every_width_and_mask() {
    let mut specs = Vec::new();
    let behind = Run { batch: 2, new: 500, cached: 1500 };
    for head_dim in [16, 64, 72, 80, 96, 112, 120, 128, 192, 256] {
        specs.push(attention(&format!("causal_{head_dim}"), head_dim, 32, PREFILL, |_| {}));
        specs.push(attention(&format!("all_{head_dim}"), head_dim, 4, behind, |mask| {
            (mask.window, mask.alibi) = (333, true)
        }));
        specs.push(attention(&format!("decode_{head_dim}"), head_dim, 8, DECODE, |mask| {
            (mask.window, mask.alibi) = (333, true)
        }));
    }
    check_regions(&specs, &Options::default());
}

#[test]
fn every_tile_with_the_heaviest_epilogues() {
    for tile in ["128x256", "128x128", "64x128", "64x64", "16x128"] {
        let mut specs = Vec::new();
        for (model, run) in [(amber(), PREFILL), (crystal(), Run { batch: 3, new: 333, cached: 1000 })] {
            let module = model.module(run, Dtype::Bf16);
            let Node::Repeat { body, .. } = &module.body[1] else { panic!("the second node is the repeat") };
            let regions = body.iter().filter_map(|node| match node {
                Node::Kernel { spec, .. } if spec.anchor == Anchor::Matmul => Some(spec.clone()),
                _ => None,
            });
            specs.extend(regions);
        }
        let form = Some(format!("tiles-{tile}"));
        check_regions(&specs, &Options { library: false, form, ..Options::default() });
    }
    for (batch, tiles) in [(64, &["64x64", "64x32"][..]), (32, &["32x32"]), (16, &["16x32"])] {
        for (tile, int8) in tiles.iter().flat_map(|tile| [(tile, false), (tile, true)]) {
            let module = crystal().module(Run { batch, new: 1, cached: 1000 }, Dtype::Bf16);
            let Node::Repeat { body, .. } = &module.body[1] else { panic!("the second node is the repeat") };
            let products = body.iter().filter_map(|node| match node {
                Node::Kernel { spec, .. } if spec.anchor == Anchor::Matmul => Some(spec.clone()),
                _ => None,
            });
            let form = Some(format!("deep-{tile}"));
            let options = Options { library: false, form, int8, ..Options::default() };
            check_regions(&products.collect::<Vec<_>>(), &options);
        }
    }
}

#[test]
fn single_precision_of_a_whole_layer() {
    for run in [Run { batch: 1, new: 100, cached: 0 }, DECODE] {
        let module = crystal().module(run, Dtype::F32);
        let Node::Repeat { body, .. } = &module.body[1] else { panic!("the second node is the repeat") };
        let regions = body.iter().filter_map(|node| match node {
            Node::Kernel { spec, .. } => Some(spec.clone()),
            Node::Repeat { .. } | Node::Talk { .. } => None,
        });
        check_regions(&regions.collect::<Vec<_>>(), &Options { library: false, ..Options::default() });
    }
}

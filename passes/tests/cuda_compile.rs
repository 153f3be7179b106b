//! Kernels of the built-in models compile for sm_80 without spills, and use the instructions they were written for.
//!
//! Needs NVRTC and cuobjdump in the project's `.deps/cuda` (`make setup`); without them the tests say so and pass.
#[path = "cuda_emulation/models.rs"]
mod models;
#[path = "cuda_emulation/region.rs"]
mod region;

use lapidary_ir::{IrContext, import::import};
use lapidary_models::autodiff::{Recompute, differentiate};
use lapidary_models::{Dims, Graph, Mode, builtin};
use lapidary_passes::cuda::spec::*;
use lapidary_passes::cuda::{Choice, Lowered, ModuleSpec, Node, Options, Sampler, lower, lower_kernel};
use lapidary_passes::lower_to_cuda::emit_gpu;
use lapidary_passes::pipeline::{Fusion, Goal, training_text};
use lapidary_passes::{Pipeline, Watch, run};
use lapidary_runtime_gpu::compile::{
    CompileOptions, Compiled, Nvrtc, Source, apply, compile_all, library_folder,
};
use lapidary_runtime_gpu::program::{Dtype, KernelKind};
use models::{Model, Run};
use std::path::PathBuf;
use std::process::Command;

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
    let Some(wheels) = wheels() else {
        eprintln!("skipped: no .deps/cuda; `make setup` fetches NVRTC");
        return None;
    };
    let nvrtc = Nvrtc::open(&library_folder(&wheels)).expect("NVRTC opens where its wheel is");
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

fn sass(compiled: &Compiled) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("k.cubin");
    std::fs::write(&file, &compiled.cubin).expect("a file");
    let tool = wheels().expect("the wheels").join("nvidia/cu13/bin/cuobjdump");
    let out = Command::new(tool).arg("-sass").arg(&file).output().expect("cuobjdump runs");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Compiles a model for prefill and decode and holds every kernel to the rules.
fn check(model: &Model, runs: &[Run]) {
    for &run in runs {
        let mut lowered =
            lower(&model.module(run, Dtype::Bf16), &Options::default()).unwrap_or_else(|e| panic!("{e}"));
        let Some(results) = compiled(&mut lowered) else { return };
        for (name, result) in &results {
            let r = &result.resources;
            println!(
                "{name:32} {:3} registers {:6} shared {:4} stack {} spilled",
                r.registers,
                r.shared_bytes,
                r.stack_bytes,
                r.spill_stores + r.spill_loads
            );
        }
        golden(&format!("{}-{}x{}-{}", model.name, run.batch, run.new, run.cached), &results);
        for (name, result) in &results {
            assert_eq!(result.resources.spill_stores + result.resources.spill_loads, 0, "{name} spills");
            assert!(result.resources.registers <= 255);
            uses_its_instructions(&lowered, name, result, model);
        }
        let generated = lowered.program.kernels.iter().filter(|kernel| kernel.kind == KernelKind::Generated);
        assert!(
            generated.into_iter().all(|kernel| kernel.spill_bytes == Some(0) && kernel.registers.is_some())
        );
        lowered.program.check().expect("the program holds with its registers known");
    }
}

/// Instructions whose presence says how a kernel works: tensor cores, copies in the background, accesses of 16 bytes.
const TOLD: [&str; 7] = ["HMMA", "LDGSTS", "LDSM", "LDG.E.128", "STG.E.128", "HGMMA", "UTMALDG"];

/// Registers, shared memory, spills and instructions of every kernel, held against the file of that name: what the pinned
/// NVRTC makes of a text is always the same. BLESS=1 writes it.
fn golden(name: &str, results: &[(String, Compiled)]) {
    let told = |(kernel, result): &(String, Compiled)| {
        let (r, text) = (&result.resources, sass(result));
        let has: Vec<&str> = TOLD
            .into_iter()
            .filter(|word| text.contains(&format!("{word} ")) || text.contains(&format!("{word}.")))
            .collect();
        let spilled = r.spill_stores + r.spill_loads;
        format!(
            "{kernel}: {} registers, {} shared, {spilled} spilled, {}\n",
            r.registers,
            r.shared_bytes,
            has.join(" ")
        )
    };
    let found: String = results.iter().map(told).collect();
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/kernels").join(format!("{name}.txt"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        std::fs::write(&file, &found).expect("a file");
    }
    let wanted = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(found, wanted, "{}: BLESS=1 writes it", file.display());
}

fn uses_its_instructions(lowered: &Lowered, name: &str, result: &Compiled, model: &Model) {
    let kernel = lowered.program.kernel(name).expect("a kernel");
    let text = sass(result);
    let tensor = kernel.shared_bytes > 20_000;
    match kernel.anchor.as_str() {
        "matmul" | "attention" if tensor => {
            assert!(
                text.contains("HMMA.16816.F32.BF16") && text.contains("LDGSTS") && text.contains("LDSM"),
                "{name}"
            );
        }
        "row" | "gather" if model.d.is_multiple_of(8) => {
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

#[test]
fn amber_prefill_and_decode() {
    check(&amber(), &[PREFILL, DECODE]);
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
            for (name, result) in compiles_clean(lowered).iter().filter(|(name, _)| products.contains(name)) {
                let text = sass(result);
                assert!(text.contains("HGMMA.64x") && text.contains("UTMALDG.2D"), "{name}");
                assert!(!result.log.contains("serialized"), "{name}: {}", result.log);
            }
        }
    }
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

#[test]
fn crystalcoder_prefill_and_decode() {
    check(&crystal(), &[PREFILL, DECODE]);
}

#[test]
fn grouped_heads_of_llama_3_and_the_window_of_mistral() {
    let llama = Model { name: "llama3", vocab: 128256, kv_heads: 8, ff: 14336, ..amber() };
    check(&llama, &[PREFILL, DECODE, Run { batch: 64, new: 1, cached: 1000 }]);
    check(
        &Model { name: "mistral", vocab: 32000, window: 4096, ..llama },
        &[Run { batch: 1, new: 8192, cached: 0 }],
    );
}

#[test]
fn slopes_of_jais_and_btlm_with_head_width_80() {
    let jais = Model {
        name: "jais",
        vocab: 84992,
        d: 5120,
        heads: 40,
        kv_heads: 40,
        ff: 13653,
        rope: None,
        alibi: true,
        ..crystal()
    };
    check(&jais, &[PREFILL, DECODE]);
    let btlm = Model {
        name: "btlm",
        vocab: 50257,
        d: 2560,
        heads: 32,
        kv_heads: 32,
        head_dim: 80,
        ff: 6826,
        ..jais
    };
    check(&btlm, &[PREFILL, DECODE]);
}

#[test]
fn learned_positions_of_cerebras_gpt() {
    let gpt = Model {
        name: "cerebras",
        vocab: 50257,
        d: 768,
        heads: 12,
        kv_heads: 12,
        head_dim: 64,
        ff: 3072,
        plain: Some(ActivationFn::Gelu),
        rope: None,
        learned: true,
        ..crystal()
    };
    check(&gpt, &[PREFILL, DECODE]);
}

#[test]
fn parallel_residuals_of_pythia_and_gpt_j() {
    let pythia = Model {
        name: "pythia",
        vocab: 50432,
        ff: 16384,
        plain: Some(ActivationFn::Gelu),
        rope: Some((Pairing::Half, 32)),
        parallel: true,
        tied: false,
        ..crystal()
    };
    check(&pythia, &[PREFILL, DECODE]);
    let gptj = Model {
        name: "gptj",
        vocab: 50400,
        heads: 16,
        kv_heads: 16,
        head_dim: 256,
        plain: Some(ActivationFn::GeluTanh),
        rope: Some((Pairing::Interleaved, 64)),
        ..pythia
    };
    check(&gptj, &[PREFILL, DECODE]);
}

/// One region, compiled; the widest use of registers is where spills would show.
fn check_regions(specs: &[KernelSpec], options: &Options) {
    let Some(wheels) = wheels() else {
        return eprintln!("skipped: no .deps/cuda; `make setup` fetches NVRTC");
    };
    let nvrtc = Nvrtc::open(&library_folder(&wheels)).expect("NVRTC opens where its wheel is");
    let mut sources = Vec::new();
    for spec in specs {
        match lower_kernel(spec, options).unwrap_or_else(|e| panic!("{e}")) {
            Choice::Generated(generated) => {
                sources.extend(generated.kernels.into_iter().map(|k| Source { name: k.name, text: k.source }))
            }
            Choice::Library(_) => panic!("{} became a library call", spec.name),
        }
    }
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

/// A whole training step of a model at its own size, for the A100: every kernel without spills, stack or calls.
fn trains(name: &str, policy: Recompute, library: bool) {
    let graph =
        differentiate(&Graph::build(&builtin(name).unwrap(), Mode::Forward, TRAINED).unwrap()).unwrap();
    let cx = IrContext::new();
    let mut module = import(&cx, &graph).unwrap();
    let passes = Pipeline::parse(&training_text(Goal::Gpu, policy, &Fusion::On)).unwrap();
    run(&mut module, &passes, Watch::default()).unwrap_or_else(|error| panic!("{error}"));
    let options = Options { library, ..Options::default() };
    let mut lowered = emit_gpu(&module, "sm_80", &options).unwrap_or_else(|error| panic!("{name}: {error}"));
    let Some(results) = compiled(&mut lowered) else { return };
    for (kernel, result) in &results {
        let r = &result.resources;
        println!("{name} {kernel:44} {:3} registers {:6} shared", r.registers, r.shared_bytes);
        assert_eq!(r.spill_stores + r.spill_loads + r.stack_bytes, 0, "{name}: {kernel} spills");
        let made = lowered.program.kernel(kernel).expect("a kernel");
        let text = sass(result);
        assert!(made.shared_bytes < 20_000 || text.contains("HMMA.16816.F32.BF16"), "{name}: {kernel}");
        // Whole numbers are drawn from a counter; numbers are never added by whoever comes first.
        let mut atomic = text.lines().filter(|line| line.contains("RED.") || line.contains("ATOM"));
        assert!(atomic.all(|line| !line.contains(".F")), "{name}: {kernel} adds through memory");
    }
    lowered.program.check().expect("the program holds with its registers known");
}

const TRAINED: Dims = Dims { batch: 2, seq: 2048, cached: 0 };

#[test]
fn training_steps_of_amber_and_crystalcoder() {
    trains("amber", Recompute::Selective, false);
    trains("crystalcoder", Recompute::Full, true);
}

#[test]
fn training_steps_with_scores_in_memory_wide_heads_slopes_and_learned_positions() {
    trains("llama-3-8b", Recompute::None, false);
    trains("gpt-j-6b", Recompute::Selective, false);
    trains("jais-13b", Recompute::Selective, true);
    trains("cerebras-gpt-111m", Recompute::None, true);
}

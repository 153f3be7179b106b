//! Wrong models are told from right ones, and broken programs are traced to the op that is broken.

use super::Verifier;
use super::bisect::{Bisection, Suspects};
use super::check::{Checks, Tolerances, check};
use super::compiled::Compiled;
use super::cuda::OnGpu;
use super::directory::Directory;
use super::settings::Setting;
use crate::args::{Cli, Command, Precision};
use crate::failure::Exit;
use crate::gpu::Gpu;
use crate::host::{self, Switches};
use crate::memory::Needs;
use crate::progress::Progress;
use crate::wafer::{Grid, Mode};
use crate::weights;
use clap::Parser;
use lapidary_models::{DType, ModelSpec};
use lapidary_passes::{Fusion, Mup};
use lapidary_reference::Params;
use lapidary_runtime_cpu::program::{CpuProgram, RowOp, Step, WeightType};
use lapidary_runtime_cpu::{Engine, TensorView, WeightError, Weights};
use lapidary_runtime_gpu::collectives::{Among, Peers};
use lapidary_runtime_gpu::device::Device as Gpus;
use lapidary_tests::checkpoint::{STORED, Stored};
use lapidary_tests::emulation::Emulated;
use lapidary_tests::emulation::peers::ranks;
use lapidary_tests::variants::{WrongReading, wrong_readings};
use std::borrow::Cow;
use std::path::{Path, PathBuf};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/oracles").join(name)
}

fn directory(name: &str) -> Directory {
    Directory::open(&folder(name)).expect("a stored directory")
}

struct Stock<'p>(&'p Params<f64>);

impl Weights for Stock<'_> {
    fn tensor(&self, name: &str) -> Result<TensorView<'_>, WeightError> {
        let t = self.0.get(name).ok_or_else(|| WeightError::Missing { name: name.into() })?;
        let bytes = t.data.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect();
        let shape = t.shape.iter().map(|n| *n as u64).collect();
        Ok(TensorView { dtype: DType::F32, shape, bytes: Cow::Owned(bytes) })
    }
}

/// The program of a model, changed, with its weights.
fn loaded(
    spec: &ModelSpec,
    params: &Params<f64>,
    switches: &Switches,
    change: impl FnOnce(&mut CpuProgram),
) -> Compiled {
    let mut lowered = host::lower(spec, switches, WeightType::F32).expect("a program");
    let mut program = lowered.program.into_inner();
    change(&mut program);
    lowered.program = program.check().expect("still a program");
    let needs = Needs { sequences: 1, positions: 1, tokens: 1 };
    Compiled::load(lowered, &Stock(params), &needs, Engine::Compiled, 1).expect("loads")
}

/// Every fact that the stored variants change is seen on the host: tensors differ, and the logits by as much as stored.
#[test]
fn the_thirteen_wrong_readings_of_crystalcoder_fail() {
    let stored = Stored::open("crystal-tiny");
    let changes = stored.json("meta.json")["logit_change_if_wrong"].clone();
    let directory = directory("crystal-tiny");
    let readings = wrong_readings(&stored);
    assert_eq!(readings.len(), 13);
    for WrongReading { name, spec, params } in readings {
        let device = loaded(&spec, &params, &Switches { mup: Mup::Keep, ..Switches::default() }, |_| {});
        let checks = check(&directory, &device, Tolerances::of(&directory)).expect("runs");
        let logits = checks.tensors.iter().find(|t| t.name == "logits").expect("logits");
        let wanted = changes[name].as_f64().expect("a figure");
        assert!(!checks.ok && !logits.ok, "{name}");
        let moved = logits.max_abs.expect("a number");
        assert!((moved / wanted - 1.0).abs() < 1e-3, "{name}: {moved}, stored {wanted}");
        assert!(checks.first_difference().is_some(), "{name}");
    }
}

fn bisected(name: &str, switches: &Switches, change: impl Fn(&mut CpuProgram)) -> (Checks, Bisection) {
    let directory = directory(name);
    let spec = &directory.spec;
    weights::with(&folder(name), spec, |weights| {
        let params = weights.params::<f64>()?;
        let device = loaded(spec, &params, switches, &change);
        let allowed = Tolerances::of(&directory);
        let checks = check(&directory, &device, allowed)?;
        let suspects = Suspects {
            directory: &directory,
            params: &params,
            switches,
            device: Some(&device),
            compile: &|switches| Ok(loaded(spec, &params, switches, |_| {})),
            allowed,
        };
        let found = suspects.bisect(&checks)?;
        Ok((checks, found))
    })
    .expect("runs")
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    for name in STORED {
        let (checks, found) = bisected(name, &Switches::default(), |_| {});
        assert!(checks.ok, "{name}");
        assert_eq!(found.verdict, "nothing differs", "{name}");
    }
}

fn rows_of(steps: &mut [Step], change: &mut dyn FnMut(&mut RowOp)) {
    for step in steps {
        match step {
            Step::Rows { function, .. } | Step::Linear { function, .. } => {
                function.values.iter_mut().for_each(|value| change(&mut value.op));
            }
            Step::Repeat { body, .. } => rows_of(body, change),
            _ => {}
        }
    }
}

#[test]
fn a_norm_with_another_eps_is_found() {
    let wrong_eps = |program: &mut CpuProgram| {
        rows_of(&mut program.body, &mut |op| {
            if let RowOp::Norm { eps, .. } = op {
                *eps *= 100.0;
            }
        });
    };
    let (checks, found) = bisected("llama3-tiny", &Switches::default(), wrong_eps);
    assert_eq!(checks.first_difference().map(|t| t.name.as_str()), Some("block0.norm1"));
    let step = found.step.expect("a step");
    assert_eq!((step.node.as_str(), step.op.as_str()), ("layers.0.attn_norm", "norm"));
    assert!(found.stored.is_none() && found.pass.is_none());
}

#[test]
fn a_wrong_rotation_is_found_in_the_attention_and_in_its_kernel() {
    let slower = |program: &mut CpuProgram| program.rotations[0].rope.theta *= 2.0;
    let (_, found) = bisected("amber-tiny", &Switches::default(), slower);
    let step = found.step.clone().expect("a step");
    assert_eq!(step.node, "layers.0.attn.q.rope");
    assert!(step.kernel.iter().any(|op| op == "attn.q.rope"), "{step:?}");
    assert!(found.unfused.is_none() && found.verdict.contains("its kernel is at fault"), "{}", found.verdict);
    let plain = Switches { fusion: Fusion::Off, ..Switches::default() };
    let (_, found) = bisected("amber-tiny", &plain, slower);
    let step = found.step.expect("a step");
    assert_eq!((step.node.as_str(), step.op.as_str()), ("layers.0.attn.q.rope", "rope"));
}

/// A mask that hides old keys shows only once there are old keys: in the continuations of short prompts.
#[test]
fn a_window_that_does_not_belong_there_is_found() {
    let narrow = |program: &mut CpuProgram| {
        for step in &mut program.body {
            let Step::Repeat { body, .. } = step else { continue };
            for step in body {
                if let Step::Attention { mask, .. } = step {
                    mask.window = 4;
                }
            }
        }
    };
    let (checks, found) = bisected("crystal-tiny", &Switches::default(), narrow);
    assert_eq!(checks.first_difference().map(|t| t.name.as_str()), Some("block0.attn"));
    assert_eq!(found.step.map(|step| step.node), Some("layers.0.attn.values".into()));
}

/// Weights of another model: the reference itself says so.
#[test]
fn weights_that_are_not_the_stored_ones_are_found_by_the_reference() {
    let mut directory = directory("pythia-tiny");
    directory.expected.iter_mut().filter(|t| t.name == "hidden.1").for_each(|t| t.data[7] += 1.0);
    let allowed = Tolerances::of(&directory);
    let switches = Switches::default();
    weights::with(&folder("pythia-tiny"), &directory.spec, |weights| {
        let params = weights.params::<f64>()?;
        let device = loaded(&directory.spec, &params, &switches, |_| {});
        let checks = check(&directory, &device, allowed)?;
        let differs = checks.first_difference().expect("a difference");
        assert_eq!((differs.name.as_str(), differs.at), ("hidden.1", Some([0, 0, 7])));
        let suspects = Suspects {
            directory: &directory,
            params: &params,
            switches: &switches,
            device: Some(&device),
            compile: &|switches| Ok(loaded(&directory.spec, &params, switches, |_| {})),
            allowed,
        };
        let found = suspects.bisect(&checks)?;
        assert_eq!(found.stored.expect("a place").at, "hidden.1");
        assert!(found.step.is_none(), "the device is not to blame");
        Ok(())
    })
    .expect("runs");
}

/// A model on an emulated GPU: everything but the device is what `--device cuda` runs.
fn on_emulated_gpu(name: &str, dtype: DType) -> Checks {
    on_emulated_gpu_with(name, dtype, false)
}

fn on_emulated_gpu_with(name: &str, dtype: DType, int8: bool) -> Checks {
    on_gpu(name, (dtype, int8), 12, Box::new(Emulated::new()))
}

fn on_gpu(name: &str, (dtype, int8): (DType, bool), most: usize, device: Box<dyn Gpus>) -> Checks {
    let mut directory = directory(name);
    // Emulation is slow: a few continuations, and none of the remembered sequences.
    if let Some(greedy) = &mut directory.greedy {
        greedy.cases.truncate(2);
        greedy.cases.iter_mut().for_each(|case| case.continuation.truncate(most));
    }
    directory.memorization = None;
    let allowed = match dtype {
        DType::Bf16 => Tolerances::rounded(&directory, 8).expect("noise is stored"),
        _ => Tolerances::of(&directory),
    };
    weights::with(&folder(name), &directory.spec, |weights| {
        let switches = Switches::default();
        let module = host::lower(&directory.spec, &switches, WeightType::F32)?.module;
        let gpu = Gpu::new(device, &directory.spec, switches, dtype, weights).int8(int8);
        check(&directory, &OnGpu { module, gpu }, allowed)
    })
    .expect("runs")
}

/// Every rank on an emulated GPU of its own, as `--device cuda --plan tp2pp2` runs them: each finds what is stored.
#[test]
fn ranks_on_emulated_gpus_give_the_stored_tensors_and_continuations() {
    let found = ranks([2, 1, 2], |peers| {
        let stage = peers.standing().stage.index;
        let device = Box::new(Among::new(Box::new(Emulated::new()), peers));
        let checks = on_gpu("llama3-tiny", (DType::F32, false), 3, device);
        let names: Vec<String> = checks.tensors.iter().map(|tensor| tensor.name.clone()).collect();
        (stage, checks.ok, checks.greedy_match, names)
    });
    for (stage, ok, greedy, names) in found {
        assert!(ok && greedy == Some(true), "stage {stage}");
        let own = if stage == 0 { "hidden.0" } else { "hidden.2" };
        assert!(
            [own, "logits"].iter().all(|name| names.iter().any(|n| n == name)),
            "stage {stage}: {names:?}"
        );
    }
}

/// Values off by up to 1/254 of their row's largest, about 0.8 % of their size at random, through two layers.
#[test]
fn weights_as_whole_numbers_move_the_logits_by_a_few_percent() {
    let checks = on_emulated_gpu_with("llama3-tiny", DType::Bf16, true);
    let logits = checks.tensors.iter().find(|tensor| tensor.name == "logits").expect("logits");
    assert!(logits.rel_l2.is_some_and(|off| (0.002..0.04).contains(&off)), "{:?}", logits.rel_l2);
}

#[test]
fn an_emulated_gpu_gives_the_stored_tensors_and_continuations() {
    for name in ["llama3-tiny", "crystal-tiny"] {
        let checks = on_emulated_gpu(name, DType::F32);
        assert!(checks.ok, "{name}: {:?}", checks.first_difference());
        assert_eq!(checks.greedy_match, Some(true), "{name}");
        let seen = |wanted: &str| checks.tensors.iter().any(|tensor| tensor.name == wanted);
        assert!(seen("hidden.0") && seen("hidden.2") && seen("logits"), "{name}");
    }
}

#[test]
fn an_emulated_gpu_in_bf16_stays_within_what_bf16_loses() {
    let checks = on_emulated_gpu("amber-tiny", DType::Bf16);
    assert!(checks.ok, "{:?} {:?}", checks.first_difference(), checks.argmax_agreement);
}

/// CrystalCoder's multiplier of the embedding is a region of its own where it is kept, one more than 8 rows have room for.
#[test]
fn settings_that_the_wafer_has_no_room_for_are_left_out_on_any_number_of_threads() {
    let folder = folder("crystal-tiny");
    let name = folder.display().to_string();
    let cli = Cli::try_parse_from(["lapidary", "verify", &name, "--device", "wafer-sim"]).expect("arguments");
    let Command::Verify(args) = &cli.command else { panic!("verify") };
    let directory = directory("crystal-tiny");
    let setting = |mup, mode| Setting {
        switches: Switches { mup, ..Switches::default() },
        engine: Engine::Compiled,
        precision: Precision::Bf16,
        grid: Grid { width: 8, height: 8 },
        mode,
    };
    let (fits, too_large) =
        (setting(Mup::Fold, Mode::LayerPipelined), setting(Mup::Keep, Mode::LayerPipelined));
    weights::with(&folder, &directory.spec, |weights| {
        for jobs in [1, 2] {
            let verifier = Verifier { args, directory: &directory, weights, jobs };
            let mut progress = Progress::new(&cli.global, 3);
            let three = [fits.clone(), too_large.clone(), setting(Mup::Keep, Mode::WeightStreaming)];
            let (runs, left_out) = verifier.runs(&three, &mut progress)?;
            assert_eq!(runs.len(), 2, "{jobs} threads");
            assert!(runs.iter().all(|run| run.checks.ok));
            assert_eq!(left_out.len(), 1);
            assert!(left_out[0].why.contains("8 does not do"), "{}", left_out[0].why);
            assert!(left_out[0].switches.contains(&("mup", "keep".into())));
            let none = verifier.runs(std::slice::from_ref(&too_large), &mut progress);
            assert_eq!(none.err().map(|failure| failure.exit), Some(Exit::DoesNotFit));
        }
        Ok(())
    })
    .expect("verified");
}

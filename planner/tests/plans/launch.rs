//! Scripts that start plans: bash reads them, Megatron-LM knows their flags, and they say what the plan says.

use crate::support;
use lapidary_hardware::builtin::machine;
use lapidary_models::ModelSpec;
use lapidary_planner::launch::{KNOWN, LaunchError, Launcher, launch};
use lapidary_planner::{
    Degrees, GpuPlan, Physical, Pins, PlanDocument, PlanRequest, Recompute, Sharding, plan,
};
use std::path::Path;
use std::process::{Command, Output};

const ALL: [Launcher; 3] = [Launcher::Torchrun, Launcher::Slurm, Launcher::Megatron];

fn amber_plan(model: &ModelSpec) -> PlanDocument {
    let cluster = machine("amber-cluster").unwrap();
    let pins = Pins::parse("sharding=optimizer").unwrap();
    let request = PlanRequest { global_batch: Some(2240), pins, ..PlanRequest::new(model, &cluster) };
    plan(&request, &Physical::default()).unwrap()
}

/// The document with other decisions in its chosen plan.
fn with(document: &PlanDocument, change: impl Fn(&mut GpuPlan)) -> PlanDocument {
    let mut document = document.clone();
    let Degrees::Gpu(plan) = &mut document.candidates[0].degrees else { panic!("a plan for GPUs") };
    change(plan);
    document
}

/// Runs a script of a folder with a `torchrun`, a `srun` and a `scontrol` that print their arguments, one a line.
fn run(folder: &Path, file: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    for name in ["torchrun", "srun"] {
        std::fs::write(folder.join(name), "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").unwrap();
    }
    std::fs::write(folder.join("scontrol"), "#!/bin/sh\necho first\necho second\n").unwrap();
    let mut ready = Command::new("chmod");
    ready.arg("+x").args(["torchrun", "srun", "scontrol"]).current_dir(folder);
    assert!(ready.status().unwrap().success());
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let mut bash = Command::new("bash");
    bash.arg(file).args(arguments).current_dir(folder).env("PATH", path);
    bash.env_remove("MASTER_ADDR").envs(variables.iter().copied()).output().unwrap()
}

/// Writes a script and what it printed when it was run.
fn started(document: &PlanDocument, model: &ModelSpec, launcher: Launcher, arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let script = launch(document, model, launcher).unwrap();
    std::fs::write(folder.path().join(script.file), &script.text).unwrap();
    let variables = [("MASTER_ADDR", "node0"), ("SLURM_JOB_NODELIST", "node[0-55]"), ("SLURM_JOB_ID", "7")];
    let output = run(folder.path(), script.file, arguments, &variables);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn value<'a>(printed: &'a str, flag: &str) -> Option<&'a str> {
    let mut lines = printed.lines().skip_while(|line| *line != flag);
    lines.next()?;
    lines.next()
}

#[test]
fn bash_reads_every_script() {
    let model = support::amber();
    let document = amber_plan(&model);
    for launcher in ALL {
        let folder = tempfile::tempdir().unwrap();
        let script = launch(&document, &model, launcher).unwrap();
        let path = folder.path().join(script.file);
        std::fs::write(&path, &script.text).unwrap();
        let checked = Command::new("bash").arg("-n").arg(&path).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        assert!(script.text.contains(document.chosen.as_deref().unwrap()), "{}", script.text);
    }
}

#[test]
fn torchrun_starts_a_process_for_each_device_and_meets_at_the_first_node() {
    let model = support::amber();
    let document = amber_plan(&model);
    let printed = started(&document, &model, Launcher::Torchrun, &["train.py", "a b"]);
    assert_eq!(value(&printed, "--nnodes"), Some("56"));
    assert_eq!(value(&printed, "--nproc-per-node"), Some("4"));
    assert_eq!(value(&printed, "--rdzv-endpoint"), Some("node0:29500"));
    assert_eq!(value(&printed, "train.py"), Some("a b"));
    let folder = tempfile::tempdir().unwrap();
    let script = launch(&document, &model, Launcher::Torchrun).unwrap();
    std::fs::write(folder.path().join(script.file), &script.text).unwrap();
    let alone = run(folder.path(), script.file, &["train.py"], &[]);
    assert!(!alone.status.success(), "56 nodes do not meet without an address");
}

#[test]
fn a_slurm_job_has_the_nodes_and_runs_its_command_on_each() {
    let model = support::amber();
    let document = amber_plan(&model);
    let text = launch(&document, &model, Launcher::Slurm).unwrap().text;
    assert!(text.contains("#SBATCH --nodes=56\n") && text.contains("#SBATCH --gpus-per-node=4\n"));
    let printed = started(&document, &model, Launcher::Slurm, &["./megatron.sh", "--data-path", "x y"]);
    assert_eq!(printed, "./megatron.sh\n--data-path\nx y\n");
}

#[test]
fn flags_of_megatron_mean_the_model_and_the_plan() {
    let model = support::amber();
    let document = with(&amber_plan(&model), |plan| {
        *plan = GpuPlan {
            micro_batch: 5,
            accumulation: 2,
            sharding: Sharding::Optimizer,
            recompute: Recompute::Full,
            recompute_layers: Some(3),
            first_layers: 15,
            last_layers: 17,
            ..GpuPlan::of_degrees(2, 2, 56, 32)
        };
    });
    let printed = started(&document, &model, Launcher::Megatron, &["--lr", "1e-4"]);
    for (flag, wanted) in [
        ("--num-layers", "32"),
        ("--hidden-size", "4096"),
        ("--ffn-hidden-size", "11008"),
        ("--num-attention-heads", "32"),
        ("--kv-channels", "128"),
        ("--vocab-size", "32000"),
        ("--normalization", "RMSNorm"),
        ("--norm-epsilon", "0.000001"),
        ("--position-embedding-type", "rope"),
        ("--rotary-base", "10000"),
        ("--tensor-model-parallel-size", "2"),
        ("--pipeline-model-parallel-size", "2"),
        ("--micro-batch-size", "5"),
        ("--global-batch-size", "2240"),
        ("--recompute-granularity", "full"),
        ("--recompute-method", "block"),
        ("--recompute-num-layers", "3"),
        ("--pipeline-model-parallel-layout", "Ettttttttttttttt|tttttttttttttttttL"),
        ("--lr", "1e-4"),
    ] {
        assert_eq!(value(&printed, flag), Some(wanted), "{flag}: {printed}");
    }
    for flag in ["--swiglu", "--disable-bias-linear", "--sequence-parallel", "--use-distributed-optimizer"] {
        assert!(printed.lines().any(|line| line == flag), "{flag}");
    }
    assert!(!printed.contains("fsdp") && !printed.contains("query-groups"));
}

#[test]
fn every_flag_is_one_of_the_release() {
    assert!(KNOWN.windows(2).all(|pair| pair[0] < pair[1]));
    let mut written = 0;
    for name in lapidary_models::builtin_names() {
        let model = support::model(name);
        let document = PlanDocument { ..amber_plan(&support::amber()) };
        for sharding in Sharding::ALL {
            for recompute in Recompute::ALL {
                let document = with(&document, |plan| {
                    let base = GpuPlan::of_degrees(2, 2, 56, model.n_layers);
                    *plan = GpuPlan { sharding, recompute, chunks: 2, ..base };
                });
                let Ok(script) = launch(&document, &model, Launcher::Megatron) else { continue };
                let inside = script.text.lines().skip_while(|line| *line != "FLAGS=(").skip(1);
                for line in inside.take_while(|line| *line != ")").filter(|line| !line.contains('#')) {
                    let flag = line.split_whitespace().next().unwrap();
                    assert!(KNOWN.binary_search(&flag).is_ok(), "{name}: {flag}");
                    written += 1;
                }
            }
        }
    }
    assert!(written > 1000, "{written}");
}

#[test]
fn what_megatron_cannot_do_is_refused_by_name() {
    let model = support::amber();
    let document = amber_plan(&model);
    let told = |model: &ModelSpec, document: &PlanDocument| {
        launch(document, model, Launcher::Megatron).unwrap_err().to_string()
    };
    assert!(told(&support::model("btlm-3b-8k"), &document).contains("ALiBi"));
    let hybrid = with(&document, |plan| plan.sharding = Sharding::Hybrid);
    assert!(told(&model, &hybrid).contains("repeated across nodes"));
    let mut windowed = model.clone();
    windowed.attn.window = Some(512);
    assert!(told(&windowed, &document).contains("window"));
    let none = PlanDocument { chosen: None, ..document.clone() };
    assert_eq!(launch(&none, &model, Launcher::Slurm), Err(LaunchError::Nothing));
    let wafers = machine("cg1").unwrap();
    let on_wafers = plan(&PlanRequest::new(&model, &wafers), &Physical::default()).unwrap();
    assert!(told(&model, &on_wafers).contains("plan for wafers"));
}

//! Runs a folder that `lapidary bench --bundle` made, on a machine that has a GPU and nothing else of this project.
//!
//! `lapidary-gpu FOLDER [SAMPLES [SECONDS]]`: progress on stderr, one document `lapidary/gpu-run` on stdout: the checks, the
//! document `lapidary/bench`, the times of all forms of products, and a picture. What is not done after SECONDS is left out, each
//! thing with a line that says so. Exit codes are those of `lapidary`.

use lapidary_runtime_gpu::bench::{CheckResult, Effort, Jobs, Run, day_of, roofline, run};
use lapidary_runtime_gpu::compile::Prebuilt;
use lapidary_runtime_gpu::device::cuda::Cuda;
use lapidary_runtime_gpu::device::{Device, DeviceError};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Instant, SystemTime};

/// An exit code and why.
type Refusal = (u8, String);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match work(&args) {
        Ok(code) => ExitCode::from(code),
        Err((code, why)) => {
            eprintln!("lapidary-gpu: {why}");
            ExitCode::from(code)
        }
    }
}

fn work(args: &[String]) -> Result<u8, Refusal> {
    let began = Instant::now();
    let usage = || (2, "usage: lapidary-gpu FOLDER [SAMPLES [SECONDS]]".to_string());
    if args.len() > 3 {
        return Err(usage());
    }
    let folder = Path::new(args.first().ok_or_else(usage)?);
    let samples = args.get(1).map_or(Ok(30), |text| text.parse().map_err(|_| usage()))?;
    let budget_s =
        args.get(2).map(|text| text.parse::<u32>().map(f64::from).map_err(|_| usage())).transpose()?;
    if !folder.is_dir() {
        return Err(unread(folder, "no such folder; make it with make gpu-bundle"));
    }
    let mut gpu = Cuda::open(0, Box::new(machine_code(folder)?)).map_err(refused)?;
    let jobs = jobs(folder, &gpu.about().arch)?;
    eprintln!("{}: {} checks, {} kernels", gpu.about().product, jobs.checks.len(), jobs.jobs.len());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let effort = Effort { samples, budget_s, ..Effort::default() };
    let (mut clock, mut told) = (|| began.elapsed().as_secs_f64(), |line: &str| eprintln!("{line}"));
    let started = Run::new(&mut gpu, effort, &mut clock, &mut told);
    let outcome = run(started, &jobs, &day_of(now)).map_err(refused)?;
    let wrong = outcome.checks.iter().filter(|check: &&CheckResult| !check.ok).count();
    let document = serde_json::json!({
        "schema": "lapidary/gpu-run", "version": 1, "driver": gpu.about().driver, "arch": gpu.about().arch,
        "checks": outcome.checks, "bench": outcome.bench, "tunings": outcome.tunings,
        "roofline": roofline(&outcome.bench),
    });
    println!("{document:#}");
    eprintln!("{wrong} of {} checks differ, {} skipped", outcome.checks.len(), outcome.bench.skipped.len());
    Ok(if wrong > 0 || outcome.checks.len() < jobs.checks.len() { 6 } else { 0 })
}

fn refused(error: DeviceError) -> Refusal {
    let code = if matches!(error, DeviceError::Memory { .. }) { 4 } else { 7 };
    (code, error.help().map_or_else(|| error.to_string(), |help| format!("{error}; {help}")))
}

fn unread(path: &Path, error: impl std::fmt::Display) -> Refusal {
    (3, format!("{}: {error}", path.display()))
}

/// Every cubin of every architecture, by its file's name.
fn machine_code(folder: &Path) -> Result<Prebuilt, Refusal> {
    let mut found = BTreeMap::new();
    for arch in entries(folder)?.iter().filter(|entry| entry.is_dir()) {
        for file in entries(arch)?.iter().filter(|file| file.extension().is_some_and(|e| e == "cubin")) {
            let name = file.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
            found.insert(name, std::fs::read(file).map_err(|error| unread(file, error))?);
        }
    }
    Ok(Prebuilt(found))
}

fn entries(folder: &Path) -> Result<Vec<std::path::PathBuf>, Refusal> {
    let listed = std::fs::read_dir(folder).map_err(|error| unread(folder, error))?;
    let paths = listed.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = paths.collect::<Result<Vec<_>, _>>().map_err(|error| unread(folder, error))?;
    paths.sort();
    Ok(paths)
}

fn jobs(folder: &Path, arch: &str) -> Result<Jobs, Refusal> {
    let file = folder.join(arch).join("jobs.json");
    if !file.is_file() {
        let what = format!("{} has no kernels for {arch}", folder.display());
        return Err((7, format!("{what}: make it with lapidary bench --bundle .. --arch {arch}")));
    }
    let text = std::fs::read_to_string(&file).map_err(|error| unread(&file, error))?;
    serde_json::from_str(&text).map_err(|error| unread(&file, error))
}

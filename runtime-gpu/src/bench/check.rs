//! Programs whose output is known: run on poisoned memory and compared.
use super::data::Seeded;
use super::{Text, sources};
use crate::device::{Device, DeviceError};
use crate::execute::{Loaded, Places, WeightFault, decode, load_weights};
use crate::program::{BufferKind, Dtype, GpuProgram};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// A program, the seeds of its weights, its tokens, and what it has to leave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckJob {
    /// What is checked, for people.
    pub name: String,
    /// What runs.
    pub program: GpuProgram,
    /// The texts of its kernels.
    pub sources: Vec<Text>,
    /// Dimensions of every tensor of the model; its values follow from its name.
    pub shapes: BTreeMap<String, Vec<u64>>,
    /// Element type of the weights.
    pub dtype: Dtype,
    /// Token ids, sequence by sequence.
    pub ids: Vec<u32>,
    /// The buffer that is compared.
    pub output: String,
    /// Columns of it that count.
    pub width: u64,
    /// What it has to hold, row by row.
    pub expected: Vec<f32>,
    /// Largest difference, as a share of the largest expected value.
    pub tolerance: f64,
}

/// How far a program's output is from what is expected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckResult {
    /// What was checked.
    pub name: String,
    /// Largest difference as a share of the largest expected value; none where the output has what is no number.
    pub difference: Option<f64>,
    /// What it may be.
    pub tolerance: f64,
    /// Whether it is.
    pub ok: bool,
}

impl fmt::Display for CheckResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.ok { "ok" } else { "DIFFERS" };
        match self.difference {
            Some(difference) => write!(
                f,
                "check {}: {verdict}, off by {difference:.2e} of the largest, {:.0e} allowed",
                self.name, self.tolerance
            ),
            None => write!(f, "check {}: {verdict}, some output is no number", self.name),
        }
    }
}

/// Runs a program with every byte that nothing sets poisoned.
///
/// # Errors
/// What the device says, and [`DeviceError::Mismatch`] for weights that are not the program's.
pub fn check(device: &mut dyn Device, job: &CheckJob) -> Result<CheckResult, DeviceError> {
    let program = job.program.clone().check().map_err(|faults| {
        let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
        DeviceError::Mismatch(format!("{} does not pass its check: {}", job.name, told.join("; ")))
    })?;
    let mut weights = Places::new();
    let seeded = Seeded { shapes: &job.shapes, dtype: job.dtype };
    load_weights(device, program.get(), &seeded, &mut weights).map_err(|fault| match fault {
        WeightFault::Device(error) => error,
        fault => DeviceError::Mismatch(fault.to_string()),
    })?;
    let loaded = Loaded::new(device, &program, &sources(&job.sources), &weights)?;
    for buffer in program.get().buffers.iter().filter(|buffer| buffer.kind != BufferKind::Param) {
        device.fill(loaded.address(&buffer.name)?, 0xff, buffer.bytes)?;
    }
    let ids: Vec<u8> = job.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    loaded.write(device, "ids", &ids)?;
    loaded.run(device)?;
    let found = output(device, job, &loaded)?;
    loaded.release(device)?;
    weights.into_values().try_for_each(|at| device.release(at))?;
    Ok(compare(job, &found))
}

fn output(device: &mut dyn Device, job: &CheckJob, loaded: &Loaded) -> Result<Vec<f32>, DeviceError> {
    let missing = || DeviceError::Mismatch(format!("{} leaves no `{}`", job.name, job.output));
    let buffer = job.program.buffer(&job.output).ok_or_else(missing)?;
    let mut bytes = vec![0; buffer.bytes as usize];
    loaded.read(device, &job.output, &mut bytes)?;
    let rows = bytes.chunks_exact((buffer.pitch * buffer.dtype.bytes()) as usize);
    let used = (job.width * buffer.dtype.bytes()) as usize;
    Ok(rows.flat_map(|row| decode(buffer.dtype, &row[..used])).collect())
}

fn compare(job: &CheckJob, found: &[f32]) -> CheckResult {
    let largest = job.expected.iter().fold(0f32, |most, x| most.max(x.abs())).max(f32::MIN_POSITIVE);
    let whole = found.len() == job.expected.len() && found.iter().all(|x| x.is_finite());
    let pairs = found.iter().zip(&job.expected);
    let most = pairs.fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    let difference = whole.then(|| f64::from(most / largest));
    let (name, tolerance) = (job.name.clone(), job.tolerance);
    CheckResult { name, difference, tolerance, ok: difference.is_some_and(|off| off <= tolerance) }
}

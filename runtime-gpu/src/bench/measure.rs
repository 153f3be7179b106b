//! How long a job takes: many runs with cold caches, the median and how far runs are apart.
use super::data::fill;
use super::{Job, sources};
use crate::device::{Device, DeviceError};
use crate::execute::{Loaded, Places};

/// How much is done for one figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Effort {
    /// Runs that are timed; at least one.
    pub samples: usize,
    /// Runs before them.
    pub warm_up: usize,
    /// Seconds on the device after which no further run of a job begins.
    pub most_s: f64,
    /// Bytes of the copy that is the ceiling of bandwidth.
    pub copied: u64,
    /// Seconds of the clock in which everything must be done: each part has a share, and what is left of a part when its
    /// share is over is left out.
    pub budget_s: Option<f64>,
}

impl Default for Effort {
    fn default() -> Self {
        Effort { samples: 30, warm_up: 3, most_s: 2.0, copied: 1 << 30, budget_s: None }
    }
}

/// A job's time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// Seconds of the device, in the median.
    pub median_s: f64,
    /// Between the quickest and the slowest run, percent of the median.
    pub spread_pct: f64,
    /// Runs.
    pub samples: usize,
}

impl Timing {
    /// Of some runs, at least one.
    fn of(mut seconds: Vec<f64>) -> Timing {
        seconds.sort_by(f64::total_cmp);
        let (first, last) = (seconds[0], seconds[seconds.len() - 1]);
        let middle = seconds.len() / 2;
        let median_s = match seconds.len() % 2 {
            0 => (seconds[middle - 1] + seconds[middle]) / 2.0,
            _ => seconds[middle],
        };
        let spread_pct = if median_s > 0.0 { 100.0 * (last - first) / median_s } else { 0.0 };
        Timing { median_s, spread_pct, samples: seconds.len() }
    }
}

/// Times a job on random data. A program of several kernels runs as a graph.
///
/// # Errors
/// [`DeviceError::Memory`] when it does not fit, and what else the device says.
pub fn measure(device: &mut dyn Device, job: &Job, effort: &Effort) -> Result<Timing, DeviceError> {
    let program = job.program.clone().check().map_err(|faults| {
        let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
        DeviceError::Mismatch(format!("{} does not pass its check: {}", job.kernel, told.join("; ")))
    })?;
    let loaded = Loaded::new(device, &program, &sources(&job.sources), &Places::new())?;
    let timing = fill(device, job, &loaded).and_then(|()| timed(device, &loaded, effort));
    loaded.release(device)?;
    timing
}

fn timed(device: &mut dyn Device, loaded: &Loaded, effort: &Effort) -> Result<Timing, DeviceError> {
    loaded.run(device)?;
    device.wait()?;
    if loaded.program().flat_steps().len() == 1 {
        return samples(device, effort, &mut |device| loaded.run(device));
    }
    let graph = loaded.capture(device)?;
    samples(device, effort, &mut |device| device.replay(graph))
}

/// Times `work`; what the caches hold before each run is something else.
fn samples(
    device: &mut dyn Device,
    effort: &Effort,
    work: &mut dyn FnMut(&mut dyn Device) -> Result<(), DeviceError>,
) -> Result<Timing, DeviceError> {
    for _ in 0..effort.warm_up {
        work(device)?;
    }
    let other = 2 * device.about().cache_bytes.max(1);
    let scratch = device.allocate(other)?;
    let (mut seconds, mut whole) = (Vec::new(), 0.0);
    while seconds.len() < effort.samples.max(1) && (seconds.is_empty() || whole < effort.most_s) {
        device.fill(scratch, seconds.len() as u8, other)?;
        let before = device.mark()?;
        work(device)?;
        let after = device.mark()?;
        let time = device.seconds(before, after)?;
        whole += time;
        seconds.push(time);
    }
    device.release(scratch)?;
    Ok(Timing::of(seconds))
}

/// Bytes per second of a copy within the device, bytes read and written counted.
///
/// # Errors
/// What the device says.
pub fn copy_rate(device: &mut dyn Device, effort: &Effort) -> Result<f64, DeviceError> {
    let bytes = effort.copied.min(device.free_bytes()? / 4).max(256);
    let (from, to) = (device.allocate(bytes)?, device.allocate(bytes)?);
    device.fill(from, 0x3f, bytes)?;
    let timing = samples(device, effort, &mut |device| device.copy(to, from, bytes))?;
    device.release(from)?;
    device.release(to)?;
    Ok(2.0 * bytes as f64 / timing.median_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_the_spread_are_those_of_the_sorted_runs() {
        let timing = Timing::of(vec![3.0, 1.0, 2.0, 4.0]);
        assert_eq!((timing.median_s, timing.spread_pct, timing.samples), (2.5, 120.0, 4));
        assert_eq!(Timing::of(vec![2.0]).spread_pct, 0.0);
    }
}

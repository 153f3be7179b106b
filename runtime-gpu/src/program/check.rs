//! The check of a program: after it, running the program cannot fault the machine.
//!
//! It proves that every argument exists and lies within its buffer, that launches keep to the device's limits, that nothing
//! is read before it is written, that parameters and inputs are never written and outputs always are, and that temporary
//! buffers which are alive together do not overlap in the arena. Of one rank's program it proves that its meetings are of
//! its groups and of the sizes they say, and that nothing touches what a meeting beside is still at.
use super::memory::lifetimes;
use super::{Access, Arg, Buffer, BufferKind, DeviceLimits, GpuProgram, Launch, Step, together};
use std::collections::{BTreeMap, BTreeSet};

/// A program that passed [`GpuProgram::check`].
#[derive(Debug, Clone, PartialEq)]
pub struct Checked<P>(P);

impl<P> Checked<P> {
    /// The program itself.
    pub fn get(&self) -> &P {
        &self.0
    }

    /// Gives the program back.
    pub fn into_inner(self) -> P {
        self.0
    }
}

/// What is wrong with a program, and where.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Fault {
    /// Two buffers or two kernels share a name.
    #[error("{what} `{name}` is defined twice")]
    Duplicate {
        /// buffer or kernel.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A step names something that is not there.
    #[error("step {step}: no {what} named `{name}`")]
    Missing {
        /// Where the step stands.
        step: String,
        /// buffer or kernel.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// An argument reaches past the end of its buffer.
    #[error("step {step}: `{buffer}` has {bytes} bytes, but the argument reaches byte {end}")]
    OutOfBounds {
        /// Where the step stands.
        step: String,
        /// The buffer.
        buffer: String,
        /// Its size.
        bytes: u64,
        /// End of the access in the last round.
        end: u64,
    },
    /// A pointer that 16-byte accesses cannot use.
    #[error("step {step}: offset {offset} into `{buffer}` is not a multiple of 16 bytes")]
    Misaligned {
        /// Where the step stands.
        step: String,
        /// The buffer.
        buffer: String,
        /// The offset or the stride.
        offset: u64,
    },
    /// A launch exceeds what the architecture allows.
    #[error("step {step}: kernel `{kernel}` asks for {what} {asked}, {arch} allows {limit}")]
    Limit {
        /// Where the step stands.
        step: String,
        /// The kernel.
        kernel: String,
        /// Which limit.
        what: String,
        /// What the launch asks.
        asked: u64,
        /// What the architecture allows.
        limit: u64,
        /// The architecture.
        arch: String,
    },
    /// The architecture has no row in the table of limits.
    #[error("no launch limits known for `{arch}`: add them to runtime-gpu/limits.toml with their source")]
    UnknownArch {
        /// The architecture.
        arch: String,
    },
    /// A buffer is read before anything wrote it.
    #[error("step {step}: `{buffer}` is read before it is written")]
    ReadBeforeWrite {
        /// Where the step stands.
        step: String,
        /// The buffer.
        buffer: String,
    },
    /// A parameter or an input is written.
    #[error("step {step}: `{buffer}` is a {kind:?} and may not be written")]
    WriteToConstant {
        /// Where the step stands.
        step: String,
        /// The buffer.
        buffer: String,
        /// Its kind.
        kind: BufferKind,
    },
    /// No step writes this output.
    #[error("output `{buffer}` is never written")]
    NeverWritten {
        /// The buffer.
        buffer: String,
    },
    /// Two temporary buffers are alive at one moment and overlap.
    #[error("arena buffers `{a}` and `{b}` overlap while both are alive")]
    Overlap {
        /// One.
        a: String,
        /// The other.
        b: String,
    },
    /// A meeting of ranks that cannot be held.
    #[error("step {step}: {name}: {why}")]
    Meeting {
        /// Where the step stands.
        step: String,
        /// Its name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// What the program says of being one rank's part contradicts itself.
    #[error("the program's share: {why}")]
    Share {
        /// How.
        why: String,
    },
    /// A buffer's own figures contradict each other.
    #[error("buffer `{buffer}`: {why}")]
    Inconsistent {
        /// The buffer.
        buffer: String,
        /// How.
        why: String,
    },
}

impl GpuProgram {
    /// Checks everything and reports every fault found.
    pub fn check(self) -> Result<Checked<GpuProgram>, Vec<Fault>> {
        let mut faults = duplicates(&self);
        self.buffers.iter().for_each(|buffer| faults.extend(buffer_faults(buffer, self.arena_bytes)));
        match DeviceLimits::of(&self.arch) {
            Some(limits) => StepCheck::run(&self, &limits, &mut faults),
            None => faults.push(Fault::UnknownArch { arch: self.arch.clone() }),
        }
        faults.extend(overlaps(&self));
        faults.extend(together::share(&self));
        if faults.is_empty() { Ok(Checked(self)) } else { Err(faults) }
    }
}

fn duplicates(program: &GpuProgram) -> Vec<Fault> {
    let mut faults = Vec::new();
    let buffers = program.buffers.iter().map(|b| ("buffer", &b.name));
    let kernels = program.kernels.iter().map(|k| ("kernel", &k.name));
    let mut seen = BTreeSet::new();
    for (what, name) in buffers.chain(kernels) {
        if !seen.insert((what, name)) {
            faults.push(Fault::Duplicate { what, name: name.clone() });
        }
    }
    faults
}

fn buffer_faults(buffer: &Buffer, arena_bytes: u64) -> Vec<Fault> {
    let mut whys = Vec::new();
    let slices = buffer.layers.map_or(1, |layers| layers.count);
    let slice = buffer.slice_bytes();
    let stride = buffer.layers.map_or(slice, |layers| layers.stride_bytes);
    if stride < slice {
        whys.push(format!("a slice has {slice} bytes, but slices are {stride} bytes apart"));
    }
    if slices.max(1).saturating_sub(1).saturating_mul(stride).saturating_add(slice) > buffer.bytes {
        whys.push(format!("{slices} slices of {slice} bytes do not fit into {} bytes", buffer.bytes));
    }
    if buffer.pitch < buffer.shape.last().copied().unwrap_or(1) {
        whys.push(format!("pitch {} is less than the last dimension", buffer.pitch));
    }
    match (buffer.kind, buffer.offset) {
        (BufferKind::Arena, None) => whys.push("has no place in the arena".into()),
        (BufferKind::Arena, Some(at)) if at.saturating_add(buffer.bytes) > arena_bytes => whys
            .push(format!("ends at byte {} of an arena of {arena_bytes}", at.saturating_add(buffer.bytes))),
        (BufferKind::Arena, _) | (_, None) => {}
        (_, Some(_)) => whys.push("has an arena offset but is not an arena buffer".into()),
    }
    if matches!(buffer.kind, BufferKind::Param | BufferKind::Weight) != buffer.packing.is_some() {
        whys.push("parameters and weights, and only they, have a packing".into());
    }
    whys.into_iter().map(|why| Fault::Inconsistent { buffer: buffer.name.clone(), why }).collect()
}

struct StepCheck<'a> {
    program: &'a GpuProgram,
    buffers: BTreeMap<&'a str, &'a Buffer>,
    limits: &'a DeviceLimits,
    written: BTreeSet<&'a str>,
    faults: &'a mut Vec<Fault>,
}

impl<'a> StepCheck<'a> {
    fn run(program: &'a GpuProgram, limits: &'a DeviceLimits, faults: &'a mut Vec<Fault>) {
        let buffers = program.buffers.iter().map(|b| (b.name.as_str(), b)).collect();
        let mut check = StepCheck { program, buffers, limits, written: BTreeSet::new(), faults };
        check.steps(&program.steps, "", 1);
        for buffer in program.buffers.iter().filter(|b| b.kind == BufferKind::Output) {
            if !check.written.contains(buffer.name.as_str()) {
                check.faults.push(Fault::NeverWritten { buffer: buffer.name.clone() });
            }
        }
    }

    fn steps(&mut self, steps: &'a [Step], prefix: &str, rounds: u64) {
        for (i, step) in steps.iter().enumerate() {
            let place = format!("{prefix}{i}");
            if let Step::Repeat { times, body, .. } = step {
                self.steps(body, &format!("{place}."), rounds.saturating_mul((*times).max(1)));
                continue;
            }
            if let Step::Launch(launch) = step {
                self.launch(launch, &place);
            }
            match step {
                Step::Meet(meeting) => self.faults.extend(together::meeting(self.program, meeting, &place)),
                Step::Join => {}
                _ => self.has_kernel(step.kernel().unwrap_or_default(), &place),
            }
            let args = step.args();
            args.iter().for_each(|arg| self.bounds(arg, &place, rounds));
            args.iter().for_each(|arg| self.reads(arg, &place));
            args.iter().for_each(|arg| self.writes(arg, &place));
        }
    }

    fn has_kernel(&mut self, name: &str, place: &str) {
        if self.program.kernel(name).is_none() {
            self.faults.push(Fault::Missing { step: place.into(), what: "kernel", name: name.into() });
        }
    }

    fn launch(&mut self, launch: &Launch, place: &str) {
        let mut asked = vec![
            (
                "threads per block".to_string(),
                product(launch.block),
                u64::from(self.limits.threads_per_block),
            ),
            ("shared bytes".to_string(), launch.shared_bytes, self.limits.shared_bytes_per_block),
        ];
        for (axis, name) in ["x", "y", "z"].iter().enumerate() {
            asked.push((
                format!("blocks in {name}"),
                launch.grid[axis].into(),
                self.limits.grid[axis].into(),
            ));
            asked.push((
                format!("threads in {name}"),
                launch.block[axis].into(),
                self.limits.block[axis].into(),
            ));
        }
        if let Some(registers) = self.program.kernel(&launch.kernel).and_then(|kernel| kernel.registers) {
            let block = u64::from(registers) * product(launch.block);
            asked.push((
                "registers per thread".into(),
                registers.into(),
                self.limits.registers_per_thread.into(),
            ));
            asked.push(("registers per block".into(), block, self.limits.registers_per_sm.into()));
        }
        for (what, asked, limit) in asked {
            let empty = asked == 0 && (what.starts_with("blocks") || what.starts_with("threads"));
            if asked > limit || empty {
                let (step, kernel, arch) = (place.into(), launch.kernel.clone(), self.limits.name.clone());
                self.faults.push(Fault::Limit { step, kernel, what, asked, limit, arch });
            }
        }
    }

    fn bounds(&mut self, arg: &Arg, place: &str, rounds: u64) {
        let Some(buffer) = self.buffers.get(arg.buffer.as_str()) else {
            let (step, name) = (place.into(), arg.buffer.clone());
            return self.faults.push(Fault::Missing { step, what: "buffer", name });
        };
        let travel = rounds.saturating_sub(1).saturating_mul(arg.layer_stride_bytes);
        let end = arg.offset_bytes.saturating_add(travel).saturating_add(arg.extent_bytes);
        if end > buffer.bytes {
            let (step, buffer, bytes) = (place.into(), arg.buffer.clone(), buffer.bytes);
            self.faults.push(Fault::OutOfBounds { step, buffer, bytes, end });
        }
        for offset in [arg.offset_bytes, arg.layer_stride_bytes, buffer.offset.unwrap_or(0)] {
            if offset % 16 != 0 {
                self.faults.push(Fault::Misaligned {
                    step: place.into(),
                    buffer: arg.buffer.clone(),
                    offset,
                });
            }
        }
    }

    fn reads(&mut self, arg: &'a Arg, place: &str) {
        let Some(buffer) = self.buffers.get(arg.buffer.as_str()) else { return };
        let given = !matches!(buffer.kind, BufferKind::Output | BufferKind::Arena | BufferKind::Kept);
        if arg.access != Access::Write && !given && !self.written.contains(arg.buffer.as_str()) {
            self.faults.push(Fault::ReadBeforeWrite { step: place.into(), buffer: arg.buffer.clone() });
        }
    }

    fn writes(&mut self, arg: &'a Arg, place: &str) {
        let Some(buffer) = self.buffers.get(arg.buffer.as_str()) else { return };
        if arg.access == Access::Read {
            return;
        }
        if matches!(buffer.kind, BufferKind::Param | BufferKind::Input) {
            let (step, buffer, kind) = (place.into(), arg.buffer.clone(), buffer.kind);
            self.faults.push(Fault::WriteToConstant { step, buffer, kind });
        }
        self.written.insert(arg.buffer.as_str());
    }
}

fn product(axes: [u32; 3]) -> u64 {
    axes.iter().fold(1u64, |product, &axis| product.saturating_mul(axis.into()))
}

fn overlaps(program: &GpuProgram) -> Vec<Fault> {
    let alive = lifetimes(&program.steps);
    let placed: Vec<(&Buffer, u64, (usize, usize))> = program
        .buffers
        .iter()
        .filter_map(|buffer| Some((buffer, buffer.offset?, *alive.get(&buffer.name)?)))
        .collect();
    let mut faults = Vec::new();
    for (i, (a, at_a, life_a)) in placed.iter().enumerate() {
        for (b, at_b, life_b) in &placed[..i] {
            let in_space = *at_a < at_b.saturating_add(b.bytes) && *at_b < at_a.saturating_add(a.bytes);
            let in_time = life_a.0 <= life_b.1 && life_b.0 <= life_a.1;
            if in_space && in_time {
                faults.push(Fault::Overlap { a: b.name.clone(), b: a.name.clone() });
            }
        }
    }
    faults
}

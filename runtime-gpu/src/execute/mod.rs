//! A program on a device: every buffer has its place, every kernel is loaded, every step is a call.
//!
//! ```text
//! Checked<GpuProgram> + sources + places of what is shared --Loaded::new--> Loaded --run--> work in the device's stream
//!                                                                                  --capture--> a graph, replayed at once
//! ```
//! Repeats are unrolled when the program is loaded: places are fixed then, so nothing is left to be computed when it runs.
use crate::collectives::Word;
use crate::compile::Source;
use crate::device::{Address, Call, Device, DeviceError, GraphId, KernelId, Product, Value};
use crate::program::{Arg, BufferKind, Checked, Gemm, GpuProgram, Meeting, Step};
use std::collections::BTreeMap;

mod micros;
mod needs;
mod parts;
mod weights;

pub use micros::Feed;
pub use needs::Needs;
pub use parts::Parts;

pub(crate) use weights::encode;
pub use weights::{Read, Tensor, Tensors, WeightFault, decode, held, int8_scale, load_weights, pack};

/// The name under which the arena stands among shared places.
pub const ARENA: &str = "(arena)";

/// Places of buffers that several programs share, by name: weights, caches, tokens.
pub type Places = BTreeMap<String, Address>;

/// A program that is ready to run.
#[derive(Debug)]
pub struct Loaded {
    program: GpuProgram,
    places: Places,
    own: Vec<Address>,
    /// Everything in order; of a training step with micro-batches what runs once, behind them.
    work: Vec<Work>,
    /// What every micro-batch has, for each flight and segment.
    flights: Vec<micros::Flight>,
}

/// One thing to do, with places.
#[derive(Debug)]
enum Work {
    Launch(Call),
    Product(Box<Product>),
    Say(Box<Word>),
    Join,
    /// Between two rounds of a repeat, for those who watch.
    Round(Round),
}

/// A moment before, between or behind the rounds of an outermost repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Round {
    /// Index of the repeat among the program's steps.
    pub step: usize,
    /// Rounds that are done.
    pub done: u64,
}

impl Loaded {
    /// Compiles and loads the kernels, and allocates what is not `shared`. Memory is undefined but for buffers of kind
    /// `State`, which are zero.
    ///
    /// # Errors
    /// [`DeviceError::Memory`] with every class when it does not fit, before anything is allocated; what the device says.
    pub fn new(
        device: &mut dyn Device,
        program: &Checked<GpuProgram>,
        sources: &[Source],
        shared: &Places,
    ) -> Result<Loaded, DeviceError> {
        let program = program.get().clone();
        at_home(device, &program)?;
        Needs::of(&program, shared, device.has_workspace()).check(&program.name, device)?;
        let kernels = kernels(device, &program, sources)?;
        let (places, own, work, flights) = (shared.clone(), Vec::new(), Vec::new(), Vec::new());
        let mut loaded = Loaded { program, places, own, work, flights };
        match loaded.settle(device, &kernels) {
            Ok(()) => Ok(loaded),
            Err(error) => {
                loaded.release(device)?;
                Err(error)
            }
        }
    }

    fn settle(
        &mut self,
        device: &mut dyn Device,
        kernels: &BTreeMap<String, KernelId>,
    ) -> Result<(), DeviceError> {
        self.place_buffers(device)?;
        let steps = std::mem::take(&mut self.program.steps);
        let unrolled = match self.program.share.as_ref().and_then(|share| share.micros.clone()) {
            Some(micros) => self.settle_micros(device, &micros, &steps, kernels),
            None => self.unroll(&steps, 0, true, kernels),
        };
        self.program.steps = steps;
        unrolled
    }

    fn place_buffers(&mut self, device: &mut dyn Device) -> Result<(), DeviceError> {
        if self.program.arena_bytes > 0 && !self.places.contains_key(ARENA) {
            let arena = self.allocate(device, self.program.arena_bytes)?;
            self.places.insert(ARENA.into(), arena);
        }
        for buffer in self.program.buffers.clone() {
            if let (Some(offset), Some(arena)) = (buffer.offset, self.places.get(ARENA)) {
                let at = arena.after(offset);
                self.places.insert(buffer.name, at);
            } else if !self.places.contains_key(&buffer.name) {
                let at = self.allocate(device, buffer.bytes)?;
                if buffer.kind == BufferKind::State {
                    device.fill(at, 0, buffer.bytes)?;
                }
                self.places.insert(buffer.name, at);
            }
        }
        Ok(())
    }

    fn allocate(&mut self, device: &mut dyn Device, bytes: u64) -> Result<Address, DeviceError> {
        let at = device.allocate(bytes)?;
        self.own.push(at);
        Ok(at)
    }

    /// Appends the calls of steps; `slice` is that of the round they are in.
    fn unroll(
        &mut self,
        steps: &[Step],
        slice: u64,
        outermost: bool,
        kernels: &BTreeMap<String, KernelId>,
    ) -> Result<(), DeviceError> {
        for (index, step) in steps.iter().enumerate() {
            match step {
                Step::Launch(launch) => {
                    let missing = || DeviceError::Mismatch(format!("kernel `{}` has no text", launch.kernel));
                    let kernel = *kernels.get(&launch.kernel).ok_or_else(missing)?;
                    let args =
                        launch.args.iter().map(|arg| self.value(arg, slice)).collect::<Result<_, _>>()?;
                    let (grid, block, shared_bytes) = (launch.grid, launch.block, launch.shared_bytes);
                    self.work.push(Work::Launch(Call { kernel, grid, block, shared_bytes, args }));
                }
                Step::Gemm(gemm) => {
                    let product = self.product(gemm, slice)?;
                    self.work.push(Work::Product(Box::new(product)));
                }
                Step::Meet(meeting) => {
                    let word = self.word(meeting, slice)?;
                    self.work.push(Work::Say(Box::new(word)));
                }
                Step::Join => self.work.push(Work::Join),
                Step::Repeat { times, reverse, body } => {
                    let note = |loaded: &mut Loaded, done| {
                        let round = outermost.then_some(Work::Round(Round { step: index, done }));
                        loaded.work.extend(round);
                    };
                    note(self, 0);
                    for round in 0..*times {
                        let slice = if *reverse { times - 1 - round } else { round };
                        self.unroll(body, slice, false, kernels)?;
                        note(self, round + 1);
                    }
                }
            }
        }
        Ok(())
    }

    fn value(&self, arg: &Arg, slice: u64) -> Result<Value, DeviceError> {
        let at = self.place(arg, slice)?;
        Ok(arg.boxes.map_or(Value::Pointer(at), |boxes| Value::Boxes(at, boxes)))
    }

    fn place(&self, arg: &Arg, slice: u64) -> Result<Address, DeviceError> {
        let start = self.address(&arg.buffer)?;
        Ok(start.after(arg.offset_bytes + slice * arg.layer_stride_bytes))
    }

    fn product(&self, gemm: &Gemm, slice: u64) -> Result<Product, DeviceError> {
        let maybe = |arg: &Option<Arg>| arg.as_ref().map(|arg| self.place(arg, slice)).transpose();
        Ok(Product {
            a: self.place(&gemm.a, slice)?,
            w: self.place(&gemm.w, slice)?,
            residual: maybe(&gemm.residual)?,
            bias: maybe(&gemm.bias)?,
            out: self.place(&gemm.out, slice)?,
            gemm: gemm.clone(),
        })
    }

    fn word(&self, meeting: &Meeting, slice: u64) -> Result<Word, DeviceError> {
        let maybe = |arg: &Option<Arg>| arg.as_ref().map(|arg| self.place(arg, slice)).transpose();
        let &Meeting { said, group, dtype, count, beside, last, .. } = meeting;
        let (x, out) = (maybe(&meeting.x)?, maybe(&meeting.out)?);
        Ok(Word { name: meeting.name.clone(), said, group, dtype, count, x, out, beside, last })
    }

    /// The program.
    pub fn program(&self) -> &GpuProgram {
        &self.program
    }

    /// Where a buffer is.
    ///
    /// # Errors
    /// [`DeviceError::Mismatch`] when the program has none of that name.
    pub fn address(&self, buffer: &str) -> Result<Address, DeviceError> {
        let missing = || DeviceError::Mismatch(format!("{} has no buffer `{buffer}`", self.program.name));
        self.places.get(buffer).copied().ok_or_else(missing)
    }

    /// Puts the whole program into the device's stream.
    ///
    /// # Errors
    /// What the device says.
    pub fn run(&self, device: &mut dyn Device) -> Result<(), DeviceError> {
        self.run_watched(device, &mut |_, _| Ok(()))
    }

    /// The same; `see` may read the device's memory before, between and behind the rounds of an outermost repeat.
    ///
    /// # Errors
    /// What the device or `see` says.
    pub fn run_watched(
        &self,
        device: &mut dyn Device,
        see: &mut dyn FnMut(&mut dyn Device, Round) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        if !self.flights.is_empty() {
            let what = format!("{} takes micro-batches in turns", self.program.name);
            return Err(DeviceError::Mismatch(what));
        }
        self.work.iter().try_for_each(|work| match work {
            Work::Round(round) => see(device, *round),
            _ => work.start(device),
        })
    }

    /// Notes the whole program as a graph.
    ///
    /// # Errors
    /// What the device says.
    pub fn capture(&self, device: &mut dyn Device) -> Result<GraphId, DeviceError> {
        capture(device, &mut |device| self.run(device))
    }

    /// Copies to a buffer from the host; what is shorter than the buffer leaves its end as it is.
    ///
    /// # Errors
    /// [`DeviceError::Mismatch`] when there is no such buffer or it is shorter.
    pub fn write(&self, device: &mut dyn Device, buffer: &str, bytes: &[u8]) -> Result<(), DeviceError> {
        self.fits(buffer, bytes.len())?;
        device.write(self.address(buffer)?, bytes)
    }

    /// Copies the beginning of a buffer to the host.
    ///
    /// # Errors
    /// [`DeviceError::Mismatch`] when there is no such buffer or it is shorter.
    pub fn read(&self, device: &mut dyn Device, buffer: &str, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.fits(buffer, bytes.len())?;
        device.read(self.address(buffer)?, bytes)
    }

    fn fits(&self, name: &str, bytes: usize) -> Result<(), DeviceError> {
        let room = self.program.buffer(name).map_or(0, |buffer| buffer.bytes);
        match bytes as u64 <= room {
            true => Ok(()),
            false => Err(DeviceError::Mismatch(format!("{bytes} bytes for `{name}`, which has {room}"))),
        }
    }

    /// Gives back what is not shared.
    ///
    /// # Errors
    /// What the device says.
    pub fn release(self, device: &mut dyn Device) -> Result<(), DeviceError> {
        self.own.into_iter().try_for_each(|at| device.release(at))
    }
}

impl Work {
    fn start(&self, device: &mut dyn Device) -> Result<(), DeviceError> {
        match self {
            Work::Launch(call) => device.launch(call),
            Work::Product(product) => device.product(product),
            Work::Say(word) => device.say(word),
            Work::Join => device.join(),
            Work::Round(_) => Ok(()),
        }
    }
}

/// Whether a program runs on this device: one rank's part is for that rank of its job and nobody else.
fn at_home(device: &dyn Device, program: &GpuProgram) -> Result<(), DeviceError> {
    let Some(share) = &program.share else { return Ok(()) };
    let standing = device.standing();
    // A plan of one rank has nobody to meet.
    let alone = share.world() == 1 && standing.is_none();
    if alone || standing.is_some_and(|standing| standing.has(share)) {
        return Ok(());
    }
    let found = standing.map_or_else(
        || "alone".to_string(),
        |one| format!("rank {} in stage {} of {}", one.tensor.index, one.stage.index, one.plan()),
    );
    let (plan, rank, stage) = (share.plan(), share.tensor.index, share.stage.index);
    Err(DeviceError::World { plan, rank, stage, found })
}

/// Notes what `work` launches as a graph; ends the graph where it fails, too.
///
/// # Errors
/// What the device or `work` says.
pub fn capture(
    device: &mut dyn Device,
    work: &mut dyn FnMut(&mut dyn Device) -> Result<(), DeviceError>,
) -> Result<GraphId, DeviceError> {
    device.begin_graph()?;
    let done = work(device);
    let graph = device.end_graph();
    done.and(graph)
}

/// Loads the generated kernels of a program, each text once.
fn kernels(
    device: &mut dyn Device,
    program: &GpuProgram,
    sources: &[Source],
) -> Result<BTreeMap<String, KernelId>, DeviceError> {
    let used: Vec<Source> =
        sources.iter().filter(|source| program.kernel(&source.name).is_some()).cloned().collect();
    let ids = device.load(&used)?;
    Ok(used.into_iter().map(|source| source.name).zip(ids).collect())
}

//! Memory of a training step: weights with their gradients and moments, and the buffers of a batch.

use crate::program::StateSharding;
use crate::program::train::{TrainBuffer, TrainParameter, TrainProgram};
use crate::rows::pitch;
use crate::weights::{WeightError, Weights};
use std::collections::BTreeMap;
use std::ops::Range;

/// How the ranks that hold the same weights share them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Which of them this is.
    pub index: usize,
    /// How many there are.
    pub of: usize,
    /// What each of them has.
    pub sharding: StateSharding,
}

impl Replica {
    /// The only rank.
    pub const ALONE: Replica = Replica { index: 0, of: 1, sharding: StateSharding::None };

    /// Elements of a run of a weight of `len` elements; the last runs may have fewer, or none.
    pub fn run(&self, len: usize) -> usize {
        match self.sharding {
            StateSharding::None => len,
            _ => len.div_ceil(self.of.max(1)),
        }
    }

    /// The elements that this rank changes.
    fn own(&self, len: usize) -> Range<usize> {
        let (run, index) = (self.run(len), if self.sharding == StateSharding::None { 0 } else { self.index });
        (run * index).min(len)..(run * (index + 1)).min(len)
    }
}

/// A weight of one layer, or of the model.
pub struct Weight {
    /// Canonical name with the layer's number.
    pub name: String,
    /// Index among the program's parameters.
    pub parameter: usize,
    /// Elements that count; what lies behind them only fills a chunk.
    pub len: usize,
    /// Length of `values` and `gradient` where they are in memory.
    pub room: usize,
    /// Values; empty while other ranks have them.
    pub values: Vec<f32>,
    /// Sum of the gradients since it was last cleared; empty while no step adds to it.
    pub gradient: Vec<f32>,
    /// The elements that this rank changes: all of them, or a run.
    pub own: Range<usize>,
    /// Where it changes a run: the sum of all ranks' gradients there.
    pub scattered: Vec<f32>,
    /// Where ranks hold runs only: this rank's values.
    pub held: Vec<f32>,
    /// Running mean of the gradients; empty before the first update.
    pub mean: Vec<f32>,
    /// Running mean of their squares.
    pub square: Vec<f32>,
}

/// Every weight: parameters in the program's order, layers in theirs.
pub struct AllWeights {
    /// The weights.
    pub list: Vec<Weight>,
    places: Vec<Range<usize>>,
}

impl Weight {
    /// The gradient of the elements that this rank changes.
    pub fn reduced(&self) -> &[f32] {
        match self.scattered.is_empty() {
            true => self.gradient.get(self.own.clone()).unwrap_or(&[]),
            false => &self.scattered[..self.own.len()],
        }
    }

    /// Leaves this rank's run of it.
    fn hold_run(&mut self, replica: &Replica) {
        let run = replica.run(self.len);
        if replica.sharding != StateSharding::None {
            self.scattered = vec![0.0; run];
        }
        if replica.sharding == StateSharding::Full {
            self.held = self.values[self.own.clone()].to_vec();
            self.held.resize(run, 0.0);
            (self.values, self.gradient) = (Vec::new(), Vec::new());
        }
    }
}

impl AllWeights {
    /// Reads every tensor that the program names, and keeps what the rank has of it.
    ///
    /// # Errors
    /// The first that is missing or has another shape or type.
    pub fn load(
        program: &TrainProgram,
        weights: &dyn Weights,
        replica: &Replica,
    ) -> Result<AllWeights, WeightError> {
        let mut all = AllWeights { list: Vec::new(), places: Vec::new() };
        for (at, parameter) in program.parameters.iter().enumerate() {
            let start = all.list.len();
            let copies = if parameter.per_layer { program.model.layers } else { 1 };
            for layer in 0..copies {
                let mut weight = load(at, parameter, layer, weights)?;
                weight.own = replica.own(weight.len);
                weight.hold_run(replica);
                all.list.push(weight);
            }
            all.places.push(start..all.list.len());
        }
        Ok(all)
    }

    /// Index of a parameter's weight in a layer.
    pub fn place(&self, parameter: usize, layer: usize) -> usize {
        let range = &self.places[parameter];
        if range.len() <= 1 { range.start } else { range.start + layer }
    }

    /// A parameter's weight in a layer.
    pub fn get(&self, parameter: usize, layer: usize) -> &Weight {
        &self.list[self.place(parameter, layer)]
    }

    /// The gradient of a parameter in a layer.
    pub fn gradient(&mut self, parameter: usize, layer: usize) -> &mut [f32] {
        let place = self.place(parameter, layer);
        &mut self.list[place].gradient
    }
}

fn load(
    at: usize,
    parameter: &TrainParameter,
    layer: u64,
    weights: &dyn Weights,
) -> Result<Weight, WeightError> {
    let name = parameter.name.replace('*', &layer.to_string());
    let view = weights.tensor(&name)?;
    view.expect(&name, &parameter.shape)?;
    let len = parameter.shape.iter().product::<u64>() as usize;
    // Vectors are read in whole chunks by row functions.
    let room = if parameter.shape.len() == 1 { pitch(len as u64) } else { len };
    let mut values = vec![0.0; room];
    view.read(0, &mut values[..len]);
    Ok(Weight {
        name,
        parameter: at,
        len,
        room,
        values,
        gradient: vec![0.0; room],
        own: 0..len,
        scattered: Vec::new(),
        held: Vec::new(),
        mean: Vec::new(),
        square: Vec::new(),
    })
}

/// The form of a batch in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub seq: usize,
    /// Rows of a run: those of the batch over the tensor-parallel ranks, rounded up.
    pub run: usize,
    /// Batches that are under way at once.
    pub flights: usize,
}

impl Form {
    /// Rows of the batch.
    pub fn rows(&self) -> usize {
        self.batch * self.seq
    }
}

/// The buffers of a batch: one memory each, or one for each layer that keeps it; as often as batches are under way for
/// what one segment leaves for another.
#[derive(Default)]
pub struct Buffers {
    memory: Vec<Vec<Vec<f32>>>,
    form: Form,
    /// Whether a buffer is there once for every batch under way.
    flies: Vec<bool>,
    /// The batch that is worked on.
    pub flight: usize,
}

impl Buffers {
    /// Makes room for batches.
    pub fn prepare(&mut self, program: &TrainProgram, form: Form) {
        if self.form == form && !self.memory.is_empty() {
            return;
        }
        (self.form, self.flies, self.flight) = (form, flying(program), 0);
        let one = |buffer: &TrainBuffer| match (buffer.scores, buffer.run) {
            (true, _) => form.rows() * form.seq * buffer.width as usize,
            (_, true) => form.run * pitch(buffer.width),
            (_, false) => form.rows() * pitch(buffer.width),
        };
        let copies = |at: usize, buffer: &TrainBuffer| {
            let flights = if self.flies[at] { form.flights } else { 1 };
            flights * buffer.kept.map_or(1, |kept| kept.times as usize)
        };
        let room = |(at, buffer): (usize, &TrainBuffer)| vec![vec![0.0; one(buffer)]; copies(at, buffer)];
        self.memory = program.buffers.iter().enumerate().map(room).collect();
    }

    fn index(&self, program: &TrainProgram, id: usize, layer: usize) -> usize {
        let flight = if self.flies[id] { self.flight } else { 0 };
        program.buffers[id]
            .kept
            .map_or(flight, |kept| flight * kept.times as usize + layer - kept.first as usize)
    }

    /// A buffer as the layer sees it.
    pub fn get(&self, program: &TrainProgram, id: usize, layer: usize) -> &[f32] {
        &self.memory[id][self.index(program, id, layer)]
    }

    /// Takes a buffer out, to be written while others are read.
    pub fn take(&mut self, program: &TrainProgram, id: usize, layer: usize) -> Vec<f32> {
        let at = self.index(program, id, layer);
        std::mem::take(&mut self.memory[id][at])
    }

    /// Puts it back.
    pub fn put(&mut self, program: &TrainProgram, id: usize, layer: usize, data: Vec<f32>) {
        let at = self.index(program, id, layer);
        self.memory[id][at] = data;
    }

    /// Bytes of all buffers.
    pub fn bytes(&self) -> usize {
        4 * self.memory.iter().flatten().map(Vec::len).sum::<usize>()
    }
}

/// Which buffers one segment leaves for another, or a layer for its backward pass.
fn flying(program: &TrainProgram) -> Vec<bool> {
    let mut last: BTreeMap<usize, usize> = BTreeMap::new();
    let mut flies: Vec<bool> = program.buffers.iter().map(|buffer| buffer.kept.is_some()).collect();
    let segments = program.share.as_ref().map_or(1, |share| share.segments.len());
    for segment in 0..segments {
        for step in &program.body[program.segment(segment)] {
            step.buffers(&mut |id| {
                if last.insert(id, segment).is_some_and(|before| before != segment) {
                    flies[id] = true;
                }
            });
        }
    }
    flies
}

//! Memory of a training step: weights with their gradients and moments, and the buffers of a batch.

use crate::program::train::{TrainBuffer, TrainParameter, TrainProgram};
use crate::rows::pitch;
use crate::weights::{WeightError, Weights};
use std::ops::Range;

/// A weight of one layer, or of the model.
pub struct Weight {
    /// Canonical name with the layer's number.
    pub name: String,
    /// Index among the program's parameters.
    pub parameter: usize,
    /// Elements that count; what lies behind them only fills a chunk.
    pub len: usize,
    /// Values.
    pub values: Vec<f32>,
    /// Sum of the gradients since it was last cleared.
    pub gradient: Vec<f32>,
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

impl AllWeights {
    /// Reads every tensor that the program names.
    ///
    /// # Errors
    /// The first that is missing or has another shape or type.
    pub fn load(program: &TrainProgram, weights: &dyn Weights) -> Result<AllWeights, WeightError> {
        let mut all = AllWeights { list: Vec::new(), places: Vec::new() };
        for (at, parameter) in program.parameters.iter().enumerate() {
            let start = all.list.len();
            let copies = if parameter.per_layer { program.model.layers } else { 1 };
            for layer in 0..copies {
                all.list.push(load(at, parameter, layer, weights)?);
            }
            all.places.push(start..all.list.len());
        }
        Ok(all)
    }

    /// Index of a parameter's weight in a layer.
    pub fn place(&self, parameter: usize, layer: usize) -> usize {
        let range = &self.places[parameter];
        if range.len() == 1 { range.start } else { range.start + layer }
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
        values,
        gradient: vec![0.0; room],
        mean: Vec::new(),
        square: Vec::new(),
    })
}

/// The buffers of a batch: one memory each, or one for each layer that keeps it.
#[derive(Default)]
pub struct Buffers {
    memory: Vec<Vec<Vec<f32>>>,
    tokens: usize,
    seq: usize,
}

impl Buffers {
    /// Makes room for a batch.
    pub fn prepare(&mut self, program: &TrainProgram, batch: usize, seq: usize) {
        if (self.tokens, self.seq) == (batch * seq, seq) && !self.memory.is_empty() {
            return;
        }
        (self.tokens, self.seq) = (batch * seq, seq);
        let one = |buffer: &TrainBuffer| match buffer.scores {
            true => batch * seq * seq * buffer.width as usize,
            false => batch * seq * pitch(buffer.width),
        };
        let copies = |buffer: &TrainBuffer| buffer.kept.map_or(1, |kept| kept.times as usize);
        let room = |buffer: &TrainBuffer| vec![vec![0.0; one(buffer)]; copies(buffer)];
        self.memory = program.buffers.iter().map(room).collect();
    }

    fn index(program: &TrainProgram, id: usize, layer: usize) -> usize {
        program.buffers[id].kept.map_or(0, |kept| layer - kept.first as usize)
    }

    /// A buffer as the layer sees it.
    pub fn get(&self, program: &TrainProgram, id: usize, layer: usize) -> &[f32] {
        &self.memory[id][Buffers::index(program, id, layer)]
    }

    /// Takes a buffer out, to be written while others are read.
    pub fn take(&mut self, program: &TrainProgram, id: usize, layer: usize) -> Vec<f32> {
        std::mem::take(&mut self.memory[id][Buffers::index(program, id, layer)])
    }

    /// Puts it back.
    pub fn put(&mut self, program: &TrainProgram, id: usize, layer: usize, data: Vec<f32>) {
        self.memory[id][Buffers::index(program, id, layer)] = data;
    }

    /// Bytes of all buffers.
    pub fn bytes(&self) -> usize {
        4 * self.memory.iter().flatten().map(Vec::len).sum::<usize>()
    }
}

//! A training step of several micro-batches: segments of the program in the order of the schedule, then what runs once.
//!
//! Micro-batches that are under way at once each have memory of their own for what is kept until their backward pass, and
//! for their ids and labels: a flight. Everything else they share.
use super::{Loaded, Places, Work};
use crate::device::{Device, DeviceError, KernelId};
use crate::program::{Buffer, BufferKind, Micros, Step};
use std::collections::BTreeMap;

/// Writes the ids and labels of a micro-batch to the places of its flight.
pub type Feed<'f> = dyn FnMut(&mut dyn Device, u64, &Places) -> Result<(), DeviceError> + 'f;

/// What a flight has of its own.
#[derive(Debug)]
pub(super) struct Flight {
    /// Its memory.
    places: Places,
    /// The work of every segment.
    segments: Vec<Vec<Work>>,
}

impl Loaded {
    /// Memory of all flights, and the work of each of their segments.
    pub(super) fn settle_micros(
        &mut self,
        device: &mut dyn Device,
        micros: &Micros,
        steps: &[Step],
        kernels: &BTreeMap<String, KernelId>,
    ) -> Result<(), DeviceError> {
        let flying = self.program.buffers.iter().filter(|buffer| {
            let given = buffer.kind == BufferKind::Input && matches!(buffer.name.as_str(), "ids" | "labels");
            given || buffer.kind == BufferKind::Kept
        });
        let flying: Vec<Buffer> = flying.cloned().collect();
        let bounds: Vec<usize> =
            micros.segments.iter().chain([&micros.finish]).map(|at| *at as usize).collect();
        for flight in 0..micros.schedule.flights {
            let mut places = Places::new();
            for buffer in &flying {
                let at = match flight {
                    0 => self.address(&buffer.name)?,
                    _ => self.allocate(device, buffer.bytes)?,
                };
                self.places.insert(buffer.name.clone(), at);
                places.insert(buffer.name.clone(), at);
            }
            let mut segments = Vec::new();
            for range in bounds.windows(2) {
                self.unroll(&steps[range[0]..range[1]], 0, false, kernels)?;
                segments.push(std::mem::take(&mut self.work));
            }
            self.flights.push(Flight { places, segments });
        }
        let first = self.flights.first().map(|flight| flight.places.clone()).unwrap_or_default();
        self.places.extend(first);
        self.unroll(&steps[micros.finish as usize..], 0, false, kernels)
    }

    /// Puts the forward and backward passes of all micro-batches into the device's stream. `feed` writes the ids and labels of
    /// a micro-batch to its flight's places, before anything of it runs.
    ///
    /// # Errors
    /// [`DeviceError::Mismatch`] for a program without micro-batches, and what the device says.
    pub fn run_micros(&self, device: &mut dyn Device, feed: &mut Feed<'_>) -> Result<(), DeviceError> {
        let none = || DeviceError::Mismatch(format!("{} has no micro-batches", self.program.name));
        let micros = self.program.share.as_ref().and_then(|share| share.micros.as_ref()).ok_or_else(none)?;
        // A range of layers is a flight of its own, and what goes forwards comes before what goes backwards.
        let forwards = (micros.segments.len() as u64).div_ceil(2);
        for turn in &micros.schedule.turns {
            let flight = &self.flights[turn.flight as usize];
            if turn.segment < forwards {
                feed(device, turn.micro, &flight.places)?;
            }
            let last = turn.micro + 1 == micros.schedule.micros;
            let works = flight.segments[turn.segment as usize].iter();
            let spoken = |work: &&Work| last || !matches!(work, Work::Say(word) if word.last);
            works.filter(spoken).try_for_each(|work| work.start(device))?;
        }
        Ok(())
    }

    /// Puts what runs once behind all micro-batches into the device's stream: sums over replicas, clipping and AdamW.
    ///
    /// # Errors
    /// What the device says.
    pub fn finish(&self, device: &mut dyn Device) -> Result<(), DeviceError> {
        self.work.iter().try_for_each(|work| work.start(device))
    }
}

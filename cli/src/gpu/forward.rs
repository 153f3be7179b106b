//! A pass over whole sequences: the residual stream after every layer, and the logits of every position.

use super::lower::rows;
use super::{Gpu, failure};
use crate::failure::Failure;
use lapidary_models::{Dims, Mode};
use lapidary_runtime_gpu::device::DeviceError;
use lapidary_runtime_gpu::execute::Loaded;

/// What a pass of tokens gives. Rows are tokens, sequence by sequence.
#[derive(Debug, Default)]
pub struct Forward {
    /// The residual stream before the first layer and behind every layer.
    pub stream: Vec<Vec<f32>>,
    /// Rows of the vocabulary's width.
    pub logits: Vec<f32>,
}

impl Gpu<'_> {
    /// Runs sequences of one length.
    ///
    /// # Errors
    /// Exit 4 when they do not fit into the device's memory, 7 for what else the device says.
    pub fn forward(&self, ids: &[Vec<u32>]) -> Result<Forward, Failure> {
        let (batch, seq) = (ids.len() as u64, ids.first().map_or(0, Vec::len) as u64);
        let made = self.lower(Mode::Forward, Dims { batch, seq, cached: 0 })?;
        let weights = self.weights(made.part.program.get())?;
        let mut device = self.device.borrow_mut();
        let device = device.as_mut();
        let told = |error: DeviceError| failure(&error);
        let loaded = Loaded::new(device, &made.part.program, &made.part.sources, &weights).map_err(told)?;
        let flat: Vec<u8> = ids.iter().flatten().flat_map(|id| id.to_le_bytes()).collect();
        if loaded.program().buffer("ids").is_some() {
            loaded.write(device, "ids", &flat).map_err(told)?;
        }
        let stream = loaded.program().buffer(&made.stream).cloned();
        let mut forward = Forward::default();
        let ran = loaded.run_watched(device, &mut |device, _| {
            let Some(buffer) = &stream else { return Ok(()) };
            let mut bytes = vec![0; buffer.bytes as usize];
            loaded.read(device, &buffer.name, &mut bytes)?;
            forward.stream.push(rows(buffer, &bytes, self.spec.d_model));
            Ok(())
        });
        ran.map_err(told)?;
        let mut bytes = vec![0; made.logits.bytes as usize];
        loaded.read(device, &made.logits.name, &mut bytes).map_err(told)?;
        forward.logits = rows(&made.logits, &bytes, self.spec.vocab);
        loaded.release(device).map_err(told)?;
        Ok(forward)
    }
}

//! Random data from a seed: weights that two machines agree on, and contents of buffers that are only measured.
use super::Job;
use crate::device::{Device, DeviceError};
use crate::execute::{Loaded, Tensor, Tensors, encode};
use crate::program::{Buffer, BufferKind, Dtype};
use half::bf16;
use std::collections::BTreeMap;

/// A number in [-1, 1) for a name and an index, always the same (SplitMix64; Steele, Lea and Flood, 2014).
pub fn seeded(name: &str, index: u64) -> f64 {
    let start = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let z = start.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ z >> 31) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// Weights of a model by name alone: products keep the size of what they read, norms are about one.
#[derive(Debug, Clone, PartialEq)]
pub struct Seeded<'s> {
    /// Dimensions of every tensor.
    pub shapes: &'s BTreeMap<String, Vec<u64>>,
    /// Element type that values are rounded to.
    pub dtype: Dtype,
}

impl Seeded<'_> {
    /// Element `index` of a tensor of that name and shape.
    pub fn value(&self, name: &str, shape: &[u64], index: u64) -> f32 {
        let (size, base) = match shape {
            [_] if name.contains("norm") && name.ends_with("weight") => (0.3, 1.0),
            [_] => (0.3, 0.0),
            _ => (1.5 / (shape.last().copied().unwrap_or(1) as f64).sqrt(), 0.0),
        };
        let value = (base + size * seeded(name, index)) as f32;
        if self.dtype == Dtype::Bf16 { bf16::from_f32(value).to_f32() } else { value }
    }
}

impl Tensors for Seeded<'_> {
    fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let shape = self.shapes.get(name)?.clone();
        let (name, sizes) = (name.to_string(), shape.clone());
        let read = move |first: u64, out: &mut [f32]| {
            out.iter_mut().enumerate().for_each(|(i, x)| *x = self.value(&name, &sizes, first + i as u64));
        };
        Some(Tensor { shape, read: Box::new(read) })
    }
}

/// Bytes of random data that are made on the host; larger buffers repeat them.
const BLOCK: u64 = 1 << 20;

/// Fills everything that a program reads before it writes it; gradients and moments stay zero.
///
/// # Errors
/// What the device says.
pub(super) fn fill(device: &mut dyn Device, job: &Job, loaded: &Loaded) -> Result<(), DeviceError> {
    for buffer in &job.program.buffers {
        if let Some(values) = job.given.get(&buffer.name) {
            let mut bytes = vec![0; values.len() * buffer.dtype.bytes() as usize];
            encode(buffer.dtype, values.iter().map(|x| *x as f32), &mut bytes);
            loaded.write(device, &buffer.name, &bytes)?;
        } else if !matches!(buffer.kind, BufferKind::Arena | BufferKind::State) {
            let below = job.below.get(&buffer.name).copied();
            let block = random_block(buffer, below, BLOCK.min(buffer.bytes));
            repeat(device, loaded, buffer, &block)?;
        }
    }
    Ok(())
}

fn random_block(buffer: &Buffer, below: Option<u64>, bytes: u64) -> Vec<u8> {
    let mut block = vec![0; bytes as usize];
    let whole = |x: f64| ((x + 1.0) / 2.0 * below.unwrap_or(1) as f64).floor() as f32;
    let value = |index: u64| match buffer.dtype {
        Dtype::I32 => whole(seeded(&buffer.name, index)),
        Dtype::I8 => (seeded(&buffer.name, index) * 127.0).round() as f32,
        _ => seeded(&buffer.name, index) as f32,
    };
    encode(buffer.dtype, (0..bytes / buffer.dtype.bytes()).map(value), &mut block);
    block
}

/// Writes a block at a buffer's start, and copies what is written already until the buffer is full.
fn repeat(
    device: &mut dyn Device,
    loaded: &Loaded,
    buffer: &Buffer,
    block: &[u8],
) -> Result<(), DeviceError> {
    let at = loaded.address(&buffer.name)?;
    device.write(at, block)?;
    let mut done = block.len() as u64;
    while done < buffer.bytes {
        let more = done.min(buffer.bytes - done);
        device.copy(at.after(done), at, more)?;
        done += more;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_spread_and_always_the_same() {
        let numbers: Vec<f64> = (0..10_000).map(|i| seeded("a", i)).collect();
        let mean = numbers.iter().sum::<f64>() / 1e4;
        let square = numbers.iter().map(|x| x * x).sum::<f64>() / 1e4;
        assert!(numbers.iter().all(|x| (-1.0..1.0).contains(x)));
        assert!(mean.abs() < 0.02 && (square - 1.0 / 3.0).abs() < 0.02, "{mean} {square}");
        assert_eq!(seeded("a", 7), numbers[7]);
        assert_ne!(seeded("b", 7), numbers[7]);
    }
}

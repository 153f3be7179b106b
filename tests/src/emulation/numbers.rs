//! Elements of a device's memory as numbers.
use lapidary_runtime_gpu::program::Dtype;

/// A number as bfloat16, rounded to the nearest and to even.
pub fn bf16_bits(x: f64) -> u16 {
    let bits = (x as f32).to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Element `at` of an array.
pub fn get(dtype: Dtype, bytes: &[u8], at: usize) -> f64 {
    let word = || [bytes[at * 4], bytes[at * 4 + 1], bytes[at * 4 + 2], bytes[at * 4 + 3]];
    match dtype {
        Dtype::Bf16 => {
            f32::from_bits(u32::from(u16::from_le_bytes([bytes[at * 2], bytes[at * 2 + 1]])) << 16).into()
        }
        Dtype::F32 => f32::from_le_bytes(word()).into(),
        Dtype::I32 => i32::from_le_bytes(word()).into(),
        Dtype::I8 => bytes[at].cast_signed().into(),
    }
}

/// Sets element `at` of an array.
pub fn set(dtype: Dtype, bytes: &mut [u8], at: usize, x: f64) {
    match dtype {
        Dtype::Bf16 => bytes[at * 2..at * 2 + 2].copy_from_slice(&bf16_bits(x).to_le_bytes()),
        Dtype::F32 => bytes[at * 4..at * 4 + 4].copy_from_slice(&(x as f32).to_le_bytes()),
        Dtype::I32 => bytes[at * 4..at * 4 + 4].copy_from_slice(&(x as i32).to_le_bytes()),
        Dtype::I8 => bytes[at] = (x as i8).cast_unsigned(),
    }
}

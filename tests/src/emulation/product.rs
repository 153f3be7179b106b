//! What the library computes, on the host.
use super::{Emulated, get, set};
use lapidary_runtime_gpu::device::{Address, Device, DeviceError, Product};
use lapidary_runtime_gpu::program::Dtype;

/// `out = alpha a w^T + beta residual + bias`, in f64.
pub(super) fn compute(device: &mut Emulated, product: &Product) -> Result<(), DeviceError> {
    let g = &product.gemm;
    let result = g.out_dtype.unwrap_or(g.dtype);
    let (m, n, k) = (g.m as usize, g.n as usize, g.k as usize);
    let (lda, ldw, ldo) = (g.lda as usize, g.ldw as usize, g.ldo as usize);
    let left = |row: usize, depth: usize| if g.transpose_a { depth * lda + row } else { row * lda + depth };
    let right = |col: usize, depth: usize| if g.transpose_w { col * ldw + depth } else { depth * ldw + col };
    let a = array(device, product.a, g.dtype, left(m - 1, k - 1) + 1)?;
    let w = array(device, product.w, g.dtype, right(n - 1, k - 1) + 1)?;
    let last = (m - 1) * ldo + n;
    let residual = product.residual.map(|at| array(device, at, result, last)).transpose()?;
    let bias = product.bias.map(|at| array(device, at, g.dtype, n)).transpose()?;
    let mut out = array(device, product.out, result, last)?;
    for row in 0..m {
        for col in 0..n {
            let terms = (0..k).map(|i| get(g.dtype, &a, left(row, i)) * get(g.dtype, &w, right(col, i)));
            let at = row * ldo + col;
            let added = residual.as_ref().map_or(0.0, |r| g.beta * get(result, r, at))
                + bias.as_ref().map_or(0.0, |b| get(g.dtype, b, col));
            set(result, &mut out, at, terms.sum::<f64>() * g.alpha + added);
        }
    }
    device.write(product.out, &out)
}

fn array(device: &mut Emulated, at: Address, dtype: Dtype, elements: usize) -> Result<Vec<u8>, DeviceError> {
    let mut bytes = vec![0; elements * dtype.bytes() as usize];
    device.read(at, &mut bytes)?;
    Ok(bytes)
}

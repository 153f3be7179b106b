//! Weights on their way to the device: the model's tensors, packed as the program wants them.
use super::Places;
use crate::device::{Device, DeviceError};
use crate::program::{Buffer, BufferKind, Dtype, GpuProgram, PackForm, PackSource, Packing};
use half::bf16;
use std::collections::BTreeMap;

/// The model's tensors by canonical name, the layer's number filled in.
pub trait Tensors {
    /// A tensor; none where there is no such tensor.
    fn tensor(&self, name: &str) -> Option<Tensor<'_>>;
}

/// Reads elements from one on, row by row; only called within the shape.
pub type Read<'t> = Box<dyn Fn(u64, &mut [f32]) + 't>;

/// One tensor of a model.
pub struct Tensor<'t> {
    /// Dimensions.
    pub shape: Vec<u64>,
    /// Its elements.
    pub read: Read<'t>,
}

/// Why weights do not become a program's.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WeightFault {
    /// A tensor is not there, or has other dimensions.
    #[error("the program needs `{name}` with {wanted}, found {found}")]
    Shape {
        /// Canonical name.
        name: String,
        /// Rows and columns that the program takes.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Packs and copies every weight that has no place yet; of what replicas hold runs of, this one's. Slices of layers go one by
/// one, so the host holds one at a time.
///
/// # Errors
/// For a tensor that is missing or of another shape, and what the device says; [`DeviceError::Memory`] with every class of
/// the whole program, which is checked before the first is copied.
pub fn load_weights(
    device: &mut dyn Device,
    program: &GpuProgram,
    tensors: &dyn Tensors,
    places: &mut Places,
) -> Result<(), WeightFault> {
    let replica = device.standing().map_or(0, |standing| standing.replica.index);
    super::Needs::of(program, places, device.has_workspace()).check(&program.name, device)?;
    for buffer in program.buffers.iter().filter(|b| matches!(b.kind, BufferKind::Param | BufferKind::Weight))
    {
        if places.contains_key(&buffer.name) {
            continue;
        }
        let at = device.allocate(buffer.bytes)?;
        places.insert(buffer.name.clone(), at);
        let (count, stride) = buffer.layers.map_or((1, 0), |layers| (layers.count, layers.stride_bytes));
        for layer in 0..count {
            device.write(at.after(layer * stride), &held(buffer, layer, replica, tensors)?)?;
        }
    }
    Ok(())
}

/// What a replica holds of one layer's slice of a weight: its run where every replica has one of its own, else all of it.
///
/// # Errors
/// [`WeightFault::Shape`].
pub fn held(
    buffer: &Buffer,
    layer: u64,
    replica: u64,
    tensors: &dyn Tensors,
) -> Result<Vec<u8>, WeightFault> {
    let whole = pack(buffer, layer, tensors)?;
    if !buffer.per_replica {
        return Ok(whole);
    }
    let bytes = buffer.slice_bytes() as usize;
    let start = bytes.saturating_mul(replica as usize).min(whole.len());
    let mut run = whole[start..whole.len().min(start.saturating_add(bytes))].to_vec();
    run.resize(bytes, 0);
    Ok(run)
}

/// One layer's slice of a packed weight. Rows and columns that no tensor fills are zero.
///
/// # Errors
/// [`WeightFault::Shape`].
pub fn pack(buffer: &Buffer, layer: u64, tensors: &dyn Tensors) -> Result<Vec<u8>, WeightFault> {
    let Some(packing) = &buffer.packing else { return Ok(Vec::new()) };
    let size = buffer.dtype.bytes();
    let row_bytes = (packing.pitch * size) as usize;
    let mut bytes = match packing.form {
        PackForm::Int8Scales => vec![0u8; (packing.rows * size) as usize],
        PackForm::Values | PackForm::Int8 => vec![0u8; packing.rows as usize * row_bytes],
    };
    each_row(packing, layer, tensors, &mut |row, values| match packing.form {
        PackForm::Values => {
            let start = row as usize * row_bytes;
            let out = &mut bytes[start..start + (packing.cols * size) as usize];
            encode(buffer.dtype, values.iter().copied(), out);
        }
        PackForm::Int8 => {
            let start = row as usize * row_bytes;
            quantise(values, &mut bytes[start..start + row_bytes]);
        }
        PackForm::Int8Scales => {
            let start = (row * size) as usize;
            encode(buffer.dtype, [int8_scale(values)].into_iter(), &mut bytes[start..start + size as usize]);
        }
    })?;
    Ok(bytes)
}

/// The scale of a row of whole numbers: its largest absolute value becomes 127. A row of zeros has the scale zero.
pub fn int8_scale(values: &[f32]) -> f32 {
    values.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0
}

/// A row as whole numbers in the order of [`PackForm::Int8`]; bytes beyond the row stay zero.
fn quantise(values: &[f32], out: &mut [u8]) {
    let scale = int8_scale(values);
    if scale <= 0.0 {
        return;
    }
    for (at, byte) in out.iter_mut().enumerate() {
        if let Some(x) = values.get(PackForm::int8_column(at as u64) as usize) {
            *byte = ((x / scale).round().clamp(-127.0, 127.0) as i8).cast_unsigned();
        }
    }
}

/// Calls `each` with the number and the values of every packed row that a tensor fills, in order.
fn each_row(
    packing: &Packing,
    layer: u64,
    tensors: &dyn Tensors,
    each: &mut dyn FnMut(u64, &[f32]),
) -> Result<(), WeightFault> {
    let mut found: BTreeMap<&str, Tensor<'_>> = BTreeMap::new();
    for source in packing.groups.iter().flat_map(|group| &group.sources) {
        found.insert(&source.name, tensor(tensors, source, layer, packing)?);
    }
    let mut values = vec![0f32; packing.cols as usize];
    let mut made = values.clone();
    for row in 0..packing.rows {
        let Some((source, from)) = packing.source(row) else { continue };
        let Some(tensor) = found.get(source.name.as_str()) else { continue };
        // A vector's order is one of columns: it is read whole and permuted.
        let vector = tensor.shape.len() == 1;
        (tensor.read)(if vector { 0 } else { from * packing.cols }, &mut values);
        for (col, x) in made.iter_mut().enumerate() {
            let at = if vector { source.order.source_row(col as u64) as usize } else { col };
            *x = values[at] * source.scale as f32;
        }
        each(row, &made);
    }
    Ok(())
}

/// A source's tensor, known to have the dimensions that the packing takes.
fn tensor<'t>(
    tensors: &'t dyn Tensors,
    source: &PackSource,
    layer: u64,
    packing: &Packing,
) -> Result<Tensor<'t>, WeightFault> {
    let name = source.name.replacen('*', &layer.to_string(), 1);
    let (rows, cols) = (source.rows, packing.cols);
    let found = tensors.tensor(&name);
    let words = |shape: &[u64]| shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
    let told = found.as_ref().map_or("none".to_string(), |tensor| words(&tensor.shape));
    let good = |tensor: &Tensor<'_>| match tensor.shape[..] {
        [length] => rows == 1 && length == cols,
        [height, width] => height == rows && width == cols,
        _ => false,
    };
    let wanted = if rows == 1 { words(&[cols]) } else { words(&[rows, cols]) };
    found.filter(good).ok_or(WeightFault::Shape { name, wanted, found: told })
}

/// Writes values in a buffer's element type, rounded to the nearest.
pub(crate) fn encode(dtype: Dtype, values: impl Iterator<Item = f32>, out: &mut [u8]) {
    match dtype {
        Dtype::Bf16 => out
            .chunks_exact_mut(2)
            .zip(values)
            .for_each(|(to, x)| to.copy_from_slice(&bf16::from_f32(x).to_le_bytes())),
        Dtype::F32 => {
            out.chunks_exact_mut(4).zip(values).for_each(|(to, x)| to.copy_from_slice(&x.to_le_bytes()))
        }
        Dtype::I32 => out
            .chunks_exact_mut(4)
            .zip(values)
            .for_each(|(to, x)| to.copy_from_slice(&(x as i32).to_le_bytes())),
        Dtype::I8 => out.iter_mut().zip(values).for_each(|(to, x)| *to = (x as i8).cast_unsigned()),
    }
}

/// Elements of a buffer's type as numbers.
pub fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::Bf16 => bytes.as_chunks::<2>().0.iter().map(|x| bf16::from_le_bytes(*x).to_f32()).collect(),
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect(),
        Dtype::I32 => bytes.as_chunks::<4>().0.iter().map(|x| i32::from_le_bytes(*x) as f32).collect(),
        Dtype::I8 => bytes.iter().map(|x| f32::from(x.cast_signed())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::RowOrder;
    use crate::program::packing::PackGroup;

    /// Element `i` of every tensor is `i`.
    struct Counting(Vec<u64>);

    impl Tensors for Counting {
        fn tensor(&self, _: &str) -> Option<Tensor<'_>> {
            let read = |first: u64, out: &mut [f32]| {
                out.iter_mut().enumerate().for_each(|(i, x)| *x = (first + i as u64) as f32);
            };
            Some(Tensor { shape: self.0.clone(), read: Box::new(read) })
        }
    }

    fn buffer(rows: u64, cols: u64, order: RowOrder) -> Buffer {
        let source = PackSource { name: "layers.*.w".into(), rows, scale: 2.0, order };
        let groups = vec![PackGroup { first_row: 0, sources: vec![source] }];
        let packing = Packing { groups, rows: rows + 1, cols, pitch: 4, form: PackForm::Values };
        Buffer {
            name: "w".into(),
            kind: BufferKind::Param,
            dtype: Dtype::F32,
            shape: vec![rows + 1, cols],
            pitch: 4,
            bytes: (rows + 1) * 16,
            offset: None,
            layers: None,
            packing: Some(packing),
            column_order: RowOrder::Natural,
            per_replica: false,
        }
    }

    fn floats(bytes: &[u8]) -> Vec<f32> {
        bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect()
    }

    #[test]
    fn rows_are_permuted_scaled_and_padded() {
        let order = RowOrder::RotaryPairs { head_dim: 4, rot_dims: 4 };
        let packed = pack(&buffer(4, 3, order), 0, &Counting(vec![4, 3])).unwrap();
        let wanted = [0., 2., 4., 0., 12., 14., 16., 0., 6., 8., 10., 0., 18., 20., 22., 0., 0., 0., 0., 0.];
        assert_eq!(floats(&packed), wanted);
        let vector = pack(&buffer(1, 4, order), 0, &Counting(vec![4])).unwrap();
        assert_eq!(floats(&vector)[..4], [0., 4., 2., 6.]);
    }

    /// Each value is within half a scale of what it was, and the order is that of the tensor cores.
    #[test]
    fn whole_numbers_and_their_scales_give_the_values_back() {
        let mut packed = buffer(2, 20, RowOrder::Natural);
        let mut part = |form, dtype, pitch| {
            packed.packing.as_mut().unwrap().form = form;
            packed.packing.as_mut().unwrap().pitch = pitch;
            packed.dtype = dtype;
            pack(&packed, 0, &Counting(vec![2, 20])).unwrap()
        };
        let scales = floats(&part(PackForm::Int8Scales, Dtype::F32, 32));
        assert_eq!(scales, [38.0 / 127.0, 78.0 / 127.0, 0.0]);
        let numbers = part(PackForm::Int8, Dtype::I8, 32);
        assert_eq!(numbers.len(), 3 * 32);
        for (row, scale) in scales[..2].iter().enumerate() {
            for at in 0..32 {
                let col = PackForm::int8_column(at) as usize;
                let value = if col < 20 { 2.0 * (row * 20 + col) as f32 } else { 0.0 };
                let found = f32::from(numbers[row * 32 + at as usize].cast_signed()) * scale;
                assert!(
                    (found - value).abs() <= scale / 2.0 * 1.0001,
                    "row {row}, byte {at}: {found} {value}"
                );
            }
        }
    }

    /// Four rows over three replicas: two, two, and none but zeros.
    #[test]
    fn replicas_hold_runs_one_behind_another() {
        let mut own = buffer(4, 3, RowOrder::Natural);
        own.packing.as_mut().unwrap().rows = 4;
        (own.shape, own.per_replica) = (vec![2, 3], true);
        let run = |replica| floats(&held(&own, 0, replica, &Counting(vec![4, 3])).unwrap());
        assert_eq!(run(0), [0., 2., 4., 0., 6., 8., 10., 0.]);
        assert_eq!(run(1), [12., 14., 16., 0., 18., 20., 22., 0.]);
        assert_eq!(run(2), [0.0; 8]);
    }

    #[test]
    fn another_shape_is_refused_with_its_name() {
        let error = pack(&buffer(4, 3, RowOrder::Natural), 7, &Counting(vec![3, 4])).unwrap_err();
        assert_eq!(error.to_string(), "the program needs `layers.7.w` with 4 x 3, found 3 x 4");
    }
}

//! Compiled row functions against interpreted ones, on random functions.

use crate::program::{RowFn, RowOp, RowOutput, Target};
use crate::rows::{Jit, Kernel, Sink, Source, Turn, pitch, rotations};
use lapidary_models::spec::{Activation, NormKind};
use proptest::prelude::*;

const TURNS: [Turn; 4] = [
    Turn { head_dim: 16, rot_dims: 8, interleaved: false },
    Turn { head_dim: 16, rot_dims: 8, interleaved: true },
    Turn { head_dim: 6, rot_dims: 6, interleaved: false },
    Turn { head_dim: 3, rot_dims: 2, interleaved: true },
];

/// Draws an op over earlier values of the same width; `pick` chooses operands.
fn op(kind: usize, pick: [usize; 3], of_width: &[usize], width: u64) -> RowOp {
    let v = |i: usize| of_width[pick[i] % of_width.len()];
    let (a, b, c) = (v(0), v(1), v(2));
    use Activation::{Gelu, GeluTanh, Relu, Relu2, Silu};
    match kind {
        0 | 1 => RowOp::Add { a, b },
        2 => RowOp::Mul { a, b },
        3 => RowOp::Scale { x: a, by: -0.7 },
        4..=8 => RowOp::Activation { x: a, function: [Silu, Gelu, GeluTanh, Relu, Relu2][kind - 4] },
        9 => RowOp::Norm { x: a, weight: b, bias: Some(c), kind: NormKind::Layer, eps: 1e-3 },
        // Not that of `relu`, which jumps where the two may differ in sign.
        12..=15 => RowOp::Slope { x: a, function: [Silu, Gelu, GeluTanh, Relu2][kind - 12] },
        16 => RowOp::NormDx { x: a, g: b, kind: NormKind::Layer, eps: 1e-3 },
        17 => RowOp::NormDx { x: a, g: b, kind: NormKind::Rms, eps: 1e-3 },
        10 => RowOp::Norm { x: a, weight: b, bias: None, kind: NormKind::Rms, eps: 1e-3 },
        _ => match TURNS.iter().position(|t| width.is_multiple_of(t.head_dim as u64)) {
            Some(rotation) => {
                RowOp::Rotate { x: a, rotation: rotation + pick[1] % 2 * usize::from(rotation == 0) }
            }
            None => RowOp::Scale { x: a, by: 2.0 },
        },
    }
}

fn functions() -> impl Strategy<Value = RowFn> {
    let widths = prop_oneof![1u64..70, Just(16), Just(48), Just(96)];
    let drawn = proptest::collection::vec((0usize..18, any::<[usize; 3]>(), any::<bool>()), 1..12);
    (widths, 1u64..20, drawn, any::<[usize; 3]>()).prop_map(|(width, other, drawn, outputs)| {
        let mut f = RowFn::default();
        for (at, width) in [width, width, width, other, other].into_iter().enumerate() {
            f.push(width, RowOp::Buffer { buffer: at });
        }
        for (kind, pick, second) in drawn {
            let width = if second { other } else { width };
            let of_width: Vec<usize> = (0..f.values.len()).filter(|v| f.values[*v].width == width).collect();
            let op = op(kind, pick, &of_width, width);
            f.push(width, op);
        }
        let last = f.values.len() - 1;
        for value in outputs.map(|o| o % f.values.len()).into_iter().chain([last]) {
            f.outputs.push(RowOutput { value, to: Target::Buffer(0) });
        }
        f
    })
}

fn run(kernel: &Kernel, f: &RowFn, rows: usize) -> Vec<Vec<f32>> {
    let number = |i: usize| ((i * 7919 + 13) % 2003) as f32 / 500.0 - 2.0;
    let widths = f.values.iter().filter(|v| v.op.is_source()).map(|v| v.width);
    let widths = widths.chain(rotations(f).into_iter().map(|r| 2 * TURNS[r].rot_dims as u64));
    let data: Vec<(Vec<f32>, usize)> = widths
        .enumerate()
        .map(|(at, width)| {
            let pitch = pitch(width);
            let mut data: Vec<f32> = (0..rows * pitch).map(|i| number(i + 1000 * at)).collect();
            // What stands behind a row must not matter.
            data.chunks_mut(pitch).for_each(|row| row[width as usize..].fill(f32::NAN));
            (data, pitch)
        })
        .collect();
    let sources: Vec<Source> = data.iter().map(|(data, pitch)| Source { data, pitch: *pitch }).collect();
    let out_width = |o: &RowOutput| f.values[o.value].width;
    let mut outputs: Vec<Vec<f32>> =
        f.outputs.iter().map(|o| vec![9.0; rows * pitch(out_width(o))]).collect();
    let mut sinks: Vec<Sink> = outputs
        .iter_mut()
        .zip(&f.outputs)
        .map(|(data, o)| Sink { data, pitch: pitch(out_width(o)) })
        .collect();
    kernel.run(rows, &sources, &mut sinks, &mut Vec::new());
    for (data, output) in outputs.iter_mut().zip(&f.outputs) {
        let width = out_width(output) as usize;
        *data = data.chunks(pitch(width as u64)).flat_map(|row| row[..width].to_vec()).collect();
    }
    outputs
}

proptest! {
    #[test]
    fn compiled_is_interpreted(f in functions(), rows in 1usize..4) {
        let mut jit = Jit::new();
        let compiled = Kernel::new(&f, &TURNS, jit.as_mut());
        prop_assert!(compiled.is_compiled() || !cfg!(target_arch = "x86_64"));
        let expected = run(&Kernel::new(&f, &TURNS, None), &f, rows);
        let found = run(&compiled, &f, rows);
        for (a, b) in expected.iter().flatten().zip(found.iter().flatten()) {
            // Chains of products may overflow, in both alike.
            let near = (a - b).abs() <= 2e-4 * a.abs().max(1.0) || (a.is_nan() && b.is_nan()) || a == b;
            prop_assert!(near || a.abs() > 1e12, "{a} and {b}");
        }
    }
}

#[test]
fn activations_are_accurate() {
    use Activation::{Gelu, GeluTanh, Relu, Relu2, Silu};
    for function in [Silu, Gelu, GeluTanh, Relu, Relu2] {
        let mut f = RowFn::default();
        let x = f.push(4096, RowOp::Buffer { buffer: 0 });
        let y = f.push(4096, RowOp::Activation { x, function });
        let slope = f.push(4096, RowOp::Slope { x, function });
        f.send(y, Target::Buffer(1));
        f.send(slope, Target::Buffer(2));
        let x: Vec<f32> = (0..4096).map(|i| (i as f32 - 2048.0) / 128.0).collect();
        let (mut y, mut slopes) = (vec![0.0; 4096], vec![0.0; 4096]);
        let mut jit = Jit::new();
        let sinks = &mut [Sink { data: &mut y, pitch: 4096 }, Sink { data: &mut slopes, pitch: 4096 }];
        Kernel::new(&f, &[], jit.as_mut()).run(
            1,
            &[Source { data: &x, pitch: 4096 }],
            sinks,
            &mut Vec::new(),
        );
        for ((x, y), slope) in x.iter().zip(y).zip(slopes) {
            let exact = super::interpret::slope(function, *x);
            assert!((exact - slope).abs() <= 4e-6, "{function:?}'({x}) = {exact}, found {slope}");
            let exact = super::interpret::activation(function, *x);
            assert!((exact - y).abs() <= 4e-7 * x.abs().max(1.0), "{function:?}({x}) = {exact}, found {y}");
        }
    }
}

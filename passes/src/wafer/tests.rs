//! Generated programs against a naive computation on the host, on many grids, at level event.

use super::*;
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::{FabricSpec, analytic as closed_form, check as check_program, event, flow};

const SPEC: WaferSpec = WaferSpec {
    sram_bytes: 49152,
    banks: 8,
    bank_word: 4,
    code_bytes: 4096,
    kept_bytes: 0,
    colours: 24,
    bytes_per_cycle: 1e9,
    hop_cycles: 6,
    ramp_cycles: 2,
    longest_tree: u32::MAX,
    link_words: 8,
    issue_cycles: 6,
    narrow_macs: 2.0,
    wide_macs: 1.0,
};

/// Reproducible values of about unit size.
fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// A matrix `[rows, columns]`.
#[derive(Clone, Debug)]
struct Matrix {
    columns: usize,
    data: Vec<f32>,
}

impl Matrix {
    fn noise(seed: u64, rows: usize, columns: usize) -> Self {
        Matrix { columns, data: noise(seed, rows * columns) }
    }

    fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.data.chunks(self.columns)
    }

    fn map_rows(&self, f: impl Fn(&[f32]) -> Vec<f32>) -> Self {
        let rows: Vec<_> = self.rows().map(f).collect();
        Matrix { columns: rows.first().map_or(0, Vec::len), data: rows.concat() }
    }

    /// `self . w^T (+ bias)`.
    fn linear(&self, w: &Matrix, bias: Option<&[f32]>) -> Self {
        let dot =
            |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        self.map_rows(|x| {
            w.rows()
                .enumerate()
                .map(|(j, w)| (dot(x, w) + bias.map_or(0.0, |b| f64::from(b[j]))) as f32)
                .collect()
        })
    }

    fn zip(&self, other: &Matrix, f: impl Fn(f32, f32) -> f32) -> Self {
        let data = self.data.iter().zip(&other.data).map(|(a, b)| f(*a, *b)).collect();
        Matrix { columns: self.columns, data }
    }
}

fn rms_norm(x: &Matrix, weight: &[f32], eps: f64) -> Matrix {
    x.map_rows(|row| {
        let square = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / row.len() as f64;
        row.iter()
            .zip(weight)
            .map(|(v, w)| (f64::from(*v) / (square + eps).sqrt() * f64::from(*w)) as f32)
            .collect()
    })
}

fn layer_norm(x: &Matrix, weight: &[f32], bias: &[f32], eps: f64) -> Matrix {
    x.map_rows(|row| {
        let mean = row.iter().map(|v| f64::from(*v)).sum::<f64>() / row.len() as f64;
        let variance = row.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / row.len() as f64;
        let normal = |v: &f32| (f64::from(*v) - mean) / (variance + eps).sqrt();
        row.iter()
            .zip(weight)
            .zip(bias)
            .map(|((v, w), b)| (normal(v) * f64::from(*w) + f64::from(*b)) as f32)
            .collect()
    })
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

fn columns(features: u32) -> Layout {
    Layout::Columns { features }
}

fn segment(value: &str, bias: bool) -> Segment {
    let parameter = |part: &str| Parameter::plain(format!("{value}.{part}"));
    let bias = bias.then(|| parameter("b"));
    Segment { value: value.into(), weight: parameter("w"), transposed: false, bias }
}

fn op(name: &str, kind: OpKind) -> PlacedOp {
    PlacedOp { name: name.into(), kind }
}

fn input(value: &str, path: Path) -> PlacedOp {
    op("input", OpKind::Input { value: value.into(), tensor: "in".into(), source: Source::Caller, path })
}

fn output(value: &str, path: Path) -> PlacedOp {
    op("output", OpKind::Output { value: value.into(), tensor: "out".into(), path })
}

fn placed(width: u32, height: u32, tokens: Tokens, values: &[(&str, Layout)], ops: Vec<PlacedOp>) -> Placed {
    let values = values.iter().map(|(name, layout)| ((*name).to_owned(), *layout)).collect();
    Placed {
        width,
        height,
        tokens,
        micro_batches: 1,
        resident: false,
        heads: None,
        dtype: DType::F32,
        values,
        ops,
    }
}

/// One sequence over all rows.
fn tokens(length: u32, rows: u32) -> Tokens {
    Tokens { sequences: 1, length, rows }
}

type Parameters = BTreeMap<String, Vec<f32>>;

/// Generates, checks and simulates; the tensor `out` and the cycles.
fn run(placed: &Placed, x: &Matrix, parameters: &Parameters) -> (Vec<f32>, u64) {
    let (tensors, cycles) = run_all(placed, &[("in", &x.data)], parameters, &[]);
    (tensors["out"].clone(), cycles)
}

/// Generates, checks and simulates; all tensors and the cycles. Each label counts for 1 / their number.
fn run_all(
    placed: &Placed,
    given: &[(&str, &[f32])],
    parameters: &Parameters,
    labels: &[i32],
) -> (BTreeMap<String, Vec<f32>>, u64) {
    let generated = generate(placed, &SPEC).unwrap_or_else(|fault| panic!("{fault}"));
    let checked = check_program(&generated.program, &FabricSpec::wse2()).unwrap_or_else(|faults| {
        let faults: Vec<_> = faults.iter().take(5).map(ToString::to_string).collect();
        panic!("{}", faults.join("\n"))
    });
    let mut tensors = BTreeMap::new();
    for (name, data) in &generated.host {
        let count = labels.iter().filter(|label| **label >= 0).count() as u64;
        let values = data.values(|name| parameters.get(name).map(Vec::as_slice), &[]);
        if let Some(values) = values.or_else(|| data.label_values(labels, count)) {
            tensors.insert(name.clone(), values);
        }
    }
    tensors.extend(given.iter().map(|(name, values)| ((*name).to_owned(), values.to_vec())));
    let run = event::simulate(&checked, tensors).unwrap_or_else(|fault| panic!("{fault}"));
    (run.tensors, run.report.cycles)
}

fn assert_close(found: &[f32], expected: &Matrix, tolerance: f32) {
    assert_eq!(found.len(), expected.data.len());
    for (i, (a, b)) in found.iter().zip(&expected.data).enumerate() {
        assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "element {i}: {a} instead of {b}");
    }
}

fn linear_case(width: u32, height: u32, t: u32, k: u32, n: u32, bias: bool, path: Path) {
    let x = Matrix::noise(1, t as usize, k as usize);
    let w = Matrix::noise(2, n as usize, k as usize);
    let b = noise(3, n as usize);
    let linear = Linear { input: "x".into(), outputs: vec![segment("y", bias)], accumulate: false };
    let ops = vec![input("x", path), op("linear", OpKind::Linear(linear)), output("y", path)];
    let placed = placed(width, height, tokens(t, height), &[("x", columns(k)), ("y", columns(n))], ops);
    let parameters = Parameters::from([("y.w".into(), w.data.clone()), ("y.b".into(), b.clone())]);
    let (found, cycles) = run(&placed, &x, &parameters);
    assert_close(&found, &x.linear(&w, bias.then_some(&b)), 1e-5);
    assert!(cycles > 0);
}

#[test]
fn linear_layers_of_odd_shapes_are_right_on_every_grid() {
    for (width, height) in [(2, 1), (4, 4), (5, 3), (8, 2), (3, 7), (16, 16)] {
        for (t, k, n) in [(16, 8, 8), (17, 10, 7), (19, 3, 13), (16, 21, 1)] {
            linear_case(width, height, t, k, n, false, Path::Resident);
        }
    }
}

#[test]
fn linear_layers_add_their_bias() {
    linear_case(4, 4, 9, 10, 7, true, Path::Resident);
    linear_case(7, 2, 9, 5, 23, true, Path::Resident);
}

#[test]
fn activations_may_enter_and_leave_at_the_edges() {
    linear_case(4, 4, 11, 6, 5, true, Path::Stream);
    linear_case(3, 1, 4, 7, 2, false, Path::Stream);
    linear_case(5, 3, 11, 6, 9, false, Path::Stream);
}

#[test]
fn norms_are_right_on_every_grid() {
    for (width, height) in [(2, 1), (4, 4), (5, 3), (16, 16)] {
        for (kind, bias) in [(NormKind::Rms, false), (NormKind::Layer, true)] {
            let (t, d) = (height + 3, 21);
            let x = Matrix::noise(4, t as usize, d as usize);
            let (w, b) = (noise(5, d as usize), noise(6, d as usize));
            let norm = Norm {
                input: "x".into(),
                output: "y".into(),
                kind,
                eps: 1e-5,
                weight: Parameter::plain("w"),
                bias: bias.then(|| Parameter::plain("b")),
            };
            let ops =
                vec![input("x", Path::Resident), op("norm", OpKind::Norm(norm)), output("y", Path::Resident)];
            let placed =
                placed(width, height, tokens(t, height), &[("x", columns(d)), ("y", columns(d))], ops);
            let parameters = Parameters::from([("w".into(), w.clone()), ("b".into(), b.clone())]);
            let expected = if bias { layer_norm(&x, &w, &b, 1e-5) } else { rms_norm(&x, &w, 1e-5) };
            assert_close(&run(&placed, &x, &parameters).0, &expected, 1e-5);
        }
    }
}

/// norm, gate and up, SwiGLU, down, residual; `x` is both input and output.
fn mlp(width: u32, height: u32, t: u32, d: u32, f: u32) -> (Placed, Matrix, Parameters, Matrix) {
    let norm = Norm {
        input: "x".into(),
        output: "h".into(),
        kind: NormKind::Rms,
        eps: 1e-6,
        weight: Parameter::plain("norm"),
        bias: None,
    };
    let gate_up = Linear {
        input: "h".into(),
        outputs: vec![segment("gate", true), segment("up", true)],
        accumulate: false,
    };
    let steps = vec![Step::Activation(Activation::Silu), Step::Mul("up".into())];
    let swiglu = Map { input: "gate".into(), output: "gate".into(), steps };
    let down = Linear { input: "gate".into(), outputs: vec![segment("x", true)], accumulate: true };
    let ops = vec![
        input("x", Path::Resident),
        op("norm", OpKind::Norm(norm)),
        op("gate_up", OpKind::Linear(gate_up)),
        op("swiglu", OpKind::Map(swiglu)),
        op("down", OpKind::Linear(down)),
        output("x", Path::Resident),
    ];
    let values = [("x", columns(d)), ("h", columns(d)), ("gate", columns(f)), ("up", columns(f))];
    let placed = placed(width, height, tokens(t, height), &values, ops);
    let (du, fu) = (d as usize, f as usize);
    let x = Matrix::noise(7, t as usize, du);
    let small = |seed, rows, columns: usize| {
        let m = Matrix::noise(seed, rows, columns);
        Matrix { data: m.data.iter().map(|v| v / (columns as f32).sqrt()).collect(), ..m }
    };
    let (gate, up, out) = (small(8, fu, du), small(9, fu, du), small(10, du, fu));
    let (bg, bu, bo, w) = (noise(11, fu), noise(12, fu), noise(13, du), noise(14, du));
    let h = rms_norm(&x, &w, 1e-6);
    let act = h.linear(&gate, Some(&bg)).zip(&h.linear(&up, Some(&bu)), |g, u| silu(g) * u);
    let expected = act.linear(&out, Some(&bo)).zip(&x, |a, b| a + b);
    let parameters = Parameters::from([
        ("norm".into(), w),
        ("gate.w".into(), gate.data),
        ("gate.b".into(), bg),
        ("up.w".into(), up.data),
        ("up.b".into(), bu),
        ("x.w".into(), out.data),
        ("x.b".into(), bo),
    ]);
    (placed, x, parameters, expected)
}

#[test]
fn a_whole_mlp_half_block_is_right_on_every_grid() {
    for (width, height, t, f) in [(16, 16, 20, 172), (16, 16, 33, 170), (4, 8, 20, 172), (9, 5, 20, 170)] {
        let (placed, x, parameters, expected) = mlp(width, height, t, 64, f);
        let (found, _) = run(&placed, &x, &parameters);
        assert_close(&found, &expected, 1e-5);
    }
}

/// A tiny decoder layer's attention half: q, k, v, rope, attention, output projection, residual.
struct Half {
    heads: u32,
    kv: u32,
    dim: u32,
    pairing: Pairing,
    slopes: Vec<f64>,
    window: Option<u32>,
}

impl Half {
    fn new(heads: u32, kv: u32, dim: u32, pairing: Pairing) -> Self {
        Half { heads, kv, dim, pairing, slopes: vec![], window: None }
    }
}

fn attention_half(
    width: u32,
    height: u32,
    tokens: Tokens,
    half: &Half,
) -> (Placed, Matrix, Parameters, Matrix) {
    let d = half.heads * half.dim + 3;
    let rotated = half.dim / 2 / 2 * 2;
    let frequencies: Vec<f64> =
        (0..rotated / 2).map(|i| 100f64.powf(-2.0 * f64::from(i) / f64::from(rotated))).collect();
    let blocks = (1..=half.kv.min(width)).rev().find(|b| half.kv.is_multiple_of(*b)).unwrap();
    let heads = Heads {
        blocks,
        columns: width / blocks,
        kv: half.kv / blocks,
        ways: half.heads / half.kv,
        dim: half.dim,
    };
    let rope = |value: &str| {
        let (frequencies, pairing) = (frequencies.clone(), half.pairing);
        OpKind::Rope(Rope { value: value.into(), rotated, pairing, frequencies, offset: 0, back: false })
    };
    let scale = 1.0 / f64::from(half.dim).sqrt();
    let [query, key, value, output_value] = ["q", "k", "v", "o"].map(str::to_owned);
    let (slopes, window) = (half.slopes.clone(), half.window);
    let attention = Attention { query, key, value, output: output_value, scale, slopes, window };
    let qkv = Linear {
        input: "x".into(),
        outputs: vec![segment("q", true), segment("k", true), segment("v", false)],
        accumulate: false,
    };
    let out = Linear {
        input: "o".into(),
        outputs: vec![Segment {
            weight: Parameter::plain("o.w"),
            transposed: false,
            bias: Some(Parameter::plain("o.b")),
            value: "x".into(),
        }],
        accumulate: true,
    };
    let ops = vec![
        input("x", Path::Resident),
        op("qkv", OpKind::Linear(qkv)),
        op("rope_q", rope("q")),
        op("rope_k", rope("k")),
        op("attention", OpKind::Attention(attention)),
        op("out", OpKind::Linear(out)),
        output("x", Path::Resident),
    ];
    let keys = Layout::HeadTokens { queries: false };
    let values = [
        ("x", columns(d)),
        ("q", Layout::HeadTokens { queries: true }),
        ("k", keys),
        ("v", keys),
        ("o", Layout::HeadColumns { queries: true }),
    ];
    let placed = Placed { heads: Some(heads), ..placed(width, height, tokens, &values, ops) };

    let (du, qn, kn) = (d as usize, (half.heads * half.dim) as usize, (half.kv * half.dim) as usize);
    let x = Matrix::noise(21, tokens.total() as usize, du);
    let (wq, wk, wv) = (Matrix::noise(22, qn, du), Matrix::noise(23, kn, du), Matrix::noise(24, kn, du));
    let (wo, bq, bk, bo) = (Matrix::noise(25, du, qn), noise(26, qn), noise(27, kn), noise(28, du));
    let turn = |m: Matrix| {
        let mut position = 0;
        let rows: Vec<Vec<f32>> = m
            .rows()
            .map(|row| {
                let turned = rotate(row, half, &frequencies, position % tokens.length);
                position += 1;
                turned
            })
            .collect();
        Matrix { columns: m.columns, data: rows.concat() }
    };
    let (q, k, v) = (turn(x.linear(&wq, Some(&bq))), turn(x.linear(&wk, Some(&bk))), x.linear(&wv, None));
    let o = attend(&q, &k, &v, half, tokens.length as usize, scale);
    let expected = o.linear(&wo, Some(&bo)).zip(&x, |a, b| a + b);
    let parameters = [
        ("q.w", wq.data),
        ("k.w", wk.data),
        ("v.w", wv.data),
        ("o.w", wo.data),
        ("q.b", bq),
        ("k.b", bk),
        ("o.b", bo),
    ];
    (placed, x, parameters.into_iter().map(|(name, data)| (name.to_owned(), data)).collect(), expected)
}

fn rotate(row: &[f32], half: &Half, frequencies: &[f64], position: u32) -> Vec<f32> {
    let mut row = row.to_vec();
    for head in row.chunks_mut(half.dim as usize) {
        for (i, frequency) in frequencies.iter().enumerate() {
            let (a, b) = match half.pairing {
                Pairing::Half => (i, i + frequencies.len()),
                Pairing::Interleaved => (2 * i, 2 * i + 1),
            };
            let (sin, cos) = (frequency * f64::from(position)).sin_cos();
            let (x, y) = (f64::from(head[a]), f64::from(head[b]));
            head[a] = (x * cos - y * sin) as f32;
            head[b] = (y * cos + x * sin) as f32;
        }
    }
    row
}

fn attend(q: &Matrix, k: &Matrix, v: &Matrix, half: &Half, length: usize, scale: f64) -> Matrix {
    let (dim, ways) = (half.dim as usize, (half.heads / half.kv) as usize);
    let mut data = vec![0f32; q.data.len()];
    for (token, row) in q.rows().enumerate() {
        let first = token / length * length;
        for head in 0..half.heads as usize {
            let part = |m: &Matrix, t: usize| m.data[t * m.columns + head / ways * dim..][..dim].to_vec();
            let query = &row[head * dim..][..dim];
            let dot = |key: Vec<f32>| {
                query.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(b)).sum::<f64>() * scale
            };
            let slope = half.slopes.get(head).copied().unwrap_or(0.0);
            let far = |t: usize| half.window.is_some_and(|window| token - t >= window as usize);
            let place = |t: usize| if far(t) { f64::NEG_INFINITY } else { slope * (t as f64 - token as f64) };
            let scores: Vec<f64> = (first..=token).map(|t| dot(part(k, t)) + place(t)).collect();
            let most = scores.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
            for (t, score) in (first..).zip(&scores) {
                let share = (score - most).exp() / sum;
                for (i, value) in part(v, t).into_iter().enumerate() {
                    data[token * q.columns + head * dim + i] += (share * f64::from(value)) as f32;
                }
            }
        }
    }
    Matrix { columns: q.columns, data }
}

fn attention_case(width: u32, height: u32, tokens: Tokens, half: Half) {
    let (placed, x, parameters, expected) = attention_half(width, height, tokens, &half);
    assert_close(&run(&placed, &x, &parameters).0, &expected, 2e-4);
}

#[test]
fn attention_is_right_with_one_block_over_the_whole_row() {
    attention_case(4, 1, tokens(4, 1), Half::new(1, 1, 4, Pairing::Half));
    attention_case(3, 2, tokens(9, 2), Half::new(1, 1, 4, Pairing::Half));
}

#[test]
fn attention_is_right_for_blocks_of_one_column() {
    attention_case(4, 3, tokens(8, 3), Half::new(4, 4, 4, Pairing::Interleaved));
    attention_case(3, 4, tokens(9, 4), Half::new(4, 4, 6, Pairing::Half));
}

#[test]
fn attention_is_right_with_spare_columns_uneven_tiles_and_several_sequences() {
    let sequences = |sequences, length, rows| Tokens { sequences, length, rows };
    attention_case(8, 4, tokens(22, 4), Half::new(2, 2, 6, Pairing::Half));
    attention_case(11, 7, sequences(2, 17, 3), Half::new(2, 2, 8, Pairing::Interleaved));
    attention_case(16, 16, sequences(4, 23, 4), Half::new(4, 4, 16, Pairing::Half));
}

#[test]
fn alibi_and_windows_see_the_right_distances() {
    let slopes = kernel::attention::distance::slopes(4, 1.0);
    let sequences = |sequences, length, rows| Tokens { sequences, length, rows };
    let half = || Half::new(4, 2, 6, Pairing::Half);
    attention_case(8, 4, tokens(22, 4), Half { slopes: slopes.clone(), ..half() });
    attention_case(11, 7, sequences(2, 17, 3), Half { slopes: slopes.clone(), window: Some(5), ..half() });
    attention_case(2, 3, tokens(14, 3), Half { window: Some(4), ..half() });
    attention_case(16, 4, tokens(9, 4), Half { window: Some(1), ..half() });
}

#[test]
fn a_ring_with_little_room_does_not_lock() {
    attention_case(24, 1, tokens(8, 1), Half::new(1, 1, 23, Pairing::Half));
    attention_case(24, 1, tokens(8, 1), Half::new(2, 2, 23, Pairing::Half));
}

#[test]
fn query_heads_may_share_keys_and_values() {
    attention_case(8, 4, tokens(21, 4), Half::new(8, 2, 4, Pairing::Half));
    attention_case(3, 2, tokens(7, 2), Half::new(8, 4, 4, Pairing::Interleaved));
}

#[test]
fn too_many_tokens_are_refused_with_the_number_that_fits() {
    let (mut placed, ..) = mlp(16, 16, 16 * 900, 64, 170);
    let Err(WaferError::Memory { fitting, tokens, .. }) = generate(&placed, &SPEC) else { panic!("it fits") };
    assert_eq!(tokens, 900);
    placed.tokens.length = 16 * fitting;
    let generated = generate(&placed, &SPEC).unwrap();
    assert!(generated.report.sram_peak_bytes <= 49152 - 4096);
    placed.tokens.length = 16 * (fitting + 1);
    let message = generate(&placed, &SPEC).unwrap_err().to_string();
    assert!(message.contains("45056 are there (49152 less 4096 for code)"), "{message}");
    assert!(
        message.contains(&format!("at most {fitting} tokens a row instead of {}", fitting + 1)),
        "{message}"
    );
}

#[test]
fn a_crystalcoder_layer_fits_the_whole_wafer() {
    let model = lapidary_models::builtin("crystalcoder").unwrap();
    let machine = lapidary_hardware::builtin::machine("cs2").unwrap();
    let wafer = machine.wafer().unwrap();
    let spec = WaferSpec::of(wafer, wafer.clock());
    let work = Workload { width: 750, height: 994, sequences: 66, length: 2048, dtype: DType::F16 };
    let placed = place_layer(&model, work, &spec).unwrap();
    assert_eq!(placed.tokens.sequences, 66);
    let generated = generate(&placed, &spec).unwrap();
    let linear: u64 = generated.report.phases.iter().filter(|p| p.kind == "linear").map(|p| p.macs).sum();
    assert_eq!(linear, (4 * 4096 * 4096 + 3 * 4096 * 10922) * 66 * 2048);
    assert!(generated.report.colours.len() <= 24);
    println!("{}", generated.report);
    check_program(&generated.program, &FabricSpec::wse2()).unwrap_or_else(|faults| panic!("{}", faults[0]));
}

#[test]
fn sizes_that_nothing_counts_are_refused() {
    let (placed, ..) = mlp(16, 16, 20, 64, 170);
    let wide = Placed { values: [("x".to_owned(), columns(u32::MAX))].into(), ..placed.clone() };
    assert!(matches!(generate(&wide, &SPEC), Err(WaferError::Size { .. })));
    let long = Placed { tokens: tokens(u32::MAX, 16), ..placed.clone() };
    assert!(matches!(generate(&long, &SPEC), Err(WaferError::Size { .. })));
    let large = Placed { tokens: tokens(1 << 24, 1), ..placed.clone() };
    assert!(matches!(generate(&large, &SPEC), Err(WaferError::Memory { .. })));
    let narrow = Placed { width: 1, ..placed };
    assert!(matches!(generate(&narrow, &SPEC), Err(WaferError::Size { .. })));
}

#[test]
fn outputs_of_a_head_block_do_not_wait_for_the_ring() {
    let ring = (SPEC.hop_cycles + 1) * 24;
    let half = Half::new(2, 2, 16, Pairing::Half);
    let (mut placed, x, parameters, _) = attention_half(24, 1, tokens(8, 1), &half);
    placed.ops.truncate(2);
    placed.ops.push(output("x", Path::Resident));
    let (_, cycles) = run(&placed, &x, &parameters);
    assert!(cycles < 96 * ring / 2, "{cycles} cycles for 96 outputs, with {ring} for each turn of the ring");
}

mod backward;
mod backward_attention;
mod backward_time;

mod random {
    use super::*;
    use lapidary_models::testing::specs;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Layers of random models on random grids are refused with a reason, or give a program that passes the
        /// checker and runs to its end at level event.
        #[test]
        fn layers_of_random_models_run(
            model in specs(),
            (width, height) in (2u32..20, 1u32..9),
            (sequences, length) in (1u32..4, 1u32..12),
        ) {
            let work = Workload { width, height, sequences, length, dtype: DType::Bf16 };
            match place_layer(&model, work, &SPEC).and_then(|placed| generate(&placed, &SPEC)) {
                Ok(generated) => {
                    let checked = check_program(&generated.program, &FabricSpec::wse2());
                    let checked = checked.map_err(|faults| TestCaseError::fail(faults[0].to_string()))?;
                    let run = event::simulate(&checked, BTreeMap::new());
                    prop_assert!(run.is_ok(), "{}", run.err().map(|fault| fault.to_string()).unwrap_or_default());
                }
                Err(WaferError::Unsupported { .. } | WaferError::Memory { .. } | WaferError::Size { .. }) => {}
                Err(fault) => prop_assert!(false, "{fault}"),
            }
        }
    }
}

//! Backward kernels one by one and a whole MLP block's backward pass, against derivatives computed on the host in f64.

use super::*;

/// The gradient of a weight `[columns of dy, columns of x]`.
fn outer(dy: &Matrix, x: &Matrix) -> Matrix {
    let mut sums = vec![0f64; dy.columns * x.columns];
    for (dy, x) in dy.rows().zip(x.rows()) {
        for (dy, sums) in dy.iter().zip(sums.chunks_mut(x.len())) {
            sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += f64::from(*dy) * f64::from(*x));
        }
    }
    Matrix { columns: x.columns, data: sums.into_iter().map(|v| v as f32).collect() }
}

/// Sum of all rows, as one row.
fn column_sum(x: &Matrix) -> Matrix {
    let ones = Matrix { columns: 1, data: vec![1.0; x.rows().count()] };
    outer(&ones, x)
}

/// `self . w`: the gradient of a linear layer's input.
fn linear_dx(dy: &Matrix, w: &Matrix) -> Matrix {
    let transposed = (0..w.columns).flat_map(|k| w.rows().map(move |row| row[k])).collect();
    dy.linear(&Matrix { columns: dy.columns, data: transposed }, None)
}

/// Mean (0 for the root mean square) and inverse deviation of a row.
fn statistics(row: &[f32], kind: NormKind, eps: f64) -> (f64, f64) {
    let of = |f: &dyn Fn(f64) -> f64| row.iter().map(|v| f(f64::from(*v))).sum::<f64>() / row.len() as f64;
    let mean = if kind == NormKind::Layer { of(&|v| v) } else { 0.0 };
    (mean, 1.0 / (of(&|v| (v - mean).powi(2)) + eps).sqrt())
}

/// The normalised rows.
fn normalised(x: &Matrix, kind: NormKind, eps: f64) -> Matrix {
    x.map_rows(|row| {
        let (mean, inverse) = statistics(row, kind, eps);
        row.iter().map(|v| ((f64::from(*v) - mean) * inverse) as f32).collect()
    })
}

fn norm_dx(x: &Matrix, w: &[f32], dy: &Matrix, kind: NormKind, eps: f64) -> Matrix {
    let h = normalised(x, kind, eps);
    let rows = x.rows().zip(h.rows()).zip(dy.rows()).map(|((x, h), dy)| {
        let (_, inverse) = statistics(x, kind, eps);
        let g: Vec<f64> = dy.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b)).collect();
        let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
        let products = mean(g.iter().zip(h).map(|(g, h)| g * f64::from(*h)).collect());
        let gradients = if kind == NormKind::Layer { mean(g.clone()) } else { 0.0 };
        let one = |(g, h): (&f64, &f32)| (inverse * (g - gradients - f64::from(*h) * products)) as f32;
        g.iter().zip(h).map(one).collect::<Vec<f32>>()
    });
    Matrix { columns: x.columns, data: rows.collect::<Vec<_>>().concat() }
}

fn gradient(name: &str) -> Gradient {
    Gradient { tensor: format!("d.{name}"), parameter: Parameter::plain(name) }
}

fn resident(value: &str) -> PlacedOp {
    let (tensor, source, path) = (value.to_owned(), Source::Caller, Path::Resident);
    op(&format!("load.{value}"), OpKind::Input { value: value.into(), tensor, source, path })
}

fn kept(value: &str) -> PlacedOp {
    let (tensor, path) = (format!("out.{value}"), Path::Resident);
    op(&format!("store.{value}"), OpKind::Output { value: value.into(), tensor, path })
}

/// Largest error, relative to the largest value.
fn assert_near(what: &str, found: &[f32], expected: &Matrix, tolerance: f32) {
    assert_eq!(found.len(), expected.data.len(), "{what}");
    let largest = expected.data.iter().fold(0f32, |most, v| most.max(v.abs()));
    let apart = found.iter().zip(&expected.data).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(apart <= tolerance * largest, "{what}: {apart} apart at values up to {largest}");
}

const GRIDS: [(u32, u32); 6] = [(2, 1), (4, 4), (5, 3), (8, 2), (3, 7), (16, 16)];

fn outer_case(width: u32, height: u32, t: u32, k: u32, n: u32, travels_dy: bool) {
    let (x, dy) = (Matrix::noise(31, t as usize, k as usize), Matrix::noise(32, t as usize, n as usize));
    let [travelling, resident_value] = if travels_dy { ["dy", "x"] } else { ["x", "dy"] }.map(str::to_owned);
    let product = Outer { travelling, resident: resident_value, travels_dy, result: gradient("w") };
    let sum = ColumnSum { input: "dy".into(), result: gradient("b") };
    let ops = vec![
        resident("x"),
        resident("dy"),
        op("dw", OpKind::Outer(product)),
        op("db", OpKind::ColumnSum(sum)),
    ];
    let values = [("x", columns(k)), ("dy", columns(n))];
    let placed = placed(width, height, tokens(t, height), &values, ops);
    let given = [("x", &x.data[..]), ("dy", &dy.data[..])];
    let (found, _) = run_all(&placed, &given, &Parameters::new(), &[]);
    assert_near("dw", &found["d.w"], &outer(&dy, &x), 1e-5);
    assert_near("db", &found["d.b"], &column_sum(&dy), 1e-5);
}

#[test]
fn gradients_of_weights_and_biases_are_right_on_every_grid() {
    for (width, height) in GRIDS {
        for (t, k, n) in [(16, 8, 8), (17, 10, 7), (19, 3, 13), (16, 21, 1)] {
            outer_case(width, height, t, k, n, false);
            outer_case(width, height, t, k, n, true);
        }
    }
}

#[test]
fn gradients_of_inputs_stream_the_weights_transposed() {
    for ((width, height), (t, k, n)) in
        GRIDS.into_iter().zip([(16, 8, 8), (17, 10, 7), (19, 3, 13)].repeat(2))
    {
        let (dy, w) = (Matrix::noise(33, t, n), Matrix::noise(34, n, k));
        let segment = Segment { transposed: true, ..segment("y", false) };
        let linear = Linear { input: "dy".into(), outputs: vec![segment], accumulate: false };
        let ops = vec![resident("dy"), op("dx", OpKind::Linear(linear)), kept("y")];
        let values = [("dy", columns(n as u32)), ("y", columns(k as u32))];
        let placed = placed(width, height, tokens(t as u32, height), &values, ops);
        let parameters = Parameters::from([("y.w".into(), w.data.clone())]);
        let (found, _) = run_all(&placed, &[("dy", &dy.data)], &parameters, &[]);
        assert_near("dx", &found["out.y"], &linear_dx(&dy, &w), 1e-5);
    }
}

#[test]
fn gradients_of_norms_are_right_on_every_grid() {
    for (width, height) in GRIDS {
        for kind in [NormKind::Rms, NormKind::Layer] {
            let (t, d, eps) = (height as usize + 3, 21usize, 1e-5);
            let (x, dy, w) = (Matrix::noise(35, t, d), Matrix::noise(36, t, d), noise(37, d));
            let [input, gradient_of, output] = ["x", "dy", "dx"].map(str::to_owned);
            let dx = NormDx {
                input: input.clone(),
                gradient: gradient_of.clone(),
                output,
                kind,
                eps,
                weight: Parameter::plain("w"),
            };
            let dw = NormDw { input, gradient: gradient_of, kind, eps, result: gradient("w") };
            let ops = vec![
                resident("x"),
                resident("dy"),
                op("dw", OpKind::NormDw(dw)),
                op("dx", OpKind::NormDx(dx)),
                kept("dx"),
            ];
            let values = ["x", "dy", "dx"].map(|value| (value, columns(d as u32)));
            let placed = placed(width, height, tokens(t as u32, height), &values, ops);
            let parameters = Parameters::from([("w".into(), w.clone())]);
            let (found, _) = run_all(&placed, &[("x", &x.data), ("dy", &dy.data)], &parameters, &[]);
            assert_near("dx", &found["out.dx"], &norm_dx(&x, &w, &dy, kind, eps), 2e-5);
            let products = normalised(&x, kind, eps).zip(&dy, |a, b| a * b);
            assert_near("dw", &found["d.w"], &column_sum(&products), 2e-5);
        }
    }
}

/// An activation function in f64, for central differences.
fn activated(function: Activation, x: f64) -> f64 {
    let tanh = |x: f64| ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh();
    match function {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => x * 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::GeluTanh => x * 0.5 * (1.0 + tanh(x)),
        Activation::Relu => x.max(0.0),
        Activation::Relu2 => x.max(0.0).powi(2),
    }
}

/// The error function by its series, for arguments of about unit size.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..60 {
        let n = f64::from(n);
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn slopes_of_activations_are_those_of_their_functions() {
    for function in
        [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Relu2]
    {
        let (t, d) = (9usize, 14usize);
        let mut x = Matrix::noise(38, t, d);
        x.data.iter_mut().for_each(|v| *v *= 3.0);
        let dy = Matrix::noise(39, t, d);
        let steps = vec![Step::Slope(function), Step::Mul("dy".into())];
        let map = Map { input: "x".into(), output: "dy".into(), steps };
        let ops = vec![resident("x"), resident("dy"), op("dx", OpKind::Map(map)), kept("dy")];
        let values = ["x", "dy"].map(|value| (value, columns(d as u32)));
        let placed = placed(4, 3, tokens(t as u32, 3), &values, ops);
        let given = [("x", &x.data[..]), ("dy", &dy.data[..])];
        let (found, _) = run_all(&placed, &given, &Parameters::new(), &[]);
        let slope = |x: f32| {
            let (x, step) = (f64::from(x), 1e-6);
            (activated(function, x + step) - activated(function, x - step)) / (2.0 * step)
        };
        let expected = x.zip(&dy, |x, dy| (slope(x) * f64::from(dy)) as f32);
        assert_near(&format!("{function:?}"), &found["out.dy"], &expected, 1e-5);
    }
}

#[test]
fn the_slope_of_a_relu_at_zero_is_zero() {
    let x = Matrix { columns: 4, data: vec![0.0, -0.0, 1e-30, -1e-30] };
    let map = Map { input: "x".into(), output: "x".into(), steps: vec![Step::Slope(Activation::Relu)] };
    let ops = vec![resident("x"), op("dx", OpKind::Map(map)), kept("x")];
    let placed = placed(2, 1, tokens(1, 1), &[("x", columns(4))], ops);
    let (found, _) = run_all(&placed, &[("x", &x.data)], &Parameters::new(), &[]);
    assert_eq!(found["out.x"], [0.0, 0.0, 1.0, 0.0]);
}

/// Gradients of the block of [`mlp`] from that of its result, with everything inside computed again from `x`.
fn mlp_backward(width: u32, height: u32, t: u32, d: u32, f: u32) {
    let (forward, x, parameters, _) = mlp(width, height, t, d, f);
    let weight =
        |name: &str, columns: u32| Matrix { columns: columns as usize, data: parameters[name].clone() };
    let (gate_w, up_w, down_w) = (weight("gate.w", d), weight("up.w", d), weight("x.w", f));
    let dy = Matrix::noise(40, t as usize, d as usize);
    let dx_of = |value: &str, parameter: &str| Segment {
        value: value.into(),
        weight: Parameter::plain(parameter),
        transposed: true,
        bias: None,
    };
    let linear = |input: &str, segment, accumulate| {
        OpKind::Linear(Linear { input: input.into(), outputs: vec![segment], accumulate })
    };
    let product = |travelling: &str, resident: &str, travels_dy, name: &str| {
        let [travelling, resident] = [travelling, resident].map(str::to_owned);
        OpKind::Outer(Outer { travelling, resident, travels_dy, result: gradient(name) })
    };
    let sum = |input: &str, name: &str| {
        OpKind::ColumnSum(ColumnSum { input: input.into(), result: gradient(name) })
    };
    let map = |input: &str, output: &str, steps| {
        OpKind::Map(Map { input: input.into(), output: output.into(), steps })
    };
    let silu = Activation::Silu;
    let (kind, eps) = (NormKind::Rms, 1e-6);
    let again = |name: &str| forward.ops.iter().find(|op| op.name == name).unwrap().clone();
    let ops = vec![
        resident("x"),
        resident("dy"),
        again("norm"),
        again("gate_up"),
        op("act", map("gate", "act", vec![Step::Activation(silu)])),
        op("product", map("act", "inner", vec![Step::Mul("up".into())])),
        op("down.dw", product("dy", "inner", true, "x.w")),
        op("down.db", sum("dy", "x.b")),
        op("down.dx", linear("dy", dx_of("da", "x.w"), false)),
        op("up.dx", map("act", "act", vec![Step::Mul("da".into())])),
        op("act.dx", map("up", "up", vec![Step::Mul("da".into())])),
        op("gate.dx", map("gate", "gate", vec![Step::Slope(silu), Step::Mul("up".into())])),
        op("gate.dw", product("h", "gate", false, "gate.w")),
        op("gate.db", sum("gate", "gate.b")),
        op("up.dw", product("h", "act", false, "up.w")),
        op("up.db", sum("act", "up.b")),
        op("gate.dh", linear("gate", dx_of("dh", "gate.w"), false)),
        op("up.dh", linear("act", dx_of("dh", "up.w"), true)),
        op(
            "norm.dw",
            OpKind::NormDw(NormDw {
                input: "x".into(),
                gradient: "dh".into(),
                kind,
                eps,
                result: gradient("norm"),
            }),
        ),
        op(
            "norm.dx",
            OpKind::NormDx(NormDx {
                input: "x".into(),
                gradient: "dh".into(),
                output: "dh".into(),
                kind,
                eps,
                weight: Parameter::plain("norm"),
            }),
        ),
        op("residual", map("dh", "dy", vec![Step::Add("dy".into())])),
        kept("dy"),
    ];
    let values = [
        ("x", columns(d)),
        ("dy", columns(d)),
        ("h", columns(d)),
        ("dh", columns(d)),
        ("gate", columns(f)),
        ("up", columns(f)),
        ("act", columns(f)),
        ("inner", columns(f)),
        ("da", columns(f)),
    ];
    let placed = placed(width, height, tokens(t, height), &values, ops);
    let given = [("x", &x.data[..]), ("dy", &dy.data[..])];
    let (found, _) = run_all(&placed, &given, &parameters, &[]);

    let norm_w = &parameters["norm"];
    let h = rms_norm(&x, norm_w, eps);
    let gate = h.linear(&gate_w, Some(&parameters["gate.b"]));
    let up = h.linear(&up_w, Some(&parameters["up.b"]));
    let da = linear_dx(&dy, &down_w);
    let act = gate.map_rows(|row| row.iter().map(|v| silu_of(*v)).collect());
    let slope = |x: f32| {
        let s = 1.0 / (1.0 + (-f64::from(x)).exp());
        (s * (1.0 + f64::from(x) * (1.0 - s))) as f32
    };
    let dup = da.zip(&act, |a, b| a * b);
    let dgate = da.zip(&up, |a, b| a * b).zip(&gate, |da, gate| da * slope(gate));
    let dh = linear_dx(&dgate, &gate_w).zip(&linear_dx(&dup, &up_w), |a, b| a + b);
    let dx = norm_dx(&x, norm_w, &dh, kind, eps).zip(&dy, |a, b| a + b);
    let expected = [
        ("out.dy", dx),
        ("d.x.w", outer(&dy, &act.zip(&up, |a, b| a * b))),
        ("d.x.b", column_sum(&dy)),
        ("d.gate.w", outer(&dgate, &h)),
        ("d.gate.b", column_sum(&dgate)),
        ("d.up.w", outer(&dup, &h)),
        ("d.up.b", column_sum(&dup)),
        ("d.norm", column_sum(&normalised(&x, kind, eps).zip(&dh, |a, b| a * b))),
    ];
    for (name, expected) in expected {
        assert_near(name, &found[name], &expected, 1e-5);
    }
}

fn silu_of(x: f32) -> f32 {
    silu(x)
}

#[test]
fn a_whole_mlp_blocks_backward_pass_is_right_on_every_grid() {
    for (width, height, t, f) in [(8, 8, 20, 172), (16, 16, 33, 170), (4, 8, 20, 172), (9, 5, 20, 170)] {
        mlp_backward(width, height, t, 64, f);
    }
}

#[test]
fn the_loss_and_its_gradient_are_right_on_every_grid() {
    for (width, height) in GRIDS {
        for vocabulary in [3usize, 21, 40] {
            let t = height as usize + 3;
            let mut logits = Matrix::noise(41, t, vocabulary);
            logits.data.iter_mut().for_each(|v| *v *= 4.0);
            let label = |token: usize| if token % 4 == 1 { -1 } else { (token * 7 % vocabulary) as i32 };
            let labels: Vec<i32> = (0..t).map(label).collect();
            let count = labels.iter().filter(|label| **label >= 0).count() as f64;
            let ops = vec![
                resident("logits"),
                op("loss", OpKind::Loss(Loss { logits: "logits".into(), tensor: "loss".into() })),
                op("loss.dx", OpKind::LossDx(LossDx { logits: "logits".into(), output: "logits".into() })),
                kept("logits"),
            ];
            let placed = placed(
                width,
                height,
                tokens(t as u32, height),
                &[("logits", columns(vocabulary as u32))],
                ops,
            );
            let (found, _) = run_all(&placed, &[("logits", &logits.data)], &Parameters::new(), &labels);
            let (mut loss, mut dx) = (0.0, Vec::new());
            for (row, label) in logits.rows().zip(&labels) {
                let sum = row.iter().map(|v| f64::from(*v).exp()).sum::<f64>();
                let share = if *label >= 0 { 1.0 / count } else { 0.0 };
                let at = usize::try_from(*label).ok();
                loss += share * (sum.ln() - at.map_or(0.0, |at| f64::from(row[at])));
                let hit = |n| f64::from(u8::from(at == Some(n)));
                let one = |(n, v): (usize, &f32)| (share * (f64::from(*v).exp() / sum - hit(n))) as f32;
                dx.extend(row.iter().enumerate().map(one));
            }
            assert_near("loss", &found["loss"], &Matrix { columns: 1, data: vec![loss as f32] }, 1e-5);
            assert_near("dx", &found["out.logits"], &Matrix { columns: vocabulary, data: dx }, 1e-5);
        }
    }
}

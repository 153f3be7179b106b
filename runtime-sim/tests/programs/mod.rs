//! Kernels as `.wafer` text, written from the sizes: what the vocabulary can express.

use std::fmt::Write;

/// Sizes of a weight-streaming linear layer on `columns` x `rows` PEs.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// Columns of PEs.
    pub columns: u32,
    /// Rows of PEs.
    pub rows: u32,
    /// Input features per column.
    pub features: u32,
    /// Tokens per row.
    pub tokens: u32,
    /// Outputs per column.
    pub outputs: u32,
}

/// `y = x * w^T`: activations stay, weights stream down the columns, partial sums of an output run towards the column
/// that owns it from both sides.
pub fn linear(s: Linear, dtype: &str) -> String {
    let Linear { columns, rows, features, tokens, outputs } = s;
    let (all_in, all_out) = (columns * features, columns * outputs);
    let mut text = format!("wafer {columns} x {rows}\n");
    let _ = writeln!(
        text,
        "tensor x[{}] tensor w[{}] tensor y[{}]",
        rows * tokens * all_in,
        all_in * all_out,
        rows * tokens * all_out
    );
    let wire = if dtype == "f32" { "f32" } else { dtype };
    let _ = writeln!(
        text,
        "host weights in north lanes 0 .. {columns} step 1 colour 0: {wire} tensor w dims {all_out}, {features} at {all_in}*d0 + {features}*x + d1"
    );
    for x in 0..columns.min(4) {
        // Columns 0, last, and the two parities between.
        let region = match (x, columns) {
            (0, _) => "(0, R) 1 x H".to_string(),
            (1, _) => format!("({}, R) 1 x H", columns - 1),
            (2, _) if columns > 2 => format!("(1, R) {} x H step 2 x 1", (columns - 1) / 2),
            (3, _) if columns > 3 => format!("(2, R) {} x H step 2 x 1", (columns - 2) / 2),
            _ => continue,
        };
        let at = match x {
            0 => 0,
            1 => columns - 1,
            p => p - 1,
        };
        let places = match rows {
            1 => vec![("bottom", 0, 1)],
            _ => vec![("body", 0, rows - 1), ("bottom", rows - 1, 1)],
        };
        for (name, row, height) in places {
            let region = region.replace('R', &row.to_string()).replace('H', &height.to_string());
            let _ = writeln!(text, "class {name}_{x} at {region} {{");
            let down = if name == "body" { ", south" } else { "" };
            text += &member(s, at, down, dtype, wire);
            text += "}\n";
        }
    }
    text
}

fn member(s: Linear, at: u32, down: &str, dtype: &str, wire: &str) -> String {
    let Linear { columns, features: k, tokens: n, outputs: j, .. } = s;
    let (first, last) = (at == 0, at + 1 == columns);
    let (own, other) = (at % 2, (at + 1) % 2);
    let bytes = if dtype == "f32" { 4 } else { 2 };
    let (acc, y) = ((k * n * bytes).next_multiple_of(4).max(6144), 12288);
    let mut t = format!(
        "buffer x: {dtype}[{}] @0 load x dims {k}, {n} at {}*y + {}*x + {}*d1 + d0\n",
        k * n,
        n * columns * k,
        k,
        columns * k
    );
    let _ = writeln!(t, "buffer acc: f32[{n}] @{acc}");
    let _ = writeln!(
        t,
        "buffer y: f32[{}] @{y} store y dims {j}, {n} at {}*y + {}*x + {}*d1 + d0",
        j * n,
        n * columns * j,
        j,
        columns * j
    );
    let _ = writeln!(t, "route 0: north -> ramp{down}");
    if !last {
        let _ = writeln!(t, "route {}: ramp -> east route {}: east -> ramp", 1 + own, 3 + other);
    }
    if !first {
        let _ = writeln!(t, "route {}: ramp -> west route {}: west -> ramp", 3 + own, 1 + other);
    }
    let axpys = |depth: u32| {
        format!(
            "mul acc <- scalar(0: {wire}), x[0] len {n} loop {} {{ fmac acc <- scalar(0: {wire}), x[{n}*i{depth} + {n}], acc len {n} }}",
            k - 1
        )
    };
    let pass = |send: u32, receive: u32, edge: bool| match edge {
        true => format!("mov out({send}) <- acc len {n}"),
        false => format!("add out({send}) <- acc, in({receive}) len {n}"),
    };
    let _ = writeln!(t, "task main start {{");
    if !first {
        let _ = writeln!(t, "loop {j}*x {{ {} {} }}", axpys(1), pass(3 + own, 3 + other, last));
    }
    let _ = writeln!(t, "loop {j} {{ {}", axpys(1));
    if !first {
        let _ = writeln!(t, "add acc <- acc, in({}) len {n}", 1 + other);
    }
    if !last {
        let _ = writeln!(t, "add acc <- acc, in({}) len {n}", 3 + other);
    }
    let _ = writeln!(t, "mov y[{n}*i0] <- acc len {n} }}");
    if !last {
        let after = j * (columns - 1);
        let _ = writeln!(t, "loop {after} - {j}*x {{ {} {} }}", axpys(1), pass(1 + own, 1 + other, first));
    }
    t + "}\n"
}

/// RMSNorm over a row of `columns` PEs with `features` each, `tokens` tokens: squares sum along the row, the inverse
/// root returns by multicast and scales.
pub fn rms_norm(columns: u32, features: u32, tokens: u32) -> String {
    let (all, k, n) = (columns * features, features, tokens);
    let mut text = format!(
        "wafer {columns} x 1\ntensor x[{}] tensor g[{all}] tensor y[{}]\nphase sum phase scale\n",
        all * n,
        all * n
    );
    for at in 0..columns {
        let (first, last) = (at == 0, at + 1 == columns);
        let (own, other) = (at % 2, (at + 1) % 2);
        let _ = writeln!(text, "class pe{at} at ({at}, 0) {{");
        let _ = writeln!(
            text,
            "buffer x: f32[{}] @0 load x dims {k}, {n} at {k}*x + {all}*d1 + d0 store y dims {k}, {n} at {k}*x + {all}*d1 + d0",
            k * n
        );
        let _ = writeln!(
            text,
            "buffer g: f32[{k}] @12288 load g dims {k} at {k}*x + d0 buffer s: f32[{n}] @18432"
        );
        match (first, last) {
            (true, _) => writeln!(text, "route {own}: ramp -> east"),
            (_, true) => writeln!(text, "route {other}: west -> ramp"),
            _ => writeln!(text, "route {own}: ramp -> east route {other}: west -> ramp"),
        }
        .unwrap();
        match (first, last) {
            (_, true) => writeln!(text, "route 2: ramp -> west"),
            (true, _) => writeln!(text, "route 2: east -> ramp"),
            _ => writeln!(text, "route 2: east -> ramp, west"),
        }
        .unwrap();
        let _ =
            writeln!(text, "task main start {{ phase sum fmac s[0; 0, 1] <- x, x, s[0; 0, 1] len {k}, {n}");
        match (first, last) {
            (true, _) => writeln!(text, "mov out({own}) <- s len {n} mov s <- in(2) len {n}"),
            (_, true) => writeln!(
                text,
                "add s <- s, in({other}) len {n} mul s <- s, {:?} len {n} add s <- s, 1e-5 len {n} rsqrt s <- s len {n} mov out(2) <- s len {n}",
                1.0 / all as f32
            ),
            _ => writeln!(text, "add out({own}) <- s, in({other}) len {n} mov s <- in(2) len {n}"),
        }
        .unwrap();
        let _ = writeln!(
            text,
            "phase scale mul x <- x, s[0; 0, 1] len {k}, {n} mul x <- x, g[0; 1, 0] len {k}, {n} }} }}"
        );
    }
    text
}

/// Sum of one vector per PE over the whole grid, back to every PE: chains along rows and column 0, then a multicast.
/// A handful of classes for any size (at least 4 x 4).
pub fn all_reduce(width: u32, height: u32, words: u32) -> String {
    let all = u64::from(width) * u64::from(height) * u64::from(words);
    let mut text = format!("wafer {width} x {height}\ntensor v[{all}] tensor out[{all}]\n");
    let columns = [(0, 1, 1), (width - 1, 1, 1), (1, (width - 1) / 2, 2), (2, (width - 2) / 2, 2)];
    let rows = [(0, 1, 1), (height - 1, 1, 1), (1, (height - 1) / 2, 2), (2, (height - 2) / 2, 2)];
    for (x, many_x, step_x) in columns {
        for (y, many_y, step_y) in rows {
            let row = u64::from(width) * u64::from(words);
            let map = format!("dims {words} at {row}*y + {words}*x + d0");
            let _ = writeln!(
                text,
                "class p{x}_{y} at ({x}, {y}) {many_x} x {many_y} step {step_x} x {step_y} {{"
            );
            let _ = writeln!(text, "buffer v: f32[{words}] @0 load v {map} store out {map}");
            let (west, east, north, south) = (x == 0, x + 1 == width, y == 0, y + 1 == height);
            let chain = |first: bool, last: bool, at: u32, colour: u32, back: &str, ahead: &str| {
                let (own, other) = (colour + at % 2, colour + (at + 1) % 2);
                let out = if first { String::new() } else { format!("route {own}: ramp -> {back} ") };
                let take = if last { String::new() } else { format!("route {other}: {ahead} -> ramp ") };
                let code = match (first, last) {
                    (true, true) => String::new(),
                    (true, false) => format!("add v <- v, in({other}) len {words} "),
                    (false, true) => format!("mov out({own}) <- v len {words} "),
                    (false, false) => format!("add out({own}) <- v, in({other}) len {words} "),
                };
                (out + &take, code)
            };
            let (mut routes, mut code) = chain(west, east, x, 0, "west", "east");
            if west {
                let (more, rest) = chain(north, south, y, 2, "north", "south");
                routes += &more;
                code += &rest;
            }
            let from = if north && west {
                "ramp"
            } else if north {
                "west"
            } else {
                "north"
            };
            let to = [(from != "ramp", "ramp"), (north && !east, "east"), (!south, "south")];
            let to: Vec<&str> = to.iter().filter(|t| t.0).map(|t| t.1).collect();
            let _ = writeln!(text, "{routes} route 4: {from} -> {}", to.join(", "));
            let end = if from == "ramp" {
                format!("mov out(4) <- v len {words}")
            } else {
                format!("mov v <- in(4) len {words}")
            };
            let _ = writeln!(text, "task main start {{ {code}{end} }} }}");
        }
    }
    text
}

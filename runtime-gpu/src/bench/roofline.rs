//! A bench document as a picture: each kernel's rate over its work per byte, under the roof of copy and product.
use super::{Bench, Measurement};
use std::collections::BTreeSet;
use std::fmt::Write as _;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 600.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 230.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 60.0;

/// Colours that stay apart for most eyes (Okabe and Ito, "Color Universal Design", 2008).
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999"];

/// A point: operations per byte and per second.
struct Point<'b> {
    one: &'b Measurement,
    intensity: f64,
    rate: f64,
}

/// The picture as a self-contained SVG; none for a document without ceilings or without kernels whose work is told.
pub fn roofline(bench: &Bench) -> Option<String> {
    let ceilings = bench.ceilings.filter(|c| c.copy_bytes_per_s > 0.0 && c.product_flops_per_s > 0.0)?;
    let points: Vec<Point<'_>> = bench.results.iter().filter_map(point).collect();
    let ridge = ceilings.product_flops_per_s / ceilings.copy_bytes_per_s;
    let decades = |least: f64, most: f64| (least.log10().floor(), most.log10().ceil());
    let least = points.iter().map(|p| p.intensity).fold(ridge, f64::min);
    let most = points.iter().map(|p| p.intensity).fold(ridge, f64::max);
    let lowest = points.iter().map(|p| p.rate).fold(ceilings.product_flops_per_s, f64::min);
    let (x0, x1) = decades(least, most * 2.0);
    let (y0, y1) = decades(lowest, ceilings.product_flops_per_s * 1.5);
    let across = |x: f64| LEFT + (x.log10() - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
    let up = |y: f64| HEIGHT - BOTTOM - (y.log10() - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
    (!points.is_empty()).then_some(())?;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"16\">{}, {}: copy {:.0} GB/s, large product {:.0} TFLOP/s</text>\n",
        escaped(&bench.device),
        escaped(&bench.date),
        ceilings.copy_bytes_per_s / 1e9,
        ceilings.product_flops_per_s / 1e12
    );
    for decade in x0 as i32..=x1 as i32 {
        let x = across(10f64.powi(decade));
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{:.1}\" stroke=\"#ddd\"/><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 18.0,
            power(decade)
        );
    }
    for decade in y0 as i32..=y1 as i32 {
        let y = up(10f64.powi(decade));
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{} GFLOP/s</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0,
            power(decade - 9)
        );
    }
    let start = 10f64.powf(x0);
    let roof = [
        (start, (start * ceilings.copy_bytes_per_s).max(10f64.powf(y0))),
        (ridge, ceilings.product_flops_per_s),
        (10f64.powf(x1), ceilings.product_flops_per_s),
    ];
    let roof: Vec<String> = roof.iter().map(|(x, y)| format!("{:.1},{:.1}", across(*x), up(*y))).collect();
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"black\" stroke-width=\"2\"/>",
        roof.join(" ")
    );
    let kinds: BTreeSet<&str> = points.iter().map(|p| p.one.kernel.as_str()).collect();
    for (index, kind) in kinds.iter().enumerate() {
        let (colour, y) = (COLOURS[index % COLOURS.len()], TOP + 20.0 * index as f64 + 10.0);
        let x = WIDTH - RIGHT + 20.0;
        let _ = writeln!(
            svg,
            "<circle cx=\"{x}\" cy=\"{y}\" r=\"5\" fill=\"{colour}\"/><text x=\"{}\" y=\"{}\">{}</text>",
            x + 12.0,
            y + 4.0,
            escaped(kind)
        );
        for p in points.iter().filter(|p| p.one.kernel == *kind) {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"5\" fill=\"{colour}\" fill-opacity=\"0.7\"><title>{}</title></circle>",
                across(p.intensity),
                up(p.rate),
                escaped(&super::line(p.one))
            );
        }
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">operations per byte</text>\n</svg>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 16.0
    );
    Some(svg)
}

fn point(one: &Measurement) -> Option<Point<'_>> {
    let (flops, bytes) = (one.flops.filter(|n| *n > 0)? as f64, one.bytes.filter(|n| *n > 0)? as f64);
    Some(Point { one, intensity: flops / bytes, rate: flops / one.median_s })
}

fn power(decade: i32) -> String {
    match decade {
        -3..=6 => format!("{}", 10f64.powi(decade)),
        _ => format!("1e{decade}"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_hardware::calibrate::bench::{Ceilings, SCHEMA, Unit, VERSION};

    fn bench() -> Bench {
        let one = Measurement {
            kernel: "gemm".into(),
            shape: [("m".to_string(), 64)].into(),
            dtype: "bf16".into(),
            median_s: 1e-3,
            spread_pct: 1.0,
            achieved: 1e14,
            unit: Unit::Flops,
            share_pct: Some(50.0),
            tokens_per_s: None,
            flops: Some(100_000_000_000),
            bytes: Some(1_000_000_000),
            ops: None,
            form: None,
        };
        Bench {
            schema: SCHEMA.into(),
            version: VERSION,
            device: "A<100>".into(),
            date: "2026-11-22".into(),
            results: vec![one],
            ceilings: Some(Ceilings { copy_bytes_per_s: 1e12, product_flops_per_s: 2e14 }),
            skipped: Vec::new(),
        }
    }

    /// At 100 operations a byte the roof is 1e14, which is what the kernel reaches: its point lies on the slope.
    #[test]
    fn a_kernel_at_its_ceiling_lies_on_the_roof() {
        let svg = roofline(&bench()).unwrap();
        let numbers = |from: &str, to: char| -> Vec<f64> {
            let start = svg.find(from).unwrap() + from.len();
            let text = &svg[start..start + svg[start..].find(to).unwrap()];
            text.split([' ', ',']).filter_map(|n| n.parse().ok()).collect()
        };
        let roof = numbers("<polyline points=\"", '"');
        let title = svg.find("<title>").unwrap();
        let circle = svg[..title].rfind("<circle cx=\"").unwrap();
        let at = |name: &str| -> f64 {
            let start = circle + svg[circle..].find(name).unwrap() + name.len();
            svg[start..start + svg[start..].find('"').unwrap()].parse().unwrap()
        };
        let (x, y) = (at("cx=\""), at("cy=\""));
        let on_slope = roof[1] + (x - roof[0]) * (roof[3] - roof[1]) / (roof[2] - roof[0]);
        assert!((y - on_slope).abs() < 0.3, "{y} {on_slope}");
        assert!(svg.contains("A&lt;100&gt;") && !svg.contains("http://www.w3.org/1999"));
    }

    #[test]
    fn nothing_is_drawn_without_ceilings() {
        assert_eq!(roofline(&Bench { ceilings: None, ..bench() }), None);
    }
}

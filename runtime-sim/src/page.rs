//! One page of a simulation that opens offline, without scripts: for each program its figures, its phases, where the
//! cycles go, and where on the wafer PEs are busy, memory is in use and links carry words.

use crate::heat::HeatMap;
use crate::report::Report;
use std::collections::BTreeMap;
use std::fmt::Write as _;

const STYLE: &str = include_str!("page.css");

/// A program with what was found of it.
#[derive(Clone, Debug)]
pub struct Stage<'r> {
    /// Its name.
    pub name: &'r str,
    /// How often it runs in one pass over the model.
    pub times: u64,
    /// What was found.
    pub report: &'r Report,
}

/// The page of some programs under a title; `summary` are sentences below it, `placement` lines of a text at its end.
pub fn page(title: &str, summary: &[String], stages: &[Stage], placement: &[String]) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{0}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<header><h1>{0}</h1>{1}</header>\n<main>\n",
        escaped(title),
        paragraphs(summary)
    );
    stages.iter().for_each(|stage| page += &section(stage));
    if !placement.is_empty() {
        let lines: Vec<String> = placement.iter().map(|line| escaped(line)).collect();
        let _ = writeln!(page, "<section><h2>Placement</h2><pre>{}</pre></section>", lines.join("\n"));
    }
    if let Some(stage) = stages.first() {
        let rows = stage.report.assumptions.iter();
        let rows = rows.map(|a| vec![a.name.clone(), format!("{} {}", a.value, a.unit), a.source.clone()]);
        let table = table(&["assumption", "value", "source"], 1, rows);
        let _ = writeln!(page, "<section><h2>Assumptions</h2>{table}</section>");
    }
    page + "</main>\n</body>\n</html>\n"
}

fn section(stage: &Stage) -> String {
    let Stage { name, times, report } = stage;
    let mut facts = vec![format!(
        "Run {times} times: {} cycles = {:.6} s at {:.2} GHz on {} PEs, of which {:.1} % of the cycles moved or computed elements.",
        report.cycles,
        report.seconds,
        report.clock_hz / 1e9,
        report.pes,
        report.pe_busy_pct
    )];
    facts.push(format!(
        "The fullest PE uses {} bytes (class {}).",
        report.sram_peak_bytes, report.sram_peak_class
    ));
    if let Some(link) = &report.hottest_link {
        facts.push(format!(
            "The hottest link leaves ({}, {}) to the {} with {} words, {:.1} % of the cycles.",
            link.at.x,
            link.at.y,
            link.port.name(),
            link.words,
            link.load_pct
        ));
    }
    facts.extend(report.limits.iter().map(|limit| format!("Left out at level {}: {limit}.", report.level)));
    format!(
        "<section><h2>Stage {}, level {}</h2>\n{}{}\n<div class=\"tables\">{}{}{}</div></section>\n",
        escaped(name),
        report.level,
        paragraphs(&facts),
        maps(&report.heat),
        causes("cause, on the critical path", &report.critical_path, report.cycles),
        causes("cause, in the PE that ends last", &report.terms, report.cycles),
        phases(report),
    )
}

fn paragraphs(sentences: &[String]) -> String {
    sentences.iter().map(|sentence| format!("<p>{}</p>\n", escaped(sentence))).collect()
}

fn causes(title: &str, by_cause: &BTreeMap<String, u64>, all: u64) -> String {
    let mut terms: Vec<(&String, &u64)> = by_cause.iter().filter(|(_, cycles)| **cycles > 0).collect();
    terms.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let share = |cycles: u64| format!("{:.1} %", 100.0 * cycles as f64 / all.max(1) as f64);
    let rows = terms.iter().map(|(name, cycles)| vec![name.to_string(), cycles.to_string(), share(**cycles)]);
    if terms.is_empty() { String::new() } else { table(&[title, "cycles", "share"], 1, rows) }
}

fn phases(report: &Report) -> String {
    let row = |p: &crate::report::PhaseReport| vec![p.name.clone(), p.start.to_string(), p.end.to_string()];
    let rows = report.phases.iter().map(row);
    if report.phases.is_empty() {
        String::new()
    } else {
        table(&["phase", "first PE in", "last PE out"], 1, rows)
    }
}

/// A table whose columns from `numbers` on stand to the right.
fn table(head: &[&str], numbers: usize, rows: impl Iterator<Item = Vec<String>>) -> String {
    let cell = |tag: &str, n: usize, text: &str| {
        let class = if n >= numbers { " class=\"number\"" } else { "" };
        format!("<{tag}{class}>{}</{tag}>", escaped(text))
    };
    let row = |tag: &str, cells: &[&str]| -> String {
        let cells: String = cells.iter().enumerate().map(|(n, text)| cell(tag, n, text)).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let body: String =
        rows.map(|cells| row("td", &cells.iter().map(String::as_str).collect::<Vec<_>>())).collect();
    format!("<table><thead>{}</thead><tbody>{body}</tbody></table>\n", row("th", head))
}

/// The three maps side by side, each on a scale from nothing to its own largest value.
fn maps(heat: &HeatMap) -> String {
    let sram: Vec<f64> = heat.sram_bytes.iter().map(|bytes| *bytes as f64).collect();
    let all = [
        ("busy PEs, share of cycles", &heat.busy_pct, "%", 1),
        ("memory of the fullest PE", &sram, "bytes", 0),
        ("fullest link, share of cycles", &heat.link_load_pct, "%", 1),
    ];
    let figures = all.map(|(title, values, unit, digits)| {
        let most = values.iter().copied().fold(0.0, f64::max);
        let caption = format!("{title}: darkest {most:.digits$} {unit}");
        format!("<figure>{}<figcaption>{caption}</figcaption></figure>\n", map(heat, values, most))
    });
    format!("<div class=\"maps\">\n{}</div>", figures.concat())
}

/// Shades that are told apart.
const SHADES: f64 = 24.0;

/// Cells of one shade that follow each other in a row are one rectangle.
fn map(heat: &HeatMap, values: &[f64], most: f64) -> String {
    let (width, height) = (heat.columns * heat.cell_pes.0, heat.rows * heat.cell_pes.1);
    let shade = |value: &f64| if most > 0.0 { (SHADES * value / most).ceil() as u32 } else { 0 };
    let mut svg = format!(
        "<svg viewBox=\"0 0 {} {}\" role=\"img\"><rect class=\"grid\" width=\"100%\" height=\"100%\"/>",
        heat.width.min(width),
        heat.height.min(height)
    );
    for (y, row) in (0u32..).zip(values.chunks(heat.columns.max(1) as usize)) {
        let mut x = 0;
        for run in row.chunk_by(|a, b| shade(a) == shade(b)) {
            let cells = run.len() as u32;
            if shade(&run[0]) > 0 {
                let opacity = f64::from(shade(&run[0])) / SHADES;
                let (cell_x, cell_y) = heat.cell_pes;
                let _ = write!(
                    svg,
                    "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{cell_y}\" fill-opacity=\"{opacity:.3}\"/>",
                    x * cell_x,
                    y * cell_y,
                    cells * cell_x
                );
            }
            x += cells;
        }
    }
    svg + "</svg>"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heat::Heat;

    #[test]
    fn a_map_has_the_shape_of_the_wafer_and_a_rectangle_for_cells_of_one_shade() {
        let mut heat = Heat::new(100, 7, 100.0);
        (0..7).for_each(|y| (0..100).for_each(|x| heat.pe(x, y, if x < 51 { 50.0 } else { 100.0 }, 8)));
        let report = Report { heat: heat.finish(), level: "flow".into(), ..Report::default() };
        let stages = [Stage { name: "a < b", times: 1, report: &report }];
        let page = page("<model>", &["one sentence".into()], &stages, &["a line".into()]);
        assert!(page.contains("<title>&lt;model&gt;</title>") && page.contains("Stage a &lt; b, level flow"));
        assert_eq!(page.matches("viewBox=\"0 0 100 7\"").count(), 3, "{page}");
        let busy = page.split("<figure>").nth(1).expect("a map");
        assert_eq!(busy.matches("<rect x=").count(), 2 * 7, "{busy}");
        assert!(busy.contains("x=\"51\" y=\"6\"") && busy.contains("darkest 100.0 %"), "{busy}");
        let load = page.split("<figure>").nth(3).expect("a map");
        assert_eq!(load.matches("<rect x=").count(), 0, "no word passed a link");
        assert!(!page.contains("<script") && !page.contains("http"), "opens offline");
    }
}

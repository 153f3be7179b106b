//! Kernels of others in the SDK's simulator, priced statement by statement from their public sources: vector ops on one
//! element, local products, stencils with halo exchange, and MeshGEMM.
//!
//! What a processing element does with a descriptor is common to them: a vector op of 32 bits moves one element a cycle,
//! two where its second source lies in a bank that cannot be read beside the first, and takes some cycles for every row
//! of a tile and every call. Banks are interleaved word by word, so two sources at a constant distance collide for the
//! whole op or not at all. The cycles of calls, tasks and halos have no printed source: each is one number for an
//! architecture, fitted on the rows named beside it.

use super::document::{Limits, Outcome, Prediction, Skipped};
use super::table::TableRow;
use crate::Assumption;

/// Columns that a table of this kind needs.
pub const COLUMNS: [&str; 7] = ["id", "platform", "kernel", "params", "metric", "value", "unit"];

/// What the gate asks for.
pub const LIMITS: Limits = Limits { median: Some(5.0), p95: Some(15.0), most: None };

/// Words apart at which two sources lie in banks that one cycle cannot read: 8 banks, of which two that agree modulo 4
/// share a port (SDK documentation).
const BANK_PORTS: i64 = 4;

/// Costs of an architecture's simulator, in cycles.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Costs {
    /// An iteration of the tiled stencil: its tasks and its eight asynchronous transfers.
    iteration: f64,
    /// A vector op of the tiled stencil beside its elements.
    call: f64,
    /// A word of halo along the width of a tile.
    wide_word: f64,
    /// A word of halo along its height.
    high_word: f64,
    /// An iteration of the stencil of radius 1, whose ops keep their descriptors in registers.
    near_iteration: f64,
    /// A word of its halo.
    near_word: f64,
    /// The same where an iteration does not wait for its neighbours: WSE-3 tiles of at least 4 x 4.
    free: Option<Free>,
    /// An iteration of the stencil of one value an element, alone.
    value_alone: f64,
    /// The same between neighbours that wait for each other.
    value_coupled: f64,
}

/// Costs of iterations that do not wait.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Free {
    iteration: f64,
    word: f64,
    element: f64,
}

const WSE2: Costs = Costs {
    iteration: 109.4,
    call: 8.4,
    wide_word: 4.58,
    high_word: 5.36,
    near_iteration: 112.3,
    near_word: 2.37,
    free: None,
    value_alone: 12.0,
    value_coupled: 15.5,
};

const WSE3: Costs = Costs {
    iteration: 171.2,
    call: 9.31,
    wide_word: 4.0,
    high_word: 3.91,
    near_iteration: 148.8,
    near_word: 0.45,
    free: Some(Free { iteration: 19.2, word: 6.57, element: 3.92 }),
    value_alone: 17.0,
    value_coupled: 22.5,
};

/// Costs of MeshGEMM on the WSE-3, in cycles.
mod mesh {
    /// Of a product as a whole.
    pub const ENTRY: f64 = 32.1;
    /// Of a step of aligning the left matrix.
    pub const ALIGN: f64 = 5.2;
    /// Of a word of it.
    pub const ALIGN_WORD: f64 = 2.19;
    /// Of a step.
    pub const STEP: f64 = 55.9;
    /// Of its two-hop exchange.
    pub const EXCHANGE: f64 = 100.6;
    /// Of a word of the left matrix in it.
    pub const LEFT_WORD: f64 = 0.18;
    /// Of a word by which the left tile is larger than the right one.
    pub const LONGER_WORD: f64 = 1.11;
    /// Of a column of a tile.
    pub const COLUMN: f64 = 4.55;
    /// By which arithmetic hides the exchange of a step.
    pub const HIDDEN: f64 = 19.0;
    /// A mapped multiply-add beside its elements, eight of which take two cycles.
    pub const MAPPED: f64 = 6.0;
}

/// Local products on the WSE-2, in cycles.
mod product {
    /// A strided multiply-add call.
    pub const STRIDED_CALL: f64 = 9.0;
    /// An element of it: read, and read and written again, in one bank; a quarter of the pairs collide.
    pub const STRIDED_ELEMENT: f64 = 2.25;
    /// A call on a row picked by an index.
    pub const ROW_CALL: f64 = 34.0;
    /// An element of it: a quarter of the pairs collide.
    pub const ROW_ELEMENT: f64 = 1.27;
    /// A row of the sparse matrix.
    pub const SPARSE_ROW: f64 = 62.0;
}

/// Parameters without a printed source.
pub fn fitted() -> Vec<Assumption> {
    let far = "tiled stencils of radius 2 and more; least relative squares over their rows";
    let near = "tiled stencils of radius 1";
    let value = "stencil1 rows: 3x3 alone, 4x4 and more coupled";
    let of = |name: &str, arch: &str, value: f64, unit: &str, source: &str| {
        Assumption::new(&format!("{arch}.{name}"), value, unit, source)
    };
    let costs = |arch: &str, costs: &Costs| {
        vec![
            of("stencil-iteration", arch, costs.iteration, "cycles", far),
            of("stencil-call", arch, costs.call, "cycles/op", far),
            of("stencil-halo-word", arch, costs.wide_word, "cycles", far),
            of("near-stencil-iteration", arch, costs.near_iteration, "cycles", near),
            of("value-stencil", arch, costs.value_coupled, "cycles", value),
        ]
    };
    let mesh = "MeshGEMM rows with P 3 and 6; least relative squares";
    let product = "spmm_GEMM_0 and spmm_GEMM_4; spmm_CSR_0, _4, _6, _10 and _12";
    let mut list = [costs("wse2", &WSE2), costs("wse3", &WSE3)].concat();
    list.push(of("mesh-step", "wse3", mesh::STEP + mesh::EXCHANGE, "cycles", mesh));
    list.push(of("mesh-column", "wse3", mesh::COLUMN, "cycles", mesh));
    list.push(of("strided-call", "wse2", product::STRIDED_CALL, "cycles", product));
    list.push(of("row-call", "wse2", product::ROW_CALL, "cycles", product));
    list
}

/// Predicts a row.
pub fn predict(row: &TableRow) -> Outcome {
    let id = row.word("id");
    let skipped = |why: String| Skipped { id: id.into(), why };
    let kernel = row.word("kernel");
    if row.word("complete").starts_with('N') {
        return Err(skipped("the row is not complete".into()));
    }
    let costs = match row.word("platform") {
        "wse2_sdk_sim" => WSE2,
        "wse3_sdk_sim" => WSE3,
        other => return Err(skipped(format!("platform is `{other}`; the SDK's simulators are known"))),
    };
    let three = row.word("platform").starts_with("wse3");
    let found = match () {
        () if kernel.contains("one value per PE") => value_stencil(row, &costs),
        () if kernel.contains("star stencil") => tiled_stencil(row, &costs),
        () if kernel.starts_with("MeshGEMM") && three => mesh_gemm(row),
        () if kernel.contains("dense GEMM") && !three => dense(row),
        () if kernel.contains("SpMM CSR") && !three => sparse(row),
        () if kernel.contains("@fmuls") && !three => vector(row),
        () => Err(format!("no kernel `{kernel}` is known for {}", row.word("platform"))),
    };
    let (group, cycles) = found.map_err(&skipped)?;
    let measured = row.measured("value").map_err(&skipped)?;
    let group = format!("{} {group}", &row.word("platform")[..4]);
    Ok(Prediction {
        by: "sources of the kernel".into(),
        ..Prediction::new(id, &group, measured, cycles, row.word("unit"))
    })
}

type Priced = Result<(&'static str, f64), String>;

/// `name=value` in the parameters as a whole number.
fn setting(row: &TableRow, name: &str) -> Result<u64, String> {
    let word = row.setting("params", name).ok_or_else(|| format!("params names no {name}"))?;
    let number = word.trim_end_matches('%').parse::<u64>().ok().filter(|number| *number < 1 << 24);
    number.ok_or_else(|| format!("params: {name} is `{word}`, not a whole number"))
}

/// `name=AxB` in the parameters.
fn pair(row: &TableRow, name: &str) -> Result<(u64, u64), String> {
    let word = row.setting("params", name).ok_or_else(|| format!("params names no {name}"))?;
    let sides = word.split_once('x').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    let good = |sides: &(u64, u64)| (1..1 << 16).contains(&sides.0) && (1..1 << 16).contains(&sides.1);
    sides.filter(good).ok_or_else(|| format!("params: {name} is `{word}`, not two sizes"))
}

/// A star stencil on tiles with halos: an op for each arm and distance, and one for the centre.
fn tiled_stencil(row: &TableRow, costs: &Costs) -> Priced {
    let (width, height) = pair(row, "tile")?;
    let radius = setting(row, "radius")?;
    if radius == 0 || radius > width.min(height) {
        return Err(format!("radius {radius} does not fit a tile of {width} x {height}"));
    }
    let (w, h, r) = (width as f64, height as f64, radius as f64);
    if radius == 1 {
        return Ok(("stencil, radius 1", near_stencil(costs, w, h)));
    }
    let ops = 4.0 * r + 1.0;
    let passes = ops + collisions(width as i64, height as i64, radius as i64);
    let halo = r * (w * costs.wide_word + h * costs.high_word);
    Ok(("stencil, radius 2 and more", passes * w * h + ops * costs.call + costs.iteration + halo))
}

/// Ops of a tiled stencil whose two sources collide. The values lie before their halo'd copy in memory, in rows one word
/// longer than a row with halos; an arm's source is so many words from the value it is added to. The first op has one
/// source in memory, the last adds the centre.
fn collisions(width: i64, height: i64, radius: i64) -> f64 {
    let row = width + 2 * radius + 1;
    let apart = row * (height + 2 * radius);
    let collide = |words: i64| (apart + words) % BANK_PORTS == 0;
    let arms = (1..=radius).flat_map(|i| [-i * row, i * row, -i, i].map(|words| (i, words)));
    let first = |(i, words): &(i64, i64)| *i == 1 && *words < -1;
    let arms = arms.filter(|arm| !first(arm)).filter(|(_, words)| collide(*words)).count();
    arms as f64 + f64::from(u8::from(collide(0)))
}

/// Two products and four sums with descriptors in registers.
fn near_stencil(costs: &Costs, w: f64, h: f64) -> f64 {
    match costs.free.filter(|_| w >= 4.0 && h >= 4.0) {
        Some(free) => free.iteration + free.word * (w + h) + free.element * w * h,
        None => costs.near_iteration + costs.near_word * (w + h) + 6.0 * w * h,
    }
}

/// One value an element: with one inner element nobody waits for a neighbour that computes.
fn value_stencil(row: &TableRow, costs: &Costs) -> Priced {
    let (width, height) = pair(row, "grid")?;
    let alone = width.max(height) <= 3;
    Ok(("stencil of one value", if alone { costs.value_alone } else { costs.value_coupled }))
}

/// Steps of a two-hop exchange with a tile product each, behind an alignment of half as many steps.
fn mesh_gemm(row: &TableRow) -> Priced {
    let side = row.count("grid_w")?;
    let tile = |name: &str, whole: &str| {
        setting(row, name).or_else(|_| setting(row, whole).map(|all| all.div_ceil(side)))
    };
    let (m, k, n): (u64, u64, u64) = (tile("Mt", "M")?, tile("Kt", "K")?, tile("Nt", "N")?);
    let loops = setting(row, "compute_loops_L").or_else(|_| setting(row, "L"))?;
    let exchanges = row.setting("params", "comm") != Some("off");
    let (steps, aligns) = (side as f64, (side / 2) as f64);
    let (m, k, n, loops) = (m as f64, k as f64, n as f64, loops as f64);
    let (left, right) = (m * k / 2.0, k * n / 2.0);
    let mapped = mesh::MAPPED + 2.0 * (m / 8.0).ceil();
    let arithmetic = loops * k * (mesh::COLUMN + n * mapped);
    let words = mesh::EXCHANGE + mesh::LEFT_WORD * left + mesh::LONGER_WORD * (left - right).max(0.0);
    let hidden = if loops > 0.0 { mesh::HIDDEN } else { 0.0 };
    let step = mesh::STEP + arithmetic - hidden + if exchanges { words } else { 0.0 };
    let align = mesh::ALIGN + mesh::ALIGN_WORD * left;
    Ok(("MeshGEMM", mesh::ENTRY + aligns * align + steps * step + m * n / 4.0))
}

/// A strided multiply-add over the rows of a tile for each of its columns and right sides.
fn dense(row: &TableRow) -> Priced {
    let (rows, inner) = tile_of(row)?;
    let calls = inner * setting(row, "M")? as f64;
    Ok(("dense product", calls * (product::STRIDED_CALL + product::STRIDED_ELEMENT * rows)))
}

/// A multiply-add over the right sides for each stored value of a tile.
fn sparse(row: &TableRow) -> Priced {
    let (rows, inner) = tile_of(row)?;
    let density = setting(row, "density")? as f64 / 100.0;
    let call = product::ROW_CALL + product::ROW_ELEMENT * setting(row, "M")? as f64;
    Ok(("sparse product", density * rows * inner * call + rows * product::SPARSE_ROW))
}

/// Rows and columns of the left matrix in one element: columns over the width, rows over the height.
fn tile_of(row: &TableRow) -> Result<(f64, f64), String> {
    let (width, height) = (row.count("grid_w")?, row.count("grid_h")?);
    Ok((setting(row, "N")?.div_ceil(height) as f64, setting(row, "K")?.div_ceil(width) as f64))
}

/// `@fmuls` on one element; the note says how its operands lie.
fn vector(row: &TableRow) -> Priced {
    let length = setting(row, "length")? as f64;
    let note = row.word("note");
    let cycles = match () {
        () if note.contains("SIMD-2") => length / 2.0 + 35.0,
        () if note.contains("no bank conflict") => length + 6.0,
        () if note.contains("bank conflict") => 2.0 * length + 6.0,
        () => return Err("the note does not say how the operands lie".into()),
    };
    Ok(("vector multiply", cycles))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counted by hand: 20 x 20 with radius 2 collides at the centre alone, with radius 4 at the arms of distance 4 too.
    #[test]
    fn sources_collide_where_they_are_a_multiple_of_four_words_apart() {
        assert_eq!(collisions(20, 20, 2), 1.0);
        assert_eq!(collisions(20, 20, 4), 5.0);
        assert_eq!(collisions(30, 30, 2), 4.0);
    }
}

//! Kernels of others in the SDK's simulator: each row of the table as a program at level event, on the machine of its file.

use lapidary_hardware::HardwareSpec;
use lapidary_hardware::builtin::machine;
use lapidary_planner::Assumption;
use lapidary_planner::wafer::published::{Limits, Outcome, Prediction, Skipped, TableRow};
use lapidary_runtime_sim::FabricSpec;
use lapidary_runtime_sim::kernels::{
    DESCRIPTORS, Dense, EXCHANGE, Kernel, MESH_ALIGN, MESH_COLUMN, MESH_ENTRY, MESH_STEP, MeshGemm, Multiply,
    Operands, SPARSE_CALL, SPARSE_ROW, Sparse, Stencil, ValueStencil,
};
use std::collections::BTreeSet;

/// Columns that a table of this kind needs.
pub const COLUMNS: [&str; 7] = ["id", "platform", "kernel", "params", "metric", "value", "unit"];

/// What the gate asks for.
pub const LIMITS: Limits = Limits { median: Some(5.0), p95: Some(15.0), most: None };

/// Inner PEs along a side that a stencil is simulated with; more of them do the same at the same time.
const STENCIL_SIDE: u32 = 3;

/// PEs along a side that the stencil of one value is simulated with.
const VALUE_SIDE: u32 = 10;

/// Largest product of a side of MeshGEMM with itself that is simulated.
const MESH_SIDE: u32 = 32;

/// The simulators that rows come from: their platform, and the machine's name.
const PLATFORMS: [(&str, &str); 2] = [("wse2_sdk_sim", "wse2"), ("wse3_sdk_sim", "wse3")];

/// Facts of machine files that are fitted on rows.
const FITTED: &str = "device.pe.statements.";

/// Lengths of scalar code that the public sources do not settle, because what the compiler made of them is not published.
const COUNTED: [(&str, u32, &str); 8] = [
    ("wse2.sparse-row", SPARSE_ROW, "fitted on spmm_CSR_4: a row of a sparse product"),
    (
        "wse2.descriptors-in-memory",
        DESCRIPTORS,
        "fitted on fmuls_5124_2597 and fmuls_5124_5130: three descriptors",
    ),
    (
        "wse3.mesh-exchange",
        EXCHANGE,
        "chosen beside the count of a column on mgemm_w3sim_P3_M3_L0 and mgemm_w3sim_P3_M3_L1: an exchange of MeshGEMM",
    ),
    ("wse3.mesh-column", MESH_COLUMN, SEEN),
    ("wse3.mesh-entry", MESH_ENTRY, SEEN),
    ("wse3.mesh-align", MESH_ALIGN, SEEN),
    ("wse3.mesh-step", MESH_STEP, SEEN),
    ("wse2.sparse-call", SPARSE_CALL, SEEN),
];

/// What is said of a length that no single row settled.
const SEEN: &str = "counted in the source, with all rows of its kernel in view";

/// Predicts rows.
pub struct Predictor {
    machines: Vec<(&'static str, HardwareSpec)>,
    /// Names of rows that a parameter was fitted on.
    named: BTreeSet<String>,
    /// Parameters without a printed source.
    pub fitted: Vec<Assumption>,
}

impl Predictor {
    /// With the machines of the SDK's simulators.
    pub fn new() -> Predictor {
        let found = PLATFORMS.iter().filter_map(|(platform, name)| Some((*platform, machine(name).ok()?)));
        let machines: Vec<_> = found.collect();
        let facts = machines.iter().flat_map(|(platform, machine)| {
            let chosen = machine
                .facts
                .iter()
                .filter(|fact| fact.key.starts_with(FITTED) && fact.source.starts_with("fitted on"));
            chosen.map(|fact| {
                let name = format!("{}.{}", &platform[..4], &fact.key[FITTED.len()..]);
                Assumption::new(&name, fact.value[0], &fact.unit, &fact.source)
            })
        });
        let mut fitted: Vec<Assumption> = facts.collect();
        fitted
            .extend(COUNTED.map(|(name, count, source)| {
                Assumption::new(name, f64::from(count), "instructions", source)
            }));
        let words = fitted.iter().flat_map(|fact| fact.source.split([' ', ',', ':', ';']));
        let named = words.filter(|word| word.contains('_')).map(String::from).collect();
        Predictor { machines, named, fitted }
    }

    /// Predicts a row.
    pub fn predict(&self, row: &TableRow) -> Outcome {
        let id = row.word("id");
        let skipped = |why: String| Skipped { id: id.into(), why };
        if row.word("complete").starts_with('N') {
            return Err(skipped("the row is not complete".into()));
        }
        let platform = row.word("platform");
        let known = self.machines.iter().find(|(name, _)| *name == platform);
        let Some((_, machine)) = known else {
            return Err(skipped(format!("platform is `{platform}`; the SDK's simulators are known")));
        };
        let fabric = machine.wafer().and_then(FabricSpec::by_statement);
        let fabric = fabric.ok_or_else(|| skipped("the machine's file prices no statements".into()))?;
        let (group, kernel) = kernel(row, platform.starts_with("wse3")).map_err(&skipped)?;
        let measured = row.measured("value").map_err(&skipped)?;
        let cycles = kernel.cycles(&fabric).map_err(&skipped)?;
        let group = format!("{} {group}", &platform[..4]);
        Ok(Prediction {
            by: "level event".into(),
            fitted: self.named.contains(id),
            ..Prediction::new(id, &group, measured, cycles, row.word("unit"))
        })
    }
}

type Found = Result<(&'static str, Kernel), String>;

/// The kernel of a row.
fn kernel(row: &TableRow, three: bool) -> Found {
    let name = row.word("kernel");
    match () {
        () if name.contains("one value per PE") => value_stencil(row, three),
        () if name.contains("star stencil") => tiled_stencil(row, three),
        () if name.starts_with("MeshGEMM") && three => mesh_gemm(row),
        () if name.contains("dense GEMM") && !three => dense(row),
        () if name.contains("SpMM CSR") && !three => sparse(row),
        () if name.contains("@fmuls") && !three => vector(row),
        () => Err(format!("no kernel `{name}` is known for {}", row.word("platform"))),
    }
}

/// `name=value` in the parameters as a whole number below 2^24.
fn setting(row: &TableRow, name: &str) -> Result<u32, String> {
    let word = row.setting("params", name).ok_or_else(|| format!("params names no {name}"))?;
    let number = word.trim_end_matches('%').parse::<u32>().ok().filter(|number| *number < 1 << 24);
    number.ok_or_else(|| format!("params: {name} is `{word}`, not a whole number"))
}

/// A setting of at least 1.
fn size(row: &TableRow, name: &str) -> Result<u32, String> {
    match setting(row, name)? {
        0 => Err(format!("params: {name} is 0")),
        number => Ok(number),
    }
}

/// `name=AxB` in the parameters.
fn pair(row: &TableRow, name: &str) -> Result<(u32, u32), String> {
    let word = row.setting("params", name).ok_or_else(|| format!("params names no {name}"))?;
    let sides = word.split_once('x').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    let good = |sides: &(u32, u32)| (1..1 << 16).contains(&sides.0) && (1..1 << 16).contains(&sides.1);
    sides.filter(good).ok_or_else(|| format!("params: {name} is `{word}`, not two sizes"))
}

/// PEs along a side, from a column.
fn side(row: &TableRow, column: &str) -> Result<u32, String> {
    let count = row.count(column)?;
    u32::try_from(count).map_err(|_| format!("{column} is {count}, more than a wafer has"))
}

fn tiled_stencil(row: &TableRow, three: bool) -> Found {
    let ((width, height), radius) = (pair(row, "tile")?, setting(row, "radius")?);
    if radius == 0 || radius > width.min(height) {
        return Err(format!("radius {radius} does not fit a tile of {width} x {height}"));
    }
    let inner = |column: &str| side(row, column).unwrap_or(STENCIL_SIDE).min(STENCIL_SIDE);
    let (columns, rows) = (inner("grid_w"), inner("grid_h"));
    let group = if radius == 1 { "stencil, radius 1" } else { "stencil, radius 2 and more" };
    let waits = radius > 1 || !three || width.min(height) < 4;
    Ok((group, Kernel::Stencil(Stencil { width, height, radius, columns, rows, waits })))
}

fn value_stencil(row: &TableRow, three: bool) -> Found {
    let (width, height) = pair(row, "grid")?;
    if width < 3 || height < 3 {
        return Err(format!("no element of a grid of {width} x {height} has four neighbours"));
    }
    let (width, height) = (width.min(VALUE_SIDE), height.min(VALUE_SIDE));
    Ok(("stencil of one value", Kernel::Value(ValueStencil { width, height, two_streams: !three })))
}

fn mesh_gemm(row: &TableRow) -> Found {
    let side = side(row, "grid_w")?;
    if side > MESH_SIDE {
        return Err(format!(
            "{side} x {side} elements take long at level event; {MESH_SIDE} x {MESH_SIDE} do not"
        ));
    }
    let tile =
        |name: &str, whole: &str| size(row, name).or_else(|_| size(row, whole).map(|all| all.div_ceil(side)));
    let (m, k, n) = (tile("Mt", "M")?, tile("Kt", "K")?, tile("Nt", "N")?);
    let products = setting(row, "compute_loops_L").or_else(|_| setting(row, "L"))?;
    let travels = row.setting("params", "comm") != Some("off");
    Ok(("MeshGEMM", Kernel::MeshGemm(MeshGemm { side, m, k, n, products, travels })))
}

fn dense(row: &TableRow) -> Found {
    let (rows, inner) = tile_of(row)?;
    Ok(("dense product", Kernel::Dense(Dense { rows, inner, columns: size(row, "M")? })))
}

fn sparse(row: &TableRow) -> Found {
    let (rows, inner) = tile_of(row)?;
    let density = setting(row, "density")?.min(100);
    let values = (f64::from(rows) * f64::from(inner) * f64::from(density) / 100.0).round() as u32;
    Ok(("sparse product", Kernel::Sparse(Sparse { rows, inner, columns: size(row, "M")?, values })))
}

/// Rows and columns of the left matrix in one element: columns over the width, rows over the height.
fn tile_of(row: &TableRow) -> Result<(u32, u32), String> {
    let (width, height) = (side(row, "grid_w")?, side(row, "grid_h")?);
    Ok((size(row, "N")?.div_ceil(height), size(row, "K")?.div_ceil(width)))
}

/// `@fmuls` on one element; the note says how its operands lie.
fn vector(row: &TableRow) -> Found {
    let note = row.word("note");
    let operands = match () {
        () if note.contains("SIMD-2") => Operands::Paired,
        () if note.contains("no bank conflict") => Operands::Apart,
        () if note.contains("bank conflict") => Operands::Together,
        () => return Err("the note does not say how the operands lie".into()),
    };
    Ok(("vector multiply", Kernel::Multiply(Multiply { length: size(row, "length")?, operands })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_planner::wafer::published::Table;

    fn outcome(platform: &str, kernel: &str, params: &str) -> Outcome {
        let text = format!(
            "id,platform,kernel,params,metric,value,unit,grid_w,grid_h\nx,{platform},{kernel},{params},c,1,cycles,3,3\n"
        );
        Predictor::new().predict(&Table::read(&text, "t.csv", &COLUMNS).unwrap().rows[0])
    }

    #[test]
    fn what_cannot_be_simulated_says_why() {
        let why = |kernel: &str, params: &str| outcome("wse2_sdk_sim", kernel, params).unwrap_err().why;
        assert!(why("star stencil", "tile=3x3 radius=4").contains("does not fit"));
        assert!(why("star stencil", "tile=900x900 radius=1").contains("ends at byte"));
        assert!(why("one value per PE", "grid=2x9").contains("four neighbours"));
        assert!(why("a new one", "").contains("no kernel"));
        assert!(outcome("cs1_hw", "star stencil", "").unwrap_err().why.contains("simulators are known"));
    }

    #[test]
    fn rows_that_are_fitted_on_are_named_in_the_files_of_the_machines() {
        let predictor = Predictor::new();
        assert!(predictor.named.contains("stencil1_wse2_3x3"), "{:?}", predictor.named);
        let machine = predictor.fitted.iter().filter(|fact| fact.unit != "instructions");
        let of = |arch: &str| machine.clone().filter(|fact| fact.name.starts_with(arch)).count();
        assert_eq!((of("wse2"), of("wse3")), (5, 5), "{:?}", predictor.fitted);
    }
}

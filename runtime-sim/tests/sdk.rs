//! Kernels of the SDK's simulator as programs: cycles of rows of `tests/data/microbench.csv` that nothing was fitted on.

use lapidary_hardware::builtin::machine;
use lapidary_runtime_sim::FabricSpec;
use lapidary_runtime_sim::kernels::{
    Dense, Kernel, MeshGemm, Multiply, Operands, Sparse, Stencil, ValueStencil,
};

fn fabric(name: &str) -> FabricSpec {
    FabricSpec::by_statement(machine(name).unwrap().wafer().unwrap()).unwrap()
}

/// What a row of the table measured.
fn measured(id: &str) -> f64 {
    let rows = include_str!("data/microbench.csv");
    let row = rows.lines().find(|line| line.starts_with(&format!("{id},"))).unwrap_or_else(|| panic!("{id}"));
    let mut cells = Vec::new();
    let (mut cell, mut quoted) = (String::new(), false);
    for c in row.chars().chain([',']) {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(std::mem::take(&mut cell)),
            c => cell.push(c),
        }
    }
    cells[8].parse().unwrap_or_else(|_| panic!("{id}: {}", cells[8]))
}

fn stencil(tile: (u32, u32), radius: u32, waits: bool) -> Kernel {
    Kernel::Stencil(Stencil { width: tile.0, height: tile.1, radius, columns: 3, rows: 3, waits })
}

fn mesh(side: u32, m: u32, products: u32) -> Kernel {
    Kernel::MeshGemm(MeshGemm { side, m, k: 8, n: 8, products, travels: true })
}

#[test]
fn rows_that_nothing_was_fitted_on_are_predicted() {
    let (two, three) = (fabric("wse2"), fabric("wse3"));
    let multiply = |operands| Kernel::Multiply(Multiply { length: 5124, operands });
    let value = |width, two_streams| Kernel::Value(ValueStencil { width, height: width, two_streams });
    let dense = |rows, inner| Kernel::Dense(Dense { rows, inner, columns: 64 });
    let sparse = |rows, inner, columns, values| Kernel::Sparse(Sparse { rows, inner, columns, values });
    let rows = [
        ("fmuls_5124_5130", &two, multiply(Operands::Apart), 1.0),
        ("fmuls_5124_10254", &two, multiply(Operands::Together), 1.0),
        ("fmuls_5124_2597", &two, multiply(Operands::Paired), 1.0),
        ("spmm_GEMM_0", &two, dense(64, 48), 2.0),
        ("spmm_GEMM_4", &two, dense(128, 8), 2.0),
        ("spmm_CSR_6", &two, sparse(64, 12, 132, 77), 4.0),
        ("spmm_CSR_16", &two, sparse(64, 64, 68, 819), 4.0),
        ("stencil_wse2_20x20_t4x4_r4", &two, stencil((4, 4), 4, true), 4.0),
        ("stencil_wse2_100x100_t20x20_r2", &two, stencil((20, 20), 2, true), 1.0),
        ("stencil_wse2_100x100_t20x20_r1", &two, stencil((20, 20), 1, true), 2.0),
        ("stencil_wse3_102x102_t30x30_r6", &three, stencil((30, 30), 6, true), 1.0),
        ("stencil_wse3_94x94_t30x30_r2", &three, stencil((30, 30), 2, true), 1.0),
        ("stencil_wse3_77x77_t25x25_r1", &three, stencil((25, 25), 1, false), 2.0),
        ("stencil1_wse2_10x10", &two, value(10, true), 15.0),
        ("mgemm_w3sim_P6_M48_L1", &three, mesh(6, 8, 1), 5.0),
        ("mgemm_w3sim_P6_M24_L2", &three, mesh(6, 4, 2), 5.0),
        ("mgemm_w3sim_P6_M6_L0", &three, mesh(6, 1, 0), 8.0),
    ];
    for (id, fabric, kernel, percent) in rows {
        let (cycles, measured) =
            (kernel.cycles(fabric).unwrap_or_else(|e| panic!("{id}: {e}")), measured(id));
        let off = 100.0 * (cycles / measured - 1.0);
        println!("{id:32} {measured:9.1} {cycles:9.1} {off:+.2} %");
        assert!(off.abs() < percent, "{id}: {cycles} cycles where {measured} were measured: {off:.2} %");
    }
}

/// No size has a number of its own: one that no row has takes a time between its neighbours'.
#[test]
fn sizes_between_rows_are_predicted_between_their_neighbours() {
    let two = fabric("wse2");
    let cycles = |side| stencil((side, side), 1, true).cycles(&two).unwrap();
    let all: Vec<f64> = (9..14).map(cycles).collect();
    assert!(all.windows(2).all(|pair| pair[0] < pair[1]), "{all:?}");
}

/// The banks of the machine file say which distances collide: words are interleaved, and ports repeat after four.
#[test]
fn two_vectors_collide_where_they_begin_behind_one_port() {
    let two = fabric("wse2");
    let time = |operands| Kernel::Multiply(Multiply { length: 1028, operands }).cycles(&two).unwrap();
    assert_eq!((time(Operands::Apart), time(Operands::Together)), (1034.0, 2062.0));
}

//! Where on the wafer: busy time, memory and link load of the PEs, on a grid coarse enough to look at.

use serde::{Deserialize, Serialize};

/// Most cells along an edge.
const CELLS: u32 = 48;

/// Averages and peaks over rectangles of PEs, row by row from the north-west corner.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeatMap {
    /// PEs from west to east.
    pub width: u32,
    /// PEs from north to south.
    pub height: u32,
    /// Cells from west to east.
    pub columns: u32,
    /// Cells from north to south.
    pub rows: u32,
    /// PEs along the edges of a cell, from west to east and from north to south; the last cells may be cut by the edge.
    pub cell_pes: (u32, u32),
    /// Share of cycles in which the PEs of a cell that have a class moved or computed elements.
    pub busy_pct: Vec<f64>,
    /// Most memory in use in a PE of the cell.
    pub sram_bytes: Vec<u64>,
    /// Share of cycles in which the fullest link that leaves a router of the cell had a word.
    pub link_load_pct: Vec<f64>,
}

/// What a heat map is made of.
#[derive(Clone, Debug)]
pub struct Heat {
    map: HeatMap,
    cycles: f64,
    pes: Vec<f64>,
}

impl Heat {
    /// An empty map of a grid on which a program ran for `cycles`.
    pub fn new(width: u32, height: u32, cycles: f64) -> Self {
        let cell_pes = (width.div_ceil(CELLS).max(1), height.div_ceil(CELLS).max(1));
        let (columns, rows) = (width.div_ceil(cell_pes.0), height.div_ceil(cell_pes.1));
        let cells = (columns * rows) as usize;
        let map = HeatMap {
            width,
            height,
            columns,
            rows,
            cell_pes,
            busy_pct: vec![0.0; cells],
            sram_bytes: vec![0; cells],
            link_load_pct: vec![0.0; cells],
        };
        Heat { map, cycles: cycles.max(1.0), pes: vec![0.0; cells] }
    }

    fn cell(&self, x: u32, y: u32) -> usize {
        (y / self.map.cell_pes.1 * self.map.columns + x / self.map.cell_pes.0) as usize
    }

    /// Adds a PE that was busy for `busy` cycles and uses `sram` bytes.
    pub fn pe(&mut self, x: u32, y: u32, busy: f64, sram: u64) {
        let cell = self.cell(x, y);
        self.map.busy_pct[cell] += busy;
        self.pes[cell] += 1.0;
        self.map.sram_bytes[cell] = self.map.sram_bytes[cell].max(sram);
    }

    /// Adds a link that leaves the router of a PE and took `words` words.
    pub fn link(&mut self, x: u32, y: u32, words: f64) {
        let cell = self.cell(x, y);
        let load = &mut self.map.link_load_pct[cell];
        *load = load.max(100.0 * words / self.cycles);
    }

    /// The map.
    pub fn finish(mut self) -> HeatMap {
        for (busy, pes) in self.map.busy_pct.iter_mut().zip(&self.pes) {
            *busy = if *pes > 0.0 { 100.0 * *busy / (pes * self.cycles) } else { 0.0 };
        }
        self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wafer_becomes_a_map_of_at_most_48_cells_along_an_edge() {
        let mut heat = Heat::new(750, 994, 100.0);
        (0..994).for_each(|y| (0..750).for_each(|x| heat.pe(x, y, 50.0, u64::from(x))));
        heat.link(749, 993, 80.0);
        let map = heat.finish();
        assert_eq!(
            (map.width, map.height, map.columns, map.rows, map.cell_pes),
            (750, 994, 47, 48, (16, 21))
        );
        assert!(map.busy_pct.iter().all(|busy| *busy == 50.0));
        assert_eq!((map.sram_bytes[0], map.sram_bytes[46]), (15, 749));
        assert_eq!(map.link_load_pct.last(), Some(&80.0));
    }
}

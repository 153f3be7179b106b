//! How many PEs a simulated wafer has.

/// A rectangle of PEs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// PEs in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// Largest grid on which every word is simulated: the usable PEs of the wafer are more.
const MOST: u32 = 256;

impl Grid {
    /// The grid of a simulated wafer that is not given one.
    pub const DEFAULT: Grid = Grid { width: 16, height: 16 };

    /// Reads `16x16`.
    ///
    /// # Errors
    /// A sentence about what was expected.
    pub fn parse(text: &str) -> Result<Grid, String> {
        let side = |n: &str| n.parse::<u32>().ok().filter(|n| (2..=MOST).contains(n));
        let sides = text.split_once('x').and_then(|(w, h)| Some((side(w)?, side(h)?)));
        let (width, height) =
            sides.ok_or_else(|| format!("expected WIDTHxHEIGHT, each from 2 to {MOST}, such as 16x16"))?;
        Ok(Grid { width, height })
    }
}

impl std::fmt::Display for Grid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_is_two_numbers() {
        assert_eq!(Grid::parse("8x64"), Ok(Grid { width: 8, height: 64 }));
        for wrong in ["8", "0x8", "8x1", "8x", "8x257", "8X8", "-8x8", "8x8x8"] {
            assert!(Grid::parse(wrong).is_err(), "{wrong}");
        }
    }
}

//! Tables and quantities as people read them: always with a unit.

use comfy_table::{CellAlignment, Table, presets};

/// A borderless table; columns named in `right` are right-aligned.
pub fn table(header: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Bytes with a binary prefix and three or four digits.
pub fn bytes(n: u64) -> String {
    scaled(n as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// A count of operations with a decimal prefix.
pub fn flops(n: u64) -> String {
    scaled(n as f64, 1000.0, &["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"])
}

/// Seconds with a decimal prefix.
pub fn seconds(s: f64) -> String {
    match s {
        s if s >= 1.0 => format!("{s:.3} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.1} us", s * 1e6),
    }
}

/// Thousands separated, for counts that are read aloud.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let head = digits.len() % 3;
    let mut parts: Vec<&str> = Vec::new();
    if head > 0 {
        parts.push(&digits[..head]);
    }
    parts.extend((head..digits.len()).step_by(3).map(|at| &digits[at..at + 3]));
    parts.join(",")
}

fn scaled(value: f64, step: f64, units: &[&str]) -> String {
    let (mut value, mut unit) = (value, 0);
    while value >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    match unit {
        0 => format!("{value} {}", units[0]),
        _ => format!("{value:.2} {}", units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_carry_units() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(48 << 10), "48.00 KiB");
        assert_eq!(flops(39_640_000_000), "39.64 GFLOP");
        assert_eq!(seconds(0.00781), "7.81 ms");
        assert_eq!(count(6_738_415_616), "6,738,415,616");
        assert_eq!(count(999), "999");
    }
}

//! A table of measurements by the names of its columns.

use crate::accuracy::csv::{Cell, records};
use crate::accuracy::{Fault, TableError};
use std::collections::BTreeMap;

/// A table.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Its columns.
    pub columns: Vec<String>,
    /// Its rows.
    pub rows: Vec<TableRow>,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq)]
pub struct TableRow {
    /// Line in the file, from 1.
    pub line: usize,
    cells: BTreeMap<String, Cell>,
}

impl Table {
    /// Reads a table whose first line names its columns, among them all of `needed`.
    ///
    /// # Errors
    /// All faults: text that is no table, columns that lack or stand twice, rows of another length.
    pub fn read(text: &str, file: &str, needed: &[&str]) -> Result<Table, TableError> {
        let refused = |faults: Vec<Fault>| TableError { file: file.into(), faults };
        let mut records = records(text).map_err(|fault| refused(vec![fault]))?.into_iter();
        let empty =
            || refused(vec![Fault::new(1, 1, "", "the table is empty", "its first line names the columns")]);
        let header = records.next().ok_or_else(empty)?;
        let mut faults = Vec::new();
        let columns: Vec<String> = header.iter().map(|cell| cell.text.trim().to_string()).collect();
        for (at, cell) in header.iter().enumerate() {
            if columns[..at].contains(&columns[at]) {
                faults.push(Fault::new(cell.line, cell.column, &columns[at], "stands twice", ""));
            }
        }
        for name in needed.iter().filter(|name| !columns.iter().any(|column| column == *name)) {
            faults.push(Fault::new(1, 1, name, "the column is missing", "name it in the first line"));
        }
        let mut rows = Vec::new();
        for record in records {
            let (line, column) = (record[0].line, record[0].column);
            if record.len() == columns.len() {
                rows.push(TableRow { line, cells: columns.iter().cloned().zip(record).collect() });
            } else {
                let what = format!("{} cells where the first line names {}", record.len(), columns.len());
                faults.push(Fault::new(line, column, "", &what, "quote cells that hold commas"));
            }
        }
        if rows.is_empty() && faults.is_empty() {
            faults.push(Fault::new(1, 1, "", "the table has no rows", ""));
        }
        if faults.is_empty() { Ok(Table { columns, rows }) } else { Err(refused(faults)) }
    }

    /// Whether the table has a column.
    pub fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|name| name == column)
    }
}

impl TableRow {
    /// A cell without the spaces around it; empty where the table has no such column.
    pub fn word(&self, column: &str) -> &str {
        self.cells.get(column).map_or("", |cell| cell.text.trim())
    }

    /// A number of a cell.
    ///
    /// # Errors
    /// A sentence that names the column, where the cell is empty or holds something else.
    pub fn number(&self, column: &str) -> Result<f64, String> {
        let word = self.word(column);
        let found = word.parse::<f64>().ok().filter(|number| number.is_finite());
        found.ok_or_else(|| match word {
            "" => format!("{column} is not given"),
            _ => format!("{column} is `{word}`, not a number"),
        })
    }

    /// A whole number of at least 1.
    ///
    /// # Errors
    /// As [`TableRow::number`].
    pub fn count(&self, column: &str) -> Result<u64, String> {
        let number = self.number(column)?;
        let whole = number.fract() == 0.0 && (1.0..1e12).contains(&number);
        if whole {
            Ok(number as u64)
        } else {
            Err(format!("{column} is {number}, not a whole number above 0"))
        }
    }

    /// The first column whose cell is a number: what was measured, as `value`.
    ///
    /// # Errors
    /// As [`TableRow::number`]; and numbers that nothing measured can be.
    pub fn measured(&self, column: &str) -> Result<f64, String> {
        let value = self.number(column)?;
        if value > 0.0 { Ok(value) } else { Err(format!("{column} is {value}, and nothing measured is")) }
    }

    /// `name=value` out of a cell such as `P=4 tile=14x1 radius=1`.
    pub fn setting(&self, column: &str, name: &str) -> Option<&str> {
        let words = self.word(column).split([' ', ',', ';']);
        words.filter_map(|word| word.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_found_by_name_and_read_as_what_they_are() {
        let table = Table::read("id,value,params\na,2.5,\"P=4, tile=14x1\"\n", "t.csv", &["id"]).unwrap();
        let row = &table.rows[0];
        assert_eq!(
            (row.word("id"), row.number("value"), row.setting("params", "tile")),
            ("a", Ok(2.5), Some("14x1"))
        );
        assert_eq!(row.number("none"), Err("none is not given".to_string()));
        assert!(row.count("value").unwrap_err().contains("not a whole number"));
    }

    #[test]
    fn every_fault_of_a_table_is_told_with_its_place() {
        let fault = |text: &str| Table::read(text, "t.csv", &["id", "value"]).unwrap_err().to_string();
        assert!(fault("").contains("the table is empty"));
        assert!(fault("id,value\n").contains("no rows"));
        assert!(fault("id,id,value\na,b,1\n").contains("stands twice"));
        assert!(fault("id\na\n").contains("value: the column is missing"));
        assert!(fault("id,value\na\n").contains("t.csv:2:1: 1 cells where the first line names 2"));
    }
}

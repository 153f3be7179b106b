//! Comma-separated text with quotes, cell by cell with its place.

use super::fault::Fault;

/// A cell and where it begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Its text, unquoted.
    pub text: String,
    /// Line, from 1.
    pub line: usize,
    /// Character in the line, from 1.
    pub column: usize,
}

/// Reads all records; empty lines are passed over.
///
/// # Errors
/// A quote that is not closed, or text behind a closed one.
pub fn records(text: &str) -> Result<Vec<Vec<Cell>>, Fault> {
    let mut reader =
        Reader { rest: text.strip_prefix('\u{feff}').unwrap_or(text).chars().peekable(), line: 1, column: 1 };
    let mut records = Vec::new();
    while reader.rest.peek().is_some() {
        let record = reader.record()?;
        if record.len() > 1 || !record[0].text.is_empty() {
            records.push(record);
        }
    }
    Ok(records)
}

struct Reader<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
    column: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<char> {
        let next = self.rest.next()?;
        match next {
            '\n' => (self.line, self.column) = (self.line + 1, 1),
            _ => self.column += 1,
        }
        Some(next)
    }

    fn record(&mut self) -> Result<Vec<Cell>, Fault> {
        let mut cells = Vec::new();
        loop {
            cells.push(self.cell()?);
            match self.next() {
                Some(',') => continue,
                Some('\r') => {
                    self.rest.next_if_eq(&'\n');
                    (self.line, self.column) = (self.line + 1, 1);
                    return Ok(cells);
                }
                _ => return Ok(cells),
            }
        }
    }

    fn cell(&mut self) -> Result<Cell, Fault> {
        let (line, column) = (self.line, self.column);
        let mut text = String::new();
        if self.rest.next_if_eq(&'"').is_none() {
            while let Some(next) = self.rest.peek().copied().filter(|c| !matches!(c, ',' | '\n' | '\r')) {
                text.push(next);
                self.next();
            }
            return Ok(Cell { text, line, column });
        }
        self.column += 1;
        let fault =
            |message: &str| Fault::new(line, column, "", message, "write a quote inside quotes twice");
        loop {
            match self.next() {
                None => return Err(fault("the quote that opens here is never closed")),
                Some('"') if self.rest.peek() == Some(&'"') => {
                    self.next();
                    text.push('"');
                }
                Some('"') => break,
                Some(other) => text.push(other),
            }
        }
        match self.rest.peek() {
            None | Some(',' | '\n' | '\r') => Ok(Cell { text, line, column }),
            Some(_) => Err(fault("text follows a closed quote")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<Vec<String>> {
        let records = records(text).unwrap();
        records.into_iter().map(|record| record.into_iter().map(|cell| cell.text).collect()).collect()
    }

    #[test]
    fn quotes_hold_commas_quotes_and_lines() {
        assert_eq!(texts("a,b\r\n\"x,\"\"y\"\"\nz\",\n\n"), [["a", "b"], ["x,\"y\"\nz", ""]]);
    }

    #[test]
    fn places_count_from_one() {
        let records = records("a,bc\n\"l1\nl2\",d").unwrap();
        let place = |row: usize, cell: usize| (records[row][cell].line, records[row][cell].column);
        assert_eq!([place(0, 1), place(1, 0), place(1, 1)], [(1, 3), (2, 1), (3, 5)]);
    }

    #[test]
    fn broken_quotes_are_refused_where_they_open() {
        assert_eq!(records("a,\"b").unwrap_err().column, 3);
        assert!(records("\"a\"b,c").unwrap_err().message.contains("closed quote"));
    }
}

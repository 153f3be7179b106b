//! Reads tables of `{ value, unit, source }` and collects every fault on the way.
//!
//! A read returns `None` where it has reported a fault, so a caller reads all it needs first and only then
//! gives up with `?`.

use crate::fault::Fault;
use crate::unit::{Dimension, Quantity, parse_unit};
use lapidary_models::fault::place;
use serde::Serialize;
use std::collections::BTreeSet;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The largest count that a machine file may state.
const LARGEST_COUNT: f64 = 1e9;

/// One number of a machine file, as it stands there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fact {
    /// Key path, as `device.memory.capacity`.
    pub key: String,
    /// The value in the unit beside it; lists (queue depths) have more than one.
    pub value: Vec<f64>,
    /// The unit as written.
    pub unit: String,
    /// Where the number comes from.
    pub source: String,
}

/// A table of the file with the keys that have been asked for.
pub(crate) struct Table<'a> {
    path: String,
    span: Range<usize>,
    entries: &'a DeTable<'a>,
    known: BTreeSet<&'static str>,
}

impl<'a> Table<'a> {
    pub(crate) fn root(parsed: &'a Spanned<DeTable<'a>>) -> Self {
        Table { path: String::new(), span: 0..0, entries: parsed.get_ref(), known: BTreeSet::new() }
    }

    fn get(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.known.insert(key);
        self.entries.get(key)
    }

    /// Keys that may be left out and were not asked for.
    pub(crate) fn expect(&mut self, keys: &[&'static str]) {
        self.known.extend(keys);
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    pub(crate) fn is_table(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(|value| value.get_ref().is_table())
    }

    /// Where the value of a key stands.
    pub(crate) fn place(&self, key: &str) -> Option<Range<usize>> {
        self.entries.get(key).map(Spanned::span)
    }

    pub(crate) fn key_path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) }
    }
}

/// Faults and facts found so far.
pub(crate) struct Reader<'a> {
    text: &'a str,
    pub(crate) faults: Vec<Fault>,
    pub(crate) facts: Vec<(usize, Fact)>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Reader { text, faults: Vec::new(), facts: Vec::new() }
    }

    pub(crate) fn fault(&mut self, key: String, span: Option<Range<usize>>, message: String, hint: &str) {
        let (line, column) = span.as_ref().map_or((0, 0), |span| place(self.text, span.start));
        let hint = (!hint.is_empty()).then(|| hint.to_string());
        self.faults.push(Fault { key, span, line, column, message, hint });
    }

    fn missing(&mut self, table: &Table<'_>, key: &str, hint: &str) {
        let span = (!table.path.is_empty()).then(|| table.span.clone());
        self.fault(table.key_path(key), span, "is missing".to_string(), hint);
    }

    /// A required table.
    pub(crate) fn table(&mut self, parent: &mut Table<'a>, key: &'static str) -> Option<Table<'a>> {
        if !parent.has(key) {
            self.missing(parent, key, "write this table");
            return None;
        }
        self.optional_table(parent, key)
    }

    /// A table that may be left out.
    pub(crate) fn optional_table(&mut self, parent: &mut Table<'a>, key: &'static str) -> Option<Table<'a>> {
        let value = parent.get(key)?;
        let path = parent.key_path(key);
        match value.get_ref() {
            DeValue::Table(entries) => {
                Some(Table { path, span: value.span(), entries, known: BTreeSet::new() })
            }
            other => {
                let message = format!("expected a table, found {}", other.type_str());
                self.fault(path, Some(value.span()), message, "");
                None
            }
        }
    }

    /// A required text that is not empty.
    pub(crate) fn text(&mut self, table: &mut Table<'a>, key: &'static str) -> Option<String> {
        let Some(value) = table.get(key) else {
            self.missing(table, key, "write a text in quotes");
            return None;
        };
        match value.get_ref().as_str() {
            Some(text) if !text.trim().is_empty() => Some(text.to_string()),
            Some(_) => {
                self.fault(table.key_path(key), Some(value.span()), "is empty".into(), "");
                None
            }
            None => {
                let message = format!("expected a text, found {}", value.get_ref().type_str());
                self.fault(table.key_path(key), Some(value.span()), message, "");
                None
            }
        }
    }

    /// A required text out of a closed list of words.
    pub(crate) fn word<T: Copy>(
        &mut self,
        table: &mut Table<'a>,
        key: &'static str,
        words: &[(&str, T)],
    ) -> Option<T> {
        let found = self.text(table, key)?;
        if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == found) {
            return Some(*meaning);
        }
        let span = table.get(key).map(Spanned::span);
        let known = words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        self.fault(
            table.key_path(key),
            span,
            format!("\"{found}\" is not known"),
            &format!("one of {known}"),
        );
        None
    }

    /// A required positive quantity.
    pub(crate) fn quantity<Q: Quantity>(&mut self, table: &mut Table<'a>, key: &'static str) -> Option<Q> {
        self.numbers(table, key, Q::DIMENSION, Arity::One, Sign::Positive).map(|values| Q::from_si(values[0]))
    }

    /// A quantity that may be left out; `None` also where it is at fault.
    pub(crate) fn optional_quantity<Q: Quantity>(
        &mut self,
        table: &mut Table<'a>,
        key: &'static str,
    ) -> Option<Q> {
        if !table.has(key) {
            table.known.insert(key);
            return None;
        }
        self.quantity(table, key)
    }

    /// A required whole number of at least one.
    pub(crate) fn count(&mut self, table: &mut Table<'a>, key: &'static str) -> Option<u64> {
        self.whole(table, key, Dimension::Count, Arity::One, Sign::Positive).map(|values| values[0])
    }

    /// A required whole number that may be zero.
    pub(crate) fn offset(&mut self, table: &mut Table<'a>, key: &'static str) -> Option<u64> {
        self.whole(table, key, Dimension::Count, Arity::One, Sign::OrZero).map(|values| values[0])
    }

    /// A required list of queue depths in words.
    pub(crate) fn depths(&mut self, table: &mut Table<'a>, key: &'static str) -> Option<Vec<u64>> {
        self.whole(table, key, Dimension::Words, Arity::Many, Sign::Positive)
    }

    /// Every entry of a table whose keys are free names, as quantities, in the order of the text.
    pub(crate) fn named<Q: Quantity>(&mut self, table: &Table<'a>) -> Vec<(String, Q)> {
        let mut entries: Vec<_> = table.entries.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let mut found = Vec::new();
        for (key, value) in entries {
            let name = key.get_ref().as_ref();
            if let Some(values) =
                self.number(table.key_path(name), value, Q::DIMENSION, Arity::One, Sign::Positive)
            {
                found.push((name.to_string(), Q::from_si(values[0])));
            }
        }
        found
    }

    /// Reports every key of the table that nobody asked for.
    pub(crate) fn finish(&mut self, table: Table<'a>) {
        for key in table.entries.keys() {
            let name = key.get_ref().as_ref();
            if !table.known.contains(name) {
                let known = table.known.iter().copied().collect::<Vec<_>>().join(", ");
                let hint = match nearest(name, &table.known) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("keys here are {known}"),
                };
                self.fault(table.key_path(name), Some(key.span()), "is not a known key".into(), &hint);
            }
        }
    }

    fn whole(
        &mut self,
        table: &mut Table<'a>,
        key: &'static str,
        dimension: Dimension,
        arity: Arity,
        sign: Sign,
    ) -> Option<Vec<u64>> {
        let values = self.numbers(table, key, dimension, arity, sign)?;
        let span = table.get(key).map(Spanned::span);
        if let Some(bad) = values.iter().find(|value| value.fract() != 0.0 || **value > LARGEST_COUNT) {
            let message = format!("expected a whole number up to {LARGEST_COUNT}, found {bad}");
            self.fault(table.key_path(key), span, message, "");
            return None;
        }
        Some(values.into_iter().map(|value| value as u64).collect())
    }

    fn numbers(
        &mut self,
        table: &mut Table<'a>,
        key: &'static str,
        dimension: Dimension,
        arity: Arity,
        sign: Sign,
    ) -> Option<Vec<f64>> {
        let Some(value) = table.get(key) else {
            let hint = format!(
                "write {{ value = ..., unit = ..., source = \"...\" }} with a unit such as {}",
                dimension.examples()
            );
            self.missing(table, key, &hint);
            return None;
        };
        self.number(table.key_path(key), value, dimension, arity, sign)
    }

    /// One `{ value, unit, source }`, in SI.
    fn number(
        &mut self,
        path: String,
        value: &'a Spanned<DeValue<'a>>,
        dimension: Dimension,
        arity: Arity,
        sign: Sign,
    ) -> Option<Vec<f64>> {
        let DeValue::Table(entries) = value.get_ref() else {
            let message =
                format!("expected {}, found a bare {}", dimension.describe(), value.get_ref().type_str());
            let hint = format!(
                "write {{ value = ..., unit = ..., source = \"...\" }} with a unit such as {}",
                dimension.examples()
            );
            self.fault(path, Some(value.span()), message, &hint);
            return None;
        };
        let mut table = Table { path: path.clone(), span: value.span(), entries, known: BTreeSet::new() };
        let raw = self.raw_values(&mut table, arity, sign);
        let unit = self.unit(&mut table, dimension);
        let source = self.source(&mut table);
        self.finish(table);
        let (raw, (unit, factor), source) = (raw?, unit?, source?);
        let si = raw.iter().map(|value| value * factor).collect();
        self.facts.push((value.span().start, Fact { key: path, value: raw, unit, source }));
        Some(si)
    }

    fn raw_values(&mut self, table: &mut Table<'a>, arity: Arity, sign: Sign) -> Option<Vec<f64>> {
        let Some(value) = table.get("value") else {
            self.missing(table, "value", "every number states its value");
            return None;
        };
        let items: Vec<_> = match (value.get_ref(), arity) {
            (DeValue::Array(items), Arity::Many) if !items.is_empty() => items.iter().collect(),
            (_, Arity::Many) => {
                self.fault(
                    table.key_path("value"),
                    Some(value.span()),
                    "expected a list of numbers".into(),
                    "",
                );
                return None;
            }
            (_, Arity::One) => vec![value],
        };
        let values: Vec<_> = items.into_iter().map(|item| self.raw_value(table, item, sign)).collect();
        values.into_iter().collect()
    }

    fn raw_value(&mut self, table: &Table<'a>, value: &'a Spanned<DeValue<'a>>, sign: Sign) -> Option<f64> {
        let number = match value.get_ref() {
            DeValue::Integer(digits) => {
                i64::from_str_radix(digits.as_str(), digits.radix()).ok().map(|whole| whole as f64)
            }
            DeValue::Float(digits) => digits.as_str().parse::<f64>().ok(),
            other => {
                let message = format!("expected a number, found {}", describe(other));
                let hint = "write the number and its unit apart: value = 2.039, unit = \"TB/s\"";
                self.fault(table.key_path("value"), Some(value.span()), message, hint);
                return None;
            }
        };
        let fits = |v: &f64| v.is_finite() && (*v > 0.0 || (*v == 0.0 && matches!(sign, Sign::OrZero)));
        let good = number.filter(fits);
        if good.is_none() {
            let wanted = if matches!(sign, Sign::Positive) { "above zero" } else { "not negative" };
            let found = &self.text[value.span()];
            let message = format!("must be finite and {wanted}, found {found}");
            self.fault(table.key_path("value"), Some(value.span()), message, "");
        }
        good
    }

    fn unit(&mut self, table: &mut Table<'a>, dimension: Dimension) -> Option<(String, f64)> {
        let unit = self.text(table, "unit")?;
        let span = table.get("unit").map(Spanned::span);
        let hint = format!("write a unit such as {}", dimension.examples());
        match parse_unit(&unit) {
            Some((found, factor)) if found == dimension => Some((unit, factor)),
            Some((found, _)) => {
                let message =
                    format!("expected {}, found \"{unit}\", {}", dimension.describe(), found.describe());
                self.fault(table.key_path("unit"), span, message, &hint);
                None
            }
            None => {
                self.fault(table.key_path("unit"), span, format!("\"{unit}\" is not a known unit"), &hint);
                None
            }
        }
    }

    fn source(&mut self, table: &mut Table<'a>) -> Option<String> {
        if !table.has("source") {
            table.known.insert("source");
            self.missing(table, "source", "every number says where it comes from");
            return None;
        }
        self.text(table, "source")
    }
}

#[derive(Clone, Copy)]
enum Arity {
    One,
    Many,
}

#[derive(Clone, Copy)]
enum Sign {
    Positive,
    OrZero,
}

fn describe(value: &DeValue<'_>) -> String {
    match value.as_str() {
        Some(text) => format!("the text \"{text}\""),
        None => value.type_str().to_string(),
    }
}

/// The known key that a typing mistake most likely meant.
fn nearest(name: &str, known: &BTreeSet<&'static str>) -> Option<&'static str> {
    let (distance, key) = known.iter().map(|key| (edit_distance(name, key), *key)).min()?;
    (distance <= 2 && distance < key.len()).then_some(key)
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

//! Reads a located tree by expectation: what is missing, misspelt or of another type becomes a fault.
//!
//! A value with a fault is replaced by a placeholder and its key is remembered as spoiled, so that reading goes
//! on and rules across keys can leave spoiled keys alone.

use crate::document::{Data, Entry, Table, locate};
use crate::fault::{Fault, FaultKind, suggestion};
use serde::de::DeserializeOwned;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;

/// Collects the faults of one text.
pub(crate) struct Reader<'t> {
    text: &'t str,
    root: &'t Table,
    faults: RefCell<Vec<Fault>>,
    spoiled: RefCell<BTreeSet<String>>,
}

impl<'t> Reader<'t> {
    pub fn new(text: &'t str, root: &'t Table) -> Self {
        Reader { text, root, faults: RefCell::default(), spoiled: RefCell::default() }
    }

    /// The table at the top.
    pub fn root(&self) -> Section<'_> {
        Section { reader: self, path: String::new(), table: Some(self.root), known: RefCell::default() }
    }

    /// Adds a fault at a span and spoils its key.
    pub fn fault(
        &self,
        key: &str,
        span: Range<usize>,
        kind: FaultKind,
        message: String,
        hint: Option<String>,
    ) {
        self.spoiled.borrow_mut().insert(key.to_string());
        self.faults.borrow_mut().push(Fault::at(self.text, span, kind, key, message).with_hint(hint));
    }

    /// Adds a fault at the value of a key, or as near as the text has it.
    pub fn fault_at(&self, key: &str, kind: FaultKind, message: String, hint: Option<String>) {
        self.fault(key, locate(self.root, key), kind, message, hint);
    }

    /// Marks a value that follows from a spoiled one.
    pub fn spoil(&self, key: &str) {
        self.spoiled.borrow_mut().insert(key.to_string());
    }

    /// Whether any fault was found so far.
    pub fn has_faults(&self) -> bool {
        !self.faults.borrow().is_empty()
    }

    pub fn is_spoiled(&self, key: &str) -> bool {
        self.spoiled.borrow().contains(key)
    }

    pub fn into_faults(self) -> Vec<Fault> {
        self.faults.into_inner()
    }
}

/// One table of the text; absent tables read as empty ones.
pub(crate) struct Section<'r> {
    reader: &'r Reader<'r>,
    path: String,
    table: Option<&'r Table>,
    known: RefCell<Vec<&'static str>>,
}

impl<'r> Section<'r> {
    /// Full path of a key of this table.
    pub fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) }
    }

    /// Whether the table itself stands in the text.
    pub fn is_present(&self) -> bool {
        self.table.is_some()
    }

    /// The entry of a key, unless absent or null.
    pub fn entry(&self, key: &'static str) -> Option<&'r Entry> {
        self.known.borrow_mut().push(key);
        self.table?.get(key).filter(|entry| entry.value.data != Data::Null)
    }

    /// An inner table.
    pub fn section(&self, key: &'static str) -> Section<'r> {
        let table = self.entry(key).and_then(|entry| match &entry.value.data {
            Data::Table(table) => Some(table),
            other => self.wrong_type(key, entry, "a table", other),
        });
        Section { reader: self.reader, path: self.path(key), table, known: RefCell::default() }
    }

    /// A count, if present: a whole number from zero.
    pub fn count(&self, key: &'static str) -> Option<u64> {
        let entry = self.entry(key)?;
        match &entry.value.data {
            Data::Integer(value) => match u64::try_from(*value) {
                Ok(count) => Some(count),
                Err(_) => self.out_of_range(key, entry, *value),
            },
            other => self.wrong_type(key, entry, "a whole number", other),
        }
    }

    /// A number, if present.
    pub fn float(&self, key: &'static str) -> Option<f64> {
        let entry = self.entry(key)?;
        match &entry.value.data {
            Data::Float(value) => Some(*value),
            Data::Integer(value) => Some(*value as f64),
            other => self.wrong_type(key, entry, "a number", other),
        }
    }

    /// A truth value, if present.
    pub fn flag(&self, key: &'static str) -> Option<bool> {
        let entry = self.entry(key)?;
        match &entry.value.data {
            Data::Bool(value) => Some(*value),
            other => self.wrong_type(key, entry, "true or false", other),
        }
    }

    /// A string, if present.
    pub fn text(&self, key: &'static str) -> Option<&'r str> {
        let entry = self.entry(key)?;
        match &entry.value.data {
            Data::Text(value) => Some(value),
            other => self.wrong_type(key, entry, "a string", other),
        }
    }

    /// An array of strings, if present.
    pub fn texts(&self, key: &'static str) -> Option<Vec<String>> {
        let entry = self.entry(key)?;
        let Data::List(items) = &entry.value.data else {
            return self.wrong_type(key, entry, "an array of strings", &entry.value.data);
        };
        let text = |data: &Data| match data {
            Data::Text(text) => Some(text.clone()),
            _ => None,
        };
        match items.iter().map(|item| text(&item.data)).collect() {
            Some(texts) => Some(texts),
            None => self.wrong_type(key, entry, "an array of strings", &entry.value.data),
        }
    }

    /// One of the words that serde knows for `T`, if present.
    pub fn word<T: DeserializeOwned>(&self, key: &'static str) -> Option<T> {
        let text = self.text(key)?;
        let source = serde::de::value::StrDeserializer::<UnknownWord>::new(text);
        match T::deserialize(source) {
            Ok(value) => Some(value),
            Err(UnknownWord(words)) => {
                let hint = suggestion(text, words);
                let message = format!("expected one of {}, found \"{text}\"", words.join(", "));
                self.reader.fault_at(&self.path(key), FaultKind::OutOfRange, message, hint);
                None
            }
        }
    }

    /// The value, or a fault and the placeholder where the text has none.
    pub fn required<T>(&self, key: &str, value: Option<T>, placeholder: T) -> T {
        if value.is_none() && !self.reader.is_spoiled(&self.path(key)) {
            self.missing(key);
        }
        value.unwrap_or(placeholder)
    }

    /// Every entry, for tables whose keys are free.
    pub fn entries(&self) -> impl Iterator<Item = (&'r str, &'r Entry)> {
        self.table.into_iter().flatten().map(|(key, entry)| (key.as_str(), entry))
    }

    /// A fault: only one of two keys may stand here.
    pub fn conflict(&self, key: &str, other: &str) {
        let message = format!("stands beside {other}, which says the same thing differently");
        self.reader.fault_at(&self.path(key), FaultKind::Rule, message, Some("keep one of them".to_string()));
    }

    /// Every key that nobody asked for is a fault.
    pub fn finish(self) {
        let known = self.known.borrow();
        for (key, entry) in self.table.into_iter().flatten() {
            if !known.contains(&key.as_str()) {
                let message = "this key means nothing here".to_string();
                let kind = FaultKind::UnknownKey;
                let path = self.path(key);
                self.reader.fault(&path, entry.key_span.clone(), kind, message, suggestion(key, &known));
            }
        }
    }

    fn missing(&self, key: &str) {
        let path = self.path(key);
        let message = "this key is missing".to_string();
        self.reader.fault_at(&path, FaultKind::MissingKey, message, Some(format!("add `{path} = ...`")));
    }

    fn wrong_type<T>(&self, key: &str, entry: &Entry, wanted: &str, found: &Data) -> Option<T> {
        let message = format!("expected {wanted}, found {}", found.type_name());
        let span = entry.value.span.clone();
        self.reader.fault(&self.path(key), span, FaultKind::WrongType, message, None);
        None
    }

    fn out_of_range<T>(&self, key: &str, entry: &Entry, found: i128) -> Option<T> {
        let message = match found {
            i128::MAX | i128::MIN => "expected a count, found a number of more than 38 digits".to_string(),
            _ => format!("expected a count from 0 to 2^64 - 1, found {found}"),
        };
        let span = entry.value.span.clone();
        self.reader.fault(&self.path(key), span, FaultKind::OutOfRange, message, None);
        None
    }
}

/// Takes the known words out of serde's refusal.
#[derive(Debug)]
struct UnknownWord(&'static [&'static str]);

impl std::fmt::Display for UnknownWord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "expected one of {}", self.0.join(", "))
    }
}

impl std::error::Error for UnknownWord {}

impl serde::de::Error for UnknownWord {
    fn custom<T: std::fmt::Display>(_: T) -> Self {
        UnknownWord(&[])
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        UnknownWord(expected)
    }
}

//! A TOML or JSON text as one tree whose every key and value knows its place.

mod json;
mod toml;

use crate::fault::Fault;
use indexmap::IndexMap;
use std::ops::Range;

pub(crate) use json::parse_json;
pub(crate) use toml::parse_toml;

/// A value and the bytes it came from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Located {
    pub span: Range<usize>,
    pub data: Data,
}

/// What TOML and JSON can both say; integers beyond 128 bits saturate.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Data {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Located>),
    Table(Table),
    Date,
}

/// Keys in the order of the text.
pub(crate) type Table = IndexMap<String, Entry>;

/// A value with the place of its key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub key_span: Range<usize>,
    pub value: Located,
}

/// A parsed text, whole or as far as it could be understood.
pub(crate) struct Document {
    pub root: Table,
    pub syntax: Vec<Fault>,
}

impl Data {
    /// The type as a reader of the file would call it.
    pub fn type_name(&self) -> &'static str {
        match self {
            Data::Null => "null",
            Data::Bool(_) => "a boolean",
            Data::Integer(_) => "an integer",
            Data::Float(_) => "a float",
            Data::Text(_) => "a string",
            Data::List(_) => "an array",
            Data::Table(_) => "a table",
            Data::Date => "a date",
        }
    }
}

/// Place of the value at a dotted path, or of the innermost part of the path that is there.
pub(crate) fn locate(root: &Table, path: &str) -> Range<usize> {
    let mut table = root;
    let mut span = 0..0;
    for key in path.split('.') {
        let Some(entry) = table.get(key) else { break };
        match &entry.value.data {
            Data::Table(inner) => {
                span = entry.key_span.clone();
                table = inner;
            }
            _ => return entry.value.span.clone(),
        }
    }
    span
}

/// Whether the text has a value at a dotted path.
pub(crate) fn contains(root: &Table, path: &str) -> bool {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    match (root.get(first).map(|entry| &entry.value.data), rest) {
        (Some(Data::Table(inner)), Some(rest)) => contains(inner, rest),
        (found, None) => found.is_some(),
        _ => false,
    }
}

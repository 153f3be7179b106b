//! Strict JSON text to a located tree.

use super::{Data, Document, Entry, Located, Table};
use crate::fault::{Fault, FaultKind};
use jsonc_parser::ast::{Object, ObjectPropName, Value};
use jsonc_parser::common::{Range, Ranged};
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};

/// Parses an object; a text that is not JSON, or not an object, is one syntax fault.
pub(crate) fn parse_json(text: &str) -> Document {
    let fault = |span, message: String| Document {
        root: Table::new(),
        syntax: vec![Fault::at(text, span, FaultKind::Syntax, "", message)],
    };
    match parse_to_ast(text, &CollectOptions::default(), &strict()) {
        Err(error) => fault(bytes(error.range()), error.kind().to_string()),
        Ok(parsed) => match parsed.value {
            Some(Value::Object(object)) => {
                let mut syntax = Vec::new();
                let root = table(text, &object, &mut syntax);
                Document { root, syntax }
            }
            Some(other) => fault(bytes(other.range()), "expected an object".to_string()),
            None => fault(0..0, "expected an object, found an empty file".to_string()),
        },
    }
}

fn strict() -> ParseOptions {
    ParseOptions {
        allow_comments: false,
        allow_loose_object_property_names: false,
        allow_trailing_commas: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    }
}

fn bytes(range: Range) -> std::ops::Range<usize> {
    range.start..range.end
}

fn table(text: &str, object: &Object<'_>, syntax: &mut Vec<Fault>) -> Table {
    let mut entries = Table::new();
    for property in &object.properties {
        let key = match &property.name {
            ObjectPropName::String(name) => name.value.to_string(),
            ObjectPropName::Word(name) => name.value.to_string(),
        };
        let key_span = bytes(property.name.range());
        if entries.contains_key(&key) {
            let message = "the key stands twice in this object".to_string();
            syntax.push(Fault::at(text, key_span.clone(), FaultKind::Syntax, &key, message));
        }
        let value = located(text, &property.value, syntax);
        entries.insert(key, Entry { key_span, value });
    }
    entries
}

fn located(text: &str, value: &Value<'_>, syntax: &mut Vec<Fault>) -> Located {
    let data = match value {
        Value::StringLit(string) => Data::Text(string.value.to_string()),
        Value::NumberLit(number) => self::number(number.value),
        Value::BooleanLit(flag) => Data::Bool(flag.value),
        Value::NullKeyword(_) => Data::Null,
        Value::Object(object) => Data::Table(table(text, object, syntax)),
        Value::Array(array) => {
            Data::List(array.elements.iter().map(|item| located(text, item, syntax)).collect())
        }
    };
    Located { span: bytes(value.range()), data }
}

fn number(digits: &str) -> Data {
    if digits.contains(['.', 'e', 'E']) {
        return Data::Float(digits.parse().unwrap_or(f64::NAN));
    }
    let beyond = if digits.starts_with('-') { i128::MIN } else { i128::MAX };
    Data::Integer(digits.parse().unwrap_or(beyond))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_know_their_bytes() {
        let text = r#"{"a": 1, "b": {"c": [1e-5, null]}}"#;
        let document = parse_json(text);
        assert!(document.syntax.is_empty());
        assert_eq!(&text[super::super::locate(&document.root, "b.c")], "[1e-5, null]");
        assert_eq!(document.root["a"].value.data, Data::Integer(1));
    }

    #[test]
    fn what_python_would_refuse_is_refused() {
        for text in
            ["", "[]", "{\"a\": 1,}", "{a: 1}", "{\"a\": 1} x", "{\"a\": 1, \"a\": 2}", "{\"a\": nan}"]
        {
            assert_eq!(parse_json(text).syntax.len(), 1, "{text}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(parse_json(&deep).syntax.len(), 1, "deep nesting is a fault, not a stack overflow");
    }
}

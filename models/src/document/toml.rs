//! TOML text to a located tree.

use super::{Data, Document, Entry, Located, Table};
use crate::fault::{Fault, FaultKind};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// More syntax faults than this say nothing new.
const MAX_SYNTAX_FAULTS: usize = 20;

/// Parses as far as possible; the syntax faults say where it was not.
pub(crate) fn parse_toml(text: &str) -> Document {
    let (root, errors) = DeTable::parse_recoverable(text);
    let syntax = errors.iter().take(MAX_SYNTAX_FAULTS).map(|error| {
        let span = error.span().unwrap_or(0..0);
        Fault::at(text, span, FaultKind::Syntax, "", error.message().trim().replace('\n', "; "))
    });
    Document { root: table(root.get_ref()), syntax: syntax.collect() }
}

fn table(source: &DeTable<'_>) -> Table {
    let entry = |key: &Spanned<_>, value| Entry { key_span: key.span(), value: located(value) };
    source.iter().map(|(key, value)| (key.get_ref().to_string(), entry(key, value))).collect()
}

fn located(value: &Spanned<DeValue<'_>>) -> Located {
    Located { span: value.span(), data: data(value.get_ref()) }
}

fn data(value: &DeValue<'_>) -> Data {
    match value {
        DeValue::String(text) => Data::Text(text.to_string()),
        DeValue::Integer(number) => Data::Integer(integer(number.as_str(), number.radix())),
        DeValue::Float(number) => Data::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(flag) => Data::Bool(*flag),
        DeValue::Datetime(_) => Data::Date,
        DeValue::Array(items) => Data::List(items.iter().map(located).collect()),
        DeValue::Table(inner) => Data::Table(table(inner)),
    }
}

fn integer(digits: &str, radix: u32) -> i128 {
    let beyond = if digits.starts_with('-') { i128::MIN } else { i128::MAX };
    i128::from_str_radix(digits, radix).unwrap_or(beyond)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_know_their_bytes() {
        let document = parse_toml("a = 1\n[b]\nc = 0x10\n");
        assert!(document.syntax.is_empty());
        assert_eq!(super::super::locate(&document.root, "a"), 4..5);
        assert_eq!(super::super::locate(&document.root, "b.c"), 14..18);
        assert_eq!(super::super::locate(&document.root, "b.d"), 7..8, "the table stands in");
        let Data::Table(b) = &document.root["b"].value.data else { panic!("b is a table") };
        assert_eq!(b["c"].value.data, Data::Integer(16));
    }

    #[test]
    fn several_syntax_faults_are_found_in_one_pass() {
        let document = parse_toml("a = \nb = [1,\nc = 'x\n");
        assert!(document.syntax.len() >= 2, "{:?}", document.syntax);
        let lines: Vec<usize> = document.syntax.iter().map(|fault| fault.line).collect();
        assert!(lines.contains(&1) && lines.contains(&3), "{lines:?}");
    }

    #[test]
    fn deep_nesting_is_a_fault_not_a_stack_overflow() {
        for text in [format!("a = {}", "[".repeat(100_000)), format!("a{} = 1", ".a".repeat(100_000))] {
            assert!(!parse_toml(&text).syntax.is_empty());
        }
    }
}

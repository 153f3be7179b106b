//! Writes `model.toml`.

use crate::spec::ModelSpec;

/// The text of a `model.toml` that reads back as the same specification.
///
/// Every size is written, also those that a reader would fill in by itself.
pub fn to_toml(spec: &ModelSpec) -> String {
    // Serialising fails only for counts beyond 63 bits, which `validate` refuses.
    toml::to_string(spec).unwrap_or_else(|error| format!("# not a valid specification: {error}\n"))
}

//! Element types that checkpoints store, and what each format calls them.

use lapidary_models::DType;
use std::fmt;

/// The type of a stored element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// One byte, 0 or 1.
    Bool,
    /// Unsigned, 8 bits.
    U8,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 16 bits.
    U16,
    /// Signed, 16 bits.
    I16,
    /// Unsigned, 32 bits.
    U32,
    /// Signed, 32 bits.
    I32,
    /// Unsigned, 64 bits.
    U64,
    /// Signed, 64 bits.
    I64,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64.
    F64,
}

/// Type, size in bytes, name in safetensors, name of PyTorch's storage class.
const ELEMENTS: &[(Element, u64, &str, &str)] = &[
    (Element::Bool, 1, "BOOL", "BoolStorage"),
    (Element::U8, 1, "U8", "ByteStorage"),
    (Element::I8, 1, "I8", "CharStorage"),
    (Element::U16, 2, "U16", ""),
    (Element::I16, 2, "I16", "ShortStorage"),
    (Element::U32, 4, "U32", ""),
    (Element::I32, 4, "I32", "IntStorage"),
    (Element::U64, 8, "U64", ""),
    (Element::I64, 8, "I64", "LongStorage"),
    (Element::F16, 2, "F16", "HalfStorage"),
    (Element::Bf16, 2, "BF16", "BFloat16Storage"),
    (Element::F32, 4, "F32", "FloatStorage"),
    (Element::F64, 8, "F64", "DoubleStorage"),
];

impl Element {
    fn row(self) -> &'static (Element, u64, &'static str, &'static str) {
        // The table has a row for every variant; a test holds that.
        ELEMENTS.iter().find(|row| row.0 == self).unwrap_or(&ELEMENTS[0])
    }

    /// Size of one element in bytes.
    pub fn bytes(self) -> u64 {
        self.row().1
    }

    /// The name that safetensors headers use.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// The type that a safetensors header names.
    pub fn from_safetensors(name: &str) -> Option<Element> {
        ELEMENTS.iter().find(|row| row.2 == name).map(|row| row.0)
    }

    /// The type of a PyTorch storage class such as `FloatStorage`.
    pub fn from_storage(class: &str) -> Option<Element> {
        ELEMENTS.iter().find(|row| row.3 == class && !class.is_empty()).map(|row| row.0)
    }

    /// The type as weights have it; none for what no weight is stored in.
    pub fn dtype(self) -> Option<DType> {
        match self {
            Element::F32 => Some(DType::F32),
            Element::Bf16 => Some(DType::Bf16),
            Element::F16 => Some(DType::F16),
            _ => None,
        }
    }
}

impl From<DType> for Element {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Element::F32,
            DType::Bf16 => Element::Bf16,
            DType::F16 => Element::F16,
            DType::I32 => Element::I32,
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_its_row_and_comes_back_from_its_name() {
        use Element::{Bf16, Bool, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64};
        for element in [Bool, U8, I8, U16, I16, U32, I32, U64, I64, F16, Bf16, F32, F64] {
            assert_eq!(Element::from_safetensors(element.name()), Some(element));
        }
        assert_eq!(Element::from_storage("BFloat16Storage"), Some(Element::Bf16));
        assert_eq!(Element::from_storage(""), None);
    }
}

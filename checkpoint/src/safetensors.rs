//! The safetensors form: eight bytes of header length, a JSON header, the elements.
//!
//! The header maps a name to `{"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}`, offsets counted from
//! the end of the header; `__metadata__` maps strings to strings. The elements of all tensors fill the rest of the
//! file without gap or overlap. Read here rather than by the reference crate so that every fault is told at once,
//! with its tensor, and a name that stands twice is one; the tests read the same bytes with the reference crate.

use crate::element::Element;
use crate::fault::{Fault, FaultKind};
use crate::json::Json;
use crate::stored::Stored;
use std::collections::BTreeSet;

/// Longest header: the reference implementation's limit.
const LONGEST_HEADER: u64 = 100_000_000;

/// Bytes of the header's length.
const PREFIX: usize = 8;

const CUT_OFF: &str = "the file is cut off; copy or download it again";

/// What a file holds, and what is wrong with it.
pub(crate) struct Contents<'a> {
    pub tensors: Vec<Stored<'a>>,
    pub faults: Vec<Fault>,
}

/// Reads a file. Tensors that a fault is about are left out.
pub(crate) fn read<'a>(file: usize, name: &str, bytes: &'a [u8]) -> Contents<'a> {
    let (header, data) = match header(name, bytes) {
        Ok(parts) => parts,
        Err(fault) => return Contents { tensors: Vec::new(), faults: vec![fault] },
    };
    let mut reader = Reader {
        file,
        name,
        data,
        seen: BTreeSet::new(),
        tensors: Vec::new(),
        spans: Vec::new(),
        faults: Vec::new(),
    };
    for (tensor, info) in header {
        reader.entry(&tensor, &info);
    }
    reader.check_cover();
    reader.tensors.sort_by_key(|tensor| tensor.0);
    Contents {
        tensors: reader.tensors.into_iter().map(|(_, tensor)| tensor).collect(),
        faults: reader.faults,
    }
}

type Header = Vec<(String, Json)>;

fn header<'a>(name: &str, bytes: &'a [u8]) -> Result<(Header, &'a [u8]), Fault> {
    let fault = |message: String| Fault::new(FaultKind::Container, name, message);
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX>() else {
        let message = format!("expected at least {PREFIX} bytes of safetensors, found {}", bytes.len());
        return Err(fault(message).hint(CUT_OFF));
    };
    let length = u64::from_le_bytes(*prefix);
    if length > LONGEST_HEADER {
        let message = format!("a header of {length} bytes, expected at most {LONGEST_HEADER}");
        return Err(fault(message).at(0).hint("this is not a safetensors file"));
    }
    if length > rest.len() as u64 {
        let message = format!("a header of {length} bytes, but only {} follow", rest.len());
        return Err(fault(message).at(0).hint(CUT_OFF));
    }
    let (text, data) = rest.split_at(length as usize);
    let text = std::str::from_utf8(text)
        .map_err(|error| fault("the header is not UTF-8".into()).at((PREFIX + error.valid_up_to()) as u64))?;
    match serde_json::from_str(text) {
        Ok(Json::Table(rows)) => Ok((rows, data)),
        Ok(other) => Err(fault(format!("the header is {}, expected an object", other.kind()))),
        Err(error) => Err(fault(format!("the header is not JSON: {error}"))),
    }
}

struct Reader<'a, 'n> {
    file: usize,
    name: &'n str,
    data: &'a [u8],
    seen: BTreeSet<String>,
    /// With the place in the file, by which they are sorted in the end.
    tensors: Vec<(u64, Stored<'a>)>,
    spans: Vec<(u64, u64, String)>,
    faults: Vec<Fault>,
}

impl<'a> Reader<'a, '_> {
    fn entry(&mut self, tensor: &str, info: &Json) {
        if tensor == "__metadata__" {
            self.metadata(info);
            return;
        }
        if !self.seen.insert(tensor.to_string()) {
            self.fault(tensor, FaultKind::Duplicate, "the name stands twice in the header".into());
            return;
        }
        match self.info(info) {
            Ok((element, shape, begin, end)) => self.tensor(tensor, element, shape, begin, end),
            Err(message) => self.fault(tensor, FaultKind::Container, message),
        }
    }

    fn metadata(&mut self, info: &Json) {
        let strings = match info {
            Json::Table(rows) => rows.iter().all(|(_, value)| matches!(value, Json::Text(_))),
            Json::Null => true,
            _ => false,
        };
        if !strings {
            let message = "`__metadata__`: expected an object of strings";
            self.faults.push(Fault::new(FaultKind::Container, self.name, message));
        }
    }

    fn fault(&mut self, tensor: &str, kind: FaultKind, message: String) {
        self.faults.push(Fault::new(kind, self.name, message).tensor(tensor));
    }

    /// Element type, shape, and first and last byte of an entry.
    fn info(&self, info: &Json) -> Result<(Element, Vec<u64>, u64, u64), String> {
        let Json::Table(rows) = info else {
            return Err(format!("expected an object, found {}", info.kind()));
        };
        let key = |key: &str| match rows.iter().filter(|(name, _)| name == key).count() {
            0 => Err(format!("`{key}` is missing")),
            1 => info.get(key).ok_or_else(String::new),
            _ => Err(format!("`{key}` stands twice")),
        };
        let element = match key("dtype")? {
            Json::Text(name) => Element::from_safetensors(name).ok_or_else(|| {
                format!("the element type \"{}\" is not read", crate::fault::printable(name))
            })?,
            other => return Err(format!("dtype: expected a string, found {}", other.kind())),
        };
        let shape = counts("shape", key("shape")?)?;
        match counts("data_offsets", key("data_offsets")?)?[..] {
            [begin, end] => Ok((element, shape, begin, end)),
            ref other => Err(format!("data_offsets: expected two numbers, found {}", other.len())),
        }
    }

    fn tensor(&mut self, tensor: &str, element: Element, shape: Vec<u64>, begin: u64, end: u64) {
        self.spans.push((begin, end, tensor.to_string()));
        match self.elements(element, &shape, begin, end) {
            Ok(bytes) => {
                let name = tensor.to_string();
                let stored = Stored { name, file: self.file, element, shape, strides: None, bytes };
                self.tensors.push((begin, stored));
            }
            Err(fault) => self.faults.push(fault.tensor(tensor)),
        }
    }

    fn elements(&self, element: Element, shape: &[u64], begin: u64, end: u64) -> Result<&'a [u8], Fault> {
        let fault = |message: String| Fault::new(FaultKind::Container, self.name, message);
        let size = size(element, shape)
            .ok_or_else(|| fault(format!("the shape {shape:?} has more elements than can be counted")))?;
        if end.checked_sub(begin) != Some(size) {
            let held = format!("do not hold the {size} bytes of {element} {shape:?}");
            return Err(fault(format!("data_offsets [{begin}, {end}] {held}")));
        }
        self.data.get(begin as usize..end as usize).ok_or_else(|| {
            let held = self.data.len();
            fault(format!("data_offsets [{begin}, {end}] reach past the {held} bytes of elements"))
                .hint(CUT_OFF)
        })
    }

    /// Every byte belongs to one tensor.
    fn check_cover(&mut self) {
        let mut spans = std::mem::take(&mut self.spans);
        spans.sort();
        let mut covered: (u64, &str) = (0, "");
        for (begin, end, tensor) in &spans {
            if *begin < covered.0 && begin < end {
                let message = format!("bytes [{begin}, {end}] overlap those of `{}`", covered.1);
                self.fault(tensor, FaultKind::Container, message);
            }
            if *begin > covered.0 {
                let message = format!("bytes [{}, {begin}] before it belong to no tensor", covered.0);
                self.fault(tensor, FaultKind::Container, message);
            }
            if *end >= covered.0 {
                covered = (*end, tensor);
            }
        }
        let held = self.data.len() as u64;
        if covered.0 < held {
            let message = format!("the last {} bytes belong to no tensor", held - covered.0);
            self.faults.push(Fault::new(FaultKind::Container, self.name, message));
        }
    }
}

fn counts(key: &str, value: &Json) -> Result<Vec<u64>, String> {
    let Json::List(items) = value else {
        return Err(format!("{key}: expected a list, found {}", value.kind()));
    };
    let count = |item: &Json| match item {
        Json::Count(n) => Ok(*n),
        other => Err(format!("{key}: expected whole numbers, found {}", other.kind())),
    };
    items.iter().map(count).collect()
}

/// Bytes of a tensor; none where they cannot be counted.
pub(crate) fn size(element: Element, shape: &[u64]) -> Option<u64> {
    shape.iter().try_fold(element.bytes(), |bytes, length| bytes.checked_mul(*length))
}

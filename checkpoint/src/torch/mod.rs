//! PyTorch's zip form: a pickle that describes tensors, and their storages as entries of their own.
//!
//! ```text
//! archive/data.pkl     dict of name -> _rebuild_tensor_v2(storage "0", offset, shape, strides, ..)
//! archive/data/0       the storage's elements, stored without compression
//! archive/byteorder    "little"
//! ```

mod archive;
mod machine;
mod object;
mod opcode;

use crate::fault::{Fault, FaultKind, printable};
use crate::safetensors::{Contents, size};
use crate::stored::Stored;
use archive::Archive;
use machine::Machine;
use object::{Object, View};
use std::collections::BTreeSet;

pub(crate) use archive::Sum;

/// The first bytes of a zip archive.
pub(crate) const ZIP_MAGIC: &[u8] = b"PK\x03\x04";

/// Reads a file: its tensors and the checksums that its storages should have.
pub(crate) fn read<'a>(file: usize, name: &str, bytes: &'a [u8]) -> (Contents<'a>, Vec<Sum<'a>>) {
    let archive = match Archive::open(name, bytes) {
        Ok(archive) => archive,
        Err(fault) => return (Contents { tensors: Vec::new(), faults: vec![fault] }, Vec::new()),
    };
    let contents = match described(name, &archive) {
        Ok(machine) => tensors(file, name, &archive, &machine),
        Err(fault) => Contents { tensors: Vec::new(), faults: vec![fault] },
    };
    (contents, archive.sums(file))
}

fn described<'a>(name: &str, archive: &Archive<'a>) -> Result<Machine<'a>, Fault> {
    let pickle = archive.pickle(name)?;
    Machine::run(pickle).map_err(|stop| {
        let fault = Fault::new(FaultKind::Pickle, name, format!("data.pkl: {}", stop.message)).at(stop.at);
        Fault { hint: stop.hint, ..fault }
    })
}

fn tensors<'a>(file: usize, name: &str, archive: &Archive<'a>, machine: &Machine<'_>) -> Contents<'a> {
    let mut contents = Contents { tensors: Vec::new(), faults: Vec::new() };
    let Object::Dict(rows) = machine.result() else {
        let message = format!("data.pkl holds {}, expected a dict of tensors", machine.result().kind());
        contents.faults.push(Fault::new(FaultKind::Pickle, name, message));
        return contents;
    };
    let mut seen = BTreeSet::new();
    for (key, value) in rows {
        match row(machine, *key, *value, archive) {
            Ok((tensor, _)) if !seen.insert(tensor) => {
                let fault = Fault::new(FaultKind::Duplicate, name, "the name stands twice");
                contents.faults.push(fault.tensor(&printable(tensor)));
            }
            Ok((tensor, stored)) => {
                contents.tensors.push(Stored { name: tensor.to_string(), file, ..stored });
            }
            Err((tensor, message)) => {
                let fault = Fault::new(FaultKind::Container, name, message);
                contents.faults.push(fault.tensor(&printable(tensor)));
            }
        }
    }
    contents
}

/// Name and tensor of a row of the dict, or the name and what is wrong with it.
fn row<'m, 'a>(
    machine: &'m Machine<'_>,
    key: usize,
    value: usize,
    archive: &Archive<'a>,
) -> Result<(&'m str, Stored<'a>), (&'m str, String)> {
    let Object::Text(name) = machine.object(key) else {
        return Err(("", format!("a dict with {} as a key", machine.object(key).kind())));
    };
    let told = |message: String| (name.as_str(), message);
    match machine.object(value) {
        Object::Tensor(view) => {
            let stored = stored(view, machine.text(view.storage.key), archive).map_err(told)?;
            Ok((name, stored))
        }
        Object::Dict(_) => {
            Err(told("a dict, expected a tensor: checkpoints are read flat, name to tensor".into()))
        }
        other => Err(told(format!("{}, expected a tensor", other.kind()))),
    }
}

/// The elements that a view shows; name and file are the caller's.
fn stored<'a>(view: &View, key: &str, archive: &Archive<'a>) -> Result<Stored<'a>, String> {
    let element = view.storage.element;
    let entry = archive.storage(key)?;
    let (held, numel) = (entry.len() as u64, view.storage.elements);
    if size(element, &[numel]) != Some(held) {
        let key = printable(key);
        return Err(format!("storage `{key}` of {numel} {element} elements has {held} bytes"));
    }
    let elements = elements(view)
        .filter(|elements| *elements <= numel)
        .ok_or_else(|| format!("a view of shape {:?} on {numel} elements", view.shape))?;
    let last = match elements {
        0 => view.offset,
        _ => end(view).ok_or_else(|| format!("strides {:?} reach past what can be counted", view.strides))?,
    };
    let span = view.offset.checked_mul(element.bytes()).zip(last.checked_mul(element.bytes()));
    let bytes = span
        .and_then(|(begin, end)| entry.get(begin as usize..end as usize))
        .ok_or_else(|| format!("elements {} to {last} of a storage that has {numel}", view.offset))?;
    let strides = (!is_row_major(view)).then(|| view.strides.clone());
    Ok(Stored { name: String::new(), file: 0, element, shape: view.shape.clone(), strides, bytes })
}

fn elements(view: &View) -> Option<u64> {
    size(view.storage.element, &view.shape).map(|bytes| bytes / view.storage.element.bytes())
}

/// One past the last element of a view that has elements.
fn end(view: &View) -> Option<u64> {
    let reach =
        |sum: u64, (length, stride): (&u64, &u64)| sum.checked_add((length - 1).checked_mul(*stride)?);
    view.shape.iter().zip(&view.strides).try_fold(view.offset, reach)?.checked_add(1)
}

fn is_row_major(view: &View) -> bool {
    let mut expected = 1;
    for (length, stride) in view.shape.iter().zip(&view.strides).rev() {
        if *length != 1 && *stride != expected {
            return view.shape.contains(&0);
        }
        expected *= length;
    }
    true
}

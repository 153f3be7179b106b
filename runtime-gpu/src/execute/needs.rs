//! What a program needs of a device's memory, by class, before anything is allocated.
use super::{ARENA, Places};
use crate::device::{Device, DeviceError};
use crate::program::{BufferKind, GpuProgram};

/// Classes of memory and the kinds of buffers in them.
const CLASSES: [(&str, &[BufferKind]); 6] = [
    ("weights", &[BufferKind::Param, BufferKind::Weight]),
    ("optimizer_state", &[BufferKind::State]),
    ("kept_activations", &[BufferKind::Kept]),
    ("kv_cache", &[BufferKind::Cache]),
    ("activations", &[BufferKind::Arena]),
    ("inputs_outputs", &[BufferKind::Input, BufferKind::Output]),
];

/// Bytes by class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// The largest first.
    pub classes: Vec<(String, u64)>,
}

impl Needs {
    /// What a program needs beside what is shared already, on a device that has the library's workspace or does not.
    pub fn of(program: &GpuProgram, shared: &Places, has_workspace: bool) -> Needs {
        let missing = |kind: BufferKind| -> u64 {
            if kind == BufferKind::Arena {
                return if shared.contains_key(ARENA) { 0 } else { program.arena_bytes };
            }
            let own = program.buffers.iter().filter(|b| b.kind == kind && !shared.contains_key(&b.name));
            own.map(|buffer| buffer.bytes * program.flights_of(buffer)).sum()
        };
        let bytes = |kinds: &[BufferKind]| kinds.iter().map(|kind| missing(*kind)).sum::<u64>();
        let mut classes: Vec<(String, u64)> =
            CLASSES.iter().map(|(class, kinds)| (class.to_string(), bytes(kinds))).collect();
        classes.push(("library_workspace".into(), if has_workspace { 0 } else { program.library_bytes() }));
        classes.retain(|(_, bytes)| *bytes > 0);
        classes.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        Needs { classes }
    }

    /// All classes together.
    pub fn total(&self) -> u64 {
        self.classes.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Whether it is free.
    ///
    /// # Errors
    /// [`DeviceError::Memory`] with every class.
    pub fn check(&self, what: &str, device: &mut dyn Device) -> Result<(), DeviceError> {
        let (needed, free) = (self.total(), device.free_bytes()?);
        if needed <= free {
            return Ok(());
        }
        let (what, product) = (what.to_string(), device.about().product.clone());
        Err(DeviceError::Memory { what, product, needed, free, classes: self.classes.clone() })
    }
}

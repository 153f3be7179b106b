//! Files as bytes in memory: mapped, so that opening 27 GB takes no time and only what is read is loaded.

// The one place of this crate that needs it: mapping a file promises that nobody changes it meanwhile.
#![allow(unsafe_code)]

use crate::failure::{Exit, Failure};
use lapidary_runtime_cpu::weights::Owner;
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// A mapped file.
pub struct Mapped {
    /// What messages call it.
    pub name: String,
    map: Arc<Mmap>,
}

impl Mapped {
    /// Maps a file for reading.
    ///
    /// # Errors
    /// Exit 3 when it cannot be opened, or is not a file.
    pub fn open(path: &Path) -> Result<Mapped, Failure> {
        let name = path.display().to_string();
        let refused =
            |error: std::io::Error| Failure::new(Exit::InvalidInput, format!("{name}: cannot read: {error}"));
        let file = File::open(path).map_err(refused)?;
        if !file.metadata().map_err(refused)?.is_file() {
            return Err(Failure::new(Exit::InvalidInput, format!("{name}: not a file")));
        }
        // SAFETY: the map is read-only and private, and its bytes are only ever read as plain bytes, so any content is
        // valid. What remains is another process that cuts the file off while we read it: the system then ends this
        // process, as it does for every program that maps files, and no memory of ours is touched.
        let map = unsafe { Mmap::map(&file) }.map_err(refused)?;
        // Where the system holds files in huge pages it reads a file that is not in memory in pieces of that size.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Mapped { name, map: Arc::new(map) })
    }

    /// What keeps the file mapped.
    pub fn owner(&self) -> Owner {
        self.map.clone()
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

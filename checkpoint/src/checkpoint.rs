//! The files of a checkpoint, read together.

use crate::fault::{Fault, FaultKind, Faults};
use crate::index::Index;
use crate::safetensors::{self, Contents};
use crate::stored::Stored;
use crate::torch::{self, Sum};
use std::collections::BTreeMap;
use std::fmt;

/// A file as the caller hands it in.
#[derive(Clone, Debug)]
pub struct File<'a> {
    /// What messages call it; for a shard, the name in the index is its last part.
    pub name: String,
    /// All of it.
    pub bytes: &'a [u8],
}

/// How a file stores its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Header and elements.
    Safetensors,
    /// A zip archive with a pickle.
    Torch,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Safetensors => "safetensors",
            Format::Torch => "PyTorch",
        })
    }
}

/// A file as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// What messages call it.
    pub name: String,
    /// Its form.
    pub format: Format,
    /// Its size.
    pub bytes: u64,
}

/// Every tensor of a checkpoint.
#[derive(Clone, Debug)]
pub struct Checkpoint<'a> {
    files: Vec<FileInfo>,
    tensors: Vec<Stored<'a>>,
    by_name: BTreeMap<String, usize>,
    pub(crate) sums: Vec<Sum<'a>>,
}

/// The first bytes of PyTorch's form before version 1.6: a pickled magic number.
const LEGACY_MAGIC: &[u8] = &[0x80, 0x02, 0x8a, 0x0a];

impl<'a> Checkpoint<'a> {
    /// Reads the files, each in the form that its first bytes show. With an index, every file is one of its
    /// shards and holds what the index says.
    ///
    /// # Errors
    /// Every fault of every file and of the index.
    pub fn open(files: &[File<'a>], index: Option<&Index>) -> Result<Checkpoint<'a>, Faults> {
        let mut checkpoint =
            Checkpoint { files: Vec::new(), tensors: Vec::new(), by_name: BTreeMap::new(), sums: Vec::new() };
        let mut faults = Vec::new();
        for file in files {
            faults.extend(checkpoint.add(file));
        }
        // A shard that cannot be read has told its fault; that its tensors are missing is not another one.
        if let Some(index) = index.filter(|_| faults.is_empty()) {
            faults.extend(checkpoint.differences(index));
        }
        if faults.is_empty() { Ok(checkpoint) } else { Err(Faults { faults }) }
    }

    fn add(&mut self, file: &File<'a>) -> Vec<Fault> {
        let at = self.files.len();
        let (format, Contents { tensors, mut faults }) = if file.bytes.starts_with(torch::ZIP_MAGIC) {
            let (contents, sums) = torch::read(at, &file.name, file.bytes);
            self.sums.extend(sums);
            (Format::Torch, contents)
        } else if file.bytes.starts_with(LEGACY_MAGIC) {
            let fault = Fault::new(FaultKind::Container, &file.name, "PyTorch's form before version 1.6");
            let fault = fault.hint("load it with PyTorch and save it again, as safetensors");
            (Format::Torch, Contents { tensors: Vec::new(), faults: vec![fault] })
        } else {
            (Format::Safetensors, safetensors::read(at, &file.name, file.bytes))
        };
        self.files.push(FileInfo { name: file.name.clone(), format, bytes: file.bytes.len() as u64 });
        for tensor in tensors {
            match self.by_name.get(&tensor.name) {
                Some(first) => {
                    let message = format!("also stands in {}", self.file_name(&self.tensors[*first]));
                    let fault = Fault::new(FaultKind::Duplicate, &file.name, message);
                    faults.push(fault.tensor(&tensor.name));
                }
                None => {
                    self.by_name.insert(tensor.name.clone(), self.tensors.len());
                    self.tensors.push(tensor);
                }
            }
        }
        faults
    }

    /// Where files and index disagree.
    fn differences(&self, index: &Index) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (tensor, shard) in &index.files {
            let fault = |message| Fault::new(FaultKind::Index, &index.name, message).tensor(tensor);
            match self.get(tensor).map(|stored| self.file_name(stored)) {
                None => faults.push(fault(format!("is not in {shard}"))),
                Some(file) if !ends_with_name(file, shard) => {
                    faults.push(fault(format!("is in {file}, not in {shard}")));
                }
                Some(_) => {}
            }
        }
        for stored in self.tensors.iter().filter(|stored| !index.files.contains_key(&stored.name)) {
            let message = format!("the index {} does not name it", index.name);
            faults.push(Fault::new(FaultKind::Index, self.file_name(stored), message).tensor(&stored.name));
        }
        faults
    }

    /// The tensors, file by file in the order of their bytes or of their pickle.
    pub fn tensors(&self) -> &[Stored<'a>] {
        &self.tensors
    }

    /// The tensor of a stored name.
    pub fn get(&self, name: &str) -> Option<&Stored<'a>> {
        self.by_name.get(name).map(|at| &self.tensors[*at])
    }

    /// Every file.
    pub fn files(&self) -> &[FileInfo] {
        &self.files
    }

    /// The name of the file that a tensor of this checkpoint stands in.
    pub fn file_name(&self, tensor: &Stored<'_>) -> &str {
        self.files.get(tensor.file).map_or("", |file| &file.name)
    }
}

/// Whether the last part of a path is `name`.
fn ends_with_name(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|folder| folder.is_empty() || folder.ends_with(['/', '\\']))
}

//! The zip container: entries in place, without compression, each with a checksum.

use crate::fault::{Fault, FaultKind, printable};
use std::collections::BTreeMap;
use std::io::Cursor;
use zip::{CompressionMethod, ZipArchive};

/// Longest `data.pkl`: a description of a tensor takes some hundred bytes, so this is far beyond every model.
const LONGEST_PICKLE: usize = 16 << 20;

/// An entry's bytes and the CRC-32 that they should have.
#[derive(Clone, Copy, Debug)]
struct Entry<'a> {
    bytes: &'a [u8],
    crc: u32,
}

/// The checksum that a stretch of a file should have.
#[derive(Clone, Debug)]
pub(crate) struct Sum<'a> {
    /// Which of the checkpoint's files.
    pub file: usize,
    /// The entry's name.
    pub entry: String,
    /// The entry.
    pub bytes: &'a [u8],
    /// CRC-32 as zip computes it.
    pub crc: u32,
}

/// An opened archive.
pub(super) struct Archive<'a> {
    /// The folder inside, which has the name of the file that was written.
    prefix: String,
    entries: BTreeMap<String, Entry<'a>>,
}

impl<'a> Archive<'a> {
    /// Lists the entries.
    pub fn open(name: &str, bytes: &'a [u8]) -> Result<Archive<'a>, Fault> {
        let fault = |message: String| Fault::new(FaultKind::Container, name, message);
        let truncated = "the file is cut off or damaged; copy or download it again";
        let mut zip = ZipArchive::new(Cursor::new(bytes))
            .map_err(|error| fault(format!("not a whole zip archive: {error}")).hint(truncated))?;
        if zip.has_duplicate_names() {
            return Err(Fault { kind: FaultKind::Duplicate, ..fault("two entries have one name".into()) });
        }
        let mut entries = BTreeMap::new();
        for i in 0..zip.len() {
            let (entry, found) =
                entry(&mut zip, i, bytes).map_err(|message| fault(message).hint(truncated))?;
            entries.insert(entry, found);
        }
        let archive = Archive { prefix: prefix(&entries).map_err(fault)?, entries };
        match archive.get("byteorder").map(|entry| entry.bytes) {
            None | Some(b"little") => Ok(archive),
            Some(_) => Err(fault("the elements are not little-endian".into())
                .hint("save the checkpoint on a little-endian machine")),
        }
    }

    fn get(&self, entry: &str) -> Option<Entry<'a>> {
        self.entries.get(&format!("{}{entry}", self.prefix)).copied()
    }

    /// The pickle that describes the tensors, its checksum verified.
    pub fn pickle(&self, name: &str) -> Result<&'a [u8], Fault> {
        let fault = |message: String| Fault::new(FaultKind::Container, name, message);
        let entry = self.get("data.pkl").ok_or_else(|| fault("there is no data.pkl".into()))?;
        if entry.bytes.len() > LONGEST_PICKLE {
            let message =
                format!("data.pkl has {} bytes, expected at most {LONGEST_PICKLE}", entry.bytes.len());
            return Err(fault(message));
        }
        match holds(entry.bytes, entry.crc) {
            true => Ok(entry.bytes),
            false => Err(fault("data.pkl does not have its checksum".into()).hint("the file is damaged")),
        }
    }

    /// The elements of a storage.
    pub fn storage(&self, key: &str) -> Result<&'a [u8], String> {
        let entry = self.get(&format!("data/{key}"));
        entry.map(|entry| entry.bytes).ok_or_else(|| format!("there is no storage `{}`", printable(key)))
    }

    /// The checksums of everything but the pickle.
    pub fn sums(&self, file: usize) -> Vec<Sum<'a>> {
        let storages = format!("{}data/", self.prefix);
        let sum = |(entry, found): (&String, &Entry<'a>)| Sum {
            file,
            entry: entry.clone(),
            bytes: found.bytes,
            crc: found.crc,
        };
        self.entries.iter().filter(|(entry, _)| entry.starts_with(&storages)).map(sum).collect()
    }
}

impl Sum<'_> {
    /// Whether the bytes have the checksum.
    pub fn holds(&self) -> bool {
        holds(self.bytes, self.crc)
    }
}

/// Whether bytes have a checksum. PyTorch can be told to leave checksums out, and then writes 0.
fn holds(bytes: &[u8], crc: u32) -> bool {
    crc == 0 || crc32fast::hash(bytes) == crc
}

fn entry<'a>(
    zip: &mut ZipArchive<Cursor<&'a [u8]>>,
    i: usize,
    bytes: &'a [u8],
) -> Result<(String, Entry<'a>), String> {
    let entry = zip.by_index_raw(i).map_err(|error| format!("entry {i}: {error}"))?;
    let name = entry.name().map_err(|error| format!("entry {i}: {error}"))?.to_string();
    let shown = printable(&name);
    if entry.encrypted() {
        return Err(format!("entry `{shown}` is encrypted"));
    }
    if entry.compression() != CompressionMethod::Stored || entry.size() != entry.compressed_size() {
        return Err(format!("entry `{shown}` is compressed, which PyTorch never writes"));
    }
    let end = entry.data_start().and_then(|start| Some((start, start.checked_add(entry.size())?)));
    let data = end.and_then(|(start, end)| bytes.get(start as usize..end as usize));
    let data = data.ok_or_else(|| format!("entry `{shown}` reaches past the end of the file"))?;
    Ok((name, Entry { bytes: data, crc: entry.crc32() }))
}

/// What stands before `data.pkl`, with its slash.
fn prefix(entries: &BTreeMap<String, Entry<'_>>) -> Result<String, String> {
    let prefixes: Vec<&str> = entries
        .keys()
        .filter_map(|name| name.strip_suffix("data.pkl"))
        .filter(|prefix| prefix.ends_with('/') && prefix.matches('/').count() == 1)
        .collect();
    match prefixes[..] {
        [prefix] => Ok(prefix.to_string()),
        [] => Err("a zip archive without data.pkl: not a PyTorch checkpoint".into()),
        _ => Err("more than one data.pkl".into()),
    }
}

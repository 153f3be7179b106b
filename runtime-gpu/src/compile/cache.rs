//! Results of earlier compilations, one file each, named by the hash of everything that went in.
use super::{CompileError, Output, Source};
use std::fs;
use std::path::Path;

const MAGIC: &str = "lapidary-kernel 1";

/// The name under which a result is kept: source, options and compiler version decide it.
pub(crate) fn key(source: &Source, flags: &[String], version: (i32, i32)) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in [source.name.as_str(), source.text.as_str(), &format!("{version:?}")] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    for flag in flags {
        hasher.update(&(flag.len() as u64).to_le_bytes()).update(flag.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// The stored result, if it is there and whole.
pub(crate) fn load(folder: &Path, key: &str) -> Option<Output> {
    let file = fs::read(folder.join(format!("{key}.kernel"))).ok()?;
    let end = file.iter().position(|&byte| byte == b'\n')?;
    let header = std::str::from_utf8(&file[..end]).ok()?.strip_prefix(MAGIC)?;
    let body = &file[end + 1..];
    let mut fields = header.split_whitespace();
    let mut length = || fields.next()?.parse::<usize>().ok();
    let (ptx, cubin, log) = (length()?, length()?, length()?);
    let whole = ptx.checked_add(cubin)?.checked_add(log)? == body.len();
    (whole && fields.next()? == blake3::hash(body).to_hex().as_str()).then(|| Output {
        ptx: body[..ptx].to_vec(),
        cubin: body[ptx..ptx + cubin].to_vec(),
        log: body[ptx + cubin..].to_vec(),
    })
}

/// Keeps a result; written beside its place and renamed, so that a reader never sees half of it.
pub(crate) fn store(folder: &Path, key: &str, output: &Output) -> Result<(), CompileError> {
    let fault = |path: &Path, e: std::io::Error| CompileError::Cache {
        path: path.display().to_string(),
        why: e.to_string(),
    };
    fs::create_dir_all(folder).map_err(|e| fault(folder, e))?;
    let body = [output.ptx.as_slice(), &output.cubin, &output.log].concat();
    let lengths = format!("{} {} {}", output.ptx.len(), output.cubin.len(), output.log.len());
    let file = [format!("{MAGIC} {lengths} {}\n", blake3::hash(&body).to_hex()).into_bytes(), body].concat();
    let place = folder.join(format!("{key}.kernel"));
    let draft = folder.join(format!("{key}.{:?}.draft", std::thread::current().id()));
    fs::write(&draft, file).map_err(|e| fault(&draft, e))?;
    fs::rename(&draft, &place).map_err(|e| fault(&place, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source { name: "k".into(), text: text.into() }
    }

    #[test]
    fn keys_depend_on_source_flags_and_version() {
        let base = key(&source("a"), &["x".into()], (12, 9));
        assert_eq!(base, key(&source("a"), &["x".into()], (12, 9)));
        assert_ne!(base, key(&source("b"), &["x".into()], (12, 9)));
        assert_ne!(base, key(&source("a"), &["y".into()], (12, 9)));
        assert_ne!(base, key(&source("a"), &["x".into()], (13, 0)));
    }

    #[test]
    fn what_is_stored_comes_back_and_damage_is_a_miss() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let output = Output { ptx: b"ptx".to_vec(), cubin: vec![0, 10, 255], log: b"log\n".to_vec() };
        store(folder.path(), "k", &output)?;
        assert_eq!(load(folder.path(), "k"), Some(output));
        let path = folder.path().join("k.kernel");
        let mut bytes = fs::read(&path)?;
        *bytes.last_mut().ok_or("empty")? ^= 1;
        fs::write(&path, bytes)?;
        assert_eq!(load(folder.path(), "k"), None);
        assert_eq!(load(folder.path(), "other"), None);
        Ok(())
    }
}

//! Where a device gets machine code from: made on the spot, made beforehand, or not at all.
use super::{CompileError, CompileOptions, Nvrtc, Source, compile_all};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Makes or finds machine code.
pub trait Compiler {
    /// A cubin for every source, in their order.
    fn machine_code(&self, sources: &[Source], arch: &str) -> Vec<Result<Vec<u8>, CompileError>>;
}

/// NVRTC, with the results of earlier runs where there is a cache.
#[derive(Debug, Clone)]
pub struct Online {
    /// The compiler.
    pub nvrtc: Nvrtc,
    /// Folder of earlier results, if any.
    pub cache: Option<PathBuf>,
    /// Kernels compiled at once.
    pub jobs: usize,
}

impl Compiler for Online {
    fn machine_code(&self, sources: &[Source], arch: &str) -> Vec<Result<Vec<u8>, CompileError>> {
        let options =
            CompileOptions { cache: self.cache.clone(), jobs: self.jobs, ..CompileOptions::new(arch) };
        let made = compile_all(&self.nvrtc, sources, &options);
        made.into_iter().map(|result| result.map(|compiled| compiled.cubin)).collect()
    }
}

/// Cubins made on another machine, by [`digest`].
#[derive(Debug, Clone, Default)]
pub struct Prebuilt(pub BTreeMap<String, Vec<u8>>);

impl Compiler for Prebuilt {
    fn machine_code(&self, sources: &[Source], arch: &str) -> Vec<Result<Vec<u8>, CompileError>> {
        let find = |source: &Source| {
            let missing = || CompileError::NotPrebuilt { kernel: source.name.clone(), arch: arch.into() };
            self.0.get(&digest(source, arch)).cloned().ok_or_else(missing)
        };
        sources.iter().map(find).collect()
    }
}

/// No compiler, and why: said for every kernel that is asked for.
#[derive(Debug, Clone)]
pub struct Absent(pub CompileError);

impl Compiler for Absent {
    fn machine_code(&self, sources: &[Source], _arch: &str) -> Vec<Result<Vec<u8>, CompileError>> {
        sources.iter().map(|_| Err(self.0.clone())).collect()
    }
}

/// The name of a source's machine code for an architecture.
pub fn digest(source: &Source, arch: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in [arch, &source.name, &source.text] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_made_beforehand_is_named() {
        let source = Source { name: "k".into(), text: "t".into() };
        let made = Prebuilt(BTreeMap::from([(digest(&source, "sm_80"), vec![1])]));
        assert_eq!(made.machine_code(std::slice::from_ref(&source), "sm_80"), [Ok(vec![1])]);
        let error = made.machine_code(&[source], "sm_90").remove(0).unwrap_err();
        assert!(error.to_string().contains("`k`") && error.to_string().contains("sm_90"), "{error}");
    }
}

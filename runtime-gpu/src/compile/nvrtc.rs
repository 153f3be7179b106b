//! The door to NVRTC. All calls into the library are here, each with the reason why it is sound.
#![allow(unsafe_code)]

use super::{CompileError, CompileOptions, Output, Source};
use cudarc::nvrtc::{result, sys};
use std::ffi::{CString, c_char};
use std::path::Path;

/// NVRTC, known to be loaded.
#[derive(Debug, Clone, Copy)]
pub struct Nvrtc {
    version: (i32, i32),
}

impl Nvrtc {
    /// Opens `libnvrtc.so.12` in `folder`. The library stays loaded for the rest of the process.
    ///
    /// # Errors
    /// [`CompileError::Missing`] when the file is absent or cannot be loaded.
    pub fn open(folder: &Path) -> Result<Nvrtc, CompileError> {
        let missing = |why: String| CompileError::Missing { directory: folder.display().to_string(), why };
        // SAFETY: loading runs the library's initialisers, which NVIDIA documents as safe; the handle is leaked on purpose,
        // so that the binding finds the library by its SONAME without a search path.
        let library = unsafe { libloading::Library::new(folder.join("libnvrtc.so.12")) }
            .map_err(|e| missing(e.to_string()))?;
        std::mem::forget(library);
        // SAFETY: only tries to open the library; without this check the binding panics where it is absent.
        if !unsafe { sys::is_culib_present() } {
            return Err(missing("the loader does not find it again by name".into()));
        }
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are valid for writes during the call, and the library is present.
        unsafe { sys::nvrtcVersion(&mut major, &mut minor) }
            .result()
            .map_err(|e| missing(format!("nvrtcVersion: {e}")))?;
        Ok(Nvrtc { version: (major, minor) })
    }

    /// Major and minor version of the compiler.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// Compiles one source to PTX and cubin.
    pub(super) fn compile(&self, source: &Source, options: &CompileOptions) -> Result<Output, CompileError> {
        let flags = options.flags();
        let text = c_text(source, "source", &source.text)?;
        let name = c_text(source, "name", &format!("{}.cu", source.name))?;
        for flag in &flags {
            c_text(source, "option", flag)?;
        }
        let rejected = |code: result::NvrtcError, log: Vec<u8>| CompileError::Rejected {
            kernel: source.name.clone(),
            arch: options.arch.clone(),
            code: code.to_string(),
            log: String::from_utf8_lossy(&log).into_owned(),
        };
        let program = result::create_program(&text, Some(&name)).map_err(|e| rejected(e, Vec::new()))?;
        // `text` and `name` outlive the guard, as `create_program` asks.
        let guard = Program(program);
        // SAFETY: the program was created above and is destroyed only by the guard.
        let outcome = unsafe { result::compile_program(guard.0, &flags) };
        let log = guard.log();
        outcome.map_err(|e| rejected(e, log.clone()))?;
        let ptx =
            guard.bytes(sys::nvrtcGetPTXSize, sys::nvrtcGetPTX).map_err(|e| rejected(e, log.clone()))?;
        let cubin =
            guard.bytes(sys::nvrtcGetCUBINSize, sys::nvrtcGetCUBIN).map_err(|e| rejected(e, log.clone()))?;
        Ok(Output { ptx: trimmed(ptx), cubin, log })
    }
}

/// A C string ends in a zero byte, which is no part of the text.
fn trimmed(mut text: Vec<u8>) -> Vec<u8> {
    while text.last() == Some(&0) {
        text.pop();
    }
    text
}

fn c_text(source: &Source, what: &'static str, text: &str) -> Result<CString, CompileError> {
    CString::new(text).map_err(|_| CompileError::ZeroByte { kernel: source.name.clone(), what })
}

/// A program handle that is given back when dropped.
struct Program(sys::nvrtcProgram);

type Size = unsafe fn(sys::nvrtcProgram, *mut usize) -> sys::nvrtcResult;
type Fill = unsafe fn(sys::nvrtcProgram, *mut c_char) -> sys::nvrtcResult;

impl Program {
    fn bytes(&self, size: Size, fill: Fill) -> Result<Vec<u8>, result::NvrtcError> {
        let mut length = 0usize;
        // SAFETY: the handle is live and `length` is valid for the write.
        unsafe { size(self.0, &mut length) }.result()?;
        let mut bytes = vec![0u8; length];
        // SAFETY: the buffer has exactly the size the library asked for.
        unsafe { fill(self.0, bytes.as_mut_ptr().cast()) }.result()?;
        Ok(bytes)
    }

    fn log(&self) -> Vec<u8> {
        trimmed(self.bytes(sys::nvrtcGetProgramLogSize, sys::nvrtcGetProgramLog).unwrap_or_default())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the handle is live and is not used again. A failure to free leaks a little memory and nothing else.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

//! The door to NCCL. All calls into it are here, each with the reason why it is sound.
//!
//! The library is opened at run time by the name that packages and wheels give it, and every function is asked for before any
//! is called. Communicators do not block: a call that is under way is asked about until it
//! is done or patience ends, so a peer that never comes ends in an error.
#![allow(unsafe_code)]

use super::bootstrap::NAME;
use crate::device::{Address, DeviceError};
use crate::program::Dtype;
use cudarc::nccl::sys;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::time::Duration;
use thiserror::Error;

/// The oldest version that is asked of: communicators that do not block came with 2.14, the form of their settings that is used
/// here with 2.17 (NCCL release notes). It numbers itself as 10000, 100 and 1 for major, minor and patch.
const OLDEST: i32 = 21_700;

/// What the settings of a communicator begin with (`NCCL_CONFIG_INITIALIZER` in nccl.h).
const MAGIC: u32 = 0xcafe_beef;

/// Between two questions whether a call is done.
const PAUSE: Duration = Duration::from_micros(200);

/// The library's name: that of packages and wheels alike. The binding looks for others only, so this file opens it itself and
/// has only the types from there.
const LIBRARY: &str = "libnccl.so.2";

type Answer = sys::ncclResult_t;
type Comm = sys::ncclComm_t;
type Stream = sys::cudaStream_t;
type Kind = sys::ncclDataType_t;

/// Every function that this file calls, by its form in nccl.h.
struct Functions {
    version: unsafe extern "C" fn(*mut c_int) -> Answer,
    name: unsafe extern "C" fn(*mut sys::ncclUniqueId) -> Answer,
    text: unsafe extern "C" fn(Answer) -> *const c_char,
    join: unsafe extern "C" fn(*mut Comm, c_int, sys::ncclUniqueId, c_int, *mut sys::ncclConfig_t) -> Answer,
    state: unsafe extern "C" fn(Comm, *mut Answer) -> Answer,
    abort: unsafe extern "C" fn(Comm) -> Answer,
    reduce: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        Kind,
        sys::ncclRedOp_t,
        Comm,
        Stream,
    ) -> Answer,
    gather: unsafe extern "C" fn(*const c_void, *mut c_void, usize, Kind, Comm, Stream) -> Answer,
    scatter: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        Kind,
        sys::ncclRedOp_t,
        Comm,
        Stream,
    ) -> Answer,
    broadcast: unsafe extern "C" fn(*const c_void, *mut c_void, usize, Kind, c_int, Comm, Stream) -> Answer,
    send: unsafe extern "C" fn(*const c_void, usize, Kind, c_int, Comm, Stream) -> Answer,
    receive: unsafe extern "C" fn(*mut c_void, usize, Kind, c_int, Comm, Stream) -> Answer,
}

/// A function of the library by its name.
///
/// # Safety
/// `F` is the form that the function has in nccl.h.
unsafe fn function<F: Copy>(
    library: &'static libloading::Library,
    name: &'static str,
) -> Result<F, NcclError> {
    // SAFETY: the caller says that the form is right; the library stays for the rest of the process.
    unsafe { library.get::<F>(name.as_bytes()) }.map(|found| *found).map_err(|_| NcclError::NoFunction(name))
}

impl Functions {
    /// Loads the library for the rest of the process.
    fn load() -> Result<Functions, NcclError> {
        // SAFETY: loading runs the library's initialisers, which NVIDIA documents as safe.
        let library = unsafe { libloading::Library::new(LIBRARY) }.map_err(|_| NcclError::Missing)?;
        let library: &'static libloading::Library = Box::leak(Box::new(library));
        // SAFETY: the forms are those of nccl.h, as the binding has them too.
        unsafe {
            Ok(Functions {
                version: function(library, "ncclGetVersion")?,
                name: function(library, "ncclGetUniqueId")?,
                text: function(library, "ncclGetErrorString")?,
                join: function(library, "ncclCommInitRankConfig")?,
                state: function(library, "ncclCommGetAsyncError")?,
                abort: function(library, "ncclCommAbort")?,
                reduce: function(library, "ncclAllReduce")?,
                gather: function(library, "ncclAllGather")?,
                scatter: function(library, "ncclReduceScatter")?,
                broadcast: function(library, "ncclBroadcast")?,
                send: function(library, "ncclSend")?,
                receive: function(library, "ncclRecv")?,
            })
        }
    }

    /// Whether a call is still under way; an error where it failed.
    fn under_way(&self, call: &'static str, answer: Answer) -> Result<bool, NcclError> {
        match answer {
            Answer::ncclSuccess => Ok(false),
            Answer::ncclInProgress => Ok(true),
            code => {
                // SAFETY: the function returns a sentence that lives as long as the library.
                let text = unsafe { CStr::from_ptr((self.text)(code)) };
                Err(NcclError::Failed { call, answer: text.to_string_lossy().into_owned() })
            }
        }
    }
}

/// Why ranks cannot speak through NCCL.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NcclError {
    /// The library is not there.
    #[error("no NCCL: the loader finds no libnccl.so.2")]
    Missing,
    /// A function is not there.
    #[error("NCCL is too old: it has no {0}")]
    NoFunction(&'static str),
    /// The library is too old.
    #[error("NCCL is too old: it is {}, ranks need {}", dotted(*found), dotted(OLDEST))]
    Old {
        /// Its version, as it numbers itself.
        found: i32,
    },
    /// A call failed.
    #[error("{call}: NCCL answers: {answer}")]
    Failed {
        /// The function.
        call: &'static str,
        /// Its answer.
        answer: String,
    },
    /// Patience ended while others were waited for.
    #[error("{call}: the other ranks did not come")]
    Late {
        /// The function.
        call: &'static str,
    },
}

impl NcclError {
    /// What would help.
    pub fn help(&self) -> &'static str {
        match self {
            NcclError::Missing => {
                "install NCCL 2.17 or newer (libnccl2, or the wheel nvidia-nccl-cu12), and put its folder into LD_LIBRARY_PATH"
            }
            NcclError::NoFunction(_) | NcclError::Old { .. } => "install NCCL 2.17 or newer",
            NcclError::Failed { .. } | NcclError::Late { .. } => "NCCL_DEBUG=INFO tells more",
        }
    }

    /// The same as what a device says.
    pub fn told(&self, what: &str) -> DeviceError {
        DeviceError::Peers { what: what.into(), why: self.to_string() }
    }
}

/// 21805 as 2.18.5.
fn dotted(version: i32) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

/// NCCL, known to be there and new enough.
#[derive(Clone, Copy)]
pub struct Nccl {
    version: i32,
    functions: &'static Functions,
}

/// The ranks that a rank meets in one group.
pub struct Communicator {
    comm: Comm,
    functions: &'static Functions,
}

impl std::fmt::Debug for Communicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Communicator").finish_non_exhaustive()
    }
}

/// What is put on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// The sum of all, or the largest.
    Reduce {
        /// Whether the largest is wanted.
        largest: bool,
    },
    /// The parts of all.
    Gather,
    /// A run of the sum of all.
    SumScatter,
    /// One rank's values for all.
    Broadcast {
        /// That rank.
        root: u64,
    },
    /// To one rank.
    Send {
        /// That rank.
        to: u64,
    },
    /// From one rank.
    Receive {
        /// That rank.
        from: u64,
    },
}

/// Operands of a call. Those that a call does not have are not looked at.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// Where the operand is.
    pub x: Address,
    /// Where the result goes.
    pub out: Address,
    /// Elements of one rank's part.
    pub count: u64,
    /// Their type.
    pub dtype: Dtype,
    /// The stream on which the call waits its turn.
    pub stream: u64,
}

impl Nccl {
    /// Opens the library.
    ///
    /// # Errors
    /// Where it is not there, lacks a function or is too old.
    pub fn open() -> Result<Nccl, NcclError> {
        let functions: &'static Functions = Box::leak(Box::new(Functions::load()?));
        let mut version = 0;
        // SAFETY: the pointer is valid for the write.
        functions.under_way("ncclGetVersion", unsafe { (functions.version)(&mut version) })?;
        if version < OLDEST {
            Err(NcclError::Old { found: version })
        } else {
            Ok(Nccl { version, functions })
        }
    }

    /// Its version, as people write it.
    pub fn version(&self) -> String {
        dotted(self.version)
    }

    /// A name for a meeting, made by any rank.
    ///
    /// # Errors
    /// [`NcclError::Failed`].
    pub fn name(&self) -> Result<[u8; NAME], NcclError> {
        let mut id = sys::ncclUniqueId { internal: [0; NAME] };
        // SAFETY: the pointer is valid for the write.
        self.functions.under_way("ncclGetUniqueId", unsafe { (self.functions.name)(&mut id) })?;
        Ok(id.internal.map(|byte| byte as u8))
    }

    /// Joins the ranks of a meeting. The device of the calling thread is the rank's.
    ///
    /// # Errors
    /// [`NcclError::Failed`], and [`NcclError::Late`] when patience ends first.
    pub fn join(
        &self,
        name: &[u8; NAME],
        rank: u64,
        ranks: u64,
        waited: &dyn Fn() -> bool,
    ) -> Result<Communicator, NcclError> {
        let id = sys::ncclUniqueId { internal: name.map(|byte| byte as c_char) };
        let unset = i32::MIN;
        let mut settings = sys::ncclConfig_t {
            size: size_of::<sys::ncclConfig_t>(),
            magic: MAGIC,
            version: self.version.cast_unsigned().min(OLDEST.cast_unsigned()),
            blocking: 0,
            cgaClusterSize: unset,
            minCTAs: unset,
            maxCTAs: unset,
            netName: std::ptr::null(),
            splitShare: unset,
        };
        let mut comm: Comm = std::ptr::null_mut();
        let call = "ncclCommInitRankConfig";
        // SAFETY: both pointers are valid for the call, which copies the settings; the name is passed by value.
        let joined =
            unsafe { (self.functions.join)(&mut comm, ranks as c_int, id, rank as c_int, &mut settings) };
        let communicator = Communicator { comm, functions: self.functions };
        communicator.done(call, joined, waited)?;
        Ok(communicator)
    }
}

impl Communicator {
    /// Returns when a call is no longer under way.
    fn done(&self, call: &'static str, answer: Answer, waited: &dyn Fn() -> bool) -> Result<(), NcclError> {
        if !self.functions.under_way(call, answer)? {
            return Ok(());
        }
        while self.under_way(call)? {
            if waited() {
                return Err(NcclError::Late { call });
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn under_way(&self, call: &'static str) -> Result<bool, NcclError> {
        let mut state = Answer::ncclSuccess;
        // SAFETY: the communicator is not dropped yet, and the pointer is valid for the write.
        let asked = unsafe { (self.functions.state)(self.comm, &mut state) };
        self.functions.under_way(call, asked)?;
        self.functions.under_way(call, state)
    }

    /// Whether something that was put on a stream failed since.
    ///
    /// # Errors
    /// [`NcclError::Failed`].
    pub fn look(&self) -> Result<(), NcclError> {
        self.under_way("the words before").map(drop)
    }

    /// Puts a call on a stream; it is done when the stream says so. The operands are those of a checked program: each within
    /// memory that the program's owner keeps, as those of launches are.
    ///
    /// # Errors
    /// [`NcclError::Failed`], and [`NcclError::Late`] when patience ends before the call is on the stream.
    pub fn call(&self, call: Call, operands: &Operands, waited: &dyn Fn() -> bool) -> Result<(), NcclError> {
        let Operands { x, out, count, dtype, stream } = *operands;
        let (x, out) = (x.0 as *const c_void, out.0 as *mut c_void);
        let (comm, count, stream) = (self.comm, count as usize, stream as Stream);
        let (kind, sum, own) = (kind(dtype), sys::ncclRedOp_t::ncclSum, self.functions);
        // SAFETY: the communicator is joined and of this thread's device; memory and stream are as said above.
        let (name, answer) = unsafe {
            match call {
                Call::Reduce { largest } => {
                    let op = if largest { sys::ncclRedOp_t::ncclMax } else { sum };
                    ("ncclAllReduce", (own.reduce)(x, out, count, kind, op, comm, stream))
                }
                Call::Gather => ("ncclAllGather", (own.gather)(x, out, count, kind, comm, stream)),
                Call::SumScatter => {
                    ("ncclReduceScatter", (own.scatter)(x, out, count, kind, sum, comm, stream))
                }
                Call::Broadcast { root } => {
                    ("ncclBroadcast", (own.broadcast)(x, out, count, kind, root as c_int, comm, stream))
                }
                Call::Send { to } => ("ncclSend", (own.send)(x, count, kind, to as c_int, comm, stream)),
                Call::Receive { from } => {
                    ("ncclRecv", (own.receive)(out, count, kind, from as c_int, comm, stream))
                }
            }
        };
        self.done(name, answer, waited)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if !self.comm.is_null() {
            // SAFETY: the communicator is used by nobody any more. Aborting does not wait for other ranks.
            let _ = unsafe { (self.functions.abort)(self.comm) };
        }
    }
}

fn kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F32 => sys::ncclDataType_t::ncclFloat32,
        Dtype::Bf16 => sys::ncclDataType_t::ncclBfloat16,
        Dtype::I32 => sys::ncclDataType_t::ncclInt32,
        Dtype::I8 => sys::ncclDataType_t::ncclInt8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wherever the tests run: a library that works, or a sentence that says what to install.
    #[test]
    fn the_library_is_there_or_said_to_be_missing() {
        match Nccl::open() {
            Ok(nccl) => assert!(nccl.version().starts_with('2'), "{}", nccl.version()),
            Err(error) => assert!(error.help().contains("2.17"), "{error}"),
        }
    }

    /// Where the library is but no GPU, joining fails with what it says, and does not hang.
    #[test]
    fn joining_without_a_gpu_is_an_error() {
        let gpu = std::path::Path::new("/dev/nvidia0").exists();
        if let (Ok(nccl), false) = (Nccl::open(), gpu) {
            let looks = std::cell::Cell::new(0);
            let waited = || looks.replace(looks.get() + 1) > 20_000;
            let joined = nccl.name().and_then(|name| nccl.join(&name, 0, 1, &waited));
            let told = joined.map(drop);
            assert!(matches!(told, Err(NcclError::Failed { .. })), "{told:?}");
        }
    }

    #[test]
    fn versions_are_told_as_people_write_them() {
        assert_eq!(dotted(22_705), "2.27.5");
        let old = NcclError::Old { found: 21_003 }.to_string();
        assert_eq!(old, "NCCL is too old: it is 2.10.3, ranks need 2.17.0");
    }
}

//! The door to NCCL. All calls into it are here, each with the reason why it is sound.
//!
//! The library is opened at run time and looked at before it is used: the binding panics where the library or a function is
//! missing, so both are asked for by name first. Communicators do not block: a call that is under way is asked about until it
//! is done or patience ends, so a peer that never comes ends in an error.
#![allow(unsafe_code)]

use super::bootstrap::NAME;
use crate::device::{Address, DeviceError};
use crate::program::Dtype;
use cudarc::nccl::result::{self, NcclError as Code, NcclStatus};
use cudarc::nccl::sys;
use std::ffi::{CStr, c_char, c_void};
use std::time::Duration;
use thiserror::Error;

/// The oldest version that is asked of: communicators that do not block came with 2.14, the form of their settings that is used
/// here with 2.17 (NCCL release notes). It numbers itself as 10000, 100 and 1 for major, minor and patch.
const OLDEST: i32 = 21_700;

/// What the settings of a communicator begin with (`NCCL_CONFIG_INITIALIZER` in nccl.h).
const MAGIC: u32 = 0xcafe_beef;

/// Between two questions whether a call is done.
const PAUSE: Duration = Duration::from_micros(200);

/// Every function that this file calls.
const FUNCTIONS: [&str; 11] = [
    "ncclGetVersion",
    "ncclGetUniqueId",
    "ncclGetErrorString",
    "ncclCommInitRankConfig",
    "ncclCommGetAsyncError",
    "ncclCommAbort",
    "ncclAllReduce",
    "ncclAllGather",
    "ncclReduceScatter",
    "ncclBroadcast",
    "ncclSend",
];

/// The one more that has no room above.
const RECEIVE: &str = "ncclRecv";

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
#[derive(Clone, Copy, Debug)]
pub struct Nccl {
    version: i32,
}

/// The ranks that a rank meets in one group.
#[derive(Debug)]
pub struct Communicator {
    comm: sys::ncclComm_t,
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
        // The binding looks for the name without a version first, which packages for development have; wheels have the other.
        // SAFETY: loading runs the library's initialisers, which NVIDIA documents as safe.
        if !unsafe { sys::is_culib_present() } {
            return Err(NcclError::Missing);
        }
        for function in FUNCTIONS.into_iter().chain([RECEIVE]) {
            // SAFETY: the library is there; the symbol is looked for and not called.
            let found = unsafe { sys::culib().get::<unsafe extern "C" fn()>(function.as_bytes()) };
            if found.is_err() {
                return Err(NcclError::NoFunction(function));
            }
        }
        let version = result::get_nccl_version().map_err(|code| failed("ncclGetVersion", &code))?;
        if version < OLDEST { Err(NcclError::Old { found: version }) } else { Ok(Nccl { version }) }
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
        let id = result::get_uniqueid().map_err(|code| failed("ncclGetUniqueId", &code))?;
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
        let mut comm: sys::ncclComm_t = std::ptr::null_mut();
        let call = "ncclCommInitRankConfig";
        // SAFETY: the function is there (`open`), both pointers are valid for the call, the name is passed by value.
        let joined =
            unsafe { result::comm_init_rank_config(&mut comm, ranks as i32, id, rank as i32, &mut settings) };
        let joined = joined.map_err(|code| failed(call, &code))?;
        let communicator = Communicator { comm };
        communicator.done(call, joined, waited)?;
        Ok(communicator)
    }
}

impl Communicator {
    /// Returns when a call is no longer under way.
    fn done(
        &self,
        call: &'static str,
        status: NcclStatus,
        waited: &dyn Fn() -> bool,
    ) -> Result<(), NcclError> {
        if status != NcclStatus::InProgress {
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
        let mut state = sys::ncclResult_t::ncclSuccess;
        // SAFETY: the communicator is not dropped yet, and the pointer is valid for the write.
        let asked = unsafe { sys::ncclCommGetAsyncError(self.comm, &mut state) };
        let told = asked.result().and_then(|_| state.result()).map_err(|code| failed(call, &code))?;
        Ok(told == NcclStatus::InProgress)
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
        let (comm, count, stream) = (self.comm, count as usize, stream as sys::cudaStream_t);
        let (kind, sum) = (kind(dtype), sys::ncclRedOp_t::ncclSum);
        // SAFETY: the communicator is joined and of this thread's device; memory and stream are as said above.
        let (name, answer) = unsafe {
            match call {
                Call::Reduce { largest } => {
                    let op = if largest { sys::ncclRedOp_t::ncclMax } else { sum };
                    ("ncclAllReduce", result::all_reduce(x, out, count, kind, op, comm, stream))
                }
                Call::Gather => ("ncclAllGather", result::all_gather(x, out, count, kind, comm, stream)),
                Call::SumScatter => {
                    ("ncclReduceScatter", result::reduce_scatter(x, out, count, kind, sum, comm, stream))
                }
                Call::Broadcast { root } => {
                    ("ncclBroadcast", result::broadcast(x, out, count, kind, root as i32, comm, stream))
                }
                Call::Send { to } => ("ncclSend", result::send(x, count, kind, to as i32, comm, stream)),
                Call::Receive { from } => {
                    (RECEIVE, result::recv(out, count, kind, from as i32, comm, stream))
                }
            }
        };
        self.done(name, answer.map_err(|code| failed(name, &code))?, waited)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if !self.comm.is_null() {
            // SAFETY: the communicator is used by nobody any more. Aborting does not wait for other ranks.
            let _ = unsafe { result::comm_abort(self.comm) };
        }
    }
}

fn kind(dtype: Dtype) -> sys::ncclDataType_t {
    match dtype {
        Dtype::F32 => sys::ncclDataType_t::ncclFloat32,
        Dtype::Bf16 => sys::ncclDataType_t::ncclBfloat16,
        Dtype::I32 => sys::ncclDataType_t::ncclInt32,
        Dtype::I8 => sys::ncclDataType_t::ncclInt8,
    }
}

fn failed(call: &'static str, code: &Code) -> NcclError {
    // SAFETY: the function is there (`open`) and returns a sentence that lives as long as the library.
    let text = unsafe { CStr::from_ptr(sys::ncclGetErrorString(code.0)) };
    NcclError::Failed { call, answer: text.to_string_lossy().into_owned() }
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
            assert!(matches!(joined, Err(NcclError::Failed { .. })), "{joined:?}");
        }
    }

    #[test]
    fn versions_are_told_as_people_write_them() {
        assert_eq!(dotted(22_705), "2.27.5");
        let old = NcclError::Old { found: 21_003 }.to_string();
        assert_eq!(old, "NCCL is too old: it is 2.10.3, ranks need 2.17.0");
    }
}

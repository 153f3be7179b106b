//! Where compiled code is entered.
//!
//! This is one of the two files with `unsafe`: machine code is a pointer that Rust knows nothing about. Three things
//! make the call sound: [`crate::rows::Kernel::run`] asserts that every source and sink holds all rows up to the padded
//! width, which is all that [`crate::rows::emit`] reads and writes; sinks are borrowed mutably, so nothing overlaps them;
//! and the code keeps the memory it lies in alive.
#![allow(unsafe_code)]

use crate::program::RowFn;
use crate::rows::emit::{emit, scratch_len};
use crate::rows::{Sink, Source, Turn};
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{AbiParam, UserFuncName};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{Linkage, Module, default_libcall_names};
use std::sync::{Arc, Mutex, PoisonError};

/// Rows as compiled code finds them.
#[repr(C)]
struct Argument {
    address: *const f32,
    /// Bytes from one row to the next.
    pitch: u64,
}

/// The form of every compiled function: arguments, number of rows, scratch.
type Entry = unsafe extern "C" fn(*const Argument, u64, *mut f32);

/// The executable memory of a model's functions; freed with the last of them.
struct Owner(Mutex<Option<JITModule>>);

impl Drop for Owner {
    fn drop(&mut self) {
        let module = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(module) = module {
            // SAFETY: every `Code` holds the owner, so nobody can enter the memory any more.
            unsafe { module.free_memory() }
        }
    }
}

/// Compiles row functions.
pub struct Jit {
    owner: Arc<Owner>,
    context: FunctionBuilderContext,
    count: u32,
}

impl Jit {
    /// A compiler for this processor; none where Cranelift does not know it.
    pub fn new() -> Option<Jit> {
        let mut flags = settings::builder();
        for (name, value) in
            [("opt_level", "speed"), ("is_pic", "false"), ("use_colocated_libcalls", "false")]
        {
            flags.set(name, value).ok()?;
        }
        let isa = cranelift_native::builder().ok()?.finish(settings::Flags::new(flags)).ok()?;
        let module = JITModule::new(JITBuilder::with_isa(isa, default_libcall_names()));
        let owner = Arc::new(Owner(Mutex::new(Some(module))));
        Some(Jit { owner, context: FunctionBuilderContext::new(), count: 0 })
    }

    /// Compiles a function; none where the processor lacks what it needs, and it is interpreted instead.
    pub fn compile(&mut self, function: &RowFn, turns: &[Turn]) -> Option<Code> {
        let mut held = self.owner.0.lock().unwrap_or_else(PoisonError::into_inner);
        let module = held.as_mut()?;
        let mut context = module.make_context();
        context.func.signature.params.extend([AbiParam::new(I64); 3]);
        let name = format!("rows.{}", self.count);
        let id = module.declare_function(&name, Linkage::Local, &context.func.signature).ok()?;
        context.func.name = UserFuncName::user(0, self.count);
        self.count += 1;
        let mut builder = FunctionBuilder::new(&mut context.func, &mut self.context);
        emit(function, turns, &mut builder);
        builder.finalize(module.target_config());
        module.define_function(id, &mut context).ok()?;
        module.finalize_definitions().ok()?;
        let address = module.get_finalized_function(id);
        // SAFETY: the address is that of a function just compiled with this signature and the C calling convention.
        let entry = unsafe { std::mem::transmute::<*const u8, Entry>(address) };
        Some(Code { entry, scratch: scratch_len(function), _owner: self.owner.clone() })
    }
}

/// A compiled row function.
pub struct Code {
    entry: Entry,
    scratch: usize,
    _owner: Arc<Owner>,
}

impl Code {
    /// Runs over rows whose lengths were asserted.
    pub fn run(&self, rows: usize, sources: &[Source], sinks: &mut [Sink], scratch: &mut Vec<f32>) {
        scratch.resize(self.scratch.max(scratch.len()), 0.0);
        let bytes = |elements: usize| 4 * elements as u64;
        let read = sources.iter().map(|s| Argument { address: s.data.as_ptr(), pitch: bytes(s.pitch) });
        let written =
            sinks.iter_mut().map(|s| Argument { address: s.data.as_mut_ptr(), pitch: bytes(s.pitch) });
        let arguments: Vec<Argument> = read.chain(written).collect();
        // SAFETY: the arguments hold `rows` rows up to the padded width, and scratch holds one row of every value.
        unsafe { (self.entry)(arguments.as_ptr(), rows as u64, scratch.as_mut_ptr()) }
    }
}

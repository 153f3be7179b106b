//! Machine code for the vector ops of task bodies: one function per distinct shape of op, compiled by Cranelift once.
//!
//! This is the file of this crate with `unsafe`: machine code is a pointer that Rust knows nothing about. What makes the
//! call sound: [`Code::run`] asserts that every operand holds all elements that the code reads or writes, and the code
//! keeps the memory it lies in alive. The numbers are those of the interpreter, bit by bit, which a test holds.
#![allow(unsafe_code)]

use super::emit::{Shape, emit};
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{AbiParam, UserFuncName};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{Linkage, Module, default_libcall_names};
use std::sync::{Arc, Mutex, PoisonError};

/// An operand, as compiled code finds it: the first element, and bytes from one to the next.
#[repr(C)]
#[derive(Clone, Copy)]
struct Argument {
    address: *mut u8,
    step: i64,
}

/// What compiled code is called with.
#[repr(C)]
struct Arguments {
    count: u64,
    /// The destination, then the sources.
    operands: [Argument; 4],
    scalars: [f32; 3],
}

/// The form of every compiled function.
type Entry = unsafe extern "C" fn(*const Arguments);

/// Executable memory; freed with the last function in it.
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

/// Elements of an operand: where the first is and how far apart they are, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the memory of the PE.
    Memory { at: usize, step: i64 },
    /// Among the words of the operand (sources) or the results (destination), from this element on.
    Words(usize),
    /// A scalar, or no operand.
    Nowhere,
}

/// Compiled functions by shape.
pub struct Compiled {
    shapes: Vec<Shape>,
    codes: Vec<Code>,
}

impl Compiled {
    /// Compiles all shapes; none where Cranelift does not know the processor.
    pub fn new(shapes: Vec<Shape>) -> Option<Compiled> {
        let mut flags = settings::builder();
        for (name, value) in
            [("opt_level", "speed"), ("is_pic", "false"), ("use_colocated_libcalls", "false")]
        {
            flags.set(name, value).ok()?;
        }
        let isa = cranelift_native::builder().ok()?.finish(settings::Flags::new(flags)).ok()?;
        let mut module = JITModule::new(JITBuilder::with_isa(isa, default_libcall_names()));
        let mut scratch = FunctionBuilderContext::new();
        let mut functions = Vec::new();
        for (index, shape) in (0u32..).zip(&shapes) {
            let mut context = module.make_context();
            context.func.signature.params.push(AbiParam::new(I64));
            let name = format!("op.{index}");
            let id = module.declare_function(&name, Linkage::Local, &context.func.signature).ok()?;
            context.func.name = UserFuncName::user(0, index);
            let mut builder = FunctionBuilder::new(&mut context.func, &mut scratch);
            emit(shape, &mut builder);
            builder.finalize(module.target_config());
            module.define_function(id, &mut context).ok()?;
            functions.push(id);
        }
        module.finalize_definitions().ok()?;
        let addresses: Vec<*const u8> =
            functions.iter().map(|id| module.get_finalized_function(*id)).collect();
        let owner = Arc::new(Owner(Mutex::new(Some(module))));
        let code = |address: *const u8| {
            // SAFETY: the address is that of a function just compiled with this signature and the C calling convention.
            let entry = unsafe { std::mem::transmute::<*const u8, Entry>(address) };
            Code { entry, _owner: owner.clone() }
        };
        Some(Compiled { shapes, codes: addresses.into_iter().map(code).collect() })
    }

    /// The code of function number `index`, from 1, and its shape.
    pub fn get(&self, index: u16) -> Option<(&Code, &Shape)> {
        let index = usize::from(index).checked_sub(1)?;
        Some((self.codes.get(index)?, self.shapes.get(index)?))
    }
}

/// A compiled function.
pub struct Code {
    entry: Entry,
    _owner: Arc<Owner>,
}

impl Code {
    /// Computes `count` elements: `places` are the destination and the sources, `memory` that of the PE.
    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &self,
        shape: &Shape,
        count: usize,
        places: [Place; 4],
        memory: &mut [u8],
        operands: &[Vec<f32>; 3],
        out: &mut [f32],
        scalars: [f32; 3],
    ) {
        let nothing = Argument { address: std::ptr::null_mut(), step: 0 };
        let mut arguments = Arguments { count: count as u64, operands: [nothing; 4], scalars };
        if count == 0 {
            return;
        }
        for (k, place) in places.into_iter().enumerate() {
            arguments.operands[k] = match place {
                Place::Nowhere => {
                    assert!(k > shape.sources() || shape.is_scalar(k), "operand {k} is missing");
                    nothing
                }
                Place::Memory { at, step } => {
                    let last = at as i64 + (count as i64 - 1) * step;
                    let size = shape.bytes(k) as i64;
                    let inside = |at: i64| at >= 0 && at + size <= memory.len() as i64;
                    assert!(inside(at as i64) && inside(last), "operand {k} reaches beyond the memory");
                    Argument { address: memory[at..].as_mut_ptr(), step }
                }
                Place::Words(first) if k == 0 => {
                    assert!(first + count <= out.len(), "results do not fit");
                    Argument { address: out[first..].as_mut_ptr().cast(), step: 4 }
                }
                Place::Words(first) => {
                    let words = &operands[k - 1][first..];
                    assert!(count <= words.len(), "operand {k} has too few words");
                    Argument { address: words.as_ptr().cast_mut().cast(), step: 4 }
                }
            };
        }
        // SAFETY: all elements of all operands are inside what was asserted; only the destination is written.
        unsafe { (self.entry)(&arguments) }
    }
}

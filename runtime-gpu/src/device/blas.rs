//! The door to cuBLASLt, opened at run time where it is. All calls into it are here, each with the reason why it is sound.
//!
//! A row-major `out = a · w^T` is the library's column-major `out^T = w · a^T`: its left factor is `w`, its right one `a`.
//! What it picks for a product's sizes is looked up once; the memory it may work in is the caller's.
#![allow(unsafe_code)]

use super::{Address, DeviceError, Product};
use crate::program::{Dtype, Gemm, LIBRARY_WORKSPACE_BYTES};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use std::collections::BTreeMap;
use std::ffi::c_void;

/// Every function that this file calls.
const FUNCTIONS: [&str; 9] = [
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmul",
];

/// The library, known to be there.
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: Address,
    plans: BTreeMap<Shape, Plan>,
}

/// What the library's choice depends on: sizes, distances between rows, which way operands lie, types, and what is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Shape {
    sizes: [u64; 3],
    between_rows: [u64; 3],
    turned: [bool; 2],
    types: [Dtype; 2],
    residual: bool,
    bias: bool,
}

impl Shape {
    fn of(product: &Product) -> Shape {
        let g = &product.gemm;
        Shape {
            sizes: [g.m, g.n, g.k],
            between_rows: [g.lda, g.ldw, g.ldo],
            turned: [g.transpose_a, g.transpose_w],
            types: [g.dtype, g.out_dtype.unwrap_or(g.dtype)],
            residual: product.residual.is_some(),
            bias: product.bias.is_some(),
        }
    }
}

/// A product as the library wants it described. Descriptions are a few hundred bytes and stay until the process ends.
struct Plan {
    product: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    w: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

fn told<T>(what: &str, outcome: Result<T, CublasError>) -> Result<T, DeviceError> {
    outcome.map_err(|error| DeviceError::Call { what: what.into(), code: format!("{:?}", error.0) })
}

/// Loads the library for the rest of the process, and makes sure that it has every function.
fn open_library() -> Result<(), DeviceError> {
    // SAFETY: loading runs the library's initialisers, which NVIDIA documents as safe; the handle is leaked on purpose, so
    // that the binding finds the same library by its name.
    let library =
        unsafe { libloading::Library::new("libcublasLt.so.12") }.map_err(|_| DeviceError::NoLibrary)?;
    // SAFETY: only tries to open the library; without this check the binding panics where it finds none.
    if !unsafe { sys::is_culib_present() } {
        return Err(DeviceError::NoLibrary);
    }
    for name in FUNCTIONS {
        // SAFETY: the symbol is looked up and not called.
        let found = unsafe { library.get::<*const c_void>(name.as_bytes()) };
        found.map_err(|_| DeviceError::NoFunction { name: name.into() })?;
    }
    std::mem::forget(library);
    Ok(())
}

impl Blas {
    /// Opens the library for the current context; `workspace` has [`LIBRARY_WORKSPACE_BYTES`] for as long as this value lives.
    ///
    /// # Errors
    /// [`DeviceError::NoLibrary`] where it is not there, and what it says.
    pub(super) fn open(
        workspace: &mut dyn FnMut() -> Result<Address, DeviceError>,
    ) -> Result<Blas, DeviceError> {
        open_library()?;
        let handle = told("cublasLtCreate", result::create_handle())?;
        Ok(Blas { handle, workspace: workspace()?, plans: BTreeMap::new() })
    }

    /// Puts a product into a stream.
    ///
    /// # Errors
    /// What the library says, such as that it has no algorithm for the sizes.
    pub(super) fn multiply(&mut self, product: &Product, stream: *mut c_void) -> Result<(), DeviceError> {
        let shape = Shape::of(product);
        if !self.plans.contains_key(&shape) {
            let plan = self.plan(&product.gemm, &shape)?;
            self.plans.insert(shape, plan);
        }
        let Some(plan) = self.plans.get(&shape) else { return Err(DeviceError::NoLibrary) };
        if let Some(bias) = product.bias {
            set(
                plan.product,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                &bias.0,
            )?;
        }
        let (alpha, beta) =
            (product.gemm.alpha as f32, if shape.residual { product.gemm.beta as f32 } else { 0.0 });
        let pointer = |at: Address| at.0 as *const c_void;
        let residual = product.residual.unwrap_or(product.out);
        // SAFETY: handle and descriptions are alive, factors are read before the call returns, and the addresses are those of
        // a checked program: each within memory that the program's owner keeps.
        let done = unsafe {
            result::matmul(
                self.handle,
                plan.product,
                std::ptr::from_ref(&alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                pointer(product.w),
                plan.w,
                pointer(product.a),
                plan.a,
                pointer(residual),
                plan.out,
                product.out.0 as *mut c_void,
                plan.out,
                &raw const plan.algorithm,
                self.workspace.0 as *mut c_void,
                LIBRARY_WORKSPACE_BYTES as usize,
                stream.cast(),
            )
        };
        told("cublasLtMatmul", done)
    }

    /// Describes a product, and asks for the algorithm that the library thinks is the fastest.
    fn plan(&self, gemm: &Gemm, shape: &Shape) -> Result<Plan, DeviceError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let [m, n, k] = shape.sizes;
        let [lda, ldw, ldo] = shape.between_rows;
        let single = sys::cudaDataType_t::CUDA_R_32F;
        let (factors, sums) = (data_type(shape.types[0]), data_type(shape.types[1]));
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let product = told("cublasLtMatmulDescCreate", result::create_matmul_desc(compute, single))?;
        set(product, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &i32::from(gemm.transpose_w))?;
        set(product, Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &i32::from(gemm.transpose_a))?;
        if shape.bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            set(product, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            set(product, Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &(factors as i32))?;
        }
        let layout = |ty, rows, cols, between: u64| {
            told("cublasLtMatrixLayoutCreate", result::create_matrix_layout(ty, rows, cols, between as i64))
        };
        // Columns of the library are our rows.
        let w = if gemm.transpose_w { layout(factors, k, n, ldw)? } else { layout(factors, n, k, ldw)? };
        let a = if gemm.transpose_a { layout(factors, m, k, lda)? } else { layout(factors, k, m, lda)? };
        let out = layout(sums, n, m, ldo)?;
        let preference = told("cublasLtMatmulPreferenceCreate", result::create_matmul_pref())?;
        let most = LIBRARY_WORKSPACE_BYTES as usize;
        let room = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: the preference was made above; the value is a size_t, as the attribute asks for, and is copied.
        let limited = unsafe {
            result::set_matmul_pref_attribute(
                preference,
                room,
                std::ptr::from_ref(&most).cast(),
                size_of::<usize>(),
            )
        };
        told("cublasLtMatmulPreferenceSetAttribute", limited)?;
        // SAFETY: all descriptions were made above.
        let found =
            unsafe { result::get_matmul_algo_heuristic(self.handle, product, w, a, out, out, preference) };
        let algorithm = told("cublasLtMatmulAlgoGetHeuristic", found)?.algo;
        Ok(Plan { product, a, w, out, algorithm })
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: made by `open`, not used again; a failure leaks it until the process ends.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn data_type(dtype: Dtype) -> sys::cudaDataType_t {
    match dtype {
        Dtype::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        Dtype::F32 => sys::cudaDataType_t::CUDA_R_32F,
        Dtype::I32 => sys::cudaDataType_t::CUDA_R_32I,
        Dtype::I8 => sys::cudaDataType_t::CUDA_R_8I,
    }
}

/// Sets an attribute of a product's description; `T` is the type that the library documents for it.
fn set<T>(
    product: sys::cublasLtMatmulDesc_t,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> Result<(), DeviceError> {
    // SAFETY: the description is alive, and so many bytes are read from the value before the call returns.
    let done = unsafe {
        result::set_matmul_desc_attribute(
            product,
            attribute,
            std::ptr::from_ref(value).cast(),
            size_of::<T>(),
        )
    };
    told("cublasLtMatmulDescSetAttribute", done)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the library is missing this must say so and not panic; where it is, it opens or says why not.
    #[test]
    fn opening_never_panics() {
        let opened = Blas::open(&mut || Ok(Address(256)));
        if let Err(error) = opened {
            let known = matches!(
                error,
                DeviceError::NoLibrary | DeviceError::NoFunction { .. } | DeviceError::Call { .. }
            );
            assert!(known, "{error}");
        }
    }
}

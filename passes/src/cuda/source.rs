//! Puts a kernel's text together: the paragraph that explains it, the shared functions, its constants, its code.
use super::spec::{KernelSpec, Source};
use super::{CudaError, KernelArg, Operand};
use lapidary_runtime_gpu::program::packing::PackGroup;
use lapidary_runtime_gpu::program::{Access, Dtype, PackSource, Packing, RowOrder};
use std::fmt::Write as _;

const MACHINE: &str = include_str!("device/machine.cuh");
const PRELUDE: &str = include_str!("device/prelude.cuh");

/// The C name of an element type.
pub(crate) fn c_type(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bf16 => "bf16",
        Dtype::F32 => "float",
        Dtype::I32 => "int",
    }
}

/// A float constant as C text that reads back exactly.
pub(crate) fn c_float(value: f64) -> String {
    format!("{:e}f", value as f32)
}

/// The paragraph at the top, the machine's instructions (replaced when kernels run on a host) and the prelude.
pub(crate) fn opening(paragraph: &str) -> String {
    let mut text = String::new();
    for line in wrap(paragraph, 108) {
        let _ = writeln!(text, "// {line}");
    }
    text.push_str("\n#ifndef LAPIDARY_EMULATION\n#define LP_MACHINE static __device__ __forceinline__\n");
    text.push_str("#define LP_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]\n");
    text.push_str(MACHINE);
    text.push_str("#endif\n");
    text.push_str(PRELUDE);
    text.push('\n');
    text
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last().map_or(0, |line| line.chars().count());
        if last > 0 && last + 1 + word.chars().count() > width {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// `constexpr int NAME = value;` lines.
pub(crate) fn constants(pairs: &[(&str, u64)]) -> String {
    pairs.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "constexpr int {name} = {value};");
        text
    })
}

/// Parameters of an entry point with their C names, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Signature {
    pub args: Vec<KernelArg>,
    pub names: Vec<String>,
    pub types: Vec<String>,
}

impl Signature {
    /// Adds a pointer that is only read. Weights are never written, so only they are `__restrict__`.
    pub fn read(&mut self, operand: Operand, dtype: Dtype, name: impl Into<String>) {
        let restrict = if matches!(operand, Operand::Param(..)) { " __restrict__" } else { "" };
        self.push(operand, Access::Read, format!("const {}*{restrict}", c_type(dtype)), name.into());
    }

    /// Adds a pointer that is written.
    pub fn write(&mut self, operand: Operand, access: Access, dtype: Dtype, name: impl Into<String>) {
        self.push(operand, access, format!("{}*", c_type(dtype)), name.into());
    }

    fn push(&mut self, operand: Operand, access: Access, ty: String, name: String) {
        self.args.push(KernelArg { operand, access });
        self.types.push(ty);
        self.names.push(name);
    }

    /// `const bf16* in0, bf16* out0`.
    pub fn parameters(&self) -> String {
        let pairs = self.types.iter().zip(&self.names);
        pairs.map(|(ty, name)| format!("{ty} {name}")).collect::<Vec<_>>().join(", ")
    }

    /// A struct of the same pointers, for functions that take them all.
    pub fn structure(&self) -> String {
        let fields = self.types.iter().zip(&self.names);
        let fields: String = fields.map(|(ty, name)| format!("    {ty} {name};\n")).collect();
        format!("struct Args {{\n{fields}}};\n")
    }

    /// Builds the struct from the parameters.
    pub fn bundle(&self) -> String {
        format!("    const Args args = {{{}}};\n", self.names.join(", "))
    }
}

impl KernelSpec {
    /// The recipe of a parameter that is used as it is (a table, a norm weight), or of a bias in the order of its columns.
    pub(crate) fn plain_packing(&self, input: usize, order: RowOrder) -> Result<Packing, CudaError> {
        let Source::Param { name, scale } = &self.inputs[input].source else {
            return Err(self.malformed(format!("input {input} is used as a parameter but is an activation")));
        };
        let ty = &self.inputs[input].ty;
        let source = PackSource { name: name.clone(), rows: ty.rows(), scale: *scale, order };
        let groups = vec![PackGroup { first_row: 0, sources: vec![source] }];
        Ok(Packing { groups, rows: ty.rows(), cols: ty.cols(), pitch: ty.pitch() })
    }
}

//! Puts a kernel's text together: the paragraph that explains it, the shared functions, its constants, its code.
use super::spec::{KernelSpec, Source};
use super::{CudaError, KernelArg, Operand};
use lapidary_runtime_gpu::program::packing::PackGroup;
use lapidary_runtime_gpu::program::{Access, Boxes, Dtype, PackForm, PackSource, Packing, RowOrder};
use std::fmt::Write as _;
use std::ops::RangeBounds;

const MACHINE: &str = include_str!("device/machine.cuh");
const HOPPER: &str = include_str!("device/machine_90.cuh");
const PRELUDE: &str = include_str!("device/prelude.cuh");

/// The C name of an element type.
pub(crate) fn c_type(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bf16 => "bf16",
        Dtype::F32 => "float",
        Dtype::I32 => "int",
        Dtype::I8 => "signed char",
    }
}

/// A float constant as C text that reads back exactly.
pub(crate) fn c_float(value: f64) -> String {
    format!("{:e}f", value as f32)
}

/// Whose instructions a kernel uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machine<'a> {
    /// Those of every supported GPU.
    Ampere,
    /// Those of `sm_90a` too, with these products.
    Hopper(&'a [WarpgroupProduct]),
}

/// A product of a warpgroup: 64 rows by so many columns, 16 deep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WarpgroupProduct {
    /// A multiple of 8 up to 256.
    pub columns: u64,
    /// Whether the left factor is in registers instead of shared memory.
    pub held: bool,
}

/// The opening of kernels for every supported GPU.
pub(crate) fn opening(paragraph: &str) -> String {
    opening_for(Machine::Ampere, paragraph)
}

/// The paragraph at the top, the machine's instructions (replaced when kernels run on a host) and the prelude.
pub(crate) fn opening_for(machine: Machine<'_>, paragraph: &str) -> String {
    let mut text = String::new();
    for line in wrap(paragraph, 108) {
        let _ = writeln!(text, "// {line}");
    }
    text.push_str("\n#ifndef LAPIDARY_EMULATION\n#define LP_MACHINE static __device__ __forceinline__\n");
    text.push_str("#define LP_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]\n");
    text.push_str(MACHINE);
    if let Machine::Hopper(products) = machine {
        text.push_str(HOPPER);
        products.iter().for_each(|product| text.push_str(&product.text()));
    }
    text.push_str("#endif\n");
    text.push_str(PRELUDE);
    text.push('\n');
    text
}

impl WarpgroupProduct {
    /// The function: one instruction with a register for every sum of a thread.
    fn text(self) -> String {
        let columns = self.columns;
        let sums = columns / 2;
        let registers: Vec<String> = (0..sums).map(|i| format!("%{i}")).collect();
        let operands: Vec<String> = (0..sums).map(|i| format!("\"+f\"(d[{}][{}])", i / 4, i % 4)).collect();
        let lines = |words: &[String], each: usize| -> Vec<String> {
            words.chunks(each).map(|line| line.join(", ")).collect()
        };
        let (what, head, left, inputs) = match self.held {
            false => (
                "a and b in shared memory; a turned one has one row per step of depth",
                "template <bool A_TURNED = false, bool B_TURNED = false>\n\
                 LP_MACHINE void lp_product_64(float (&d)[{}][4], unsigned long long a, unsigned long long b, int adds)",
                1,
                "\"l\"(a), \"l\"(b), \"r\"(adds), \"n\"(int(A_TURNED)), \"n\"(int(B_TURNED))",
            ),
            true => (
                "a in registers, b in shared memory; a turned one has one row per step of depth",
                "template <bool B_TURNED = false>\n\
                 LP_MACHINE void lp_product_held(float (&d)[{}][4], const unsigned (&a)[4], unsigned long long b, int adds)",
                4,
                "\"r\"(a[0]), \"r\"(a[1]), \"r\"(a[2]), \"r\"(a[3]), \"l\"(b), \"r\"(adds), \"n\"(int(B_TURNED))",
            ),
        };
        let head = head.replace("{}", &(columns / 8).to_string());
        let (b, adds) = (sums + left, sums + left + 1);
        let (a, turned) = match self.held {
            false => (format!("%{sums}"), format!("%{}, %{}", adds + 1, adds + 2)),
            true => {
                let held: Vec<String> = (sums..sums + 4).map(|i| format!("%{i}")).collect();
                (format!("{{{}}}", held.join(", ")), format!("%{}", adds + 1))
            }
        };
        format!(
            "// d[64 x {columns}] (+)= a[64 x 16] b[16 x {columns}], bf16 factors, f32 sums; {what}. Adds to d where told to.\n\
             {head} {{\n    \
             asm volatile(\n        \"{{\\n\\t.reg .pred adds;\\n\\tsetp.ne.b32 adds, %{adds}, 0;\\n\\t\"\n        \
             \"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.bf16.bf16 {{\"\n        \"{}}}, \"\n        \
             \"{a}, %{b}, adds, 1, 1, {turned};\\n\\t}}\"\n        : {}\n        : {inputs});\n}}\n",
            lines(&registers, 16).join(", \"\n        \""),
            lines(&operands, 6).join(",\n          "),
        )
    }
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

    /// Adds a matrix that the copy engine fetches boxes of.
    pub fn boxes(&mut self, operand: Operand, boxes: Boxes, name: &str) {
        self.args.push(KernelArg { operand, access: Access::Read, boxes: Some(boxes) });
        self.types.push("LP_MAP".into());
        self.names.push(name.into());
    }

    /// Makes a pointer among them a matrix that the copy engine fetches boxes of.
    pub fn fetch(&mut self, at: usize, boxes: Boxes) {
        self.args[at].boxes = Some(boxes);
        self.types[at] = "LP_MAP".into();
    }

    /// Some of them.
    pub fn range(&self, range: impl RangeBounds<usize> + Clone) -> Signature {
        let bounds = (range.start_bound().cloned(), range.end_bound().cloned());
        Signature {
            args: self.args[bounds].to_vec(),
            names: self.names[bounds].to_vec(),
            types: self.types[bounds].to_vec(),
        }
    }

    /// Adds all of another's.
    pub fn append(&mut self, other: Signature) {
        self.args.extend(other.args);
        self.names.extend(other.names);
        self.types.extend(other.types);
    }

    /// Adds a pointer that is written.
    pub fn write(&mut self, operand: Operand, access: Access, dtype: Dtype, name: impl Into<String>) {
        self.push(operand, access, format!("{}*", c_type(dtype)), name.into());
    }

    fn push(&mut self, operand: Operand, access: Access, ty: String, name: String) {
        self.args.push(KernelArg { operand, access, boxes: None });
        self.types.push(ty);
        self.names.push(name);
    }

    /// `const bf16* in0, bf16* out0`.
    pub fn parameters(&self) -> String {
        let pairs = self.types.iter().zip(&self.names);
        pairs.map(|(ty, name)| format!("{ty} {name}")).collect::<Vec<_>>().join(", ")
    }

    /// A struct of the pointers among them, for functions that take them all.
    pub fn structure(&self) -> String {
        let fields = self.types.iter().zip(&self.names).filter(|(ty, _)| *ty != "LP_MAP");
        let fields: String = fields.map(|(ty, name)| format!("    {ty} {name};\n")).collect();
        format!("struct Args {{\n{fields}}};\n")
    }

    /// Builds the struct from the parameters.
    pub fn bundle(&self) -> String {
        let fields = self.types.iter().zip(&self.names).filter(|(ty, _)| *ty != "LP_MAP");
        let names: Vec<&str> = fields.map(|(_, name)| name.as_str()).collect();
        format!("    const Args args = {{{}}};\n", names.join(", "))
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
        Ok(Packing { groups, rows: ty.rows(), cols: ty.cols(), pitch: ty.pitch(), form: PackForm::Values })
    }
}

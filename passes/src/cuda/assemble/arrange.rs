//! Kernels that lay rows and columns elsewhere: what ranks hear lies in parts, and what they tell is sometimes a run of rows.
use super::Assembler;
use crate::cuda::source::{c_type, opening};
use crate::cuda::spec::TensorType;
use lapidary_runtime_gpu::program::{Arg, Dtype, Kernel, KernelKind, Launch, Step};
use std::fmt::Write as _;

const ARRANGE: &str = include_str!("../device/arrange.cuh");
const THREADS: u64 = 256;

/// Which elements of a matrix go where: element (r, c) of the result is (r + `first_row`, c + `first_col`) of the source,
/// zero outside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arrange {
    /// Element type of both.
    pub dtype: Dtype,
    /// Rows and columns of the source that count.
    pub x: [u64; 2],
    /// Elements between its rows.
    pub x_pitch: u64,
    /// Columns of a part of the source; all of them where there are no parts.
    pub part: u64,
    /// Elements from one part to the next.
    pub part_stride: u64,
    /// The source's row of the result's first.
    pub first_row: i64,
    /// The source's column of the result's first.
    pub first_col: i64,
    /// Rows and columns of the result.
    pub out: [u64; 2],
    /// Elements between its rows.
    pub pitch: u64,
    /// Whether it is added to what is there.
    pub adds: bool,
}

impl Arrange {
    /// Everything of one value becomes another, as far as both go.
    pub fn of(x: &TensorType, out: &TensorType) -> Arrange {
        Arrange {
            dtype: x.dtype,
            x: [x.rows(), x.cols()],
            x_pitch: x.pitch(),
            part: x.cols(),
            part_stride: 0,
            first_row: 0,
            first_col: 0,
            out: [out.rows(), out.cols()],
            pitch: out.pitch(),
            adds: false,
        }
    }

    /// Columns of a run: 16 bytes where both sides begin on such boundaries.
    fn width(&self) -> u64 {
        let vector = self.dtype.vector();
        let aligned = self.part.is_multiple_of(vector) || self.part >= self.x[1];
        let whole = aligned && self.first_col.unsigned_abs().is_multiple_of(vector);
        let rows = self.part_stride.is_multiple_of(vector);
        if whole && rows { vector } else { 1 }
    }

    fn text(&self, name: &str, why: &str) -> String {
        let width = self.width();
        let runs = self.out[0] * self.out[1].div_ceil(width);
        let about = format!("{name}: {} rows of {} columns laid in place. {why}", self.out[0], self.out[1]);
        let mut text = opening(&about);
        let numbers: [(&str, i128); 12] = [
            ("THREADS", THREADS.into()),
            ("W", width.into()),
            ("ROW_RUNS", self.out[1].div_ceil(width).into()),
            ("COLS", self.out[1].into()),
            ("PITCH", self.pitch.into()),
            ("X_ROWS", self.x[0].into()),
            ("X_COLS", self.x[1].into()),
            ("X_PITCH", self.x_pitch.into()),
            ("PART", self.part.max(1).into()),
            ("FIRST_ROW", self.first_row.into()),
            ("FIRST_COL", self.first_col.into()),
            ("ADDS", i128::from(self.adds)),
        ];
        for (key, value) in numbers {
            let _ = writeln!(text, "constexpr int {key} = {value};");
        }
        let _ =
            writeln!(text, "constexpr unsigned long long RUNS = {runs}, PART_STRIDE = {};", self.part_stride);
        let element = c_type(self.dtype);
        let _ = write!(
            text,
            "typedef {element} Element;\n{ARRANGE}\nextern \"C\" __global__ void __launch_bounds__(THREADS) {name}(const \
             {element}* x, {element}* out) {{\n    lp_arrange(x, out);\n}}\n"
        );
        text
    }
}

impl Assembler<'_> {
    /// The kernel of an arrangement and its launch. A name that says all about the arrangement stands for one kernel.
    pub(super) fn arrange(&mut self, name: &str, arrange: Arrange, (x, out): (Arg, Arg), why: &str) -> Step {
        let runs = arrange.out[0] * arrange.out[1].div_ceil(arrange.width());
        let (grid, block) = ([runs.div_ceil(THREADS) as u32, 1, 1], [THREADS as u32, 1, 1]);
        let launch = Launch { kernel: name.into(), grid, block, shared_bytes: 0, args: vec![x, out] };
        let text = arrange.text(name, why);
        if self.sources.iter().any(|known| known.name == name && known.text == text) {
            return Step::Launch(launch);
        }
        let file = format!("kernels/{name}.cu");
        let elements = arrange.out[0].saturating_mul(arrange.out[1]);
        self.kernels.push(Kernel {
            name: name.into(),
            file: Some(file.clone()),
            entry: name.into(),
            kind: KernelKind::Generated,
            anchor: "elementwise".into(),
            ops: vec!["arrange".into()],
            reason: why.into(),
            choice: None,
            registers: None,
            shared_bytes: 0,
            spill_bytes: None,
            flops: 0,
            bytes: 2 * elements * arrange.dtype.bytes(),
        });
        self.sources.push(super::KernelSource { name: name.into(), file, text });
        Step::Launch(launch)
    }
}

//! The program that picks tokens on the device: greedily, or at random among the likeliest.
//!
//! It stands beside a decode program and shares its `logits`, its `ids`, into which the picked tokens go, and its `cached`
//! position, which moves on by one. What it picks and when is what the host's sampler does with the same seed; how is told in
//! `device/sample.cuh`.
//!
//! | buffer | values |
//! |---|---|
//! | `settings` | temperature (0: the likeliest), share of the probability, how many of the likeliest (0: all) |
//! | `random` | state of each sequence's random numbers, low word first |
//! | `made` | tokens picked so far, of each sequence |
//! | `history` | the tokens |
use super::CudaError;
use super::assemble::{KernelSource, Lowered, buffer};
use super::source::{c_type, constants, opening};
use super::spec::TensorType;
use lapidary_runtime_gpu::program::{
    Access, Arg, Buffer, BufferKind, Dtype, GpuProgram, Kernel, KernelKind, Launch, SCHEMA, Step,
};

const ROW: &str = include_str!("device/row.cuh");
const SAMPLE: &str = include_str!("device/sample.cuh");

/// Ids have 20 bits in the rank of an element.
const MOST_IDS: u64 = 1 << 20;

/// What is picked from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampler {
    /// Sequences.
    pub batch: u64,
    /// Tokens that may be picked.
    pub vocab: u64,
    /// Logits of a row, padding of the vocabulary included.
    pub width: u64,
    /// Their element type.
    pub dtype: Dtype,
    /// Most tokens of a sequence.
    pub steps: u64,
}

impl Sampler {
    /// The program, for an architecture, and its one kernel.
    ///
    /// # Errors
    /// [`CudaError::Unsupported`] for a vocabulary of more than 2^20 tokens, [`CudaError::Malformed`] where nothing can be
    /// picked.
    pub fn lower(&self, arch: &str) -> Result<Lowered, CudaError> {
        let kernel = || "sample".to_string();
        if self.vocab > MOST_IDS || self.batch >= 1 << 20 || self.steps >= 1 << 24 {
            let what = format!("{} tokens of {} sequences out of {}", self.steps, self.batch, self.vocab);
            return Err(CudaError::Unsupported { kernel: kernel(), what, hint: "sample on the host".into() });
        }
        if self.vocab == 0 || self.vocab > self.width || self.batch == 0 || self.steps == 0 {
            let what = format!("{} of {} logits, {} sequences", self.vocab, self.width, self.batch);
            return Err(CudaError::Malformed { kernel: kernel(), what });
        }
        let program = self.program(arch);
        let source =
            KernelSource { name: kernel(), file: "kernels/sample.cu".into(), text: self.text(&program) };
        let places = program.buffers.iter().map(|buffer| buffer.name.clone()).collect();
        match program.check() {
            Ok(checked) => Ok(Lowered { program: checked.into_inner(), sources: vec![source], places }),
            Err(faults) => {
                Err(CudaError::Unchecked { faults: faults.iter().map(ToString::to_string).collect() })
            }
        }
    }

    /// Threads of a block: about eight logits each, and few enough to keep sixteen sums of each in registers.
    fn threads(&self) -> u64 {
        (self.vocab / 8).next_power_of_two().clamp(32, 512)
    }

    fn program(&self, arch: &str) -> GpuProgram {
        use BufferKind::{Input, State};
        let of =
            |name: &str, kind, dtype, shape: &[u64]| buffer(name, kind, &TensorType::new(dtype, shape), None);
        let buffers = vec![
            of("logits", Input, self.dtype, &[self.batch, 1, self.width]),
            of("settings", Input, Dtype::F32, &[4]),
            of("random", State, Dtype::I32, &[self.batch, 2]),
            of("ids", State, Dtype::I32, &[self.batch, 1]),
            of("cached", State, Dtype::I32, &[1]),
            of("made", State, Dtype::I32, &[self.batch]),
            of("history", State, Dtype::I32, &[self.batch, self.steps]),
        ];
        let access = |buffer: &Buffer| if buffer.kind == Input { Access::Read } else { Access::Update };
        let args = buffers.iter().map(|buffer| Arg {
            buffer: buffer.name.clone(),
            access: access(buffer),
            offset_bytes: 0,
            layer_stride_bytes: 0,
            extent_bytes: buffer.bytes,
            boxes: None,
        });
        let launch = Launch {
            kernel: "sample".into(),
            grid: [self.batch as u32, 1, 1],
            block: [self.threads() as u32, 1, 1],
            shared_bytes: 0,
            args: args.collect(),
        };
        GpuProgram {
            schema: SCHEMA.into(),
            version: 1,
            name: "sampler".into(),
            arch: arch.into(),
            arena_bytes: 0,
            arena_naive_bytes: 0,
            kernels: vec![self.kernel()],
            buffers,
            steps: vec![Step::Launch(launch)],
            share: None,
        }
    }

    fn kernel(&self) -> Kernel {
        let warps = self.threads() / 32;
        Kernel {
            name: "sample".into(),
            file: Some("kernels/sample.cu".into()),
            entry: "sample".into(),
            kind: KernelKind::Generated,
            anchor: "row".into(),
            ops: vec!["sample".into()],
            reason: "Tokens are picked where the logits are, so that decoding does not wait for the host."
                .into(),
            choice: None,
            registers: None,
            shared_bytes: (warps + 1) * 128 + warps * 8 + 128,
            spill_bytes: None,
            flops: 0,
            bytes: self.batch * self.width * self.dtype.bytes(),
        }
    }

    fn text(&self, program: &GpuProgram) -> String {
        let pitch = |name: &str| program.buffer(name).map_or(0, |buffer| buffer.pitch);
        let mut text = opening(&format!(
            "sample: picks one of {} tokens for each of {} sequences, and feeds it back.",
            self.vocab, self.batch
        ));
        text.push_str(&constants(&[
            ("THREADS", self.threads()),
            ("VOCAB", self.vocab),
            ("ID_BITS", u64::from(64 - (self.vocab - 1).leading_zeros()).max(1)),
            ("PITCH", pitch("logits")),
            ("IDS_PITCH", pitch("ids")),
            ("STEPS", self.steps),
            ("HISTORY_PITCH", pitch("history")),
        ]));
        text.push_str(&format!("typedef {} Element;\n{ROW}{SAMPLE}\n", c_type(self.dtype)));
        text.push_str(
            "extern \"C\" __global__ void __launch_bounds__(THREADS) sample(const Element* logits, const float* settings, \
             int* random, int* ids, int* cached, int* made, int* history) {\n    lp_sample(logits, settings, random, ids, \
             cached, made, history);\n}\n",
        );
        text
    }
}

//! What a PE executes: tasks made of vector operations over slices of memory and words of the fabric.

use super::{Affine, Colour, Shared};
use lapidary_models::dtype::DType;
use serde::{Deserialize, Serialize};

/// A piece of code of a class and what starts it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Name, unique in the class.
    pub name: String,
    /// What starts it.
    pub trigger: Trigger,
    /// How many times it is started in one run, per PE. Must be 1 for [`Trigger::Start`].
    pub times: Affine,
    /// What it does, in order. A PE runs one task at a time and never interrupts it.
    pub body: Vec<Stmt>,
}

/// What starts a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// Runs once when the program starts. Several run in the order of the class.
    Start,
    /// Runs once per data word that arrives on the colour; the body reads that word as [`Operand::Trigger`].
    Data {
        /// The colour listened to.
        colour: Colour,
        /// How the word is encoded; not a packed wire.
        wire: Wire,
    },
    /// Runs once per control word that arrives at the PE on the colour.
    Control {
        /// The colour listened to.
        colour: Colour,
    },
    /// Runs once per [`Stmt::Activate`] of the same PE.
    Local,
}

/// One step of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stmt {
    /// A vector operation; the next statement begins when it is complete.
    Op(VectorOp),
    /// Vector operations that run at the same time on microthreads; ends when the last of them is complete. They must
    /// not touch the same memory unless all only read it.
    Par(Vec<VectorOp>),
    /// Repeats the body; the counter is [`super::Var::Loop`] of the nesting depth. A count <= 0 skips it.
    Loop {
        /// Number of iterations.
        count: Affine,
        /// What is repeated.
        body: Vec<Stmt>,
    },
    /// Sends one control word on the colour.
    Control {
        /// The colour it travels on.
        colour: Colour,
        /// What it does to the switches it passes.
        command: Command,
    },
    /// Lets a [`Trigger::Local`] task run once more after this one.
    Activate(String),
    /// Work beside vector operations, piece by piece: what a kernel written by hand does between them.
    Serial {
        /// What kind of work.
        what: Serial,
        /// How many pieces; less than 1 is none.
        times: Affine,
    },
    /// From here on the task is in this phase (a name in [`super::WaferProgram::phases`]).
    Phase(String),
    /// The statements of a piece, as if they stood here. Only outside of loops and of other pieces.
    Piece(Shared<Piece>),
}

/// Statements that many tasks have in common. Names in it are those of the class whose task it stands in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Piece {
    /// Name; no other piece of the program has it.
    pub name: String,
    /// What it does, in order.
    pub body: Vec<Stmt>,
}

/// Work of a task beside its vector operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Serial {
    /// Scalar instructions, a cycle each: counters, addresses, branches.
    Code,
    /// Descriptors of several dimensions loaded from memory into registers.
    Descriptors,
    /// Asynchronous transfers started with descriptors that lie in memory. What they move is a vector op of its own.
    Transfers,
    /// Tasks activated one after the other before the next statement, such as those that count finished transfers.
    Tasks,
}

impl Serial {
    /// All kinds, in declaration order.
    pub const ALL: [Serial; 4] = [Serial::Code, Serial::Descriptors, Serial::Transfers, Serial::Tasks];

    /// The keyword in the text form.
    pub const fn name(self) -> &'static str {
        match self {
            Serial::Code => "code",
            Serial::Descriptors => "descriptors",
            Serial::Transfers => "transfers",
            Serial::Tasks => "tasks",
        }
    }
}

/// What a control word does to the switch of its own colour in every router it leaves; routes of one position ignore
/// it. The word itself still travels by the position from before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// To the next position; stays on the last one.
    Advance,
    /// Back to the first position.
    Reset,
    /// Leaves switches alone; only triggers control tasks.
    Nothing,
}

/// One vector instruction: `dst[i] = kind(src[0][i], ...)` for every index i of `dims`, in row-major order.
///
/// Elements are processed strictly in order and each sees the stores of those before it, so a destination or source of
/// stride 0 is an accumulator: `fmac s[0:0] <- a, b, s[0:0]` is a dot product and `max m[0:0] <- m[0:0], a` a maximum.
/// Arithmetic is in f32; a store rounds to the dtype of the buffer or wire (nearest, ties to even).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VectorOp {
    /// The function per element.
    pub kind: OpKind,
    /// Where results go.
    pub dst: Dest,
    /// As many operands as [`OpKind::arity`].
    pub src: Vec<Operand>,
    /// One to four lengths, outermost first; the op has their product of elements. Any length <= 0 makes it a no-op.
    pub dims: Vec<Affine>,
}

/// The function of a vector operation per element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpKind {
    /// `a`, which also converts between dtypes.
    Mov,
    /// `-a`.
    Neg,
    /// `|a|`.
    Abs,
    /// `e^a`.
    Exp,
    /// Natural logarithm.
    Log,
    /// `1 / a`.
    Recip,
    /// Square root.
    Sqrt,
    /// `1 / sqrt(a)`.
    Rsqrt,
    /// Hyperbolic tangent.
    Tanh,
    /// Error function.
    Erf,
    /// `a + b`.
    Add,
    /// `a - b`.
    Sub,
    /// `a * b`.
    Mul,
    /// The larger of two.
    Max,
    /// The smaller of two.
    Min,
    /// `a * b + c`; with `c` equal to the destination, a multiply-accumulate (AXPY when `a` is a scalar).
    Fmac,
}

impl OpKind {
    /// All kinds, in declaration order.
    pub const ALL: [OpKind; 16] = [
        OpKind::Mov,
        OpKind::Neg,
        OpKind::Abs,
        OpKind::Exp,
        OpKind::Log,
        OpKind::Recip,
        OpKind::Sqrt,
        OpKind::Rsqrt,
        OpKind::Tanh,
        OpKind::Erf,
        OpKind::Add,
        OpKind::Sub,
        OpKind::Mul,
        OpKind::Max,
        OpKind::Min,
        OpKind::Fmac,
    ];

    /// Number of source operands.
    pub const fn arity(self) -> usize {
        match self {
            OpKind::Fmac => 3,
            OpKind::Add | OpKind::Sub | OpKind::Mul | OpKind::Max | OpKind::Min => 2,
            _ => 1,
        }
    }

    /// The name in the text form.
    pub const fn name(self) -> &'static str {
        match self {
            OpKind::Mov => "mov",
            OpKind::Neg => "neg",
            OpKind::Abs => "abs",
            OpKind::Exp => "exp",
            OpKind::Log => "log",
            OpKind::Recip => "recip",
            OpKind::Sqrt => "sqrt",
            OpKind::Rsqrt => "rsqrt",
            OpKind::Tanh => "tanh",
            OpKind::Erf => "erf",
            OpKind::Add => "add",
            OpKind::Sub => "sub",
            OpKind::Mul => "mul",
            OpKind::Max => "max",
            OpKind::Min => "min",
            OpKind::Fmac => "fmac",
        }
    }
}

/// Where an operand comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operand {
    /// Elements of a buffer.
    Mem(Slice),
    /// The next elements that arrive on the colour, one after the other.
    In {
        /// The colour read.
        colour: Colour,
        /// How elements are encoded in words.
        wire: Wire,
    },
    /// One element read from the colour when the op begins and used for all its elements: the weight of an AXPY.
    Scalar {
        /// The colour read.
        colour: Colour,
        /// How the word is encoded; not a packed wire.
        wire: Wire,
    },
    /// The word that triggered the running [`Trigger::Data`] task.
    Trigger,
    /// A number.
    Const(f32),
}

/// Where results go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dest {
    /// Elements of a buffer.
    Mem(Slice),
    /// Words sent on a colour, in order.
    Out {
        /// The colour written.
        colour: Colour,
        /// How elements are encoded in words.
        wire: Wire,
    },
    /// Like [`Dest::Out`], and the last word carries a command for the switches it leaves; it arrives as data.
    OutThen {
        /// The colour written.
        colour: Colour,
        /// How elements are encoded in words.
        wire: Wire,
        /// What the last word does to switches.
        then: Command,
    },
}

/// A data structure descriptor over memory: element `(i0, i1, ..)` of the op is `buffer[at + sum i_k * strides[k]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// Name of a buffer of the class.
    pub buffer: String,
    /// First element.
    pub at: Affine,
    /// One stride in elements per dimension of the op; empty means contiguous in row-major order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub strides: Vec<i64>,
}

/// How elements are laid in the 32-bit words of the fabric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wire {
    /// One f32 per word.
    F32,
    /// One f16 per word.
    F16,
    /// One bf16 per word.
    Bf16,
    /// Two f16 per word; the op must have an even number of elements.
    F16x2,
    /// Two bf16 per word; the op must have an even number of elements.
    Bf16x2,
}

impl Wire {
    /// Elements per word.
    pub const fn lanes(self) -> u32 {
        match self {
            Wire::F32 | Wire::F16 | Wire::Bf16 => 1,
            Wire::F16x2 | Wire::Bf16x2 => 2,
        }
    }

    /// Type of the elements.
    pub const fn dtype(self) -> DType {
        match self {
            Wire::F32 => DType::F32,
            Wire::F16 | Wire::F16x2 => DType::F16,
            Wire::Bf16 | Wire::Bf16x2 => DType::Bf16,
        }
    }

    /// The name in the text form.
    pub const fn name(self) -> &'static str {
        match self {
            Wire::F32 => "f32",
            Wire::F16 => "f16",
            Wire::Bf16 => "bf16",
            Wire::F16x2 => "f16x2",
            Wire::Bf16x2 => "bf16x2",
        }
    }
}

//! What can be wrong with a program, where, and what would help.

use crate::program::{Colour, Coord, Port};
use std::fmt;

/// One fault of a program.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckError {
    /// The PE, if the fault is at one (the first one found, if it is at several).
    pub at: Option<Coord>,
    /// The class, if the fault is in one.
    pub class: Option<String>,
    /// The colour, if the fault concerns one.
    pub colour: Option<Colour>,
    /// What is wrong.
    pub fault: Fault,
}

impl CheckError {
    /// A fault of the whole program.
    pub fn new(fault: Fault) -> Self {
        CheckError { at: None, class: None, colour: None, fault }
    }

    /// The same fault at a PE.
    pub fn at(self, at: Coord) -> Self {
        CheckError { at: Some(at), ..self }
    }

    /// The same fault in a class.
    pub fn class(self, class: &str) -> Self {
        CheckError { class: Some(class.into()), ..self }
    }

    /// The same fault on a colour.
    pub fn colour(self, colour: Colour) -> Self {
        CheckError { colour: Some(colour), ..self }
    }

    /// What would help.
    pub fn hint(&self) -> String {
        self.fault.hint()
    }
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut place = Vec::new();
        place.extend(self.at.map(|at| format!("PE {at}")));
        place.extend(self.class.as_ref().map(|c| format!("class `{c}`")));
        place.extend(self.colour.map(|c| format!("colour {}", c.0)));
        if !place.is_empty() {
            write!(f, "{}: ", place.join(", "))?;
        }
        write!(f, "{} ({})", self.fault, self.hint())
    }
}

impl std::error::Error for CheckError {}

/// The kinds of faults; the fields are what the messages name.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Fault {
    /// The grid is empty or larger than the wafer.
    #[error("the grid is {width} x {height} PEs, the wafer has {max_width} x {max_height}")]
    Grid { width: u32, height: u32, max_width: u32, max_height: u32 },
    /// Two things have the same name.
    #[error("the {what} `{name}` is declared twice")]
    Duplicate { what: &'static str, name: String },
    /// A name that is not declared.
    #[error("{user} uses the {what} `{name}`, which is not declared")]
    Unknown { what: &'static str, name: String, user: String },
    /// A value outside what is possible.
    #[error("{what} is {value}, expected {expected}")]
    Range { what: String, value: i64, expected: String },
    /// A variable where it has no meaning.
    #[error("{what} uses `{var}`, which has no meaning there")]
    Variable { what: String, var: String },
    /// A PE outside the grid.
    #[error("the class covers a PE outside the grid of {width} x {height}")]
    Outside { width: u32, height: u32 },
    /// A PE in two classes.
    #[error("the PE is in class `{first}` and in class `{second}`")]
    TwoClasses { first: String, second: String },
    /// Memory over the limit.
    #[error("buffer `{buffer}` ends at byte {end}, a PE has {limit}")]
    Memory { buffer: String, end: u64, limit: u32 },
    /// Buffers that overlap while both are alive.
    #[error("buffers `{first}` and `{second}` overlap in bytes {from}..{to} while both are alive")]
    Overlap { first: String, second: String, from: u64, to: u64 },
    /// A buffer used in a phase where it is not alive.
    #[error("buffer `{buffer}` is used in phase `{phase}`, where it is not alive")]
    Dead { buffer: String, phase: String },
    /// An access beyond a buffer.
    #[error("`{op}` reaches element {index} of buffer `{buffer}`, which has {elements}")]
    Bounds { op: &'static str, buffer: String, index: i64, elements: u32 },
    /// An element of a tensor that does not exist.
    #[error("{user} reaches element {index} of tensor `{tensor}`, which has {elements}")]
    TensorBounds { user: String, tensor: String, index: i64, elements: u64 },
    /// More colours than the fabric routes.
    #[error("the program uses {used} colours, the fabric has {limit}")]
    Colours { used: usize, limit: u8 },
    /// Malformed position of a route.
    #[error("switch position {position}: {why}")]
    Position { position: usize, why: &'static str },
    /// Words arrive where nothing takes them.
    #[error("words sent by {sender} arrive from the {port} and nothing takes them", port = .port.name())]
    DeadEnd { sender: String, port: Port },
    /// Words leave the grid where the host takes none.
    #[error("words sent by {sender} leave the grid to the {port}, where no host stream takes them", port = .port.name())]
    OffGrid { sender: String, port: Port },
    /// Words arrive at a router that takes this colour from elsewhere.
    #[error("words sent by {sender} arrive from the {port}, but the router takes the colour from the {taken}",
        port = .port.name(), taken = .taken)]
    TwoSenders { sender: String, port: Port, taken: String },
    /// A route that returns to itself.
    #[error("words sent by {sender} go in a circle")]
    Circle { sender: String },
    /// A task or op uses a colour that does not reach or leave the processor.
    #[error("{user} {verb} the colour, but no route of the class connects it to the ramp")]
    NoRamp { user: String, verb: &'static str },
    /// A reader without a sender.
    #[error("{user} reads {words} words, but nobody sends on this colour to the PE")]
    NoSender { user: String, words: u64 },
    /// Unequal numbers of words.
    #[error("{sender} sends {sent} words, but {reader} reads {read}")]
    Count { sender: String, sent: u64, reader: String, read: u64 },
    /// A task that never runs, or not as often as declared.
    #[error("task `{task}` should run {times} times, but is triggered {triggered} times")]
    NeverFires { task: String, times: i64, triggered: u64 },
    /// PEs that wait for each other from the start.
    #[error("cyclic wait: {chain}")]
    Cycle { chain: String },
    /// Something that does not belong together.
    #[error("{what}")]
    Malformed { what: String },
}

impl Fault {
    /// What would help.
    pub fn hint(&self) -> String {
        match self {
            Fault::Grid { max_width, max_height, .. } => {
                format!("use 1..={max_width} by 1..={max_height}, or turned")
            }
            Fault::Duplicate { .. } => "give each its own name".into(),
            Fault::Unknown { what, .. } => format!("declare the {what} or correct the name"),
            Fault::Range { .. } => "change the value".into(),
            Fault::Variable { .. } => {
                "write it with x, y and the counters of enclosing loops or dimensions".into()
            }
            Fault::Outside { .. } => "shrink the region or enlarge the grid".into(),
            Fault::TwoClasses { .. } => "make the regions disjoint".into(),
            Fault::Memory { .. } => {
                "use smaller tiles, more PEs, or let buffers share space by lifetime".into()
            }
            Fault::Overlap { .. } => "move one of them or shorten a lifetime".into(),
            Fault::Dead { .. } => "extend its lifetime to that phase".into(),
            Fault::Bounds { .. } | Fault::TensorBounds { .. } => {
                "check lengths, strides and the last iteration".into()
            }
            Fault::Colours { .. } => "reuse colours where routes do not meet".into(),
            Fault::Position { .. } => "a position takes words from one port and sends them to others".into(),
            Fault::DeadEnd { port, .. } => {
                format!("add a route from {} to the class there, or end the route", port.name())
            }
            Fault::OffGrid { .. } => {
                "end the route here, or let a host stream take its words at this edge".into()
            }
            Fault::TwoSenders { .. } => {
                "use another colour, or switch between the senders with control words".into()
            }
            Fault::Circle { .. } => "end the route at a ramp before it closes".into(),
            Fault::NoRamp { .. } => "add a route from or to the ramp".into(),
            Fault::NoSender { .. } => "route a sender's words to this PE, or read another colour".into(),
            Fault::Count { .. } => "make the loop counts and lengths of both sides equal".into(),
            Fault::NeverFires { .. } => "send what triggers it, or change `times`".into(),
            Fault::Cycle { .. } => "let one of them send before it receives".into(),
            Fault::Malformed { .. } => "see the documentation of the statement".into(),
        }
    }
}

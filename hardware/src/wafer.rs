//! A wafer as the placer, the simulator and the price rules see it.

use crate::gpu::Precision;
use crate::reader::{Reader, Table};
use crate::unit::{Bytes, BytesPerSecond, Cycles, ElementsPerCycle, FlopsPerSecond, Hertz};
use serde::Serialize;
use std::collections::BTreeMap;

/// One wafer, with the system around it where there is one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Wafer {
    /// What the maker calls it.
    pub product: String,
    /// Architecture name of its compiler, as `wse2`.
    pub architecture: String,
    /// Cores on the wafer, more than a program can address.
    pub cores: u64,
    /// The grid of processing elements.
    pub fabric: Fabric,
    /// One processing element.
    pub pe: ProcessingElement,
    /// The router beside each processing element.
    pub router: Router,
    /// Printed clocks; the first is the one in use.
    pub clocks: Vec<(String, Hertz)>,
    /// Links into the system; `None` for a bare wafer.
    pub ingress: Option<Ingress>,
}

/// The addressable grid and the part of it that programs may use.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fabric {
    /// Columns.
    pub width: u64,
    /// Rows.
    pub height: u64,
    /// The rectangle for programs; the rest moves data in and out.
    pub usable: Rectangle,
}

/// A rectangle of processing elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rectangle {
    /// First column.
    pub x: u64,
    /// First row.
    pub y: u64,
    /// Columns.
    pub width: u64,
    /// Rows.
    pub height: u64,
}

impl Rectangle {
    /// How many processing elements it holds.
    pub fn pes(&self) -> u64 {
        self.width * self.height
    }
}

/// One processing element.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProcessingElement {
    /// Memory for code and data.
    pub sram: Bytes,
    /// Banks of it.
    pub banks: u64,
    /// Width of a bank's word.
    pub bank_word: Bytes,
    /// 64-bit reads per cycle.
    pub reads_per_cycle: u64,
    /// 64-bit writes per cycle.
    pub writes_per_cycle: u64,
    /// Fused multiply-adds per cycle, by precision.
    pub fmac: BTreeMap<Precision, ElementsPerCycle>,
    /// Cycles that one vector operation takes beside its elements.
    pub call_overhead: Cycles,
    /// Costs of code written statement by statement, where they are known.
    pub statements: Option<Statements>,
}

/// What the statements of hand-written kernels cost, each by itself: where a program says how it sets up descriptors and
/// starts transfers, these take the place of [`ProcessingElement::call_overhead`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Statements {
    /// Cycles of a vector operation beside its elements when its descriptors lie in registers.
    pub vector_issue: Cycles,
    /// Cycles to load a descriptor of several dimensions into a register.
    pub descriptor: Cycles,
    /// Cycles to start an asynchronous transfer whose descriptors lie in memory.
    pub transfer: Cycles,
    /// Cycles to activate a task.
    pub task_activation: Cycles,
    /// Words that the concurrent transfers of a core move in a cycle, together.
    pub moves_per_cycle: ElementsPerCycle,
    /// 32-bit sums of two vectors in memory per cycle.
    pub sums_per_cycle: ElementsPerCycle,
    /// Cycles that 4 elements of a 32-bit multiply-accumulate take whose sum and destination share one register.
    pub shared_register_macs: Cycles,
}

/// One router.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Router {
    /// Routable colours.
    pub colours: u64,
    /// Switch positions of a colour.
    pub switch_positions: u64,
    /// One word on a link: what a direction carries per cycle.
    pub word: Bytes,
    /// Time of a hop to the neighbour.
    pub hop: Cycles,
    /// Time between router and core, one way.
    pub ramp: Cycles,
    /// Depths of the input queues, in words.
    pub input_queues: Vec<u64>,
    /// Depths of the output queues, in words.
    pub output_queues: Vec<u64>,
}

impl Router {
    /// Words that surely fit between two neighbours: the queues of the sender's and the receiver's ramp. What routers hold on
    /// the way comes on top and is not counted on.
    pub fn link_words(&self) -> u64 {
        let depth = |queues: &[u64]| queues.first().copied().unwrap_or(1);
        depth(&self.output_queues) + depth(&self.input_queues)
    }
}

/// Links from outside into one system.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ingress {
    /// How many.
    pub links: u64,
    /// Bandwidth of one, each way.
    pub link_bandwidth: BytesPerSecond,
}

impl Ingress {
    /// Bandwidth of all links together, each way.
    pub fn bandwidth(&self) -> BytesPerSecond {
        self.link_bandwidth * self.links as f64
    }

    pub(crate) fn read<'a>(reader: &mut Reader<'a>, mut table: Table<'a>) -> Option<Ingress> {
        let links = reader.count(&mut table, "links");
        let link_bandwidth = reader.quantity(&mut table, "link-bandwidth");
        reader.finish(table);
        Some(Ingress { links: links?, link_bandwidth: link_bandwidth? })
    }
}

impl Wafer {
    /// The clock in use.
    pub fn clock(&self) -> Hertz {
        self.clocks.first().map_or(Hertz(1.0), |(_, clock)| *clock)
    }

    /// Memory of the usable rectangle.
    pub fn sram(&self) -> Bytes {
        self.pe.sram * self.fabric.usable.pes() as f64
    }

    /// Peak rate of the usable rectangle; a fused multiply-add counts as two.
    /// `None` where the machine has no such arithmetic.
    pub fn peak(&self, precision: Precision) -> Option<FlopsPerSecond> {
        let per_cycle = self.pe.fmac.get(&precision)?.0 * 2.0 * self.fabric.usable.pes() as f64;
        Some(FlopsPerSecond(per_cycle * self.clock().0))
    }

    pub(crate) fn read<'a>(reader: &mut Reader<'a>, mut table: Table<'a>) -> Option<Wafer> {
        let product = reader.text(&mut table, "product");
        let architecture = reader.text(&mut table, "architecture");
        let cores = reader.count(&mut table, "cores");
        let fabric = reader.table(&mut table, "fabric").map(|table| Fabric::read(reader, table));
        let pe = reader.table(&mut table, "pe").map(|table| ProcessingElement::read(reader, table));
        let router = reader.table(&mut table, "router").map(|table| Router::read(reader, table));
        let clocks = reader.table(&mut table, "clocks").map(|table| read_clocks(reader, table));
        reader.finish(table);
        Some(Wafer {
            product: product?,
            architecture: architecture?,
            cores: cores?,
            fabric: fabric??,
            pe: pe??,
            router: router??,
            clocks: clocks??,
            ingress: None,
        })
    }
}

/// The first clock of the table is the one in use.
fn read_clocks<'a>(reader: &mut Reader<'a>, table: Table<'a>) -> Option<Vec<(String, Hertz)>> {
    let clocks = reader.named::<Hertz>(&table);
    if clocks.is_empty() {
        reader.fault(table.key_path("clocks"), None, "states no clock".into(), "name each by its source");
    }
    (!clocks.is_empty()).then_some(clocks)
}

impl Fabric {
    fn read<'a>(reader: &mut Reader<'a>, mut table: Table<'a>) -> Option<Fabric> {
        let width = reader.count(&mut table, "width");
        let height = reader.count(&mut table, "height");
        let x = reader.offset(&mut table, "usable-x");
        let y = reader.offset(&mut table, "usable-y");
        let usable_width = reader.count(&mut table, "usable-width");
        let usable_height = reader.count(&mut table, "usable-height");
        let path = table.key_path("usable-width");
        reader.finish(table);
        let (width, height) = (width?, height?);
        let usable = Rectangle { x: x?, y: y?, width: usable_width?, height: usable_height? };
        if usable.x + usable.width > width || usable.y + usable.height > height {
            let message = format!(
                "the usable rectangle {} x {} at ({}, {}) leaves the fabric of {width} x {height}",
                usable.width, usable.height, usable.x, usable.y
            );
            reader.fault(path, None, message, "offset plus size may not exceed the fabric");
            return None;
        }
        Some(Fabric { width, height, usable })
    }
}

impl ProcessingElement {
    fn read<'a>(reader: &mut Reader<'a>, mut table: Table<'a>) -> Option<ProcessingElement> {
        let sram = reader.quantity(&mut table, "sram");
        let banks = reader.count(&mut table, "banks");
        let bank_word = reader.quantity(&mut table, "bank-word");
        let reads_per_cycle = reader.count(&mut table, "reads-per-cycle");
        let writes_per_cycle = reader.count(&mut table, "writes-per-cycle");
        let fmac = reader.table(&mut table, "fmac").map(|rates| Precision::rates(reader, &rates));
        let call_overhead = reader.quantity(&mut table, "call-overhead");
        let statements = reader.optional_table(&mut table, "statements");
        let statements = statements.and_then(|table| Statements::read(reader, table));
        reader.finish(table);
        Some(ProcessingElement {
            sram: sram?,
            banks: banks?,
            bank_word: bank_word?,
            reads_per_cycle: reads_per_cycle?,
            writes_per_cycle: writes_per_cycle?,
            fmac: fmac?,
            call_overhead: call_overhead?,
            statements,
        })
    }
}

impl Statements {
    fn read<'a>(reader: &mut Reader<'a>, mut table: Table<'a>) -> Option<Statements> {
        let vector_issue = reader.quantity(&mut table, "vector-issue");
        let descriptor = reader.quantity(&mut table, "descriptor");
        let transfer = reader.quantity(&mut table, "transfer");
        let task_activation = reader.quantity(&mut table, "task-activation");
        let moves_per_cycle = reader.quantity(&mut table, "moves-per-cycle");
        let sums_per_cycle = reader.quantity(&mut table, "sums-per-cycle");
        let shared_register_macs = reader.quantity(&mut table, "shared-register-macs");
        reader.finish(table);
        Some(Statements {
            vector_issue: vector_issue?,
            descriptor: descriptor?,
            transfer: transfer?,
            task_activation: task_activation?,
            moves_per_cycle: moves_per_cycle?,
            sums_per_cycle: sums_per_cycle?,
            shared_register_macs: shared_register_macs?,
        })
    }
}

impl Router {
    fn read<'a>(reader: &mut Reader<'a>, mut table: Table<'a>) -> Option<Router> {
        let colours = reader.count(&mut table, "colours");
        let switch_positions = reader.count(&mut table, "switch-positions");
        let word = reader.quantity(&mut table, "word");
        let hop = reader.quantity(&mut table, "hop");
        let ramp = reader.quantity(&mut table, "ramp");
        let input_queues = reader.depths(&mut table, "input-queues");
        let output_queues = reader.depths(&mut table, "output-queues");
        reader.finish(table);
        Some(Router {
            colours: colours?,
            switch_positions: switch_positions?,
            word: word?,
            hop: hop?,
            ramp: ramp?,
            input_queues: input_queues?,
            output_queues: output_queues?,
        })
    }
}

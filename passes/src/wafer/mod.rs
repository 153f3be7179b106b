//! Wafer programs from placed ops.
//!
//! A [`Placed`] computation says which values there are, how each lies over the PEs, and which ops run between them, in
//! order. [`generate`] turns it into a [`WaferProgram`]: PEs are sorted into classes by role, channels get colours, every
//! op becomes statements of each class, buffers get addresses, and the host gets its streams. Nothing here knows about
//! models or about the IR.
//!
//! One layout serves all ops, so nothing moves between them: tokens lie over rows, features over columns. Only inside
//! attention are the tokens of a row spread over the columns of a head, so that a head's features are local; the linear
//! layer before it delivers its outputs that way at no cost, because partial sums pass every column anyway.

mod channel;
mod code;
mod data;
mod emit;
mod error;
mod host;
mod kernel;
mod lanes;
mod layout;
mod lower;
mod place;
mod placed;
mod report;
mod roles;
mod site;
mod sram;
mod tile;

pub use channel::{Channel, Colours};
pub use data::{Angles, HostData, Packing, Part};
pub use emit::{EmitError, EmitOptions, Scope, Stage, WaferArtifact, emit};
pub use error::WaferError;
pub use layout::{HeadShape, fit_tokens, place_heads, place_tokens};
pub use lower::LowerToWafer;
pub use place::{Workload, place_layer};
pub use placed::{
    Activation, Attention, Heads, Layout, Linear, Map, Norm, NormKind, OpKind, Pairing, Parameter, Path,
    Placed, PlacedOp, Rope, Segment, Source, Step, Tokens,
};
pub use report::{ClassReport, ColourReport, PhaseReport, PlacementReport};
pub use tile::{Blocks, Tiles};

use channel::{Wanted, allocate};
use kernel::scratch_name;
use lapidary_hardware::unit::Hertz;
use lapidary_hardware::{Precision, Wafer};
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::program::{
    Buffer, Class, Coord, Lifetime, Operand, Stmt, TensorMap, Var, VectorOp, WaferProgram,
};
use roles::{Role, roles};
use site::Site;
use sram::{Memory, Partners, Request};
use std::collections::{BTreeMap, BTreeSet};

/// What the generator has to know about a wafer.
#[derive(Clone, Debug, PartialEq)]
pub struct WaferSpec {
    /// Bytes of a PE's memory.
    pub sram_bytes: u64,
    /// Banks of it.
    pub banks: u64,
    /// Bytes kept free for code: an assumption, there is no printed figure for it.
    pub code_bytes: u64,
    /// Routable colours.
    pub colours: u32,
    /// Bytes that can enter (and leave) the wafer in a cycle.
    pub bytes_per_cycle: f64,
    /// Cycles by which a PE of a chain is behind the one before: up and down the ramp, the hop, the operation.
    pub hop_cycles: u64,
    /// Cycles that a vector operation takes beside its elements.
    pub issue_cycles: u64,
    /// Multiply-accumulates per cycle into f32 of 16-bit operands.
    pub narrow_macs: f64,
    /// Multiply-accumulates per cycle of f32 operands.
    pub wide_macs: f64,
}

/// Bytes kept for the code of a PE: the statements of a whole layer are a few hundred instructions.
const CODE_BYTES: u64 = 4096;

impl WaferSpec {
    /// The figures of a described wafer at a clock. Without links the edge is taken to carry a word per column.
    pub fn of(wafer: &Wafer, clock: Hertz) -> Self {
        let macs = |precision| wafer.pe.fmac.get(&precision).map_or(1.0, |rate| rate.0);
        let edge = wafer.fabric.usable.width as f64 * wafer.router.word.0;
        WaferSpec {
            sram_bytes: wafer.pe.sram.0 as u64,
            banks: wafer.pe.banks,
            code_bytes: CODE_BYTES,
            colours: wafer.router.colours as u32,
            bytes_per_cycle: wafer.ingress.as_ref().map_or(edge, |links| links.bandwidth().0 / clock.0),
            hop_cycles: 2 * wafer.router.ramp.0 + wafer.router.hop.0 + 1,
            issue_cycles: wafer.pe.call_overhead.0,
            narrow_macs: macs(Precision::Mixed),
            wide_macs: macs(Precision::Fp32),
        }
    }

    /// Multiply-accumulates per cycle into f32.
    pub fn macs_per_cycle(&self, operands: DType) -> f64 {
        match operands {
            DType::F16 | DType::Bf16 => self.narrow_macs,
            DType::F32 | DType::I32 => self.wide_macs,
        }
    }

    /// Bytes for buffers.
    pub fn buffer_bytes(&self) -> u64 {
        self.sram_bytes.saturating_sub(self.code_bytes)
    }
}

/// A program with what belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The program.
    pub program: WaferProgram,
    /// How the host makes each tensor of the program.
    pub host: BTreeMap<String, HostData>,
    /// What it uses.
    pub report: PlacementReport,
}

/// Generates the program of a placed computation.
pub fn generate(placed: &Placed, spec: &WaferSpec) -> Result<Generated, WaferError> {
    check(placed)?;
    let roles = roles(placed);
    let samples: Vec<Coord> = roles.iter().map(|role| role.sample).collect();
    let colours = allocate(placed, &samples, &wanted(placed), spec.colours)?;
    let host = host::host(placed, &colours, spec.bytes_per_cycle)?;

    let mut program = WaferProgram::new(placed.width, placed.rows());
    program.phases = placed.ops.iter().map(|op| op.name.clone()).collect();
    for (name, data) in &host.tensors {
        program.tensor(name, data.elements());
    }
    let mut classes = Vec::new();
    for role in roles {
        let (class, report) = build_class(placed, spec, &colours, role)?;
        join(&mut program.classes, &mut classes, class, report);
    }
    let phases = phase_reports(placed, &host, &colours, &classes);
    program.host = host.streams;
    let report = PlacementReport {
        width: placed.width,
        rows: placed.rows(),
        tokens: placed.tokens.total(),
        tokens_per_row: placed.tokens.tiles().largest(),
        sram_bytes: spec.buffer_bytes(),
        sram_peak_bytes: classes.iter().map(|class| class.sram_peak_bytes).max().unwrap_or(0),
        classes,
        colours: colour_reports(placed, &colours),
        phases,
    };
    Ok(Generated { program, host: host.tensors, report })
}

/// Adds a class, to one that is set and programmed alike where there is one.
fn join(classes: &mut Vec<Class>, reports: &mut Vec<ClassReport>, class: Class, report: ClassReport) {
    let alike = |other: &Class| {
        other.routes == class.routes && other.buffers == class.buffers && other.tasks == class.tasks
    };
    match classes.iter().position(alike) {
        Some(at) => {
            classes[at].regions.extend(class.regions);
            reports[at].pes += report.pes;
        }
        None => {
            classes.push(class);
            reports.push(report);
        }
    }
}

/// Sizes and names that no kernel has to look at again.
fn check(placed: &Placed) -> Result<(), WaferError> {
    let size = |what: &str, found: u64, hint: String| WaferError::Size { what: what.into(), found, hint };
    if placed.width < 2 {
        return Err(size(
            "width of the grid",
            placed.width.into(),
            "sums travel round a row of at least 2 columns".into(),
        ));
    }
    let tokens = placed.tokens;
    if tokens.rows == 0 || tokens.length < tokens.rows || tokens.sequences == 0 {
        let hint = format!(
            "{} sequences of {} tokens need 1 to {} rows each",
            tokens.sequences, tokens.length, tokens.length
        );
        return Err(size("rows per sequence", tokens.rows.into(), hint));
    }
    let rows = u64::from(tokens.sequences) * u64::from(tokens.rows);
    if rows > placed.height.into() {
        return Err(size("rows in use", rows, format!("the grid has {}", placed.height)));
    }
    if let Some(heads) = placed.heads {
        let columns = u64::from(heads.blocks) * u64::from(heads.columns);
        if columns == 0 || columns > placed.width.into() || heads.dim == 0 || heads.kv == 0 || heads.ways == 0
        {
            return Err(size(
                "columns of heads",
                columns,
                format!("it must be 1 to {}, of heads that are not empty", placed.width),
            ));
        }
    }
    check_sizes(placed)?;
    let mut names = BTreeSet::new();
    match placed.ops.iter().find(|op| !names.insert(&op.name)) {
        Some(op) => Err(WaferError::DuplicateOp { op: op.name.clone() }),
        None => Ok(()),
    }
}

/// Most features of a value and most tokens of a sequence: addresses within tensors stay far inside 64 bits.
const MOST: u64 = 1 << 24;

/// Sizes beyond which counts would not fit their types.
fn check_sizes(placed: &Placed) -> Result<(), WaferError> {
    let too_many = |what: String, found: u64| {
        Err(WaferError::Size { what, found, hint: format!("a wafer program counts to {MOST}") })
    };
    if u64::from(placed.tokens.length) > MOST {
        return too_many("tokens of a sequence".into(), placed.tokens.length.into());
    }
    let of_head = placed.heads.map_or(0, |heads| {
        [heads.blocks, heads.kv, heads.ways, heads.dim]
            .iter()
            .fold(1u64, |n, by| n.saturating_mul((*by).into()))
    });
    for (value, layout) in &placed.values {
        let features = match layout {
            Layout::Columns { features } => u64::from(*features),
            Layout::HeadColumns | Layout::HeadTokens { .. } => of_head,
        };
        if features > MOST {
            return too_many(format!("features of {value}"), features);
        }
    }
    Ok(())
}

fn wanted(placed: &Placed) -> Vec<Wanted> {
    let of_op =
        |(phase, op)| kernel::channels(placed, op).into_iter().map(move |channel| Wanted { phase, channel });
    placed.ops.iter().enumerate().flat_map(of_op).collect()
}

/// Code, routes and memory of one class.
fn build_class(
    placed: &Placed,
    spec: &WaferSpec,
    colours: &Colours,
    role: Role,
) -> Result<(Class, ClassReport), WaferError> {
    let mut class = Class { name: role.name, regions: role.regions, ..Class::default() };
    let site = |phase| Site { placed, spec, colours, at: role.sample, phase };
    let mut body = Vec::new();
    for (phase, op) in placed.ops.iter().enumerate() {
        body.push(Stmt::Phase(op.name.clone()));
        body.extend(code::prune(kernel::code(&site(phase), op)?));
    }
    let memory = ClassMemory::plan(placed, spec, &site(0), &class.name, &partners(&body))?;
    let fullest = sram::fullest(&memory.alive);
    for Wish { request, mut buffer } in memory.wishes {
        buffer.offset = memory.addresses.get(&request.name).copied().unwrap_or(0) as u32;
        class.buffers.insert(request.name, buffer);
    }
    class.routes = colours.routes(placed, role.sample);
    let report = ClassReport {
        name: class.name.clone(),
        pes: class.count(),
        sram_peak_bytes: memory.peak,
        alive_bytes: fullest.1,
        fullest_phase: placed.ops.get(fullest.0).map(|op| op.name.clone()).unwrap_or_default(),
        alive_by_phase: memory.alive,
    };
    class.start("run", body);
    Ok((class, report))
}

/// Highest byte in use in any PE, plus one, without a look at banks.
///
/// # Errors
/// [`WaferError::Memory`] where that is more than there is; faults of the placement.
pub fn memory_peak(placed: &Placed, spec: &WaferSpec) -> Result<u64, WaferError> {
    check(placed)?;
    let colours = Colours::default();
    let peak = |role: Role| {
        let site = Site { placed, spec, colours: &colours, at: role.sample, phase: 0 };
        ClassMemory::plan(placed, spec, &site, &role.name, &Partners::new()).map(|memory| memory.peak)
    };
    roles(placed).into_iter().try_fold(0, |most, role| Ok(most.max(peak(role)?)))
}

/// Memory of a class.
struct ClassMemory {
    wishes: Vec<Wish>,
    addresses: BTreeMap<String, u64>,
    peak: u64,
    /// Bytes by phase.
    alive: Vec<u64>,
}

impl ClassMemory {
    fn plan(
        placed: &Placed,
        spec: &WaferSpec,
        site: &Site,
        class: &str,
        partners: &Partners,
    ) -> Result<Self, WaferError> {
        let wishes = buffers(placed, site)?;
        let requests: Vec<Request> = wishes.iter().map(|wish| wish.request.clone()).collect();
        let bank = (spec.sram_bytes / spec.banks.max(1)).max(1);
        let (addresses, peak) = sram::plan(&requests, partners, Memory { bytes: spec.buffer_bytes(), bank });
        if peak > spec.buffer_bytes() {
            return Err(over(placed, spec, site, class, &requests));
        }
        let alive = sram::alive(&requests, placed.ops.len());
        Ok(ClassMemory { wishes, addresses, peak, alive })
    }
}

/// A buffer and what the memory plan has to know about it.
struct Wish {
    request: Request,
    buffer: Buffer,
}

/// All buffers of a PE, without addresses.
fn buffers(placed: &Placed, site: &Site) -> Result<Vec<Wish>, WaferError> {
    let mut wishes = Vec::new();
    for (value, layout) in &placed.values {
        let elements = site.elements(*layout);
        if let Some((first, last, load, store)) = life(placed, site, value).filter(|_| elements > 0) {
            let mut buffer = Buffer::new(placed.dtype, elements, 0);
            (buffer.load, buffer.store) = (load, store);
            wishes.push(wish(placed, value.clone(), buffer, first, last));
        }
    }
    for (phase, op) in placed.ops.iter().enumerate() {
        for scratch in kernel::scratch(&Site { phase, ..*site }, op)? {
            if scratch.elements > 0 {
                let mut buffer = Buffer::new(scratch.dtype, scratch.elements, 0);
                let first = if scratch.load.is_some() { 0 } else { phase };
                buffer.load = scratch.load;
                wishes.push(wish(placed, scratch_name(&op.name, scratch.name), buffer, first, phase));
            }
        }
    }
    Ok(wishes)
}

fn wish(placed: &Placed, name: String, mut buffer: Buffer, first: usize, last: usize) -> Wish {
    let phase = |at: usize| placed.ops[at].name.clone();
    buffer.alive = Some(Lifetime { first: phase(first), last: phase(last) });
    Wish { request: Request { name, bytes: buffer.bytes(), first, last }, buffer }
}

type Life = (usize, usize, Option<TensorMap>, Option<TensorMap>);

/// First and last phase of a value, and the tensors it comes from and goes to outside the run; `None` if no op touches it.
fn life(placed: &Placed, site: &Site, value: &str) -> Option<Life> {
    let touches = |op: &PlacedOp| op.kind.reads().contains(&value) || op.kind.writes().contains(&value);
    let mut first = placed.ops.iter().position(touches)?;
    let mut last = placed.ops.iter().rposition(touches)?;
    let (mut load, mut store) = (None, None);
    for op in &placed.ops {
        match &op.kind {
            OpKind::Input { value: input, tensor, path: Path::Resident, .. } if input == value => {
                (first, load) = (0, Some(whole(placed, site, value, tensor)?));
            }
            OpKind::Output { value: output, tensor, path: Path::Resident } if output == value => {
                (last, store) = (placed.ops.len() - 1, Some(whole(placed, site, value, tensor)?));
            }
            _ => {}
        }
    }
    Some((first, last, load, store))
}

/// A PE's part of a tensor `[tokens, features]`.
fn whole(placed: &Placed, site: &Site, value: &str, tensor: &str) -> Option<TensorMap> {
    let layout = *placed.values.get(value)?;
    let (features, first) = site.features(layout);
    let row = i64::from(placed.features(layout));
    let index = (site.first_token() * row + first).plus(Var::Dim(1), row).plus(Var::Dim(0), 1);
    Some(TensorMap {
        tensor: tensor.into(),
        dims: vec![i64::from(features).into(), i64::from(site.tokens()).into()],
        index,
    })
}

/// Pairs of buffers that one vector op reads.
fn partners(body: &[Stmt]) -> Partners {
    let mut partners = Partners::new();
    for stmt in body {
        match stmt {
            Stmt::Op(op) => add_partners(op, &mut partners),
            Stmt::Par(ops) => ops.iter().for_each(|op| add_partners(op, &mut partners)),
            Stmt::Loop { body, .. } => partners.extend(self::partners(body)),
            _ => {}
        }
    }
    partners
}

fn add_partners(op: &VectorOp, partners: &mut Partners) {
    let mut buffers: Vec<&String> = op
        .src
        .iter()
        .filter_map(|operand| if let Operand::Mem(slice) = operand { Some(&slice.buffer) } else { None })
        .collect();
    buffers.sort();
    buffers.dedup();
    for (i, a) in buffers.iter().enumerate() {
        partners.extend(buffers[i + 1..].iter().map(|b| ((*a).clone(), (*b).clone())));
    }
}

/// The fault that a class does not fit, with the number of tokens that would.
fn over(placed: &Placed, spec: &WaferSpec, site: &Site, class: &str, requests: &[Request]) -> WaferError {
    let (fullest, needed) = sram::fullest(&sram::alive(requests, placed.ops.len()));
    let mut alive: Vec<_> = requests.iter().filter(|r| r.first <= fullest && fullest <= r.last).collect();
    alive.sort_by(|a, b| b.bytes.cmp(&a.bytes).then(a.name.cmp(&b.name)));
    let largest: Vec<_> = alive.iter().take(4).map(|r| format!("{} {}", r.name, r.bytes)).collect();
    WaferError::Memory {
        class: class.into(),
        phase: placed.ops.get(fullest).map(|op| op.name.clone()).unwrap_or_default(),
        needed,
        available: spec.buffer_bytes(),
        sram: spec.sram_bytes,
        reserved: spec.code_bytes,
        largest: largest.join(", "),
        tokens: placed.tokens.tiles().largest(),
        fitting: fitting_tokens(placed, spec, site),
    }
}

/// Most tokens of a row with which this PE's buffers fit by their bytes.
fn fitting_tokens(placed: &Placed, spec: &WaferSpec, site: &Site) -> u32 {
    let fits = |tokens: u32| {
        let length = tokens.saturating_mul(placed.tokens.rows);
        let fewer = Placed { tokens: Tokens { length, ..placed.tokens }, ..placed.clone() };
        let wishes = buffers(&fewer, &Site { placed: &fewer, ..*site }).unwrap_or_default();
        let requests: Vec<Request> = wishes.into_iter().map(|wish| wish.request).collect();
        sram::plan(&requests, &Partners::new(), Memory { bytes: spec.buffer_bytes(), bank: spec.sram_bytes })
            .1
            <= spec.buffer_bytes()
    };
    let (mut fitting, mut over) = (0, placed.tokens.tiles().largest());
    while fitting + 1 < over {
        let middle = fitting + (over - fitting) / 2;
        if fits(middle) { fitting = middle } else { over = middle }
    }
    fitting
}

fn phase_reports(
    placed: &Placed,
    host: &host::Host,
    colours: &Colours,
    classes: &[ClassReport],
) -> Vec<PhaseReport> {
    let mut reports: Vec<_> = (0..placed.ops.len()).map(|phase| PhaseReport::new(placed, phase)).collect();
    for (phase, stream) in host.phases.iter().zip(&host.streams) {
        reports[*phase].add(stream);
    }
    for (phase, report) in reports.iter_mut().enumerate() {
        report.colours =
            colours.iter().filter(|(of, ..)| *of == phase).map(|(.., colour)| colour.0).collect();
        report.colours.sort_unstable();
        let alive = classes.iter().filter_map(|class| class.alive_by_phase.get(phase));
        report.sram_bytes = alive.copied().max().unwrap_or(0);
    }
    reports
}

fn colour_reports(placed: &Placed, colours: &Colours) -> Vec<ColourReport> {
    let mut uses: BTreeMap<u8, BTreeMap<Channel, Vec<String>>> = BTreeMap::new();
    for (phase, channel, colour) in colours.iter() {
        uses.entry(colour.0).or_default().entry(channel).or_default().push(placed.ops[phase].name.clone());
    }
    let report = |(colour, channels): (u8, BTreeMap<_, _>)| ColourReport {
        colour,
        channels: channels.into_iter().collect(),
    };
    uses.into_iter().map(report).collect()
}

#[cfg(test)]
mod tests;

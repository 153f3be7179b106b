//! Code, routes and memory of a class of PEs.

use super::channel::Colours;
use super::check::check;
use super::common::Common;
use super::error::WaferError;
use super::kernel::{self, scratch_name};
use super::placed::{Layout, OpKind, Path, Placed, PlacedOp, Tokens};
use super::report::ClassReport;
use super::roles::{Role, roles};
use super::site::Site;
use super::sram::{self, Memory, Partners, Request};
use super::{WaferSpec, code};
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::program::{Buffer, Class, Lifetime, Operand, Stmt, TensorMap, Var, VectorOp};
use std::collections::BTreeMap;

/// Code, routes and memory of one class.
pub fn build_class(
    placed: &Placed,
    spec: &WaferSpec,
    colours: &Colours,
    role: Role,
    common: &mut Common,
) -> Result<(Class, ClassReport), WaferError> {
    let mut class = Class { name: role.name, regions: role.regions, ..Class::default() };
    let site = |phase| Site { placed, spec, colours, at: role.sample, phase };
    let (mut body, mut meeting) = (Vec::new(), Partners::new());
    for (phase, op) in placed.ops.iter().enumerate() {
        let mut own = vec![Stmt::Phase(op.name.clone())];
        own.extend(code::prune(kernel::code(&site(phase), op)?));
        match placed.micro_batches {
            1 => {
                let (piece, partners) = common.piece(placed, phase, code::repeated(1, own));
                body.push(piece);
                meeting.extend(partners.iter().cloned());
            }
            _ => body.extend(own),
        }
    }
    meeting.extend(partners(&body));
    let memory = ClassMemory::plan(placed, spec, &site(0), &class.name, &meeting, common)?;
    let fullest = sram::fullest(&memory.alive);
    let buffers = memory.wishes.into_iter().map(|Wish { request, mut buffer }| {
        buffer.offset = memory.addresses.get(&request.name).copied().unwrap_or(0) as u32;
        (request.name, buffer)
    });
    class.buffers = common.map(buffers.collect());
    class.routes = colours.routes(placed, role.sample);
    let report = ClassReport {
        name: class.name.clone(),
        pes: class.count(),
        sram_peak_bytes: memory.peak,
        alive_bytes: fullest.1,
        fullest_phase: placed.ops.get(fullest.0).map(|op| op.name.clone()).unwrap_or_default(),
        alive_by_phase: memory.alive,
    };
    class.start(
        "run",
        if placed.micro_batches > 1 { code::repeated(placed.micro_batches, body) } else { body },
    );
    Ok((class, report))
}

/// Highest byte in use in any PE, plus one, without a look at banks.
///
/// # Errors
/// [`WaferError::Memory`] where that is more than there is; faults of the placement.
pub fn memory_peak(placed: &Placed, spec: &WaferSpec) -> Result<u64, WaferError> {
    check(placed)?;
    let colours = Colours::default();
    let mut common = Common::default();
    let mut peak = |role: Role| {
        let site = Site { placed, spec, colours: &colours, at: role.sample, phase: 0 };
        let memory = ClassMemory::plan(placed, spec, &site, &role.name, &Partners::new(), &mut common);
        memory.map(|memory| memory.peak)
    };
    roles(placed, spec).into_iter().try_fold(0, |most, role| Ok(most.max(peak(role)?)))
}

/// Bytes of the fullest PE that stay from run to run.
///
/// # Errors
/// Faults of the placement.
pub fn resident_bytes(placed: &Placed, spec: &WaferSpec) -> Result<u64, WaferError> {
    check(placed)?;
    let colours = Colours::default();
    let of_role = |role: Role| -> Result<u64, WaferError> {
        let mut bytes = 0;
        for (phase, op) in placed.ops.iter().enumerate() {
            let site = Site { placed, spec, colours: &colours, at: role.sample, phase };
            let staying = kernel::scratch(&site, op)?.into_iter().filter(|scratch| scratch.stays);
            let size = |scratch: kernel::Scratch| u64::from(scratch.elements) * scratch.dtype.bytes();
            bytes += staying.map(|scratch| size(scratch).next_multiple_of(8)).sum::<u64>();
        }
        Ok(bytes)
    };
    roles(placed, spec).into_iter().try_fold(0, |most, role| Ok(most.max(of_role(role)?)))
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
        common: &mut Common,
    ) -> Result<Self, WaferError> {
        let wishes = buffers(placed, site)?;
        let requests: Vec<Request> = wishes.iter().map(|wish| wish.request.clone()).collect();
        let single = |name: &String| {
            wishes.iter().any(|wish| wish.request.name == *name && wish.buffer.dtype == DType::F32)
        };
        let meeting = partners.iter().filter(|(a, b)| single(a) && single(b)).cloned().collect();
        let (addresses, peak) = common.plan(&requests, &meeting, memory(spec));
        if peak > spec.buffer_bytes() {
            return Err(over(placed, spec, site, class, &requests));
        }
        let alive = sram::alive(&requests, placed.ops.len());
        Ok(ClassMemory { wishes, addresses, peak, alive })
    }
}

/// What buffers may use of a PE's memory.
fn memory(spec: &WaferSpec) -> Memory {
    Memory { bytes: spec.buffer_bytes(), word: spec.bank_word.max(1), ports: (spec.banks / 2).max(1) }
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
                // The next micro-batch finds tables that are loaded once, and copies of the one before, as this one does.
                let again = placed.micro_batches > 1;
                let (loaded, read, stays) = (scratch.load.is_some(), scratch.store.is_some(), scratch.stays);
                let first = if loaded || (read && again) { 0 } else { phase };
                let last = if stays || read || (loaded && again) { placed.ops.len() - 1 } else { phase };
                (buffer.load, buffer.store) = (scratch.load, scratch.store);
                wishes.push(wish(placed, scratch_name(&op.name, scratch.name), buffer, first, last));
            }
        }
    }
    Ok(wishes)
}

fn wish(placed: &Placed, name: String, mut buffer: Buffer, first: usize, last: usize) -> Wish {
    let phase = |at: usize| placed.ops[at].name.clone();
    buffer.alive = Some(Lifetime { first: phase(first), last: phase(last) });
    // An access takes 64 bits of short numbers at once, and 32 of others.
    let align = if buffer.dtype == DType::F32 { 4 } else { 8 };
    Wish { request: Request { name, bytes: buffer.bytes(), align, first, last }, buffer }
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
    part_of(site, *placed.values.get(value)?, tensor)
}

/// A PE's part of a tensor `[tokens, features]` that lies like this.
pub fn part_of(site: &Site, layout: Layout, tensor: &str) -> Option<TensorMap> {
    let (features, first) = site.features(layout);
    let row = i64::from(site.placed.features(layout));
    if matches!(layout, Layout::HeadTokens { .. }) {
        return by_tokens(site, tensor, row, features);
    }
    let index = (site.first_token() * row + first).plus(Var::Dim(1), row).plus(Var::Dim(0), 1);
    Some(TensorMap {
        tensor: tensor.into(),
        dims: vec![i64::from(features).into(), i64::from(site.tokens()).into()],
        index,
    })
}

/// A PE's part of a tensor `[tokens, features]` whose tokens lie over the columns of heads.
fn by_tokens(site: &Site, tensor: &str, row: i64, features: u32) -> Option<TensorMap> {
    let head = site.head()?;
    let (features, dim) = (i64::from(features), i64::from(head.shape.dim));
    let token = site.first_token() + head.first_token();
    let of_block = head.shape.column_blocks().block_of_x() * features;
    let index = (token * row + of_block).plus(Var::Dim(0), dim).plus(Var::Dim(1), row).plus(Var::Dim(2), 1);
    let dims = vec![(features / dim).into(), i64::from(head.tokens()).into(), dim.into()];
    Some(TensorMap { tensor: tensor.into(), dims, index })
}

/// Pairs of buffers that one vector op reads as vectors; a number that all elements share waits for none.
pub fn partners(body: &[Stmt]) -> Partners {
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
        .filter_map(|operand| if let Operand::Mem(slice) = operand { Some(slice) } else { None })
        .filter(|slice| slice.strides.is_empty() || slice.strides.iter().any(|stride| *stride != 0))
        .map(|slice| &slice.buffer)
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
        kept: spec.kept_bytes,
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
        sram::plan(&requests, &Partners::new(), memory(spec)).1 <= spec.buffer_bytes()
    };
    let (mut fitting, mut over) = (0, placed.tokens.tiles().largest());
    while fitting + 1 < over {
        let middle = fitting + (over - fitting) / 2;
        if fits(middle) { fitting = middle } else { over = middle }
    }
    fitting
}

/// Adds a class, to one that is set and programmed alike where there is one.
pub fn join(classes: &mut Vec<Class>, reports: &mut Vec<ClassReport>, class: Class, report: ClassReport) {
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

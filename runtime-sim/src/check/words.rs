//! Words: what every sender sends, every reader reads, and every task can be started as often as it says.

use super::fault::{CheckError, Fault};
use crate::lower::{Env, Instr, Linear, LoweredClass, LoweredOp, Sink, Source};
use crate::network::{NONE, Network, Origin, Target};
use crate::program::{Coord, Trigger, WaferProgram};
use std::collections::BTreeMap;

/// What one PE does to the fabric in a whole run.
#[derive(Clone, Debug, Default, PartialEq)]
struct Tally {
    /// Data words read, by input slot.
    read: Vec<u64>,
    /// Data words sent, by output slot.
    sent: Vec<u64>,
    /// Control words sent, by output slot.
    controls: Vec<u64>,
    /// Activations, by task.
    activated: Vec<u64>,
    /// An op with an odd number of elements on a packed wire.
    odd: bool,
    /// Iterations looked at one by one.
    steps: u64,
}

/// A PE whose loops depend on each other in more iterations than this is not counted.
const STEPS: u64 = 1 << 20;

impl Tally {
    fn undecided(&self) -> bool {
        self.steps >= STEPS
    }
}

/// At most this many faults of words are reported.
const MANY: usize = 32;

/// All faults of word counts. Routes have been traced.
pub fn check(program: &WaferProgram, net: &Network, classes: &[LoweredClass]) -> Vec<CheckError> {
    let mut words = Words {
        program,
        net,
        classes,
        lengths: classes.iter().map(|c| [c.lengths_of(true), c.lengths_of(false)]).collect(),
        kinds: classes.iter().map(|_| [BTreeMap::new(), BTreeMap::new()]).collect(),
        parts: BTreeMap::new(),
        ids: BTreeMap::new(),
        id_of: vec![NONE; net.class_of.len()],
        tallies: Vec::new(),
        errors: Vec::new(),
    };
    words.streams();
    words.tasks();
    words.switched();
    words.errors.truncate(MANY);
    words.errors
}

/// A class and what a column and a row contribute to its counts, as kinds.
type Key = (u16, u32, u32);

struct Words<'a> {
    program: &'a WaferProgram,
    net: &'a Network,
    classes: &'a [LoweredClass],
    /// Per class: counts that depend on the column, and on the row.
    lengths: Vec<[Vec<Linear>; 2]>,
    /// Per class: the kind of each column and of each row met.
    kinds: Vec<[BTreeMap<u32, u32>; 2]>,
    /// Numbers of kinds, by class, axis and contributions.
    parts: BTreeMap<(u16, bool, Vec<i64>), u32>,
    /// Tallies by key, and by PE where known.
    ids: BTreeMap<Key, u32>,
    id_of: Vec<u32>,
    tallies: Vec<Tally>,
    errors: Vec<CheckError>,
}

impl<'a> Words<'a> {
    fn class(&self, pe: u32) -> &'a LoweredClass {
        &self.classes[self.net.class_of[pe as usize] as usize]
    }

    /// The tally of a PE; computed once for PEs that cannot differ.
    fn tally(&mut self, pe: u32) -> u32 {
        if self.id_of[pe as usize] == NONE {
            let class = self.net.class_of[pe as usize];
            let at = self.net.coord(pe);
            let key = (class, self.kind(class, true, at.x), self.kind(class, false, at.y));
            let id = *self.ids.entry(key).or_insert_with(|| {
                self.tallies.push(tally(&self.classes[class as usize], at));
                self.tallies.len() as u32 - 1
            });
            self.id_of[pe as usize] = id;
        }
        self.id_of[pe as usize]
    }

    /// The kind of a column (or row) in a class.
    fn kind(&mut self, class: u16, of_x: bool, at: u32) -> u32 {
        let known = &mut self.kinds[class as usize][usize::from(!of_x)];
        if let Some(kind) = known.get(&at) {
            return *kind;
        }
        let lengths = &self.lengths[class as usize][usize::from(!of_x)];
        let parts = lengths.iter().map(|l| l.part(of_x, i64::from(at))).collect();
        let next = self.parts.len() as u32;
        let kind = *self.parts.entry((class, of_x, parts)).or_insert(next);
        known.insert(at, kind);
        kind
    }

    /// Every fixed stream: sent equals read at each end.
    fn streams(&mut self) {
        for index in 0..self.net.streams.len() as u32 {
            let stream = &self.net.streams[index as usize];
            let Some(sent) = self.sent(stream.origin, index) else { continue };
            for end in self.net.ends_of(index) {
                let read = match end.target {
                    Target::Pe(pe) => match self.read(pe, stream.colour) {
                        Some(read) => read,
                        None => continue,
                    },
                    Target::Host(lane) => host_words(self.program, &self.net.host_out[lane as usize]),
                    Target::Switch(..) => continue,
                };
                if sent != read && self.errors.len() < MANY {
                    self.unequal(index, end.target, sent, read);
                }
            }
        }
        self.unsent();
    }

    fn sent(&mut self, origin: Origin, stream: u32) -> Option<u64> {
        match origin {
            Origin::Pe(pe) => {
                let id = self.tally(pe);
                let colour = self.net.streams[stream as usize].colour;
                let slot = self.class(pe).outputs.binary_search(&colour).ok()?;
                let tally = &self.tallies[id as usize];
                (!tally.undecided()).then_some(tally.sent[slot])
            }
            Origin::Host(lane) => Some(host_words(self.program, &self.net.host_in[lane as usize])),
            Origin::Switch(..) => None,
        }
    }

    fn read(&mut self, pe: u32, colour: crate::program::Colour) -> Option<u64> {
        let id = self.tally(pe);
        let slot = self.class(pe).inputs.binary_search(&colour);
        let tally = &self.tallies[id as usize];
        (!tally.undecided()).then(|| slot.map_or(0, |slot| tally.read[slot]))
    }

    fn unequal(&mut self, stream: u32, target: Target, sent: u64, read: u64) {
        let s = &self.net.streams[stream as usize];
        let (sender, _) = self.name_origin(s.origin);
        let (reader, at) = match target {
            Target::Pe(pe) => (format!("PE {}", self.net.coord(pe)), Some(pe)),
            Target::Host(lane) => (self.lane_name(&self.net.host_out[lane as usize]), None),
            Target::Switch(..) => return,
        };
        let mut error = CheckError::new(Fault::Count { sender, sent, reader, read }).colour(s.colour);
        if let Some(pe) = at {
            let class = &self.classes[self.net.class_of[pe as usize] as usize];
            error = error.at(self.net.coord(pe)).class(&class.name);
        }
        self.errors.push(error);
    }

    fn lane_name(&self, lane: &crate::network::HostLane) -> String {
        format!("host stream `{}`", self.program.host[lane.parts[0] as usize].name)
    }

    fn name_origin(&self, origin: Origin) -> (String, Option<u32>) {
        match origin {
            Origin::Pe(pe) => (format!("PE {}", self.net.coord(pe)), Some(pe)),
            Origin::Switch(s, _) => {
                let pe = self.net.switches[s as usize].pe;
                (format!("the switch of PE {}", self.net.coord(pe)), Some(pe))
            }
            Origin::Host(lane) => (self.lane_name(&self.net.host_in[lane as usize]), None),
        }
    }

    /// Readers without any stream.
    fn unsent(&mut self) {
        for pe in 0..self.net.class_of.len() as u32 {
            if self.net.class_of[pe as usize] == u16::MAX {
                continue;
            }
            let id = self.tally(pe);
            let class = self.class(pe);
            for (slot, colour) in class.inputs.iter().enumerate() {
                let words = self.tallies[id as usize].read[slot];
                if words > 0 && self.net.input(pe as usize, slot) == NONE && self.errors.len() < MANY {
                    let fault = Fault::NoSender { user: "the PE".into(), words };
                    let error =
                        CheckError::new(fault).at(self.net.coord(pe)).class(&class.name).colour(*colour);
                    self.errors.push(error);
                }
            }
        }
        for lane in &self.net.host_out {
            let words = host_words(self.program, lane);
            if lane.link == NONE && words > 0 && self.errors.len() < MANY {
                let fault = Fault::NoSender { user: self.lane_name(lane), words };
                self.errors.push(CheckError::new(fault).at(lane.at).colour(lane.colour));
            }
        }
    }

    /// Tasks are triggered as often as they should run, and packed wires carry pairs.
    fn tasks(&mut self) {
        let mut seen = BTreeMap::new();
        for pe in 0..self.net.class_of.len() as u32 {
            if self.net.class_of[pe as usize] != u16::MAX {
                let id = self.tally(pe);
                seen.entry(id).or_insert(pe);
            }
        }
        for (id, pe) in seen {
            let (at, class) = (self.net.coord(pe), self.class(pe));
            if self.tallies[id as usize].odd {
                let what = "an op has an odd number of elements on a packed wire".into();
                self.errors.push(CheckError::new(Fault::Malformed { what }).at(at).class(&class.name));
            }
            for (index, task) in class.tasks.iter().enumerate() {
                let times = task.times.at(&place(at));
                let triggered = match task.trigger {
                    Trigger::Local => self.tallies[id as usize].activated[index],
                    Trigger::Control { .. } => match self.controls(pe, task.slot) {
                        Some(n) => n.min(times.max(0) as u64),
                        None => continue,
                    },
                    Trigger::Start | Trigger::Data { .. } => continue,
                };
                if triggered != times.max(0) as u64 {
                    let class_index = self.net.class_of[pe as usize] as usize;
                    let task = self.program.classes[class_index].tasks[index].name.clone();
                    let fault = Fault::NeverFires { task, times, triggered };
                    self.errors.push(CheckError::new(fault).at(at).class(&class.name));
                }
            }
        }
    }

    /// Control words that reach an input, unless a switch decides it.
    fn controls(&mut self, pe: u32, slot: usize) -> Option<u64> {
        let end = self.net.input(pe as usize, slot);
        if end == NONE {
            return Some(0);
        }
        let stream = &self.net.streams[self.net.ends[end as usize].stream as usize];
        match stream.origin {
            Origin::Pe(sender) => {
                let id = self.tally(sender);
                let out = self.class(sender).outputs.binary_search(&stream.colour).ok()?;
                Some(self.tallies[id as usize].controls[out])
            }
            Origin::Host(lane) => {
                let parts = &self.net.host_in[lane as usize].parts;
                Some(parts.iter().filter(|&&p| self.program.host[p as usize].then.is_some()).count() as u64)
            }
            Origin::Switch(..) => None,
        }
    }

    /// Streams joined by switches, where no word is ever copied: all words sent equal all words read.
    fn switched(&mut self) {
        let mut groups: BTreeMap<u32, Group> = BTreeMap::new();
        let roots = self.roots();
        for index in 0..self.net.streams.len() as u32 {
            let stream = &self.net.streams[index as usize];
            let touches = |e: &crate::network::End| matches!(e.target, Target::Switch(..));
            if !matches!(stream.origin, Origin::Switch(..)) && !self.net.ends_of(index).iter().any(touches) {
                continue;
            }
            let sent = self.sent(stream.origin, index);
            let group = groups.entry(roots[index as usize]).or_insert_with(|| Group::new(index));
            group.copies |= sent.is_none() && !matches!(stream.origin, Origin::Switch(..));
            let sent = sent.unwrap_or(0);
            group.sent += sent;
            group.copies |= stream.ends != 1;
            for end in self.net.ends_of(index) {
                let read = match end.target {
                    Target::Pe(pe) => self.read(pe, stream.colour).unwrap_or_else(|| {
                        group.copies = true;
                        0
                    }),
                    Target::Host(lane) => host_words(self.program, &self.net.host_out[lane as usize]),
                    Target::Switch(node, _) => {
                        let node = &self.net.switches[node as usize];
                        let route = &self.program.classes[node.class as usize].routes[&node.colour];
                        group.copies |= route.positions.iter().any(|p| p.to.len() != 1);
                        0
                    }
                };
                group.read += read;
            }
        }
        for group in groups.values().filter(|g| !g.copies && g.sent != g.read) {
            let stream = &self.net.streams[group.stream as usize];
            let (_, pe) = self.name_origin(stream.origin);
            let (sender, reader) =
                ("all PEs that share the switched route send".into(), "its readers".into());
            let fault = Fault::Count { sender, sent: group.sent, reader, read: group.read };
            let error = CheckError::new(fault).colour(stream.colour);
            self.errors.push(match pe {
                Some(pe) => error.at(self.net.coord(pe)),
                None => error,
            });
        }
    }

    /// One representative per set of streams that switches connect.
    fn roots(&self) -> Vec<u32> {
        let mut root: Vec<u32> = (0..self.net.streams.len() as u32).collect();
        fn find(root: &mut [u32], mut s: u32) -> u32 {
            while root[s as usize] != s {
                root[s as usize] = root[root[s as usize] as usize];
                s = root[s as usize];
            }
            s
        }
        for node in &self.net.switches {
            let ends = node.ends.iter().filter(|e| **e != NONE).map(|e| self.net.ends[*e as usize].stream);
            let all: Vec<u32> = ends.chain(node.streams.iter().copied().filter(|s| *s != NONE)).collect();
            for pair in all.windows(2) {
                let (a, b) = (find(&mut root, pair[0]), find(&mut root, pair[1]));
                root[a.max(b) as usize] = a.min(b);
            }
        }
        (0..root.len() as u32).map(|s| find(&mut root, s)).collect()
    }
}

struct Group {
    stream: u32,
    sent: u64,
    read: u64,
    copies: bool,
}

impl Group {
    fn new(stream: u32) -> Self {
        Group { stream, sent: 0, read: 0, copies: false }
    }
}

/// Words that pass a host lane.
fn host_words(program: &WaferProgram, lane: &crate::network::HostLane) -> u64 {
    let at =
        |a: &crate::program::Affine| a.eval(|v| v.at_place(lane.at.x, lane.at.y).unwrap_or(0)).max(0) as u64;
    let words = |part: &u32| {
        let host = &program.host[*part as usize];
        let elements: u64 = host.dims.iter().map(at).fold(1, u64::saturating_mul);
        elements.div_ceil(u64::from(host.wire.lanes()))
    };
    lane.parts.iter().map(words).sum()
}

fn place(at: Coord) -> Env {
    Env { x: i64::from(at.x), y: i64::from(at.y), ..Env::default() }
}

/// Counts what a PE at a place sends and reads.
fn tally(class: &LoweredClass, at: Coord) -> Tally {
    let mut tally = Tally {
        read: vec![0; class.inputs.len()],
        sent: vec![0; class.outputs.len()],
        controls: vec![0; class.outputs.len()],
        activated: vec![0; class.tasks.len()],
        odd: false,
        steps: 0,
    };
    for task in &class.tasks {
        let mut env = place(at);
        let times = task.times.at(&env).max(0) as u64;
        if let Trigger::Data { .. } = task.trigger {
            add(&mut tally.read[task.slot], times);
        }
        let same = !task.code.iter().any(Instr::length_varies_by_turn);
        for turn in 0..if same { times.min(1) } else { times } {
            tally.steps += 1;
            if tally.undecided() {
                return tally;
            }
            env.turn = turn as i64;
            count(&task.code, 0..task.code.len(), &mut env, if same { times } else { 1 }, &mut tally);
        }
    }
    tally
}

fn count(code: &[Instr], range: std::ops::Range<usize>, env: &mut Env, times: u64, tally: &mut Tally) {
    let mut pc = range.start;
    while pc < range.end {
        match &code[pc] {
            Instr::Op(op) => count_op(op, env, times, tally),
            Instr::Par(ops) => ops.iter().for_each(|op| count_op(op, env, times, tally)),
            Instr::Control { slot, .. } => add(&mut tally.controls[*slot], times),
            Instr::Activate(task) => add(&mut tally.activated[*task], times),
            Instr::Loop { depth, count: n, end, varies } => {
                let n = n.at(env).max(0) as u64;
                let inner = pc + 1..*end;
                env.loops[*depth] = 0;
                if !varies && n > 0 {
                    count(code, inner, env, times.saturating_mul(n), tally);
                } else {
                    for i in 0..n {
                        tally.steps += 1;
                        if tally.undecided() {
                            return;
                        }
                        env.loops[*depth] = i as i64;
                        count(code, inner.clone(), env, times, tally);
                    }
                }
                pc = *end;
            }
            Instr::Next { .. } | Instr::Phase(_) | Instr::End => {}
        }
        pc += 1;
    }
}

fn add(sum: &mut u64, n: u64) {
    *sum = sum.saturating_add(n);
}

fn count_op(op: &LoweredOp, env: &Env, times: u64, tally: &mut Tally) {
    let elements = op.elements(env);
    if elements == 0 {
        return;
    }
    tally.odd |= !elements.is_multiple_of(u64::from(op.step()));
    let words = |lanes: u32| (elements / u64::from(lanes)).saturating_mul(times);
    for source in &op.src {
        match source {
            Source::In { slot, wire } => add(&mut tally.read[*slot], words(wire.lanes())),
            Source::Scalar { slot, .. } => add(&mut tally.read[*slot], times),
            _ => {}
        }
    }
    if let Sink::Out { slot, wire, .. } = &op.dst {
        add(&mut tally.sent[*slot], words(wire.lanes()));
    }
}

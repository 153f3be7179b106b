//! Follows every route once, from its sender to all its ends, and reports what does not end well.

use super::{End, HostLane, NONE, Network, Origin, SharedLink, Stream, SwitchNode, Target};
use crate::check::{CheckError, Fault};
use crate::fabric::FabricSpec;
use crate::lower::{input_colours, output_colours};
use crate::program::{Colour, Coord, Direction, Port, Route, WaferProgram};
use std::collections::{BTreeMap, BTreeSet};

impl Network {
    /// Traces the streams that touch rows for which `wanted` holds. Words still travel through the other rows.
    pub fn build(
        program: &WaferProgram,
        spec: &FabricSpec,
        wanted: &dyn Fn(u32) -> bool,
    ) -> Result<Network, Vec<CheckError>> {
        let mut builder = Builder::new(program, spec, wanted);
        builder.cover();
        if builder.errors.is_empty() {
            builder.number();
            builder.trace_all();
        }
        if builder.errors.is_empty() { Ok(builder.finish()) } else { Err(builder.errors) }
    }
}

/// At most this many faults of routes are reported.
const MANY: usize = 32;

struct Builder<'a> {
    program: &'a WaferProgram,
    spec: &'a FabricSpec,
    wanted: &'a dyn Fn(u32) -> bool,
    net: Network,
    slots_in: Vec<Vec<Colour>>,
    slots_out: Vec<Vec<Colour>>,
    switch_at: BTreeMap<(u32, Colour), u32>,
    host_out_at: BTreeMap<(u32, u8, Colour), u32>,
    /// Number of streams over each link out of a router, by PE and port.
    load: Vec<[u8; 5]>,
    errors: Vec<CheckError>,
}

/// A place in a trace: a router about to be entered.
#[derive(Clone, Copy)]
struct Step {
    pe: u32,
    from: Port,
    hops: u32,
    shared: u32,
}

impl<'a> Builder<'a> {
    fn new(program: &'a WaferProgram, spec: &'a FabricSpec, wanted: &'a dyn Fn(u32) -> bool) -> Self {
        let pes = program.width as usize * program.height as usize;
        let net = Network {
            width: program.width,
            height: program.height,
            class_of: vec![u16::MAX; pes],
            traced: (0..program.height).map(wanted).collect(),
            ..Network::default()
        };
        Builder {
            program,
            spec,
            wanted,
            net,
            slots_in: program.classes.iter().map(input_colours).collect(),
            slots_out: program.classes.iter().map(output_colours).collect(),
            switch_at: BTreeMap::new(),
            host_out_at: BTreeMap::new(),
            load: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// Gives every PE its class; regions lie inside the grid.
    fn cover(&mut self) {
        for (index, class) in self.program.classes.iter().enumerate() {
            for region in &class.regions {
                for at in region.pes() {
                    self.claim(at, index);
                }
            }
        }
    }

    fn claim(&mut self, at: Coord, class: usize) {
        let place = self.net.index(at);
        let before = self.net.class_of[place];
        if before != u16::MAX && self.errors.len() < MANY {
            let name = |c: usize| self.program.classes[c].name.clone();
            let fault = Fault::TwoClasses { first: name(before as usize), second: name(class) };
            self.errors.push(CheckError::new(fault).at(at));
        }
        self.net.class_of[place] = class as u16;
    }

    /// Numbers slots, switches and host lanes.
    fn number(&mut self) {
        self.net.inputs = self.slots_in.iter().map(|s| s.len() as u32).collect();
        let mut next = 0u32;
        for pe in 0..self.net.class_of.len() {
            self.net.first_slot.push(next);
            let class = self.net.class_of[pe];
            if class == u16::MAX || !(self.wanted)(pe as u32 / self.net.width) {
                continue;
            }
            next += (self.slots_in[class as usize].len() + self.slots_out[class as usize].len()) as u32;
            for (colour, route) in &self.program.classes[class as usize].routes {
                if route.positions.len() > 1 {
                    self.switch_at.insert((pe as u32, *colour), self.net.switches.len() as u32);
                    let (ends, streams) = ([NONE; 5], [NONE; 5]);
                    let node = SwitchNode { pe: pe as u32, colour: *colour, class, ends, streams };
                    self.net.switches.push(node);
                }
            }
        }
        self.net.slots = vec![NONE; next as usize];
        self.load = vec![[0; 5]; self.net.class_of.len()];
        self.lanes();
    }

    fn lanes(&mut self) {
        let mut lanes: BTreeMap<(Direction, u32, u8, Colour), Vec<u32>> = BTreeMap::new();
        for (index, host) in self.program.host.iter().enumerate() {
            for k in 0..host.lanes {
                let lane = host.first + k * host.step.max(1);
                let at = match host.edge {
                    Port::North | Port::Ramp => Coord { x: lane, y: 0 },
                    Port::South => Coord { x: lane, y: self.net.height - 1 },
                    Port::West => Coord { x: 0, y: lane },
                    Port::East => Coord { x: self.net.width - 1, y: lane },
                };
                let unseen = matches!(host.edge, Port::East | Port::West) && !(self.wanted)(at.y);
                if at.x < self.net.width && at.y < self.net.height && !unseen {
                    let key = (host.direction, self.net.index(at) as u32, host.edge as u8, host.colour);
                    lanes.entry(key).or_default().push(index as u32);
                }
            }
        }
        for ((direction, pe, edge, colour), parts) in lanes {
            let lane = HostLane { at: self.net.coord(pe), colour, parts, link: NONE };
            match direction {
                Direction::In => self.net.host_in.push(lane),
                Direction::Out => {
                    self.host_out_at.insert((pe, edge, colour), self.net.host_out.len() as u32);
                    self.net.host_out.push(lane);
                }
            }
        }
    }

    fn trace_all(&mut self) {
        let mut sources = Vec::new();
        for pe in 0..self.net.class_of.len() as u32 {
            let class = self.net.class_of[pe as usize];
            if class == u16::MAX || !(self.wanted)(pe / self.net.width) {
                continue;
            }
            for colour in &self.slots_out[class as usize] {
                sources.push((Origin::Pe(pe), *colour, Step { pe, from: Port::Ramp, hops: 0, shared: 0 }));
            }
        }
        for lane in 0..self.net.host_in.len() {
            let host = &self.net.host_in[lane];
            let edge = self.program.host[host.parts[0] as usize].edge;
            let pe = self.net.index(host.at) as u32;
            sources.push((
                Origin::Host(lane as u32),
                host.colour,
                Step { pe, from: edge, hops: 0, shared: 0 },
            ));
        }
        self.count_loads();
        for (origin, colour, step) in sources {
            self.trace(origin, colour, &[step]);
        }
        for switch in 0..self.net.switches.len() as u32 {
            self.trace_switch(switch);
        }
    }

    /// Counts streams per link, so that shared links are known before times are.
    fn count_loads(&mut self) {
        for pe in 0..self.net.class_of.len() {
            let class = self.net.class_of[pe];
            if class == u16::MAX || !(self.wanted)(pe as u32 / self.net.width) {
                continue;
            }
            for route in self.program.classes[class as usize].routes.values() {
                let ports: BTreeSet<Port> =
                    route.positions.iter().flat_map(|p| p.to.iter().copied()).collect();
                for port in ports {
                    let load = &mut self.load[pe][port as usize];
                    *load = load.saturating_add(1);
                }
            }
        }
    }

    fn route(&self, pe: u32, colour: Colour) -> Option<&'a Route> {
        let class = self.net.class_of[pe as usize];
        let program: &'a WaferProgram = self.program;
        (class != u16::MAX).then(|| program.classes[class as usize].routes.get(&colour)).flatten()
    }

    /// Streams that leave a switched router, one per port that any position sends to.
    fn trace_switch(&mut self, switch: u32) {
        let node = &self.net.switches[switch as usize];
        let (pe, colour) = (node.pe, node.colour);
        let Some(route) = self.route(pe, colour) else { return };
        let ports: BTreeSet<Port> = route.positions.iter().flat_map(|p| p.to.iter().copied()).collect();
        for port in ports {
            let stream = self.net.streams.len() as u32;
            self.net.switches[switch as usize].streams[port as usize] = stream;
            let mut trace = self.begin(Origin::Switch(switch, port as u8), colour);
            let step = Step { pe, from: port, hops: 0, shared: 0 };
            self.leave(&mut trace, step, port);
            self.walk(trace);
        }
    }

    fn trace(&mut self, origin: Origin, colour: Colour, first: &[Step]) {
        let stream = self.net.streams.len() as u32;
        match origin {
            Origin::Pe(pe) => {
                let class = self.net.class_of[pe as usize] as usize;
                let slot = self.slots_out[class].binary_search(&colour).unwrap_or(0);
                let place = self.net.first_slot[pe as usize] as usize + self.slots_in[class].len() + slot;
                self.net.slots[place] = stream;
            }
            Origin::Host(lane) => self.net.host_in[lane as usize].link = stream,
            Origin::Switch(..) => {}
        }
        let mut trace = self.begin(origin, colour);
        trace.open.extend_from_slice(first);
        self.walk(trace);
    }

    fn begin(&mut self, origin: Origin, colour: Colour) -> Trace {
        let (first_end, first_shared) = (self.net.ends.len() as u32, self.net.shared.len() as u32);
        self.net.streams.push(Stream { origin, colour, first_end, ends: 0, first_shared, shared: 0 });
        Trace { origin, colour, open: Vec::new(), steps: 0 }
    }

    fn walk(&mut self, mut trace: Trace) {
        let most = 4 * self.net.class_of.len() + 8;
        while let Some(step) = trace.open.pop() {
            trace.steps += 1;
            if trace.steps > most {
                let fault = Fault::Circle { sender: self.sender(trace.origin) };
                self.fault(step.pe, trace.colour, fault);
                return;
            }
            self.enter(&mut trace, step);
        }
        let stream = self.net.streams.len() - 1;
        let (ends, shared) = (self.net.ends.len() as u32, self.net.shared.len() as u32);
        let s = &mut self.net.streams[stream];
        (s.ends, s.shared) = (ends - s.first_end, shared - s.first_shared);
    }

    /// The words enter the router of `step.pe` through `step.from`.
    fn enter(&mut self, trace: &mut Trace, step: Step) {
        let sender = || self.sender(trace.origin);
        let Some(route) = self.route(step.pe, trace.colour) else {
            let fault = Fault::DeadEnd { sender: sender(), port: step.from };
            return self.fault(step.pe, trace.colour, fault);
        };
        if !route.positions.iter().any(|p| p.from == step.from) {
            let taken: Vec<&str> = route.positions.iter().map(|p| p.from.name()).collect();
            let fault = Fault::TwoSenders { sender: sender(), port: step.from, taken: taken.join(", ") };
            return self.fault(step.pe, trace.colour, fault);
        }
        if route.positions.len() == 1 {
            for port in &route.positions[0].to {
                self.leave(trace, step, *port);
            }
        } else if let Some(&switch) = self.switch_at.get(&(step.pe, trace.colour)) {
            let ramp = if step.from == Port::Ramp { self.spec.ramp_cycles } else { 0 };
            let latency = self.latency(trace, step) + ramp;
            let end = self.end(trace, step, Target::Switch(switch, step.from as u8), latency, 0);
            self.net.switches[switch as usize].ends[step.from as usize] = end;
        }
    }

    /// The words leave the router of `step.pe` through `port`.
    fn leave(&mut self, trace: &mut Trace, step: Step, port: Port) {
        let here = self.net.coord(step.pe);
        let (width, height) = (self.net.width, self.net.height);
        let next = match port {
            Port::Ramp => return self.arrive(trace, step),
            Port::North => here.y.checked_sub(1).map(|y| Coord { y, ..here }),
            Port::South => (here.y + 1 < height).then_some(Coord { y: here.y + 1, ..here }),
            Port::West => here.x.checked_sub(1).map(|x| Coord { x, ..here }),
            Port::East => (here.x + 1 < width).then_some(Coord { x: here.x + 1, ..here }),
        };
        let mut step = step;
        if self.load[step.pe as usize][port as usize] > 1 && next.is_some() {
            step.shared = self.share(trace, step, port);
        }
        match next {
            Some(at) => {
                let pe = self.net.index(at) as u32;
                trace.open.push(Step { pe, from: port.opposite(), hops: step.hops + 1, shared: step.shared });
            }
            None => self.exit(trace, step, port),
        }
    }

    /// Records that the stream crosses a link with other colours; returns 1 + its index in the stream.
    fn share(&mut self, trace: &Trace, step: Step, port: Port) -> u32 {
        let first = self.net.streams[self.net.streams.len() - 1].first_shared;
        let link = step.pe * 5 + port as u32;
        let ramp = if matches!(trace.origin, Origin::Pe(_)) { self.spec.ramp_cycles } else { 0 };
        let latency = ramp + step.hops * self.spec.hop_cycles;
        self.net.shared.push(SharedLink { link, latency, parent: step.shared });
        self.net.shared.len() as u32 - first
    }

    /// Cycles from the source to the router of `step`.
    fn latency(&self, trace: &Trace, step: Step) -> u32 {
        let ramp = match trace.origin {
            Origin::Pe(_) if step.from != Port::Ramp || step.hops > 0 => self.spec.ramp_cycles,
            Origin::Pe(_) => 0,
            Origin::Host(_) | Origin::Switch(..) => 0,
        };
        ramp + step.hops * self.spec.hop_cycles
    }

    /// The words go down the ramp of `step.pe`.
    fn arrive(&mut self, trace: &mut Trace, step: Step) {
        if !(self.wanted)(step.pe / self.net.width) {
            return;
        }
        let local = matches!(trace.origin, Origin::Pe(pe) if pe == step.pe) && step.hops == 0;
        let up = if local { self.spec.ramp_cycles } else { 0 };
        let latency = self.latency(trace, step) + up + self.spec.ramp_cycles;
        let end = self.end(trace, step, Target::Pe(step.pe), latency, self.spec.queue_in);
        let class = self.net.class_of[step.pe as usize] as usize;
        if let Ok(slot) = self.slots_in[class].binary_search(&trace.colour) {
            let place = self.net.first_slot[step.pe as usize] as usize + slot;
            self.net.slots[place] = end;
        }
    }

    /// The words leave the wafer.
    fn exit(&mut self, trace: &mut Trace, step: Step, port: Port) {
        match self.host_out_at.get(&(step.pe, port as u8, trace.colour)) {
            Some(&lane) => {
                let latency = self.latency(trace, step) + self.spec.hop_cycles;
                let end = self.end(trace, step, Target::Host(lane), latency, self.spec.queue_in);
                self.net.host_out[lane as usize].link = end;
            }
            None => {
                let fault = Fault::DeadEnd { sender: self.sender(trace.origin), port };
                self.fault(step.pe, trace.colour, fault);
            }
        }
    }

    fn end(&mut self, trace: &Trace, step: Step, target: Target, latency: u32, queue: u32) -> u32 {
        let out = if matches!(trace.origin, Origin::Pe(_)) { self.spec.queue_out } else { 0 };
        let depth = (out + (step.hops + 1) * self.spec.queue_hop + queue).max(1);
        let stream = self.net.streams.len() as u32 - 1;
        self.net.ends.push(End { target, stream, latency, depth, column: step.shared });
        self.net.ends.len() as u32 - 1
    }

    fn sender(&self, origin: Origin) -> String {
        match origin {
            Origin::Pe(pe) => format!("PE {}", self.net.coord(pe)),
            Origin::Switch(s, _) => {
                format!("the switch of PE {}", self.net.coord(self.net.switches[s as usize].pe))
            }
            Origin::Host(lane) => {
                let part = self.net.host_in[lane as usize].parts[0];
                format!("host stream `{}`", self.program.host[part as usize].name)
            }
        }
    }

    fn fault(&mut self, pe: u32, colour: Colour, fault: Fault) {
        if self.errors.len() >= MANY {
            return;
        }
        let mut error = CheckError::new(fault).at(self.net.coord(pe)).colour(colour);
        let class = self.net.class_of[pe as usize];
        if class != u16::MAX {
            error = error.class(&self.program.classes[class as usize].name);
        }
        self.errors.push(error);
    }

    /// Renumbers shared links densely.
    fn finish(mut self) -> Network {
        let links: BTreeSet<u32> = self.net.shared.iter().map(|s| s.link).collect();
        let dense: BTreeMap<u32, u32> = links.into_iter().zip(0..).collect();
        for shared in &mut self.net.shared {
            shared.link = dense[&shared.link];
        }
        self.net.shared_links = dense.len() as u32;
        self.net
    }
}

struct Trace {
    origin: Origin,
    colour: Colour,
    open: Vec<Step>,
    steps: usize,
}

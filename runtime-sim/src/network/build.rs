//! Follows every route once, from its sender to all its ends, and reports what does not end well.

use super::routes::Routes;
use super::{
    End, HostLane, Links, NOBODY, NONE, Network, Origin, SharedLink, Stream, SwitchNode, Target, cover,
};
use crate::check::{CheckError, Fault};
use crate::fabric::FabricSpec;
use crate::lower::{input_colours, output_colours};
use crate::program::{Class, Colour, Coord, Direction, Port, Route, WaferProgram};
use std::collections::{BTreeMap, BTreeSet};

impl Network {
    /// Traces all streams.
    pub fn build(program: &WaferProgram, spec: &FabricSpec) -> Result<Network, Vec<CheckError>> {
        let traced = vec![true; program.height as usize];
        Network::of_rows(program, spec, cover(program)?, traced, Links::Shared)
    }

    /// Traces the streams that PEs of the `traced` rows send and those of the host, as far as they touch these rows.
    pub fn of_rows(
        program: &WaferProgram,
        spec: &FabricSpec,
        class_of: Vec<u16>,
        traced: Vec<bool>,
        links: Links,
    ) -> Result<Network, Vec<CheckError>> {
        let mut builder = Builder::new(program, spec, class_of, traced);
        if links == Links::Untold {
            builder.loads.clear();
        }
        builder.number();
        builder.trace_all();
        if builder.errors.is_empty() { Ok(builder.finish()) } else { Err(builder.errors) }
    }
}

/// At most this many faults of routes are reported.
const MANY: usize = 32;

struct Builder<'a> {
    program: &'a WaferProgram,
    spec: &'a FabricSpec,
    net: Network,
    slots_in: Vec<Vec<Colour>>,
    slots_out: Vec<Vec<Colour>>,
    switch_at: BTreeMap<(u32, Colour), u32>,
    host_out_at: BTreeMap<(u32, u8, Colour), u32>,
    /// Number of colours that leave a router of each class, by port; empty if it is not asked which links are shared.
    loads: Vec<[u8; 5]>,
    routes: Routes<'a>,
    /// Routers that the stream being traced is about to enter.
    open: Vec<Step>,
    errors: Vec<CheckError>,
}

/// A place in a trace: a router about to be entered.
#[derive(Clone, Copy)]
struct Step {
    at: Coord,
    from: Port,
    hops: u32,
    shared: u32,
}

impl<'a> Builder<'a> {
    fn new(program: &'a WaferProgram, spec: &'a FabricSpec, class_of: Vec<u16>, traced: Vec<bool>) -> Self {
        let (width, height) = (program.width, program.height);
        let reach = (0..height).collect();
        let net = Network { width, height, class_of, traced, reach, ..Network::default() };
        Builder {
            program,
            spec,
            net,
            slots_in: program.classes.iter().map(input_colours).collect(),
            slots_out: program.classes.iter().map(output_colours).collect(),
            switch_at: BTreeMap::new(),
            host_out_at: BTreeMap::new(),
            loads: program.classes.iter().map(loads).collect(),
            routes: Routes::of(program),
            open: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// Numbers slots, switches and host lanes.
    fn number(&mut self) {
        self.net.inputs = self.slots_in.iter().map(|s| s.len() as u32).collect();
        self.net.first_slot = vec![0; self.net.class_of.len()];
        let mut next = 0u32;
        let switched = |class: &Class| {
            let routes = class.routes.iter().filter(|(_, route)| route.positions.len() > 1);
            routes.map(|(colour, _)| *colour).collect()
        };
        let switched: Vec<Vec<Colour>> = self.program.classes.iter().map(switched).collect();
        let pes: Vec<(u32, u16)> = self.net.traced_pes().collect();
        for (pe, class) in pes {
            self.net.first_slot[pe as usize] = next;
            next += (self.slots_in[class as usize].len() + self.slots_out[class as usize].len()) as u32;
            for &colour in &switched[class as usize] {
                self.switch_at.insert((pe, colour), self.net.switches.len() as u32);
                let (ends, streams) = ([NONE; 5], [NONE; 5]);
                self.net.switches.push(SwitchNode { pe, colour, class, ends, streams });
            }
        }
        self.net.slots = vec![NONE; next as usize];
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
                let side = matches!(host.edge, Port::East | Port::West);
                let on_grid = at.x < self.net.width && at.y < self.net.height;
                if on_grid && (!side || self.net.traced[at.y as usize]) {
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
        let pes: Vec<(u32, u16)> = self.net.traced_pes().collect();
        let sent = pes.iter().map(|(_, class)| self.slots_out[*class as usize].len()).sum::<usize>();
        self.net.streams.reserve(sent + self.net.host_in.len());
        self.net.ends.reserve(sent);
        for (pe, class) in pes {
            for slot in 0..self.slots_out[class as usize].len() {
                let colour = self.slots_out[class as usize][slot];
                self.trace(
                    Origin::Pe(pe),
                    colour,
                    Step { at: self.net.coord(pe), from: Port::Ramp, hops: 0, shared: 0 },
                );
            }
        }
        for lane in 0..self.net.host_in.len() {
            let HostLane { at, colour, parts, .. } = &self.net.host_in[lane];
            let (at, colour, from) = (*at, *colour, self.program.host[parts[0] as usize].edge);
            self.trace(Origin::Host(lane as u32), colour, Step { at, from, hops: 0, shared: 0 });
        }
        for switch in 0..self.net.switches.len() as u32 {
            self.trace_switch(switch);
        }
    }

    fn route(&self, at: Coord, colour: Colour) -> Option<&'a Route> {
        self.routes.of_class(self.net.class_of[self.net.index(at)], colour)
    }

    /// Streams that leave a switched router, one per port that any position sends to.
    fn trace_switch(&mut self, switch: u32) {
        let node = &self.net.switches[switch as usize];
        let (pe, colour) = (node.pe, node.colour);
        let Some(route) = self.route(self.net.coord(pe), colour) else { return };
        let ports: BTreeSet<Port> = route.positions.iter().flat_map(|p| p.to.iter().copied()).collect();
        for port in ports {
            let stream = self.net.streams.len() as u32;
            self.net.switches[switch as usize].streams[port as usize] = stream;
            let trace = self.begin(Origin::Switch(switch, port as u8), colour);
            self.leave(trace, Step { at: self.net.coord(pe), from: port, hops: 0, shared: 0 }, port);
            self.walk(trace);
        }
    }

    fn trace(&mut self, origin: Origin, colour: Colour, first: Step) {
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
        let trace = self.begin(origin, colour);
        self.open.push(first);
        self.walk(trace);
    }

    fn begin(&mut self, origin: Origin, colour: Colour) -> Trace {
        let (first_end, first_shared) = (self.net.ends.len() as u32, self.net.shared.len() as u32);
        self.net.streams.push(Stream { origin, colour, first_end, ends: 0, first_shared, shared: 0 });
        Trace { origin, colour }
    }

    fn walk(&mut self, trace: Trace) {
        let most = 4 * self.net.class_of.len() + 8;
        let (mut steps, mut south) = (0, 0);
        while let Some(step) = self.open.pop() {
            (steps, south) = (steps + 1, step.at.y.max(south));
            if steps > most {
                let fault = Fault::Circle { sender: self.sender(trace.origin) };
                self.open.clear();
                return self.fault(step.at, trace.colour, fault);
            }
            self.enter(trace, step);
        }
        let stream = self.net.streams.len() - 1;
        let (ends, shared) = (self.net.ends.len() as u32, self.net.shared.len() as u32);
        let s = &mut self.net.streams[stream];
        (s.ends, s.shared) = (ends - s.first_end, shared - s.first_shared);
        if let Origin::Pe(pe) = trace.origin {
            let reach = &mut self.net.reach[(pe / self.net.width) as usize];
            *reach = south.max(*reach);
        }
    }

    /// The words enter the router at `step.at` through `step.from`.
    fn enter(&mut self, trace: Trace, step: Step) {
        let class = self.net.class_of[self.net.index(step.at)];
        if let Some(fixed) = self.routes.fixed(class, trace.colour).filter(|fixed| fixed.from == step.from) {
            return fixed.to().iter().for_each(|port| self.leave(trace, step, *port));
        }
        let sender = || self.sender(trace.origin);
        let Some(route) = self.route(step.at, trace.colour) else {
            let fault = Fault::DeadEnd { sender: sender(), port: step.from };
            return self.fault(step.at, trace.colour, fault);
        };
        if !route.positions.iter().any(|p| p.from == step.from) {
            let taken: Vec<&str> = route.positions.iter().map(|p| p.from.name()).collect();
            let fault = Fault::TwoSenders { sender: sender(), port: step.from, taken: taken.join(", ") };
            return self.fault(step.at, trace.colour, fault);
        }
        if let [position] = &route.positions[..] {
            position.to.iter().for_each(|port| self.leave(trace, step, *port));
        } else if let Some(&switch) = self.switch_at.get(&(self.pe(step), trace.colour)) {
            let ramp = if step.from == Port::Ramp { self.spec.ramp_cycles } else { 0 };
            let latency = self.latency(trace, step) + ramp;
            let end = self.end(trace, step, Target::Switch(switch, step.from as u8), latency, 0);
            self.net.switches[switch as usize].ends[step.from as usize] = end;
        }
    }

    /// The words leave the router at `step.at` through `port`.
    fn leave(&mut self, trace: Trace, step: Step, port: Port) {
        let here = step.at;
        let (width, height) = (self.net.width, self.net.height);
        let next = match port {
            Port::Ramp => return self.arrive(trace, step),
            Port::North => here.y.checked_sub(1).map(|y| Coord { y, ..here }),
            Port::South => (here.y + 1 < height).then_some(Coord { y: here.y + 1, ..here }),
            Port::West => here.x.checked_sub(1).map(|x| Coord { x, ..here }),
            Port::East => (here.x + 1 < width).then_some(Coord { x: here.x + 1, ..here }),
        };
        let mut step = step;
        if next.is_some() && self.is_shared(here, port) {
            step.shared = self.share(trace, step, port);
        }
        match next {
            Some(at) => {
                self.open.push(Step { at, from: port.opposite(), hops: step.hops + 1, shared: step.shared });
            }
            None => self.exit(trace, step, port),
        }
    }

    /// Whether words of several colours use a link of a traced row.
    fn is_shared(&self, at: Coord, port: Port) -> bool {
        let loads = self.loads.get(usize::from(self.net.class_of[self.net.index(at)]));
        loads.is_some_and(|l| l[port as usize] > 1) && self.net.traced[at.y as usize]
    }

    /// Records that the stream crosses a link with other colours; returns 1 + its index in the stream.
    fn share(&mut self, trace: Trace, step: Step, port: Port) -> u32 {
        let first = self.net.streams[self.net.streams.len() - 1].first_shared;
        let link = self.pe(step) * 5 + port as u32;
        let ramp = if matches!(trace.origin, Origin::Pe(_)) { self.spec.ramp_cycles } else { 0 };
        let latency = ramp + step.hops * self.spec.hop_cycles;
        self.net.shared.push(SharedLink { link, latency, parent: step.shared });
        self.net.shared.len() as u32 - first
    }

    /// Cycles from the source to the router of `step`.
    fn latency(&self, trace: Trace, step: Step) -> u32 {
        let ramp = match trace.origin {
            Origin::Pe(_) if step.from != Port::Ramp || step.hops > 0 => self.spec.ramp_cycles,
            Origin::Pe(_) => 0,
            Origin::Host(_) | Origin::Switch(..) => 0,
        };
        ramp + step.hops * self.spec.hop_cycles
    }

    /// The words go down the ramp at `step.at`.
    fn arrive(&mut self, trace: Trace, step: Step) {
        if !self.net.traced[step.at.y as usize] {
            let stream = self.net.streams.len() as u32 - 1;
            return self.net.elsewhere.push((stream, step.at));
        }
        let own = self.pe(step);
        let local = matches!(trace.origin, Origin::Pe(pe) if pe == own) && step.hops == 0;
        let up = if local { self.spec.ramp_cycles } else { 0 };
        let latency = self.latency(trace, step) + up + self.spec.ramp_cycles;
        let end = self.end(trace, step, Target::Pe(own), latency, self.spec.queue_in);
        let class = self.net.class_of[own as usize] as usize;
        if let Ok(slot) = self.slots_in[class].binary_search(&trace.colour) {
            let place = self.net.first_slot[own as usize] as usize + slot;
            self.net.slots[place] = end;
        }
    }

    /// The words leave the wafer.
    fn exit(&mut self, trace: Trace, step: Step, port: Port) {
        match self.host_out_at.get(&(self.pe(step), port as u8, trace.colour)) {
            Some(&lane) => {
                let latency = self.latency(trace, step) + self.spec.hop_cycles;
                let end = self.end(trace, step, Target::Host(lane), latency, self.spec.queue_in);
                self.net.host_out[lane as usize].link = end;
            }
            None => {
                let fault = Fault::OffGrid { sender: self.sender(trace.origin), port };
                self.fault(step.at, trace.colour, fault);
            }
        }
    }

    fn end(&mut self, trace: Trace, step: Step, target: Target, latency: u32, queue: u32) -> u32 {
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

    fn pe(&self, step: Step) -> u32 {
        self.net.index(step.at) as u32
    }

    fn fault(&mut self, at: Coord, colour: Colour, fault: Fault) {
        if self.errors.len() >= MANY {
            return;
        }
        let mut error = CheckError::new(fault).at(at).colour(colour);
        let class = self.net.class_of[self.net.index(at)];
        if class != NOBODY {
            error = error.class(&self.program.classes[class as usize].name);
        }
        self.errors.push(error);
    }

    fn finish(mut self) -> Network {
        self.net.number_shared();
        self.net
    }
}

/// The stream being traced.
#[derive(Clone, Copy)]
struct Trace {
    origin: Origin,
    colour: Colour,
}

/// How many colours leave the routers of a class through each port.
fn loads(class: &Class) -> [u8; 5] {
    let mut loads = [0u8; 5];
    for route in class.routes.values() {
        let ports: BTreeSet<Port> = route.positions.iter().flat_map(|p| p.to.iter().copied()).collect();
        ports.into_iter().for_each(|port| loads[port as usize] = loads[port as usize].saturating_add(1));
    }
    loads
}

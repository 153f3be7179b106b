//! What classes have in common, made once: pieces of code, of one phase each, and memory maps.

use super::placed::Placed;
use super::sram::{self, Memory, Partners, Request};
use lapidary_runtime_sim::program::{Buffer, Class, Piece, Shared, Stmt};
use std::collections::BTreeMap;

/// Code and memory maps of the classes so far.
#[derive(Default)]
pub struct Common {
    /// By phase: the different pieces of code.
    pieces: Vec<Vec<Known>>,
    maps: Vec<Shared<BTreeMap<String, Buffer>>>,
    plans: Vec<(Vec<Request>, Partners, Plan)>,
}

/// A piece of code.
struct Known {
    piece: Shared<Piece>,
    partners: Partners,
}

/// Addresses by name, and the highest byte in use.
type Plan = (BTreeMap<String, u64>, u64);

impl Common {
    /// Nothing yet.
    pub fn of(placed: &Placed) -> Self {
        Common { pieces: placed.ops.iter().map(|_| Vec::new()).collect(), ..Common::default() }
    }

    /// The code of a class in a phase, as a piece; with the buffers that meet in it.
    pub fn piece(&mut self, placed: &Placed, phase: usize, body: Vec<Stmt>) -> (Stmt, &Partners) {
        let known = &mut self.pieces[phase];
        // Neighbouring classes often do the same: the piece found last comes first.
        match known.iter().rposition(|known| known.piece.body == body) {
            Some(at) => {
                let found = known.remove(at);
                known.push(found);
            }
            None => {
                let name = format!("{}.{}", placed.ops[phase].name, known.len());
                let partners = super::class::partners(&body);
                known.push(Known { piece: Piece { name, body }.into(), partners });
            }
        }
        let last = &known[known.len() - 1];
        (Stmt::Piece(last.piece.clone()), &last.partners)
    }

    /// A memory map, the same for all classes that have the same.
    pub fn map(&mut self, map: BTreeMap<String, Buffer>) -> Shared<BTreeMap<String, Buffer>> {
        if let Some(known) = self.maps.iter().find(|known| ***known == map) {
            return known.clone();
        }
        self.maps.push(map.into());
        self.maps[self.maps.len() - 1].clone()
    }

    /// Where buffers lie.
    pub fn plan(&mut self, requests: &[Request], partners: &Partners, memory: Memory) -> Plan {
        let known = self.plans.iter().find(|(r, p, _)| r == requests && p == partners);
        if let Some((.., plan)) = known {
            return plan.clone();
        }
        let plan = sram::plan(requests, partners, memory);
        self.plans.push((requests.to_vec(), partners.clone(), plan.clone()));
        plan
    }
}

/// Writes out the pieces that one task only uses.
pub fn write_out_single(classes: &mut [Class]) {
    let mut uses: BTreeMap<usize, usize> = BTreeMap::new();
    let stmts = classes.iter().flat_map(|class| &class.tasks).flat_map(|task| &task.body);
    for stmt in stmts {
        if let Stmt::Piece(piece) = stmt {
            *uses.entry(piece.address()).or_default() += 1;
        }
    }
    write_out(classes, &|piece| uses[&piece.address()] == 1);
}

/// Writes the statements of some pieces where the pieces stand.
pub fn write_out(classes: &mut [Class], which: &dyn Fn(&Shared<Piece>) -> bool) {
    for task in classes.iter_mut().flat_map(|class| &mut class.tasks) {
        let written = |stmt| match stmt {
            Stmt::Piece(piece) if which(&piece) => piece.body.clone(),
            other => vec![other],
        };
        task.body = std::mem::take(&mut task.body).into_iter().flat_map(written).collect();
    }
}

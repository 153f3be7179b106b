//! Whether a graph means something: every value made before it is read, every type the one its op makes, and in a
//! training graph everything kept once, found again by the same layers, and every parameter given its gradient.
//!
//! [`Graph::build`] and [`crate::autodiff`] make graphs that pass; a pass over graphs is tested by asking again.

use super::{Function, Graph, GraphError, Mode, Node};
use crate::op::{Backward, Op, Sharded};
use std::collections::{BTreeMap, BTreeSet};

impl Graph {
    /// Looks for contradictions in the graph.
    ///
    /// # Errors
    /// Every one that is found, as [`GraphError::Structure`] or [`GraphError::Shape`].
    pub fn check(&self) -> Result<(), Vec<GraphError>> {
        let mut faults: Vec<GraphError> = Vec::new();
        for function in &self.functions {
            Checker { graph: self, function, faults: &mut faults }.run();
        }
        if self.mode == Mode::Train {
            self.check_slots(&mut faults);
            self.check_gradients(&mut faults);
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    /// Layers that a function runs for, in order.
    fn layers(&self, function: usize) -> Vec<u64> {
        let mut layers = Vec::new();
        for node in &self.main().nodes {
            if let Op::Repeat { function: called, first, times, .. } = node.op
                && called == function
            {
                layers.extend(first..first.saturating_add(times).min(self.n_layers));
            }
        }
        layers
    }

    /// Each slot is filled by exactly its layers and read by none else, in a later repeat that runs backwards.
    fn check_slots(&self, faults: &mut Vec<GraphError>) {
        for (index, slot) in self.slots.iter().enumerate() {
            let wanted: Vec<u64> = (slot.first..slot.first.saturating_add(slot.times)).collect();
            let holds = |matches: fn(&Op, usize) -> bool| -> Vec<u64> {
                let functions = self.functions.iter().enumerate();
                let with = functions.flat_map(|(at, f)| f.nodes.iter().map(move |node| (at, node)));
                let with = with.filter(|(_, node)| matches(&node.op, index));
                let mut layers: Vec<u64> = with.flat_map(|(at, _)| self.layers(at)).collect();
                layers.sort_unstable();
                layers
            };
            let kept = holds(|op, slot| *op == Op::Backward(Backward::Save { slot }));
            let read = holds(|op, slot| *op == Op::Backward(Backward::Saved { slot }));
            if kept != wanted {
                faults
                    .push(structure(&slot.name, format!("slot of layers {wanted:?} is filled by {kept:?}")));
            }
            if read != wanted {
                faults.push(structure(&slot.name, format!("slot of layers {wanted:?} is read by {read:?}")));
            }
        }
        self.check_order(faults);
    }

    /// All layers forwards, then all layers backwards.
    fn check_order(&self, faults: &mut Vec<GraphError>) {
        let mut order: Vec<(bool, u64)> = Vec::new();
        for node in &self.main().nodes {
            if let Op::Repeat { first, times, reverse, .. } = node.op {
                let layers = first..first.saturating_add(times).min(self.n_layers);
                match reverse {
                    false => order.extend(layers.map(|layer| (false, layer))),
                    true => order.extend(layers.rev().map(|layer| (true, layer))),
                }
            }
        }
        let forward = (0..self.n_layers).map(|layer| (false, layer));
        let backward = (0..self.n_layers).rev().map(|layer| (true, layer));
        if !order.iter().copied().eq(forward.chain(backward)) {
            let what = "layers do not run once forwards and then once backwards";
            faults.push(structure("main", what.into()));
        }
    }

    fn check_gradients(&self, faults: &mut Vec<GraphError>) {
        for (param, declared) in self.params.iter().enumerate() {
            let wanted = if declared.per_layer { self.n_layers } else { 1 };
            let mut given: BTreeSet<u64> = BTreeSet::new();
            for (at, function) in self.functions.iter().enumerate() {
                if function.nodes.iter().any(|node| node.op == Op::Backward(Backward::Gradient { param })) {
                    given.extend(if function.per_layer { self.layers(at) } else { vec![0] });
                }
            }
            if given.len() as u64 != wanted {
                let what = format!("{} of {wanted} layers give it a gradient", given.len());
                faults.push(structure(&declared.name, what));
            }
        }
    }
}

fn structure(node: &str, what: String) -> GraphError {
    GraphError::Structure { node: node.into(), what }
}

struct Checker<'g> {
    graph: &'g Graph,
    function: &'g Function,
    faults: &'g mut Vec<GraphError>,
}

impl Checker<'_> {
    fn fault(&mut self, node: &str, what: String) {
        self.faults.push(structure(&format!("{}: {node}", self.function.name), what));
    }

    fn run(&mut self) {
        let mut known: BTreeSet<usize> = self.function.arguments.iter().map(|value| value.0).collect();
        let mut names: BTreeMap<&str, usize> = BTreeMap::new();
        for node in &self.function.nodes {
            if let Some(missing) = node.inputs.iter().find(|input| !known.contains(&input.0)) {
                self.fault(&node.name, format!("reads value {} before it is made", missing.0));
            } else {
                self.types(node);
            }
            if node.output.0 >= self.function.values.len() || !known.insert(node.output.0) {
                self.fault(&node.name, format!("makes value {}, which is there already", node.output.0));
            }
            // A parameter carries its own name, which a node of main may carry too: the bias of the head.
            if !matches!(node.op, Op::Param { .. }) {
                *names.entry(&node.name).or_default() += 1;
            }
        }
        for (name, _) in names.into_iter().filter(|(_, count)| *count > 1) {
            self.fault(name, "two nodes of this name".into());
        }
        if let Some(missing) = self.function.results.iter().find(|result| !known.contains(&result.0)) {
            self.fault("return", format!("returns value {}, which nothing makes", missing.0));
        }
    }

    /// The declared type of a result against the one its op makes.
    fn types(&mut self, node: &Node) {
        if node.op.is_training() && self.graph.mode != Mode::Train {
            return self
                .fault(&node.name, format!("{} stands in a graph that does not train", node.op.name()));
        }
        let declared = match node.op {
            Op::Param { param } | Op::Backward(Backward::Gradient { param }) => {
                match self.graph.params.get(param) {
                    Some(found) if found.per_layer == self.function.per_layer => Some(found.ty.clone()),
                    _ => return self.fault(&node.name, format!("there is no parameter {param} here")),
                }
            }
            Op::Backward(Backward::Saved { slot } | Backward::Save { slot }) => {
                match self.graph.slots.get(slot) {
                    Some(found) if self.function.per_layer => Some(found.ty.clone()),
                    _ => return self.fault(&node.name, format!("there is no slot {slot} here")),
                }
            }
            Op::Repeat { .. } => return self.repeat(node),
            _ => None,
        };
        let operands = self.function.operand_types(node);
        let inferred = match node.op {
            Op::Param { .. }
            | Op::Backward(Backward::Saved { .. })
            | Op::Sharded(Sharded::Receive { .. }) => Ok(self.function.ty(node.output).clone()),
            _ => node.op.result(&operands),
        };
        match inferred {
            Err(what) => self.faults.push(GraphError::Shape { node: node.name.clone(), what }),
            Ok(ty) if declared.as_ref().is_some_and(|declared| *declared != ty) => {
                let declared = declared.map(|declared| declared.to_string()).unwrap_or_default();
                self.fault(&node.name, format!("is {ty}, declared as {declared}"));
            }
            Ok(ty) if ty != *self.function.ty(node.output) => {
                self.fault(&node.name, format!("makes {ty}, not {}", self.function.ty(node.output)));
            }
            Ok(_) => {}
        }
    }

    fn repeat(&mut self, node: &Node) {
        let Op::Repeat { function, first, times, .. } = node.op else { return };
        let body = self.graph.functions.get(function).filter(|body| body.per_layer);
        let Some(body) = body.filter(|_| !self.function.per_layer) else {
            return self.fault(&node.name, format!("repeats function {function}, which is no layer"));
        };
        let ends = [&body.arguments[..], &body.results[..]].map(|ids| ids.first().map(|id| body.ty(*id)));
        let outer = [node.inputs[0], node.output].map(|id| Some(self.function.ty(id)));
        if ends != outer {
            self.fault(&node.name, format!("{} takes and makes other types", body.name));
        }
        if first.saturating_add(times) > self.graph.n_layers {
            self.fault(&node.name, format!("repeats layers past the {} there are", self.graph.n_layers));
        }
    }
}

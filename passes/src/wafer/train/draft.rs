//! A program of a training step under construction: values, the ops between them, and what is still needed.

use super::{Frame, Kept, TrainError};
use crate::attention_backward::{Core, cores};
use crate::cpu::HostFunction;
use crate::wafer::placed::{Gather, Layout, Map, OpKind, Parameter, Path, PlacedOp, Source, Step};
use lapidary_models::{Node, Op, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// A program under construction.
pub struct Draft<'a> {
    pub frame: Frame,
    pub kept: Kept,
    pub host: &'a HostFunction,
    /// Attention's backward passes of the function.
    pub cores: Vec<Core>,
    /// Layout of every slot that a layer has filled.
    pub slots: &'a mut BTreeMap<usize, Layout>,
    pub values: BTreeMap<String, Layout>,
    pub ops: Vec<PlacedOp>,
    /// Slots that this program fills or reads.
    pub touched: BTreeSet<usize>,
    /// Nodes of the graph that each op stands for.
    pub nodes: Vec<Vec<String>>,
    /// Nodes that are placed, with another one or by themselves.
    pub done: BTreeSet<usize>,
    /// The node in hand.
    pub at: usize,
    names: BTreeMap<ValueId, String>,
    gathered: BTreeMap<ValueId, String>,
    /// Values that the host or the next program finds in memory after the run.
    stays: BTreeSet<String>,
    used: BTreeSet<String>,
}

impl<'a> Draft<'a> {
    /// An empty program of a function.
    pub fn new(
        frame: Frame,
        kept: Kept,
        host: &'a HostFunction,
        slots: &'a mut BTreeMap<usize, Layout>,
    ) -> Self {
        Draft {
            frame,
            kept,
            host,
            cores: cores(&host.function),
            slots,
            values: BTreeMap::new(),
            ops: vec![],
            nodes: vec![],
            touched: BTreeSet::new(),
            done: BTreeSet::new(),
            at: 0,
            names: BTreeMap::new(),
            gathered: BTreeMap::new(),
            stays: BTreeSet::new(),
            used: BTreeSet::new(),
        }
    }

    /// The node with this number.
    pub fn node(&self, n: usize) -> &'a Node {
        &self.host.function.nodes[n]
    }

    /// A refusal at the node in hand.
    pub fn fault<T>(&self, what: impl Into<String>) -> Result<T, TrainError> {
        Err(TrainError { node: self.node(self.at).name.clone(), what: what.into() })
    }

    /// Length of the last axis of a value.
    pub fn features(&self, value: ValueId) -> u64 {
        self.host.function.ty(value).shape.last().copied().unwrap_or(1)
    }

    /// Features over all columns; sizes beyond 32 bits stay beyond what [`super::super::generate`] takes.
    pub fn columns(&self, value: ValueId) -> Layout {
        Layout::Columns { features: u32::try_from(self.features(value)).unwrap_or(u32::MAX) }
    }

    /// The node that makes a value.
    pub fn maker(&self, value: ValueId) -> Option<usize> {
        self.host.function.nodes.iter().position(|node| node.output == value)
    }

    /// The nodes that read a value.
    pub fn users(&self, value: ValueId) -> Vec<usize> {
        let nodes = self.host.function.nodes.iter().enumerate();
        nodes.filter(|(_, node)| node.inputs.contains(&value)).map(|(n, _)| n).collect()
    }

    /// The one node that reads a value that the function does not return.
    pub fn only_user(&self, value: ValueId) -> Option<usize> {
        match self.users(value)[..] {
            [user] if !self.host.function.results.contains(&value) => Some(user),
            _ => None,
        }
    }

    /// The parameter that a value is.
    pub fn parameter(&self, value: ValueId) -> Result<Parameter, TrainError> {
        match self.maker(value).map(|n| &self.node(n).op) {
            Some(Op::Param { param }) => Ok(self.param(*param)),
            _ => self.fault("reads something in the place of a parameter"),
        }
    }

    /// The parameter with this number.
    pub fn param(&self, param: usize) -> Parameter {
        let found = self.host.params.get(param);
        found.map_or_else(
            || Parameter::plain(""),
            |param| Parameter { name: param.name.clone(), scale: param.scale },
        )
    }

    /// Whether a value lies somewhere.
    pub fn is_known(&self, value: ValueId) -> bool {
        self.names.contains_key(&value)
    }

    /// The name of a value.
    pub fn name(&self, value: ValueId) -> Result<String, TrainError> {
        match self.names.get(&value) {
            Some(name) => Ok(name.clone()),
            None => self.fault("reads a value of another program"),
        }
    }

    /// How a value lies.
    pub fn layout(&self, name: &str) -> Layout {
        self.values.get(name).copied().unwrap_or(Layout::Columns { features: 0 })
    }

    /// Whether anybody behind the node in hand reads what lies under a name.
    pub fn is_live(&self, name: &str) -> bool {
        let later = |n: &usize| *n > self.at && !self.done.contains(n);
        let needed = |value: ValueId| {
            self.host.function.results.contains(&value) || self.users(value).iter().any(later)
        };
        self.stays.contains(name) || self.names.iter().any(|(value, at)| at == name && needed(*value))
    }

    /// A name that nothing has yet.
    pub fn unique(&mut self, wanted: &str) -> String {
        let numbered = (2..).map(|n| format!("{wanted}_{n}"));
        let mut names = std::iter::once(wanted.to_owned()).chain(numbered);
        let name = names.find(|name| !self.used.contains(name)).unwrap_or_default();
        self.used.insert(name.clone());
        name
    }

    /// Appends an op that stands for these nodes.
    pub fn push(&mut self, name: &str, kind: OpKind, nodes: &[usize]) {
        let name = self.unique(name);
        self.ops.push(PlacedOp { name, kind });
        self.nodes.push(nodes.iter().map(|n| self.node(*n).name.clone()).collect());
    }

    /// Memory for something that is no value of the graph.
    pub fn room(&mut self, wanted: &str, layout: Layout) -> String {
        let name = self.unique(wanted);
        self.values.insert(name.clone(), layout);
        name
    }

    /// Memory for a value.
    pub fn define(&mut self, value: ValueId, wanted: &str, layout: Layout) -> String {
        let name = self.room(wanted, layout);
        self.call(value, &name);
        name
    }

    /// Says that a value lies under a name.
    pub fn call(&mut self, value: ValueId, name: &str) {
        self.names.insert(value, name.to_owned());
    }

    /// Memory with what lies under a name that may be overwritten: the same, or a copy if it is still needed.
    pub fn own(&mut self, old: &str) -> String {
        if !self.is_live(old) {
            return old.to_owned();
        }
        let new = self.room(old, self.layout(old));
        let map = Map { input: old.to_owned(), output: new.clone(), steps: vec![] };
        self.push(&format!("copy.{new}"), OpKind::Map(map), &[]);
        new
    }

    /// Memory for a result that is made element by element from values of its layout: that of one that nobody needs any
    /// more, or new.
    pub fn over(&mut self, result: ValueId, operands: &[&String]) -> String {
        match operands.iter().find(|name| !self.is_live(name)) {
            Some(name) => {
                self.call(result, name);
                (*name).clone()
            }
            None => {
                let layout = operands.first().map_or(self.columns(result), |name| self.layout(name));
                let wanted = self.node(self.at).name.clone();
                self.define(result, &format!("{wanted}.out"), layout)
            }
        }
    }

    /// Steps from one value to a result of its layout, joined to the chain before where that has just made it.
    pub fn map(&mut self, input: ValueId, steps: Vec<Step>, nodes: &[usize]) -> Result<(), TrainError> {
        let (result, label) = (self.node(self.at).output, self.node(self.at).name.clone());
        let name = self.name(input)?;
        let operands: Vec<String> = steps.iter().filter_map(Step::operand).map(ToOwned::to_owned).collect();
        let joins = !self.is_live(&name) && !operands.contains(&name);
        if let Some(PlacedOp { kind: OpKind::Map(map), .. }) = self.ops.last_mut()
            && map.output == name
            && joins
        {
            map.steps.extend(steps);
            let more: Vec<String> = nodes.iter().map(|n| self.node(*n).name.clone()).collect();
            self.nodes.last_mut().into_iter().for_each(|nodes| nodes.extend(more.clone()));
            self.call(result, &name);
            return Ok(());
        }
        let candidates: Vec<&String> = std::iter::once(&name).chain(&operands).collect();
        let output = self.over(result, &candidates);
        self.push(&label, OpKind::Map(Map { input: name, output, steps }), nodes);
        Ok(())
    }

    /// The name of a value with its features over columns: gathered, where it lies by tokens.
    pub fn over_columns(&mut self, value: ValueId) -> Result<String, TrainError> {
        let name = self.name(value)?;
        let Layout::HeadTokens { queries } = self.layout(&name) else { return Ok(name) };
        if let Some(gathered) = self.gathered.get(&value) {
            return Ok(gathered.clone());
        }
        let output = self.room(&format!("{name}.columns"), Layout::HeadColumns { queries });
        self.push(
            &format!("gather.{name}"),
            OpKind::Gather(Gather { input: name, output: output.clone() }),
            &[],
        );
        self.gathered.insert(value, output.clone());
        Ok(output)
    }

    /// A value that is in a tensor of the host before the program runs, or comes in while it does.
    pub fn load(&mut self, value: ValueId, name: &str, tensor: &str, layout: Layout, path: Path) {
        let value = self.define(value, name, layout);
        let (tensor, source) = (self.unique(tensor), Source::Caller);
        self.push(&format!("load.{value}"), OpKind::Input { value, tensor, source, path }, &[]);
    }

    /// Sends a value to a tensor of the host, or leaves it in memory to the end.
    pub fn store(&mut self, value: String, tensor: &str, path: Path) {
        if path == Path::Resident {
            self.stays.insert(value.clone());
        }
        let tensor = self.unique(tensor);
        self.push(&format!("store.{value}"), OpKind::Output { value, tensor, path }, &[]);
    }
}

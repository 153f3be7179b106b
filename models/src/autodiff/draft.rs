//! A function while it is written: nodes are added at its end, with their types inferred.

use crate::graph::{Function, GraphError, Node, Param, TensorType, Value, ValueId};
use crate::op::Op;
use std::collections::{BTreeMap, BTreeSet};

/// A function, the names that are taken in it, and the parameters that it has read.
pub(super) struct Draft {
    function: Function,
    names: BTreeSet<String>,
    params: BTreeMap<usize, ValueId>,
}

impl Draft {
    /// An empty function with one argument.
    pub fn with_argument(name: &str, per_layer: bool, argument: TensorType) -> Draft {
        let mut draft = Draft::continuing(Function {
            name: name.into(),
            per_layer,
            arguments: Vec::new(),
            values: Vec::new(),
            nodes: Vec::new(),
            results: Vec::new(),
        });
        draft.argument(argument);
        draft
    }

    /// A function to which nodes are added.
    pub fn continuing(function: Function) -> Draft {
        let names = function.nodes.iter().map(|node| node.name.clone()).collect();
        let read = function.nodes.iter().filter_map(|node| match node.op {
            Op::Param { param } => Some((param, node.output)),
            _ => None,
        });
        Draft { params: read.collect(), names, function }
    }

    pub fn function(&self) -> &Function {
        &self.function
    }

    pub fn finish(mut self, results: Vec<ValueId>) -> Function {
        self.function.results = results;
        self.function
    }

    pub fn argument(&mut self, ty: TensorType) -> ValueId {
        let id = self.value(ty);
        self.function.arguments.push(id);
        id
    }

    /// A node whose type follows from its operands. A taken name gets a number.
    pub fn node(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> Result<ValueId, GraphError> {
        let operands: Vec<&TensorType> = inputs.iter().map(|id| self.function.ty(*id)).collect();
        let ty = op.result(&operands).map_err(|what| GraphError::Shape { node: name.into(), what })?;
        match ty.bytes() <= TensorType::MAX_BYTES {
            true => Ok(self.declared(name, op, inputs, ty)),
            false => Err(GraphError::TooLarge { node: name.into(), ty }),
        }
    }

    /// A node whose type is declared elsewhere.
    pub fn declared(&mut self, name: &str, op: Op, inputs: &[ValueId], ty: TensorType) -> ValueId {
        let output = self.value(ty);
        let name = self.free(name);
        self.names.insert(name.clone());
        self.function.nodes.push(Node { name, op, inputs: inputs.to_vec(), output });
        output
    }

    /// A parameter, read once in the function.
    pub fn param(&mut self, params: &[Param], param: usize) -> ValueId {
        if let Some(id) = self.params.get(&param) {
            return *id;
        }
        let Param { name, ty, .. } = &params[param];
        let id = self.declared(name, Op::Param { param }, &[], ty.clone());
        self.params.insert(param, id);
        id
    }

    fn value(&mut self, ty: TensorType) -> ValueId {
        self.function.values.push(Value { ty });
        ValueId(self.function.values.len() - 1)
    }

    fn free(&self, name: &str) -> String {
        let numbered = (2..).map(|n: u64| format!("{name}.{n}"));
        let mut names = std::iter::once(name.to_string()).chain(numbered);
        names.find(|name| !self.names.contains(name)).unwrap_or_default()
    }
}

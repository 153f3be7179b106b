//! The module as plain graphs: what passes reason about, beside the operations that they rewrite.
//!
//! A function of `nn` ops becomes a [`Function`] of [`Op`]s with the operation of every node and the IR value of
//! every value. Names of nodes come from locations where there are any, from parameters otherwise.

use crate::pass::PassError;
use crate::view::name::Namer;
use lapidary_ir::{Op as IrOp, Value as IrValue};
use lapidary_models::graph::Value;
use lapidary_models::op::Backward;
use lapidary_models::{Function, Node, Op, ValueId};

mod name;
mod op;

/// Reads a single operation that is neither a parameter nor a repeat.
///
/// # Errors
/// A sentence, when the operation is no part of a model's graph.
pub fn read_op(op: IrOp<'_>) -> Result<Op, String> {
    op::read(op, &[], 0)
}

/// A parameter as the module names it.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamView {
    /// Canonical name.
    pub name: String,
    /// Load-time factor.
    pub scale: f64,
}

/// A function with its operations.
pub struct FunctionView<'c> {
    /// The `func.func`.
    pub op: IrOp<'c>,
    /// The plain function.
    pub function: Function,
    /// The operation of each node.
    pub ops: Vec<IrOp<'c>>,
    /// The IR value of each value.
    pub values: Vec<IrValue<'c>>,
    /// What [`Op::Param`] and [`Backward::Gradient`] index: one entry per `nn.param` and `nn.gradient` of this function.
    pub params: Vec<ParamView>,
}

/// All functions of a module that hold `nn` ops.
pub struct ModuleView<'c> {
    /// In module order; [`Op::Repeat`] indexes them.
    pub functions: Vec<FunctionView<'c>>,
}

impl<'c> ModuleView<'c> {
    /// Reads the module.
    ///
    /// # Errors
    /// [`PassError::Refused`] with every operation that is not part of a model's graph.
    pub fn read(module: IrOp<'c>) -> Result<ModuleView<'c>, PassError> {
        let ops = module.functions();
        let symbols: Vec<&str> = ops.iter().map(|op| op.symbol_name().unwrap_or_default()).collect();
        let mut diagnostics = Vec::new();
        let mut functions = Vec::new();
        for op in &ops {
            match FunctionView::read(*op, &symbols) {
                Ok(function) => functions.push(function),
                Err(PassError::Refused(more)) => diagnostics.extend(more),
                Err(other) => return Err(other),
            }
        }
        if diagnostics.is_empty() {
            Ok(ModuleView { functions })
        } else {
            Err(PassError::Refused(diagnostics))
        }
    }
}

impl<'c> FunctionView<'c> {
    /// Reads one function; `symbols` are the functions of the module in order.
    fn read(op: IrOp<'c>, symbols: &[&str]) -> Result<FunctionView<'c>, PassError> {
        let name = op.symbol_name().unwrap_or_default().to_string();
        let function = Function {
            name,
            per_layer: false,
            arguments: Vec::new(),
            values: Vec::new(),
            nodes: Vec::new(),
            results: Vec::new(),
        };
        let mut view = FunctionView { op, function, ops: Vec::new(), values: Vec::new(), params: Vec::new() };
        view.arguments();
        view.body(symbols)?;
        Ok(view)
    }

    fn arguments(&mut self) {
        let arguments = self.op.region_block(0).map_or_else(Vec::new, |block| block.arguments());
        for argument in arguments {
            match self.value(argument) {
                Some(id) => self.function.arguments.push(id),
                None => self.function.per_layer = true,
            }
        }
    }

    fn body(&mut self, symbols: &[&str]) -> Result<(), PassError> {
        let ops = self.op.region_block(0).map_or_else(Vec::new, |block| block.ops());
        let mut diagnostics = Vec::new();
        let mut namer = Namer::default();
        for op in ops {
            if op.is("func.return") {
                self.function.results = op.operands().into_iter().filter_map(|v| self.find(v)).collect();
            } else if let Err(PassError::Refused(more)) = self.node(op, symbols, &mut namer) {
                diagnostics.extend(more);
            }
        }
        if diagnostics.is_empty() { Ok(()) } else { Err(PassError::Refused(diagnostics)) }
    }

    fn node(&mut self, op: IrOp<'c>, symbols: &[&str], namer: &mut Namer) -> Result<(), PassError> {
        let kind = op::read(op, symbols, self.params.len()).map_err(|what| PassError::at(op, what))?;
        if let Op::Param { .. } | Op::Backward(Backward::Gradient { .. }) = kind {
            let name = op.text("name").unwrap_or_default().to_string();
            self.params.push(ParamView { name, scale: op.f64("scale").unwrap_or(1.0) });
        }
        let inputs: Vec<ValueId> = op.operands().into_iter().filter_map(|v| self.find(v)).collect();
        let [result] = op.results()[..] else {
            return Err(PassError::at(
                op,
                format!("{} has {} results, one is expected", op.name(), op.result_count()),
            ));
        };
        let name = namer.name(op, &kind, &inputs, self);
        let output = self.value(result).ok_or_else(|| {
            PassError::at(op, format!("{} makes a {}, which models do not know", op.name(), result.ty()))
        })?;
        self.function.nodes.push(Node { name, op: kind, inputs, output });
        self.ops.push(op);
        Ok(())
    }

    /// Adds a value; none for what is not a tensor (the layer's number).
    fn value(&mut self, value: IrValue<'c>) -> Option<ValueId> {
        let ty = value.tensor()?;
        self.function.values.push(Value { ty });
        self.values.push(value);
        Some(ValueId(self.values.len() - 1))
    }

    /// The id of an IR value.
    pub fn find(&self, value: IrValue<'c>) -> Option<ValueId> {
        self.values.iter().position(|known| *known == value).map(ValueId)
    }

    /// The parameter that a value is, if it is one.
    pub fn param_of(&self, value: ValueId) -> Option<&ParamView> {
        self.function.nodes.iter().find(|node| node.output == value).and_then(|node| match node.op {
            Op::Param { param } => self.params.get(param),
            _ => None,
        })
    }
}

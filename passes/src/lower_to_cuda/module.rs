//! A fused module as the plain data that the CUDA emitters take: values in memory, kernels and repeats in order.

use crate::cuda::{ModuleSpec, Node, ValueSpec};
use crate::lower_to_cuda::kernel::{self, Region};
use crate::pass::PassError;
use lapidary_ir::{Op as IrOp, Value as IrValue};
use std::collections::BTreeSet;

/// A module with the regions that its kernels were made from.
pub struct FusedModule<'c> {
    /// The plain data.
    pub spec: ModuleSpec,
    /// The region of every kernel, by kernel name, in the order of the module.
    pub regions: Vec<Region<'c>>,
}

/// Reads a fused module, which begins at `@main`.
///
/// # Errors
/// [`PassError::Refused`] at ops that are neither parameters nor kernels nor repeats.
pub fn read<'c>(module: IrOp<'c>, arch: &str) -> Result<FusedModule<'c>, PassError> {
    let main = module.lookup("main").filter(|op| op.is("func.func"));
    let main = main.ok_or_else(|| PassError::at(module, "there is no function @main to begin with"))?;
    let mut reader =
        Reader { module, values: Vec::new(), specs: Vec::new(), regions: Vec::new(), names: BTreeSet::new() };
    let inputs = reader.arguments(main, &[])?;
    let (body, outputs) = reader.function(main)?;
    let name = module.text("nn.model").unwrap_or("module").to_string();
    let spec = ModuleSpec { name, arch: arch.to_string(), values: reader.specs, inputs, outputs, body };
    Ok(FusedModule { spec, regions: reader.regions })
}

struct Reader<'c> {
    module: IrOp<'c>,
    values: Vec<IrValue<'c>>,
    specs: Vec<ValueSpec>,
    regions: Vec<Region<'c>>,
    names: BTreeSet<String>,
}

impl<'c> Reader<'c> {
    /// Gives the tensor arguments of a function a place; ids in order.
    fn arguments(&mut self, function: IrOp<'c>, names: &[&str]) -> Result<Vec<usize>, PassError> {
        let arguments = function.region_block(0).map_or_else(Vec::new, |block| block.arguments());
        let tensors: Vec<IrValue<'c>> =
            arguments.into_iter().filter(|value| !value.shape().is_empty()).collect();
        let fallback = |i: usize| if i == 0 { "ids".to_string() } else { format!("input.{i}") };
        let named = |i: usize| names.get(i).map_or_else(|| fallback(i), |name| (*name).to_string());
        tensors.into_iter().enumerate().map(|(i, value)| self.place(function, value, named(i))).collect()
    }

    /// The nodes of a function and the ids of what it returns.
    fn function(&mut self, function: IrOp<'c>) -> Result<(Vec<Node>, Vec<usize>), PassError> {
        let prefix = function
            .symbol_name()
            .filter(|name| *name != "main")
            .map_or(String::new(), |name| format!("{name}."));
        let mut nodes = Vec::new();
        for op in function.region_block(0).map_or_else(Vec::new, |block| block.ops()) {
            match op.name() {
                "nn.param" => {}
                "nn.fused" => nodes.push(self.kernel(op, &prefix)?),
                "nn.repeat" => nodes.push(self.repeat(op)?),
                "func.return" => return Ok((nodes, self.ids(op, &op.operands())?)),
                other => return Err(PassError::at(op, format!("{other} is in no kernel: run `fuse` first"))),
            }
        }
        Err(PassError::at(function, "the function does not return"))
    }

    fn kernel(&mut self, op: IrOp<'c>, prefix: &str) -> Result<Node, PassError> {
        let label = format!("{prefix}{}", op.text("name").unwrap_or("kernel"));
        let name = self.unique(&identifier(&label));
        let mut region = kernel::region(op, name)?;
        let args = self.ids(op, &region.activations)?;
        let results = op.results();
        let place = |i: usize| if results.len() == 1 { label.clone() } else { format!("{label}.{i}") };
        let places: Vec<String> = (0..results.len()).map(place).collect();
        let results = results.into_iter().zip(places).map(|(value, name)| self.place(op, value, name));
        let results: Vec<usize> = results.collect::<Result<_, _>>()?;
        (region.args, region.results) = (args.clone(), results.clone());
        let spec = region.spec.clone();
        self.regions.push(region);
        Ok(Node::Kernel { spec, args, results })
    }

    fn repeat(&mut self, op: IrOp<'c>) -> Result<Node, PassError> {
        let body = op.symbol("body").and_then(|name| self.module.lookup(name));
        let body = body.ok_or_else(|| PassError::at(op, "the repeated function is not there"))?;
        let name = body.symbol_name().unwrap_or("layer");
        let [input] = self.ids(op, &op.operands())?[..] else {
            return Err(PassError::at(op, "a repeat carries one value"));
        };
        let (entering, leaving) = (format!("{name}.x"), format!("{name}s"));
        let [param] = self.arguments(body, &[&entering])?[..] else {
            return Err(PassError::at(body, "a repeated function takes one value"));
        };
        let (nodes, yielded) = self.function(body)?;
        let [yielded] = yielded[..] else {
            return Err(PassError::at(body, "a repeated function returns one value"));
        };
        let Some(result) = op.result(0) else { return Err(PassError::at(op, "a repeat without a result")) };
        let result = self.place(op, result, leaving)?;
        let times = op.i64("times").and_then(|times| u64::try_from(times).ok()).unwrap_or(0);
        Ok(Node::Repeat { times, input, param, body: nodes, yielded, result })
    }

    /// Gives a value a place in memory.
    fn place(&mut self, op: IrOp<'c>, value: IrValue<'c>, name: String) -> Result<usize, PassError> {
        let name = self.unique(&name);
        self.specs.push(ValueSpec { name, ty: kernel::ty(op, value)? });
        self.values.push(value);
        Ok(self.values.len() - 1)
    }

    fn ids(&self, op: IrOp<'c>, values: &[IrValue<'c>]) -> Result<Vec<usize>, PassError> {
        // The latest place counts: a function that is repeated twice is read twice.
        let id = |value: &IrValue<'c>| self.values.iter().rposition(|known| known == value);
        let missing = || PassError::at(op, format!("{} reads a parameter directly", op.name()));
        values.iter().map(|value| id(value).ok_or_else(missing)).collect()
    }

    fn unique(&mut self, wanted: &str) -> String {
        let mut name = wanted.to_string();
        let mut n = 1;
        while !self.names.insert(name.clone()) {
            n += 1;
            name = format!("{wanted}_{n}");
        }
        name
    }
}

/// A C identifier that begins with a letter: `layer.attn.q_k_v` becomes `layer_attn_q_k_v`.
fn identifier(label: &str) -> String {
    let word: String = label.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if word.starts_with(|c: char| c.is_ascii_alphabetic()) { word } else { format!("k_{word}") }
}

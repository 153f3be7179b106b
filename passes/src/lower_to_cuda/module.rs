//! A fused module as the plain data that the CUDA emitters take: values in memory, kernels and repeats in order.

use crate::cuda::assemble::{KeptSpec, TrainingSpec};
use crate::cuda::{KernelSpec, ModuleSpec, Node, Talk, TensorType, ValueSpec};
use crate::lower_to_cuda::kernel::{self, Region};
use crate::pass::PassError;
use crate::view::read_op;
use lapidary_ir::{Op as IrOp, Value as IrValue};
use lapidary_models::Op;
use lapidary_models::op::Sharded;
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
    let mut reader = Reader {
        module,
        values: Vec::new(),
        specs: Vec::new(),
        regions: Vec::new(),
        names: BTreeSet::new(),
        training: TrainingSpec { updates: true, ..TrainingSpec::default() },
        range: None,
    };
    let inputs = reader.arguments(main, &["ids", "labels"])?;
    let (body, outputs) = reader.function(main)?;
    let name = module.text("nn.model").unwrap_or("module").to_string();
    let training = reader.trains().then(|| reader.training.clone());
    let (arch, values, share) = (arch.to_string(), reader.specs, None);
    let spec = ModuleSpec { name, arch, values, inputs, outputs, body, training, share };
    Ok(FusedModule { spec, regions: reader.regions })
}

struct Reader<'c> {
    module: IrOp<'c>,
    values: Vec<IrValue<'c>>,
    specs: Vec<ValueSpec>,
    regions: Vec<Region<'c>>,
    names: BTreeSet<String>,
    training: TrainingSpec,
    /// First layer and number of layers of the repeat that is being read.
    range: Option<(u64, u64)>,
}

impl<'c> Reader<'c> {
    /// Whether the module is a training step.
    fn trains(&self) -> bool {
        self.module.walk().iter().any(|op| op.is("nn.gradient"))
    }

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
                "nn.save" => nodes.extend(self.save(op, &nodes)?),
                "nn.saved" => self.saved(op)?,
                "nn.fused" => nodes.push(self.kernel(op, &prefix)?),
                "nn.repeat" => nodes.push(self.repeat(op)?),
                "func.return" => return Ok((nodes, self.ids(op, &op.operands())?)),
                other => match read_op(op) {
                    Ok(Op::Sharded(talk)) => nodes.push(self.talk(op, talk, &prefix)?),
                    _ => return Err(PassError::at(op, format!("{other} is in no kernel: run `fuse` first"))),
                },
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
        let mut made = Vec::new();
        for (i, (value, name)) in results.into_iter().zip(places).enumerate() {
            made.push(self.typed_place(value, name, kernel::result_type(&region, i)?));
        }
        let results = made;
        (region.args, region.results) = (args.clone(), results.clone());
        let spec = region.spec.clone();
        self.regions.push(region);
        Ok(Node::Kernel { spec, args, results })
    }

    /// What ranks say to each other.
    fn talk(&mut self, op: IrOp<'c>, talk: Sharded, prefix: &str) -> Result<Node, PassError> {
        let located = op.place().node.filter(|node| !node.is_empty());
        let label = located.unwrap_or_else(|| talk.name().to_string());
        let label = format!("{prefix}{}", label.strip_prefix("layers.*.").unwrap_or(&label));
        let name = self.unique(&identifier(&format!("{label}.said")));
        let arg = self.ids(op, &op.operands())?.first().copied();
        let Some(result) = op.result(0) else { return Err(PassError::at(op, "hears nothing")) };
        let result = self.place(op, result, label)?;
        Ok(Node::Talk { name, talk: Talk::Op(talk), arg, result })
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
        self.range = Some((number(op, "first"), number(op, "times")));
        let (nodes, yielded) = self.function(body)?;
        self.range = None;
        let [yielded] = yielded[..] else {
            return Err(PassError::at(body, "a repeated function returns one value"));
        };
        let Some(result) = op.result(0) else { return Err(PassError::at(op, "a repeat without a result")) };
        let result = self.place(op, result, leaving)?;
        let (times, first, reverse) = (number(op, "times"), number(op, "first"), op.flag("reverse"));
        self.training.layers = self.training.layers.max(first + times);
        Ok(Node::Repeat { times, first, reverse, input, param, body: nodes, yielded, result })
    }

    /// A kernel's result lives where it is kept; what came from elsewhere is copied there.
    fn save(&mut self, op: IrOp<'c>, nodes: &[Node]) -> Result<Option<Node>, PassError> {
        let value = op.operand(0).ok_or_else(|| PassError::at(op, "keeps nothing"))?;
        let [id] = self.ids(op, &[value])?[..] else { return Err(PassError::at(op, "keeps nothing")) };
        let slot = self.slot(op, value)?;
        let makes = |node: &Node| match node {
            Node::Kernel { results, .. } => results.contains(&id),
            Node::Talk { talk: Talk::Op(talk), result, .. } => {
                *result == id && !matches!(talk, Sharded::Send { .. })
            }
            _ => false,
        };
        let made_here = nodes.iter().any(makes);
        if made_here && !self.training.slots.contains_key(&id) {
            self.training.slots.insert(id, slot);
            return Ok(None);
        }
        let Some(result) = op.result(0) else { return Err(PassError::at(op, "a save without a result")) };
        let ty = self.specs[id].ty.clone();
        let name = self.unique(&identifier(&format!("keep.{}", self.training.kept[slot].name)));
        let spec = KernelSpec::copy(
            name,
            ty,
            "The next layer writes over its input, which the backward pass needs.",
        );
        let kept = self.place(op, result, format!("{}.kept", spec.name))?;
        self.training.slots.insert(kept, slot);
        Ok(Some(Node::Kernel { spec, args: vec![id], results: vec![kept] }))
    }

    fn saved(&mut self, op: IrOp<'c>) -> Result<(), PassError> {
        let name = op.text("name").unwrap_or_default();
        let slot = self.training.kept.iter().position(|kept| kept.name == name);
        let (Some(slot), Some(result)) = (slot, op.result(0)) else {
            return Err(PassError::at(op, format!("no layer keeps \"{name}\"")));
        };
        let place = self.place(op, result, format!("saved.{name}"))?;
        self.training.slots.insert(place, slot);
        Ok(())
    }

    /// What a save keeps, for the layers that its function runs for. A rank may run several ranges of its layers with one
    /// function, one after another: they share the memory.
    fn slot(&mut self, op: IrOp<'c>, value: IrValue<'c>) -> Result<usize, PassError> {
        let (first, times) =
            self.range.ok_or_else(|| PassError::at(op, "keeps a value of a function that no layer is"))?;
        let name = op.text("name").unwrap_or_default().to_string();
        let ty = kernel::ty(op, value)?;
        if let Some(slot) = self.training.kept.iter().position(|kept| kept.name == name) {
            let kept = &mut self.training.kept[slot];
            kept.firsts.push(first);
            kept.times = kept.times.max(times);
            return Ok(slot);
        }
        self.training.kept.push(KeptSpec { name, ty, firsts: vec![first], times });
        Ok(self.training.kept.len() - 1)
    }

    /// Gives a value a place in memory.
    fn place(&mut self, op: IrOp<'c>, value: IrValue<'c>, name: String) -> Result<usize, PassError> {
        let ty = kernel::ty(op, value)?;
        Ok(self.typed_place(value, name, ty))
    }

    fn typed_place(&mut self, value: IrValue<'c>, name: String, ty: TensorType) -> usize {
        let name = self.unique(&name);
        self.specs.push(ValueSpec { name, ty });
        self.values.push(value);
        self.values.len() - 1
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

fn number(op: IrOp<'_>, name: &str) -> u64 {
    op.i64(name).and_then(|value| u64::try_from(value).ok()).unwrap_or(0)
}

/// A C identifier that begins with a letter: `layer.attn.q_k_v` becomes `layer_attn_q_k_v`.
fn identifier(label: &str) -> String {
    let word: String = label.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if word.starts_with(|c: char| c.is_ascii_alphabetic()) { word } else { format!("k_{word}") }
}

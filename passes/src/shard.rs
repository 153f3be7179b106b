//! Leaves of a model what one rank computes: a stage of the pipeline, and in it a part of every split weight.
//!
//! before: @layer: %h = nn.linear %x, %w [11008, 4096]; %y = nn.linear %h, %v; %z = nn.add %x, %y
//! after:  @layer: %h = nn.linear %x, %w [2752, 4096]; %y = nn.linear %h, %v; %s = nn.all_reduce %y; %z = nn.add %x, %s
//!
//! The split itself is [`mod@lapidary_models::shard`], on the graph that the functions are read back to; which rows and columns
//! the rank holds leaves through the notes. Leaves alone: nothing; a module that is spread already, fused, or a training
//! step is refused.

use crate::graph::{self, Read};
use crate::pass::{Changed, Pass, PassCx, PassError};
use lapidary_ir::{Op as IrOp, import};
use lapidary_models::shard::{Degrees, Part, Place, Shard, shard};
use std::collections::BTreeMap;

/// The pass. Options: `tensor=N rank=R pipeline=P stage=S`; degrees are 1 and places 0 where they are not given.
pub struct ShardPass {
    degrees: Degrees,
    place: Place,
}

/// What a rank has of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardReport {
    /// Over how many ranks the model is spread.
    pub degrees: Degrees,
    /// Which of them this is.
    pub place: Place,
    /// The layer of the whole model that is the rank's first.
    pub first_layer: u64,
    /// Parameters that the rank holds in part.
    pub parts: BTreeMap<String, Part>,
}

impl ShardPass {
    /// The pass with its options.
    ///
    /// # Errors
    /// A sentence about an option that does not exist or is no number.
    pub fn of(options: &[(String, String)]) -> Result<ShardPass, String> {
        let (mut degrees, mut place) = (Degrees { tensor: 1, pipeline: 1 }, Place { tensor: 0, stage: 0 });
        for (key, value) in options {
            let number = value.parse::<u64>();
            let target = match key.as_str() {
                "tensor" => &mut degrees.tensor,
                "pipeline" => &mut degrees.pipeline,
                "rank" => &mut place.tensor,
                "stage" => &mut place.stage,
                _ => return Err(wrong(key, value)),
            };
            *target = number.map_err(|_| wrong(key, value))?;
        }
        Ok(ShardPass { degrees, place })
    }
}

fn wrong(key: &str, value: &str) -> String {
    format!("shard takes tensor=N rank=R pipeline=P stage=S, not `{key}={value}`")
}

/// The pass as a word of a pipeline.
pub fn shard_text(degrees: Degrees, place: Place) -> String {
    let (Degrees { tensor, pipeline }, Place { tensor: rank, stage }) = (degrees, place);
    format!("shard{{tensor={tensor} rank={rank} pipeline={pipeline} stage={stage}}}")
}

impl Pass for ShardPass {
    fn name(&self) -> &'static str {
        "shard"
    }

    fn summary(&self) -> &'static str {
        "leave what one rank of a tensor-parallel group and stage computes"
    }

    fn run(&self, module: IrOp<'_>, cx: &PassCx) -> Result<Changed, PassError> {
        refuse(module)?;
        let Read { graph, scales } = graph::read(module)?;
        let refused = |error: lapidary_models::shard::ShardError| PassError::at(module, error.to_string());
        let Shard { graph: after, first_layer, parts } =
            shard(&graph, self.degrees, self.place).map_err(refused)?;
        let Some(body) = module.region_block(0) else { return Ok(Changed::No) };
        // Main calls the others, so it goes first.
        let main_last = |op: &IrOp<'_>| op.symbol_name() != Some("main");
        let mut functions = module.functions();
        functions.sort_by_key(main_last);
        functions.into_iter().try_for_each(IrOp::erase)?;
        import::functions(body, &after)?;
        scale(module, &scales);
        let Place { tensor, stage } = self.place;
        cx.note(format!(
            "rank {tensor} of {} in stage {stage} of {}: layers {first_layer} to {}, {} weights in part, {} meetings a layer",
            self.degrees.tensor,
            self.degrees.pipeline,
            first_layer + after.n_layers - 1,
            parts.len(),
            after.layer().nodes.iter().filter(|node| meets(&node.op)).count()
        ));
        let changed = Changed::when(after.functions != graph.functions);
        let (degrees, place) = (self.degrees, self.place);
        cx.with(|notes| notes.shard = Some(ShardReport { degrees, place, first_layer, parts }));
        Ok(changed)
    }
}

fn meets(op: &lapidary_models::Op) -> bool {
    matches!(op, lapidary_models::Op::Sharded(op) if op.is_collective())
}

fn refuse(module: IrOp<'_>) -> Result<(), PassError> {
    let refused = [
        ("nn.fused", "kernels are made behind this pass"),
        ("nn.gradient", "training steps are not spread yet"),
        ("nn.all_reduce", "the module is spread already"),
        ("nn.send", "the module is spread already"),
        ("nn.receive", "the module is spread already"),
    ];
    let found = module
        .walk()
        .into_iter()
        .find_map(|op| refused.iter().find(|(name, _)| op.is(name)).map(|(_, why)| PassError::at(op, *why)));
    found.map_or(Ok(()), Err)
}

/// Gives the parameters their load-time factors again.
fn scale(module: IrOp<'_>, scales: &BTreeMap<String, f64>) {
    for op in module.walk().into_iter().filter(|op| op.is("nn.param")) {
        if let Some(by) = op.text("name").and_then(|name| scales.get(name)) {
            op.set_attribute("scale", op.context().f64(*by));
        }
    }
}

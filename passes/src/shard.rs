//! Leaves of a model what one rank computes: a stage of the pipeline, and in it a part of every split weight.
//!
//! before: @layer: %h = nn.linear %x, %w [11008, 4096]; %y = nn.linear %h, %v; %z = nn.add %x, %y
//! after:  @layer: %h = nn.linear %x, %w [2752, 4096]; %y = nn.linear %h, %v; %s = nn.all_reduce %y; %z = nn.add %x, %s
//!
//! The split itself is [`mod@lapidary_models::shard`], on the graph that the functions are read back to; which rows and columns
//! the rank holds leaves through the notes. A training step is spread behind `recompute`. Leaves alone: nothing; a module
//! that is spread already or fused is refused.

use crate::graph::{self, Read};
use crate::pass::{Changed, Pass, PassCx, PassError};
use crate::recompute::training_graph;
use lapidary_ir::{Op as IrOp, import};
use lapidary_models::TensorType;
use lapidary_models::shard::{Degrees, Part, Place, Shard, Way, shard};
use std::collections::{BTreeMap, BTreeSet};

/// The pass. Options: `tensor=N rank=R pipeline=P stage=S`, and for training steps `chunks=C sequence=on|off`; degrees and
/// chunks are 1 and places 0 where they are not given.
pub struct ShardPass {
    degrees: Degrees,
    way: Way,
    place: Place,
}

/// What a rank has of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardReport {
    /// Over how many ranks the model is spread.
    pub degrees: Degrees,
    /// How a training step is.
    pub way: Way,
    /// Which of the ranks this is.
    pub place: Place,
    /// The layers of the whole model that are the rank's.
    pub layers: Vec<u64>,
    /// Parameters that the rank holds in part.
    pub parts: BTreeMap<String, Part>,
    /// Those whose gradient is the sum over the tensor-parallel group.
    pub summed: BTreeSet<String>,
    /// Those whose gradient is the sum over the first stage and the last.
    pub tied: BTreeSet<String>,
    /// Those that count at another rank.
    pub elsewhere: BTreeSet<String>,
    /// What the whole model leaves: its last stage's result.
    pub result: TensorType,
}

impl ShardPass {
    /// The pass with its options.
    ///
    /// # Errors
    /// A sentence about an option that does not exist or is no number.
    pub fn of(options: &[(String, String)]) -> Result<ShardPass, String> {
        let (mut degrees, mut place) = (Degrees { tensor: 1, pipeline: 1 }, Place { tensor: 0, stage: 0 });
        let mut way = Way::default();
        for (key, value) in options {
            if key == "sequence" {
                way.sequence = match value.as_str() {
                    "on" => true,
                    "off" => false,
                    _ => return Err(wrong(key, value)),
                };
                continue;
            }
            let number = value.parse::<u64>();
            let target = match key.as_str() {
                "tensor" => &mut degrees.tensor,
                "pipeline" => &mut degrees.pipeline,
                "rank" => &mut place.tensor,
                "stage" => &mut place.stage,
                "chunks" => &mut way.chunks,
                _ => return Err(wrong(key, value)),
            };
            *target = number.map_err(|_| wrong(key, value))?;
        }
        Ok(ShardPass { degrees, way, place })
    }
}

fn wrong(key: &str, value: &str) -> String {
    format!("shard takes tensor=N rank=R pipeline=P stage=S chunks=C sequence=on|off, not `{key}={value}`")
}

/// The pass as a word of a pipeline.
pub fn shard_text(degrees: Degrees, way: Way, place: Place) -> String {
    let (Degrees { tensor, pipeline }, Place { tensor: rank, stage }) = (degrees, place);
    let Way { chunks, sequence } = way;
    let chunks = if chunks > 1 { format!(" chunks={chunks}") } else { String::new() };
    let rows = if sequence { " sequence=on" } else { "" };
    format!("shard{{tensor={tensor} rank={rank} pipeline={pipeline} stage={stage}{chunks}{rows}}}")
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
        let trains = module.walk().iter().any(|op| op.is("nn.gradient"));
        let Read { graph, scales } = match trains {
            true => Read { graph: training_graph(module)?, scales: BTreeMap::new() },
            false => graph::read(module)?,
        };
        let refused = |error: lapidary_models::shard::ShardError| PassError::at(module, error.to_string());
        let (degrees, way, place) = (self.degrees, self.way, self.place);
        let Shard { graph: after, layers, parts, summed, tied, elsewhere } =
            shard(&graph, degrees, way, place).map_err(refused)?;
        let Some(body) = module.region_block(0) else { return Ok(Changed::No) };
        // Main calls the others, so it goes first.
        let main_last = |op: &IrOp<'_>| op.symbol_name() != Some("main");
        let mut functions = module.functions();
        functions.sort_by_key(main_last);
        functions.into_iter().try_for_each(IrOp::erase)?;
        import::functions(body, &after)?;
        scale(module, &scales);
        let Place { tensor, stage } = place;
        cx.note(format!(
            "rank {tensor} of {} in stage {stage} of {}: layers {}, {} weights in part, {} meetings a layer",
            degrees.tensor,
            degrees.pipeline,
            runs(&layers),
            parts.len(),
            after.layer().nodes.iter().filter(|node| meets(&node.op)).count()
        ));
        let changed = Changed::when(after.functions != graph.functions);
        let main = graph.main();
        let none = || PassError::at(module, "the model leaves nothing");
        let result = main.results.first().map(|id| main.ty(*id).clone()).ok_or_else(none)?;
        let report = ShardReport { degrees, way, place, layers, parts, summed, tied, elsewhere, result };
        cx.with(|notes| notes.shard = Some(report));
        Ok(changed)
    }
}

/// Layers as `0 to 7, 16 to 23`.
fn runs(layers: &[u64]) -> String {
    let runs = layers.chunk_by(|a, b| a + 1 == *b);
    let run = |run: &[u64]| match run {
        [one] => one.to_string(),
        _ => format!("{} to {}", run[0], run[run.len() - 1]),
    };
    runs.map(run).collect::<Vec<_>>().join(", ")
}

fn meets(op: &lapidary_models::Op) -> bool {
    matches!(op, lapidary_models::Op::Sharded(op) if op.is_collective())
}

fn refuse(module: IrOp<'_>) -> Result<(), PassError> {
    let refused = [
        ("nn.fused", "kernels are made behind this pass"),
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

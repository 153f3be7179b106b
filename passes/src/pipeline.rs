//! Pipelines: lists of passes that one can read aloud.

use crate::pass::Pass;
use crate::registry::{PassKind, PassRow, find};
use lapidary_ir::pipeline::parse_pipeline;
use lapidary_models::autodiff::Recompute;
use std::collections::BTreeMap;
use std::sync::Arc;
use thiserror::Error;

/// A pass of a pipeline with its options.
pub struct Step {
    /// Which pass.
    pub row: &'static PassRow,
    /// As written, such as `fuse{only=attention}`.
    pub text: String,
    /// The pass itself, where it is ours.
    pub pass: Option<Arc<dyn Pass>>,
}

/// Passes in order.
pub struct Pipeline {
    /// The steps.
    pub steps: Vec<Step>,
}

/// Why a pipeline is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("pipeline `{text}`: {why}")]
pub struct PipelineError {
    /// The whole text.
    pub text: String,
    /// What is wrong with it.
    pub why: String,
}

/// What a module is compiled for, as far as pipelines differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Kernels for a GPU: everything is fused.
    Gpu,
    /// A wafer program: ops are placed one by one, so nothing is fused.
    Wafer,
    /// Steps of a host program: everything is fused.
    Cpu,
}

/// What happens to muP's multipliers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mup {
    /// Folded into weights: inference.
    #[default]
    Fold,
    /// Left as ops: training, or to see them.
    Keep,
}

/// What happens to fusion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Fusion {
    /// Every rule is on.
    #[default]
    On,
    /// Each op is a kernel.
    Off,
    /// The options of `fuse`, such as `without=attention`.
    Options(String),
}

/// What `fuse` leaves out of a training step on a GPU: every weight stays as the model has it, since a backward pass
/// reads it the other way and an optimizer writes it.
pub const TRAINED_IN_PLACE: &str = "without=siblings,rotation";

/// The passes for a goal.
///
/// # Errors
/// [`PipelineError`] for fusion options that are none.
pub fn pipeline(goal: Goal, mup: Mup, fusion: &Fusion) -> Result<Pipeline, PipelineError> {
    Pipeline::parse(&pipeline_text(goal, mup, fusion))
}

/// The passes for one rank's part of a model; `shard` is the pass with its options.
///
/// # Errors
/// As [`pipeline`].
pub fn rank_pipeline(goal: Goal, mup: Mup, fusion: &Fusion, shard: &str) -> Result<Pipeline, PipelineError> {
    Pipeline::parse(&text(goal, mup, fusion, Some(shard)))
}

/// The passes for one rank's part of a training step.
///
/// # Errors
/// As [`pipeline`].
pub fn rank_training(
    goal: Goal,
    policy: Recompute,
    fusion: &Fusion,
    shard: &str,
) -> Result<Pipeline, PipelineError> {
    Pipeline::parse(&step_text(goal, policy, fusion, Some(shard)))
}

/// The same as text.
pub fn pipeline_text(goal: Goal, mup: Mup, fusion: &Fusion) -> String {
    text(goal, mup, fusion, None)
}

/// Weights are folded whole, and spread before they meet in kernels.
fn text(goal: Goal, mup: Mup, fusion: &Fusion, shard: Option<&str>) -> String {
    let fuse = match fusion {
        Fusion::On => "fuse".to_string(),
        Fusion::Off => "fuse{off}".to_string(),
        Fusion::Options(options) => format!("fuse{{{options}}}"),
    };
    let mut passes = vec!["canonicalize", "cse"];
    if mup == Mup::Fold {
        passes.push("mup-fold");
    }
    passes.extend(shard);
    passes.extend(["hoist-scales", "canonicalize", "cse", "dce", "symbol-dce"]);
    if goal != Goal::Wafer {
        passes.push(&fuse);
    }
    passes.join(",")
}

/// The passes for a training step as [`lapidary_models::autodiff::differentiate`] makes it: muP's multipliers stay, and a
/// policy of recomputation comes first. For wafers see [`WAFER_TRAINING`].
///
/// On a GPU equal ops stay apart: a softmax that is computed again for the result of an attention and once more for its
/// derivatives would become one, with a matrix of scores in memory between two kernels that need none.
pub fn training_text(goal: Goal, policy: Recompute, fusion: &Fusion) -> String {
    step_text(goal, policy, fusion, None)
}

fn step_text(goal: Goal, policy: Recompute, fusion: &Fusion, shard: Option<&str>) -> String {
    let passes = text(goal, Mup::Keep, &in_place(goal, fusion), shard);
    let passes = if goal == Goal::Gpu { passes.replace("cse,", "") } else { passes };
    format!("recompute{{policy={}}},{passes}", policy.name())
}

/// What a training step may fuse on a GPU where everything is asked for.
fn in_place(goal: Goal, fusion: &Fusion) -> Fusion {
    match (goal, fusion) {
        (Goal::Gpu, Fusion::On) => Fusion::Options(TRAINED_IN_PLACE.into()),
        (_, fusion) => fusion.clone(),
    }
}

/// The passes for a training step on a wafer, where equal ops stay apart for the same reason.
pub const WAFER_TRAINING: &str = "canonicalize,dce,symbol-dce";

impl Pipeline {
    /// Reads `canonicalize,fuse{only=attention}`, with or without MLIR's `builtin.module(..)` around it.
    ///
    /// # Errors
    /// [`PipelineError`] for text that is no pipeline, passes that do not exist, and options they do not take.
    pub fn parse(text: &str) -> Result<Pipeline, PipelineError> {
        let fault = |why: String| PipelineError { text: text.to_string(), why };
        let elements = parse_pipeline(text).map_err(|error| fault(error.to_string()))?;
        let steps =
            elements.iter().map(|element| step(&element.name, &element.text, element.options.as_deref()));
        Ok(Pipeline { steps: steps.collect::<Result<_, _>>().map_err(fault)? })
    }

    /// The same passes, knowing which forms of kernels were measured to be the fastest on the target (by
    /// `FormChoice::product`).
    pub fn measured(mut self, forms: &BTreeMap<String, String>) -> Pipeline {
        for step in &mut self.steps {
            step.pass = step.pass.take().map(|pass| pass.measured(forms).unwrap_or(pass));
        }
        self
    }

    /// The passes as text; parses back to the same pipeline.
    pub fn text(&self) -> String {
        self.steps.iter().map(|step| step.text.as_str()).collect::<Vec<_>>().join(",")
    }

    /// The passes up to and with the last one of this name.
    ///
    /// # Errors
    /// [`PipelineError`] when the pass is not in the pipeline.
    pub fn until(mut self, name: &str) -> Result<Pipeline, PipelineError> {
        let last = self.steps.iter().rposition(|step| step.row.name == name);
        let Some(last) = last else {
            let known: Vec<&str> = self.steps.iter().map(|step| step.row.name).collect();
            let why = format!("has no pass `{name}`; it has {}", known.join(", "));
            return Err(PipelineError { text: self.text(), why });
        };
        self.steps.truncate(last + 1);
        Ok(self)
    }
}

fn step(name: &str, text: &str, options: Option<&str>) -> Result<Step, String> {
    let row = find(name)?;
    let pass = match row.kind {
        PassKind::Mlir => None,
        PassKind::Ours(make) => Some(Arc::from(make(&split(options.unwrap_or("")))?)),
    };
    Ok(Step { row, text: text.to_string(), pass })
}

/// `only=a,b without=c off` as keys and values.
fn split(options: &str) -> Vec<(String, String)> {
    let pair = |word: &str| {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        (key.to_string(), value.to_string())
    };
    options.split_whitespace().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for text in
            ["canonicalize,cse", "fuse{only=attention,epilogue}", "fuse{without=siblings off},symbol-dce", ""]
        {
            assert_eq!(Pipeline::parse(text).unwrap().text(), text);
        }
        assert_eq!(Pipeline::parse("builtin.module( cse, fuse{off} )").unwrap().text(), "cse,fuse{off}");
    }

    #[test]
    fn says_what_exists() {
        let why = |text: &str| Pipeline::parse(text).err().map(|error| error.why).unwrap_or_default();
        assert!(why("fuze").starts_with("unknown pass `fuze`; the passes are recompute, canonicalize, cse"));
        assert!(
            why("fuse{only=magic}").starts_with("unknown fusion rule `magic`; the rules are elementwise")
        );
        assert_eq!(why("mup-fold{x}"), "mup-fold takes no option `x`");
        assert!(why("fuse{only=row").contains("do not match"));
    }

    #[test]
    fn pipelines_read_aloud() {
        let gpu = pipeline_text(Goal::Gpu, Mup::Fold, &Fusion::On);
        assert_eq!(gpu, "canonicalize,cse,mup-fold,hoist-scales,canonicalize,cse,dce,symbol-dce,fuse");
        let wafer = pipeline_text(Goal::Wafer, Mup::Keep, &Fusion::Off);
        assert_eq!(wafer, "canonicalize,cse,hoist-scales,canonicalize,cse,dce,symbol-dce");
        assert!(pipeline(Goal::Gpu, Mup::Fold, &Fusion::Options("only=row".into())).is_ok());
    }

    #[test]
    fn stops_after_the_last_of_a_name() {
        let gpu = || pipeline(Goal::Gpu, Mup::Fold, &Fusion::On).unwrap();
        assert_eq!(gpu().until("mup-fold").unwrap().text(), "canonicalize,cse,mup-fold");
        assert_eq!(gpu().until("cse").unwrap().steps.len(), 6);
        assert!(gpu().until("lower").is_err());
    }
}

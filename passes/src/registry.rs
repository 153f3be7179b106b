//! Every pass by name: a row each.

use crate::dce::Dce;
use crate::fuse::Fuse;
use crate::fusion::{Rule, Rules};
use crate::hoist_scales::HoistScales;
use crate::lower_to_cuda::LowerToCuda;
use crate::mup_fold::MupFold;
use crate::pass::Pass;
use crate::recompute::RecomputePass;
use crate::shard::ShardPass;
use crate::wafer::LowerToWafer;

/// A row of [`PASSES`].
pub struct PassRow {
    /// Name in pipelines.
    pub name: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// The options it takes, as they are written; empty for none.
    pub options: &'static str,
    /// How it is made.
    pub kind: PassKind,
}

/// Where a pass comes from.
pub enum PassKind {
    /// MLIR's own, under the same name; options are passed on.
    Mlir,
    /// Ours; made from its options.
    Ours(Make),
}

/// Makes a pass from its options, keys and values; the error is a sentence.
pub type Make = fn(&[(String, String)]) -> Result<Box<dyn Pass>, String>;

/// Every pass, in the order of use.
pub const PASSES: &[PassRow] = &[
    PassRow {
        name: "recompute",
        summary: "keep less for the backward pass and compute the rest again",
        options: "policy=none|selective|full",
        kind: PassKind::Ours(|options| Ok(Box::new(RecomputePass::of(options)?))),
    },
    PassRow {
        name: "canonicalize",
        summary: "fold constants and identities, drop what nobody reads",
        options: "MLIR's",
        kind: PassKind::Mlir,
    },
    PassRow { name: "cse", summary: "merge equal ops", options: "MLIR's", kind: PassKind::Mlir },
    PassRow {
        name: "dce",
        summary: "drop ops whose results nobody reads",
        options: "",
        kind: PassKind::Ours(|options| plain(Dce, options)),
    },
    PassRow {
        name: "symbol-dce",
        summary: "drop private functions that nobody calls",
        options: "",
        kind: PassKind::Mlir,
    },
    PassRow {
        name: "mup-fold",
        summary: "fold muP's multipliers into weights, biases and norms",
        options: "",
        kind: PassKind::Ours(|options| plain(MupFold, options)),
    },
    PassRow {
        name: "shard",
        summary: "leave what one rank of a tensor-parallel group and stage computes",
        options: "tensor=N rank=R pipeline=P stage=S chunks=C sequence=on|off",
        kind: PassKind::Ours(|options| Ok(Box::new(ShardPass::of(options)?))),
    },
    PassRow {
        name: "hoist-scales",
        summary: "move factors from the result of a linear to the norm in front of it",
        options: "",
        kind: PassKind::Ours(|options| plain(HoistScales, options)),
    },
    PassRow {
        name: "fuse",
        summary: "group ops into kernels, each with the reason and the bytes it saves",
        options: "only=RULE,.. without=RULE,.. off",
        kind: PassKind::Ours(|options| Ok(Box::new(Fuse { rules: rules(options)? }))),
    },
    PassRow {
        name: "lower-to-cuda",
        summary: "turn kernels into launches, and values into buffers with places in memory",
        options: "arch=sm_80 library=on|off processors=N",
        kind: PassKind::Ours(|options| Ok(Box::new(LowerToCuda::with(options)?))),
    },
    PassRow {
        name: "lower-to-wafer",
        summary: "place the ops of a model on a rectangle of processing elements",
        options: "width=N height=N",
        kind: PassKind::Ours(|options| Ok(Box::new(LowerToWafer::of(options)?))),
    },
];

/// The row of a pass.
///
/// # Errors
/// A sentence with the names that exist.
pub fn find(name: &str) -> Result<&'static PassRow, String> {
    PASSES.iter().find(|row| row.name == name).ok_or_else(|| {
        let known: Vec<&str> = PASSES.iter().map(|row| row.name).collect();
        format!("unknown pass `{name}`; the passes are {}", known.join(", "))
    })
}

fn plain(pass: impl Pass + 'static, options: &[(String, String)]) -> Result<Box<dyn Pass>, String> {
    match options.first() {
        None => Ok(Box::new(pass)),
        Some((key, _)) => Err(format!("{} takes no option `{key}`", pass.name())),
    }
}

fn rules(options: &[(String, String)]) -> Result<Rules, String> {
    options.iter().try_fold(Rules::all(), |rules, (key, value)| match key.as_str() {
        "only" => Rules::parse(value),
        "without" => Ok(rules.without(value.split(',').map(Rule::parse).collect::<Result<Vec<_>, _>>()?)),
        "off" => Ok(Rules::none()),
        _ => Err(format!("fuse takes no option `{key}`, only `only`, `without` and `off`")),
    })
}

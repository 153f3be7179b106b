//! Which ops may stand in a module after a pass: written down here, enforced after every pass.

use crate::pass::diagnostic;
use lapidary_ir::{Diagnostic, Op};

/// Ops of a model's graph, as the import makes them.
const GRAPH: &[&str] = &[
    "func.func",
    "func.return",
    "nn.param",
    "nn.embed",
    "nn.position",
    "nn.linear",
    "nn.bias",
    "nn.add",
    "nn.mul",
    "nn.scale",
    "nn.activation",
    "nn.norm",
    "nn.rope",
    "nn.kv_append",
    "nn.scores",
    "nn.mask",
    "nn.softmax",
    "nn.values",
    "nn.last_token",
    "nn.repeat",
    "nn.cross_entropy",
    "nn.cross_entropy_dx",
    "nn.linear_dx",
    "nn.linear_dw",
    "nn.column_sum",
    "nn.activation_dx",
    "nn.norm_dx",
    "nn.norm_dw",
    "nn.rope_dx",
    "nn.mask_dx",
    "nn.softmax_dx",
    "nn.values_dv",
    "nn.embed_dw",
    "nn.position_dw",
    "nn.last_token_dx",
    "nn.save",
    "nn.saved",
    "nn.gradient",
    "nn.embed_part",
    "nn.embed_part_dw",
    "nn.all_reduce",
    "nn.all_gather",
    "nn.reduce_scatter",
    "nn.gather_rows",
    "nn.take_rows",
    "nn.take",
    "nn.send",
    "nn.receive",
];

/// What stands between kernels once everything is fused.
const KERNELS: &[&str] = &[
    "func.func",
    "func.return",
    "nn.param",
    "nn.repeat",
    "nn.fused",
    "nn.save",
    "nn.saved",
    "nn.all_reduce",
    "nn.all_gather",
    "nn.reduce_scatter",
    "nn.gather_rows",
    "nn.take_rows",
    "nn.take",
    "nn.send",
    "nn.receive",
];

/// What a GPU program consists of.
const PROGRAM: &[&str] = &["cuda.program", "cuda.buffer", "cuda.kernel", "cuda.launch", "cuda.repeat"];

/// What is placed on a wafer.
const PLACED: &[&str] = &[
    "wafer.program",
    "wafer.return",
    "wafer.repeat",
    "wafer.yield",
    "wafer.weight",
    "wafer.embed",
    "wafer.position",
    "wafer.linear",
    "wafer.norm",
    "wafer.rope",
    "wafer.kv_append",
    "wafer.attention",
    "wafer.map",
    "wafer.last_token",
];

/// Ops with a kernel's body.
const HOLDERS: &[&str] = &["nn.fused", "cuda.kernel"];

/// What is always there.
const FRAME: &[&str] = &["builtin.module", "nn.yield"];

/// What a pass leaves behind.
pub struct Legal {
    /// The pass.
    pub after: &'static str,
    /// Ops allowed outside of kernels.
    pub in_functions: &'static [&'static str],
    /// Ops allowed in kernels.
    pub in_kernels: &'static [&'static str],
    /// Roles that no scale may have any more.
    pub roles_gone: &'static [&'static str],
}

/// What passes promise. Passes without a row promise to add no kind of op.
pub const LEGAL: &[Legal] = &[
    Legal { after: "mup-fold", in_functions: GRAPH, in_kernels: &[], roles_gone: &["mup.attention"] },
    Legal { after: "shard", in_functions: GRAPH, in_kernels: &[], roles_gone: &[] },
    Legal { after: "hoist-scales", in_functions: GRAPH, in_kernels: &[], roles_gone: &[] },
    Legal { after: "fuse", in_functions: KERNELS, in_kernels: GRAPH, roles_gone: &[] },
    Legal { after: "lower-to-cuda", in_functions: PROGRAM, in_kernels: GRAPH, roles_gone: &[] },
    Legal { after: "lower-to-wafer", in_functions: PLACED, in_kernels: &[], roles_gone: &[] },
];

/// Every op that should not be there after a pass.
pub fn check(after: &str, module: Op<'_>) -> Vec<Diagnostic> {
    let Some(legal) = LEGAL.iter().find(|legal| legal.after == after) else { return Vec::new() };
    module.walk().into_iter().filter_map(|op| fault(legal, op)).collect()
}

fn fault(legal: &Legal, op: Op<'_>) -> Option<Diagnostic> {
    let name = op.name();
    let in_kernel = op.parent().is_some_and(|parent| HOLDERS.contains(&parent.name()));
    let allowed = if in_kernel { legal.in_kernels } else { legal.in_functions };
    let place = if in_kernel { "in a kernel" } else { "outside a kernel" };
    if !FRAME.contains(&name) && !allowed.contains(&name) {
        return Some(diagnostic(op, format!("{name} is not legal {place} after {}", legal.after)));
    }
    let role = op.text("role").filter(|role| name == "nn.scale" && legal.roles_gone.contains(role))?;
    Some(diagnostic(op, format!("a scale of role {role} is not legal after {}", legal.after)))
}

//! Folds muP's multipliers into weights, biases and norms: inference needs no op for them.
//!
//! before: s = scale(embed(ids, table), 14.6); .. ; logits = scale(linear(norm(x), table), 0.13875)
//! after:  s = embed(ids, table); .. ; logits = linear(norm(x), table), with other scales on `nn.param`s and other eps
//!
//! The algebra is in [`crate::mup`]. Leaves alone: scales of other roles, and both ends of a stream whose tied head has
//! no norm before it (a note says so). For training, leave the pass out: the
//! multipliers stay ops, free in the kernels they are fused into, and `lapidary_models::mup` has the table of learning
//! rates.

use crate::mup::{At as NodeAt, Fold, Program, Stuck, fold};
use crate::pass::{Changed, Pass, PassCx, PassError, diagnostic};
use crate::report::FoldReport;
use crate::view::ModuleView;
use lapidary_ir::{At, Op as IrOp};
use lapidary_models::Op;
use std::collections::BTreeMap;

/// The pass.
pub struct MupFold;

impl Pass for MupFold {
    fn name(&self) -> &'static str {
        "mup-fold"
    }

    fn summary(&self) -> &'static str {
        "fold muP's multipliers into weights, biases and norms"
    }

    fn run(&self, module: IrOp<'_>, cx: &PassCx) -> Result<Changed, PassError> {
        let view = ModuleView::read(module)?;
        let functions = view.functions.iter().map(|f| (&f.function, f.params.as_slice())).collect();
        let program = Program { functions };
        let found = fold(&program).map_err(|stuck| refused(&view, &stuck))?;
        let report = report(&program, &found);
        apply(&view, &found)?;
        for at in &found.kept {
            let name = &program.node(*at).name;
            cx.note(format!(
                "{name} stays: the head shares its table with the embedding and no norm stands before it"
            ));
        }
        let changed = Changed::when(!found.removed.is_empty());
        if changed == Changed::Yes {
            cx.with(|notes| notes.fold = Some(report));
        }
        Ok(changed)
    }
}

fn refused(view: &ModuleView<'_>, stuck: &[Stuck]) -> PassError {
    let say =
        |s: &Stuck| diagnostic(view.functions[s.at.function].ops[s.at.node], format!("mup-fold: {}", s.why));
    PassError::Refused(stuck.iter().map(say).collect())
}

fn apply(view: &ModuleView<'_>, fold: &Fold) -> Result<(), PassError> {
    let op = |at: &NodeAt| view.functions[at.function].ops[at.node];
    for ((at, operand), factor) in &fold.params {
        scale_param(op(at), *operand, *factor)?;
    }
    for (at, eps) in &fold.norms {
        op(at).set_attribute("eps", op(at).context().f64(*eps));
    }
    for at in &fold.removed {
        let x = op(at).operands();
        op(at).replace_with(&x)?;
    }
    Ok(())
}

/// Gives one operand a parameter with another factor; a parameter op that others read stays for them.
fn scale_param(reader: IrOp<'_>, operand: usize, factor: f64) -> Result<(), PassError> {
    let Some(value) = reader.operand(operand) else { return Ok(()) };
    let Some(param) = value.defining_op() else { return Ok(()) };
    let own = match value.has_one_use() {
        true => param,
        false => At::after(param).copy(param, &param.operands()),
    };
    let scale = own.f64("scale").unwrap_or(1.0) * factor;
    own.set_attribute("scale", own.context().f64(scale));
    if let (false, Some(result)) = (own == param, own.result(0)) {
        reader.set_operand(operand, result);
    }
    Ok(())
}

fn report(program: &Program, fold: &Fold) -> FoldReport {
    let mut params: BTreeMap<String, f64> = BTreeMap::new();
    for ((at, operand), factor) in &fold.params {
        if let Some(param) = program.param(*at, *operand) {
            params.insert(param.name.clone(), *factor);
        }
    }
    let norm = |(at, after): (&NodeAt, &f64)| match program.node(*at).op {
        Op::Norm { eps, .. } => (program.node(*at).name.clone(), eps, *after),
        _ => (program.node(*at).name.clone(), *after, *after),
    };
    let removed = fold.removed.iter().filter_map(|at| match program.node(*at).op {
        Op::Scale { by, role } => Some((role.name().to_string(), by)),
        _ => None,
    });
    FoldReport {
        tied: fold.tied,
        params: params.into_iter().collect(),
        norms: fold.norms.iter().map(norm).collect(),
        removed: removed.collect(),
    }
}

//! Moves the factor on the logits in front of the head, where it has fewer values to multiply.
//!
//! before: y = scale(linear(x, w), 0.13875) with y wider than x       after: y = linear(scale(x, 0.13875), w)
//!
//! A constant commutes with a contraction; in front of it, it joins the kernel of the norm that makes `x` and costs
//! no traffic and next to no arithmetic. Leaves alone: factors that would multiply more values than before, linears
//! that do not read a norm (the factor is free behind those), results that others read, and scores: an attention kernel
//! multiplies them in registers anyway.

use crate::pass::{Changed, Pass, PassCx, PassError};
use lapidary_ir::{At, New, Op as IrOp};

/// The pass.
pub struct HoistScales;

impl Pass for HoistScales {
    fn name(&self) -> &'static str {
        "hoist-scales"
    }

    fn summary(&self) -> &'static str {
        "move factors from the result of a linear to the norm in front of it"
    }

    fn run(&self, module: IrOp<'_>, _: &PassCx) -> Result<Changed, PassError> {
        let scales: Vec<IrOp<'_>> = module.walk().into_iter().filter(|op| op.is("nn.scale")).collect();
        let mut changed = Changed::No;
        for scale in scales {
            if hoist(scale)? {
                changed = Changed::Yes;
            }
        }
        Ok(changed)
    }
}

/// Moves one factor, if that pays.
fn hoist(scale: IrOp<'_>) -> Result<bool, PassError> {
    let (Some(product), Some(by)) = (scale.operand(0), scale.attribute("by")) else { return Ok(false) };
    let Some(linear) = product.defining_op().filter(|op| op.is("nn.linear")) else { return Ok(false) };
    let (Some(x), Some(w), Some(role)) = (linear.operand(0), linear.operand(1), scale.attribute("role"))
    else {
        return Ok(false);
    };
    let reads_norm = x.defining_op().is_some_and(|maker| maker.is("nn.norm"));
    if x.width() >= product.width() || !product.has_one_use() || !reads_norm {
        return Ok(false);
    }
    let factor = New::of("nn.scale", &[x.ty()]).reads(&[x]).with("by", by).with("role", role);
    let factor = At::before(linear).located(scale.location()).create(&factor)?;
    let again = At::before(linear).copy(linear, &[factor.results(), vec![w]].concat());
    scale.replace_with(&again.results())?;
    linear.erase()?;
    Ok(true)
}

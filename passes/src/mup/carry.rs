//! Carries a factor upwards: from a value into the parameters that make it.

use crate::mup::{At, Fold, Program, Stuck};
use lapidary_models::Op;

/// Makes operand `operand` of a node come out multiplied by `by`.
///
/// # Errors
/// The node where no rule carries the factor on, or where somebody else needs the value as it was.
pub fn into_operand(
    program: &Program,
    fold: &mut Fold,
    at: At,
    operand: usize,
    by: f64,
) -> Result<(), Stuck> {
    let value = program.node(at).inputs[operand];
    let Some(maker) = program.maker(at.function, value) else {
        return Err(stuck(
            at,
            format!("operand {operand} is an argument: its factor {by} has nowhere to go"),
        ));
    };
    if matches!(program.node(maker).op, Op::Param { .. }) {
        return into_param(program, fold, at, operand, by);
    }
    let readers = program.readers(at.function, value).len();
    if readers > 1 || program.returns(at.function, value) {
        let name = &program.node(maker).name;
        return Err(stuck(maker, format!("{name} is needed by others without the factor {by}")));
    }
    into_result(program, fold, maker, by)
}

fn into_param(program: &Program, fold: &mut Fold, at: At, operand: usize, by: f64) -> Result<(), Stuck> {
    if program.is_shared(at, operand) {
        let name = program.param(at, operand).map_or("?", |param| &param.name);
        return Err(stuck(at, format!("{name} is read by others, which need it without the factor {by}")));
    }
    *fold.params.entry((at, operand)).or_insert(1.0) *= by;
    Ok(())
}

/// Makes the result of a node come out multiplied by `by`.
fn into_result(program: &Program, fold: &mut Fold, at: At, by: f64) -> Result<(), Stuck> {
    let node = program.node(at);
    let mut each = |operands: &[usize]| -> Result<(), Stuck> {
        operands.iter().try_for_each(|operand| into_operand(program, fold, at, *operand, by))
    };
    match node.op {
        Op::Linear if program.is_shared(at, 1) => each(&[0]),
        Op::Linear | Op::Embed => each(&[1]),
        Op::Bias | Op::Add | Op::Position { .. } => each(&[0, 1]),
        Op::Norm { .. } => each(&(1..node.inputs.len()).collect::<Vec<_>>()),
        Op::Scale { .. } | Op::Rope { .. } | Op::LastToken | Op::Scores { .. } => each(&[0]),
        Op::Values { .. } => each(&[1]),
        Op::Param { .. }
        | Op::Mul
        | Op::Activation(_)
        | Op::KvAppend { .. }
        | Op::Mask { .. }
        | Op::Softmax
        | Op::Repeat { .. }
        | Op::Sharded(_)
        | Op::Backward(_) => {
            Err(stuck(at, format!("a factor {by} does not pass through {} ({})", node.name, node.op.name())))
        }
    }
}

/// A refusal.
pub fn stuck(at: At, why: impl Into<String>) -> Stuck {
    Stuck { at, why: why.into() }
}

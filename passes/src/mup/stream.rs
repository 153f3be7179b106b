//! Divides the residual stream by the embedding's factor, where a tied table has to stay as it is.

use crate::mup::carry::{into_operand, stuck};
use crate::mup::{At, Fold, Program, Stuck};
use lapidary_models::op::ScaleRole;
use lapidary_models::{Op, ValueId};
use std::collections::BTreeSet;

/// Values of a module: function and value.
type Stream = BTreeSet<(usize, ValueId)>;

/// Lets the value that the multiplier at `at` makes be `s` times smaller, and everything that hangs on it.
///
/// # Errors
/// The node where the division cannot be made good.
pub fn divide(program: &Program, fold: &mut Fold, at: At, s: f64) -> Result<(), Stuck> {
    let mut stream = Stream::new();
    follow(program, &mut stream, at.function, program.node(at).output)?;
    for (function, value) in &stream {
        for (reader, operand) in program.readers(*function, *value) {
            settle(program, fold, &stream, reader, operand, s)?;
        }
        returned(program, &stream, at, *function, *value)?;
    }
    Ok(())
}

/// Whether the factor at `at` belongs to an end of a stream that enters and leaves through one table, with no norm
/// before the head: then neither the table nor a norm can take it.
pub fn ends_meet(program: &Program, at: At, role: ScaleRole) -> bool {
    match role {
        ScaleRole::MupEmbedding => {
            let mut stream = Stream::new();
            let followed = follow(program, &mut stream, at.function, program.node(at).output).is_ok();
            let heads = stream.iter().flat_map(|(function, value)| program.readers(*function, *value));
            followed
                && heads.into_iter().any(|(reader, operand)| operand == 0 && is_tied_head(program, reader))
        }
        ScaleRole::MupOutput => {
            let mut value = program.node(at).inputs[0];
            while let Some(maker) = program.maker(at.function, value) {
                let node = program.node(maker);
                match node.op {
                    Op::Bias => value = node.inputs[0],
                    Op::Linear => return is_tied_head(program, maker) && !reads_norm(program, maker),
                    _ => return false,
                }
            }
            false
        }
        _ => false,
    }
}

fn is_tied_head(program: &Program, at: At) -> bool {
    program.node(at).op == Op::Linear && program.is_shared(at, 1)
}

fn reads_norm(program: &Program, at: At) -> bool {
    let x = program.node(at).inputs[0];
    program.maker(at.function, x).is_some_and(|maker| matches!(program.node(maker).op, Op::Norm { .. }))
}

/// Collects what is in the stream: what is made from it without leaving it.
fn follow(program: &Program, stream: &mut Stream, function: usize, value: ValueId) -> Result<(), Stuck> {
    if !stream.insert((function, value)) {
        return Ok(());
    }
    for (reader, operand) in program.readers(function, value) {
        let node = program.node(reader);
        match node.op {
            Op::Add | Op::Scale { .. } | Op::LastToken => follow(program, stream, function, node.output)?,
            Op::Position { .. } | Op::Bias if operand == 0 => follow(program, stream, function, node.output)?,
            Op::Repeat { function: body, .. } => {
                only_caller(program, reader, body)?;
                for argument in &program.functions[body].0.arguments {
                    follow(program, stream, body, *argument)?;
                }
                follow(program, stream, function, node.output)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn only_caller(program: &Program, at: At, body: usize) -> Result<(), Stuck> {
    let calls = |at: &At| matches!(program.node(*at).op, Op::Repeat { function, .. } if function == body);
    let name = &program.functions[body].0.name;
    match program.nodes().filter(calls).count() {
        1 => Ok(()),
        n => Err(stuck(at, format!("@{name} is repeated in {n} places, whose streams may differ"))),
    }
}

/// Makes one reader of the stream right again.
fn settle(
    program: &Program,
    fold: &mut Fold,
    stream: &Stream,
    at: At,
    operand: usize,
    s: f64,
) -> Result<(), Stuck> {
    let node = program.node(at);
    match (&node.op, operand) {
        (Op::Norm { eps, .. }, 0) => {
            fold.norms.insert(at, eps / (s * s));
            Ok(())
        }
        (Op::Add, _) => {
            let other = 1 - operand;
            match stream.contains(&(at.function, node.inputs[other])) {
                true => Ok(()),
                false => into_operand(program, fold, at, other, 1.0 / s),
            }
        }
        (Op::Position { .. } | Op::Bias, 0) => into_operand(program, fold, at, 1, 1.0 / s),
        (Op::Scale { .. } | Op::LastToken | Op::Repeat { .. }, _) => Ok(()),
        (op, _) => {
            let (name, kind) = (&node.name, op.name());
            Err(stuck(at, format!("{name} ({kind}) reads the residual stream without a norm before it")))
        }
    }
}

/// A body that gets the stream must return it, and the whole module must not.
fn returned(
    program: &Program,
    stream: &Stream,
    from: At,
    function: usize,
    value: ValueId,
) -> Result<(), Stuck> {
    let body = program.functions[function].0;
    let last = At { function, node: body.nodes.len().saturating_sub(1) };
    let enters = body.arguments.iter().any(|argument| stream.contains(&(function, *argument)));
    if function == from.function && body.results.contains(&value) {
        return Err(stuck(last, format!("@{} returns the residual stream itself", body.name)));
    }
    if enters && !body.results.iter().all(|result| stream.contains(&(function, *result))) {
        return Err(stuck(last, format!("@{} does not return the residual stream that it gets", body.name)));
    }
    Ok(())
}

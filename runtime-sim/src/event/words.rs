//! The words that a streaming op takes and sends, as numbers.

use super::cause::Causes;
use super::flow::{Flow, Kind};
use super::ports::Cx;
use super::steps::Input;
use super::values::{decode, encode};
use crate::lower::LoweredOp;
use crate::program::{Command, Wire};

/// The words of the next `steps` steps as numbers.
pub fn gather(inputs: &[Input], steps: u64, cx: &mut Cx) {
    for input in inputs {
        let Some(flow) = cx.links.flow(cx.links.net.ends[input.end as usize].stream) else { continue };
        let first = cx.links.taken(input.end) + input.offset;
        let values = &mut cx.scratch.values.operands[input.operand];
        values.clear();
        let cells = flow.ring(0);
        let word = |step: u64, k: u64| cells[(first + step * input.stride + k) as usize & flow.mask].value;
        if input.wire == Wire::F32 && input.stride == 1 {
            values.extend((0..steps).map(|step| f32::from_bits(word(step, 0))));
            continue;
        }
        for step in 0..steps {
            for k in 0..input.words {
                let word = word(step, k);
                values.extend((0..input.wire.lanes()).map(|lane| decode(input.wire, word, lane)));
            }
        }
    }
}

/// Sends the results of the steps that began at `starts`; the last word may carry a command.
pub fn send(op: &LoweredOp, wire: Wire, stream: u32, command: Option<Command>, causes: Causes, cx: &mut Cx) {
    let (scratch, cost) = (&*cx.scratch, op.price.step_cycles);
    let lanes = wire.lanes() as usize;
    let words = op.price.step as usize / lanes;
    let out = &scratch.values.out;
    let count = scratch.starts.len() * words;
    let flow: &mut Flow = cx.links.flow_mut(stream);
    if wire == Wire::F32 && words == 1 {
        scratch.starts.iter().zip(out).for_each(|(start, value)| flow.push(start + cost, value.to_bits()));
    } else {
        for (n, elements) in out.chunks(lanes).enumerate().take(count) {
            let early = (words - 1 - n % words) as u64;
            let value = encode(wire, elements[0], elements.get(1).copied().unwrap_or(0.0));
            flow.push(scratch.starts[n / words] + cost.saturating_sub(early), value);
        }
    }
    if command.is_some() {
        flow.mark(Kind { control: false, command });
    }
    flow.explain_word(causes);
    cx.links.publish(stream, count as u64);
}

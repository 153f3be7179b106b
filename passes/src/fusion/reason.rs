//! Why a region is worth its while, in words, and what it is called.

use crate::fusion::class::{Class, class};
use crate::fusion::flow::Flow;
use crate::fusion::legality::Anchor;
use crate::fusion::traffic::{Set, reads};
use lapidary_models::op::Backward;
use lapidary_models::{Op, ValueId};

/// Bytes in decimal units with one digit: `268.4 MB`.
pub fn bytes_text(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)];
    match UNITS.iter().find(|(_, size)| bytes >= *size) {
        // One digit after the point; sizes stay below 2^53 in any model that fits a machine.
        Some((unit, size)) => format!("{:.1} {unit}", bytes as f64 / *size as f64),
        None => format!("{bytes} B"),
    }
}

/// What a merge of two regions saves: `saves 268.4 MB: softmax is never written`.
pub fn of_merge(flow: &Flow, a: &Set, b: &Set, saved: u64) -> String {
    let union: Set = a.union(b).copied().collect();
    let crossing = |from: &Set, to: &Set| -> Vec<ValueId> {
        reads(flow, to).into_keys().filter(|v| flow.made_in(*v, from)).collect()
    };
    let made: Vec<ValueId> = crossing(a, b).into_iter().chain(crossing(b, a)).collect();
    let (again, never): (Vec<ValueId>, Vec<ValueId>) =
        made.into_iter().partition(|v| flow.escapes(*v, &union));
    let second = reads(flow, b);
    let shared: Vec<ValueId> = reads(flow, a).into_keys().filter(|v| second.contains_key(v)).collect();
    format!("saves {}: {}", bytes_text(saved), sentence(flow, &never, &again, &shared))
}

/// What a finished region saves: `attn.q and attn.k are never written; attn_norm is read once`.
pub fn of_region(flow: &Flow, nodes: &Set) -> String {
    let inner = |value: ValueId| flow.users(value).iter().any(|user| nodes.contains(user));
    let outputs = nodes.iter().map(|n| flow.node(*n).output).filter(|v| inner(*v));
    let (again, never): (Vec<ValueId>, Vec<ValueId>) = outputs.partition(|v| flow.escapes(*v, nodes));
    let readers = |v: ValueId| flow.users(v).iter().filter(|user| nodes.contains(user)).count();
    let shared: Vec<ValueId> = reads(flow, nodes).into_keys().filter(|v| readers(*v) > 1).collect();
    match nodes.len() {
        1 => "stands alone".into(),
        _ => sentence(flow, &never, &again, &shared),
    }
}

fn sentence(flow: &Flow, never: &[ValueId], again: &[ValueId], shared: &[ValueId]) -> String {
    let say = |values: &[ValueId], one: &str, many: &str| match values {
        [] => None,
        [value] => Some(format!("{} {one}", name(flow, *value))),
        [most @ .., last] => {
            let most: Vec<String> = most.iter().map(|v| name(flow, *v)).collect();
            Some(format!("{} and {} {many}", most.join(", "), name(flow, *last)))
        }
    };
    let parts = [
        say(never, "is never written", "are never written"),
        say(again, "is not read again", "are not read again"),
        say(shared, "is read once", "are read once"),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn name(flow: &Flow, value: ValueId) -> String {
    match flow.maker(value) {
        Some(maker) => flow.node(maker).name.clone(),
        None => "the input".into(),
    }
}

/// The name of a region: after its anchor, of letters, digits, `_`, `.` and `-`; not yet unique.
pub fn region_name(flow: &Flow, nodes: &Set, anchor: Anchor) -> String {
    let named = |wanted: Class| -> Vec<&str> {
        nodes.iter().filter(|n| class(flow.op(**n)) == wanted).map(|n| flow.node(*n).name.as_str()).collect()
    };
    let alone = named(Class::Alone);
    let name = match anchor {
        Anchor::Attention if nodes.iter().any(|n| *flow.op(*n) == Op::Backward(Backward::SoftmaxDx)) => {
            "attention.backward".into()
        }
        Anchor::Matmul | Anchor::Row | Anchor::Gather if !alone.is_empty() => alone[0].to_string(),
        Anchor::Matmul => joint_name(&named(Class::Contraction)),
        Anchor::Attention => "attention".into(),
        Anchor::Row => joint_name(&named(Class::Row)),
        Anchor::Gather => joint_name(&named(Class::Gather)),
        Anchor::Elementwise => nodes
            .iter()
            .rev()
            .find(|n| !matches!(flow.op(**n), Op::KvAppend { .. }) || nodes.len() == 1)
            .map_or_else(String::new, |n| flow.node(*n).name.clone()),
    };
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '_' }).collect()
}

/// `attn.q`, `attn.k`, `mlp.up` give `attn.q_k-mlp.up`: the last words of neighbours with one prefix are joined.
fn joint_name(names: &[&str]) -> String {
    let mut joint = String::new();
    let mut prefix = None;
    for name in names {
        let (head, tail) = name.rsplit_once('.').map_or(("", *name), |(head, tail)| (head, tail));
        match prefix {
            Some(known) if known == head && !head.is_empty() => joint.extend(["_", tail]),
            Some(_) => joint.extend(["-", name]),
            None => joint.push_str(name),
        }
        prefix = Some(head);
    }
    joint
}

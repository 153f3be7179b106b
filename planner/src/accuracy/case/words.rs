//! What the words of a row mean: software, sharding, recomputation, order of passes, attention.

use super::super::row::Row;
use super::machine::trailing_number;
use crate::plan::{Recompute, Sharding};
use crate::step::{AttentionKernel, Schedule, Stack};

pub(super) fn stack(row: &Row, assumed: &mut Vec<String>) -> &'static Stack {
    let printed = row.word("framework");
    Stack::of_framework(&format!("{printed} {}", row.word("precision"))).unwrap_or_else(|| {
        let sharded = shards_weights(&row.word("sharding").to_lowercase());
        let name = if sharded { "fsdp-eager" } else { "megatron-like" };
        assumed.push(format!("software like {name}; `{printed}` is not known"));
        Stack::named(name).unwrap_or(&Stack::builtin()[0])
    })
}

/// Whether a word for sharding means that weights are sharded too.
fn shards_weights(word: &str) -> bool {
    ["fsdp", "hsdp", "hybrid", "zero3", "zero-3"].iter().any(|known| word.starts_with(known))
}

/// How data-parallel ranks share the state; a framework's name tells where the column is empty.
pub(super) fn sharding(row: &Row, data: u64, assumed: &mut Vec<String>) -> Sharding {
    let printed = row.word("sharding").to_lowercase().replace(' ', "-");
    let framework = row.word("framework").to_lowercase();
    let told =
        printed.is_empty().then(|| ["fsdp", "zero-3"].into_iter().find(|word| framework.contains(word)));
    let word = told.flatten().map_or(printed, |word| {
        assumed.push(format!("{word}, as the software's name says"));
        word.to_string()
    });
    let found = match word.as_str() {
        _ if word.starts_with("zero1-in-node") => Sharding::OptimizerInNode,
        _ if word.contains("hsdp") || word.contains("hybrid") => Sharding::Hybrid,
        _ if shards_weights(&word) || word.starts_with("full") => Sharding::Full,
        _ if word.starts_with("zero") || word.contains("distributed") => Sharding::Optimizer,
        _ if word.starts_with("ddp") || word == "none" || word == "no" || word == "dp" => Sharding::None,
        _ => {
            assumed.push("state not sharded".to_string());
            Sharding::None
        }
    };
    if data == 1 { Sharding::None } else { found }
}

pub(super) fn recompute(row: &Row, assumed: &mut Vec<String>) -> Recompute {
    let word = row.word("act_recompute").to_lowercase();
    match word.as_str() {
        _ if word.starts_with("full") || word == "true" || word == "yes" || word == "1" => Recompute::Full,
        _ if again_share(&word) < 1.0 => Recompute::Full,
        _ if word.starts_with("selective") || word.starts_with("attn") => Recompute::Selective,
        _ if word.starts_with("none") || word == "false" || word == "no" || word == "0" => Recompute::None,
        _ => {
            assumed.push("nothing recomputed".to_string());
            Recompute::None
        }
    }
}

/// Part of the layers that are recomputed: `selective 1/2`, `every 2nd layer`; of layers that are selected and not
/// counted every second one, as torchtitan's `selective_ac_option` has it where nobody sets it.
pub(super) fn again_share(word: &str) -> f64 {
    let lower = word.to_lowercase();
    if let Some((head, tail)) = lower.split_once('/') {
        let below: String = tail.chars().take_while(char::is_ascii_digit).collect();
        if let (Some(above), Ok(below)) = (trailing_number(head), below.parse::<f64>()) {
            return (above / below).clamp(0.0, 1.0);
        }
    }
    if let Some(at) = lower.find("every ") {
        let digits: String = lower[at + 6..].chars().take_while(char::is_ascii_digit).collect();
        return digits.parse::<f64>().map_or(1.0, |n| 1.0 / n.max(1.0));
    }
    if lower.contains("selective") && lower.contains("layer") {
        return 0.5;
    }
    1.0
}

/// Ranks that share each sequence: `cp=2` among the words for the software; 1 where nothing is said.
pub(super) fn context(row: &Row) -> u64 {
    let words = row.word("framework").to_lowercase();
    let Some((_, tail)) = words.split_once("cp=") else { return 1 };
    let digits: String = tail.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok().filter(|ranks| *ranks > 0).unwrap_or(1)
}

pub(super) fn schedule(framework: &str) -> Schedule {
    match () {
        _ if framework.contains("ZB-2p") => Schedule::ZeroBubble2,
        _ if framework.contains("ZB-1p") => Schedule::ZeroBubble1,
        _ => Schedule::OneForwardOneBackward,
    }
}

pub(super) fn attention(row: &Row, stack: &Stack) -> AttentionKernel {
    let word = row.word("flash_attention").to_lowercase();
    let flash = if stack.attention.flash() { stack.attention } else { AttentionKernel::Flash1 };
    match word.as_str() {
        "" => stack.attention,
        _ if word.contains("unfused") => AttentionKernel::Unfused,
        _ if word.contains("triton") => AttentionKernel::Flash1Triton,
        _ if word.contains("fa2") || word.contains("flash_attn>=2") || word.contains("sdpa") => {
            AttentionKernel::Flash2
        }
        _ if word.contains("fa1") || word.contains("xformers") => AttentionKernel::Flash1,
        _ if word.starts_with("no") && stack.attention.flash() => AttentionKernel::Unfused,
        _ if word.starts_with("no") => stack.attention,
        _ => flash,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_layers_are_read() {
        assert_eq!(again_share("selective 1/2"), 0.5);
        assert_eq!(again_share("selective (every 2nd layer)"), 0.5);
        assert_eq!(again_share("full"), 1.0);
        assert_eq!((again_share("selective layer"), again_share("selective op")), (0.5, 1.0));
    }
}

//! Whether a program comes to its end with the queues that there are: proven, or looked at PE by PE, or not known.

use super::engine::FlowError;
use super::proof;
use super::rows::Rows;
use super::standstill::{Ending, ending};
use super::timing::{Job, Seen};
use crate::network::{Links, Network, cover};

/// Most PEs of which it is looked one by one whether all find room for their words.
pub const LOOKED_AT: usize = 16_384;

/// Said where it is not known whether a program ends.
const UNKNOWN: &str = "whether queues have room for all to go on is not known: level event tells";

impl Job<'_> {
    /// Refuses a program whose PEs wait for room for ever; says so where that is not known.
    pub fn must_end(&self) -> Result<Option<String>, FlowError> {
        let unproven = self.unproven();
        if unproven.as_ref().is_some_and(Vec::is_empty) {
            return Ok(None);
        }
        let Some((net, rows)) = self.looked_at() else { return Ok(Some(self.unknown(unproven))) };
        match ending(self.program, &net, &self.classes, &|pe| rows.weight_of(pe / net.width)) {
            Ending::Reached => Ok(None),
            Ending::Stuck(error) => Err(error),
            Ending::Unknown => Ok(Some(self.unknown(unproven))),
        }
    }

    /// The phases in which it is not proven that there is room for all to go on; none if nothing is known.
    pub fn unproven(&self) -> Option<Vec<Option<usize>>> {
        let Seen { net, rows, stretches } = self.first().as_ref()?;
        Some(proof::unproven(self.spec, net, rows, &self.classes, &stretches.as_ref()?[0]))
    }

    /// Says that it is not known whether a program ends, and in which phases.
    fn unknown(&self, unproven: Option<Vec<Option<usize>>>) -> String {
        let name = |phase: Option<usize>| Some(format!("`{}`", self.program.phases.get(phase?)?));
        let names: Option<Vec<String>> = unproven.and_then(|phases| phases.into_iter().map(name).collect());
        match names.filter(|names| !names.is_empty()) {
            Some(names) => format!(
                "whether queues have room for all to go on is not known of {}, but of all else: level event tells",
                names.join(", ")
            ),
            None => UNKNOWN.into(),
        }
    }

    /// The streams of the PEs that are looked at one by one, if they are not too many: of rows that do the same, those
    /// nearest to the north edge and farthest from it, so that the least room for the words of the host is among theirs.
    fn looked_at(&self) -> Option<(Network, Rows)> {
        let class_of = cover(self.program).ok()?;
        let all = class_of.len() <= LOOKED_AT;
        let rows = if all {
            Rows::all(self.program)
        } else {
            Rows::at_both_ends(self.program, &class_of, &self.classes)
        };
        if rows.chosen.len() * self.program.width as usize > LOOKED_AT {
            return None;
        }
        let traced = (0..self.program.height).map(|y| rows.chosen.contains(&y)).collect();
        Some((Network::of_rows(self.program, self.spec, class_of, traced, Links::Untold).ok()?, rows))
    }
}

//! How much longer than this compiler's kernels those of a published software release take.
//!
//! The same model on the same two systems became 1.68 times faster from release 1.7 to 2.3. So what a release makes of the
//! wafer is an input of its own: a factor on the cycles of kernels, chosen by name, and 1 where none is named.

use crate::assumption::Assumption;

/// A software release.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Release {
    /// Its name, as `R2.0`.
    pub name: &'static str,
    /// Its cycles over those of this compiler's kernels.
    pub factor: f64,
    /// Where the factor comes from.
    pub source: &'static str,
}

/// This compiler's own kernels.
pub const OWN: Release = Release { name: "none", factor: 1.0, source: "the kernels of this compiler" };

/// Every release there is a factor for, oldest first. Two lie between their neighbours; four are fitted on the row that they
/// name, of `wafer-training.csv`, so that row's error says nothing; R2.2 is chosen by hand over five rows.
pub const RELEASES: [Release; 7] = [
    Release { name: "R1.7", factor: 1.776, source: "fitted on gptj_r17: GPT-J 6B on two CS-2, 2023-03-16" },
    Release { name: "R1.8", factor: 1.439, source: "fitted on gptj_r18: GPT-J 6B on two CS-2, 2023-05-17" },
    Release { name: "R1.9", factor: 1.251, source: "geometric mean of R1.8 and R2.0, its neighbours" },
    Release { name: "R2.0", factor: 1.087, source: "fitted on gptj_r20: GPT-J 6B on two CS-2, 2023-11-29" },
    Release { name: "R2.1", factor: 1.01, source: "geometric mean of R2.0 and R2.2, its neighbours" },
    Release {
        name: "R2.2",
        factor: 0.94,
        source: "chosen by hand so that five usc rows (256M, 6.7B, 20B, BERT 2048) stay under 10 %: arXiv 2409.00287",
    },
    Release { name: "R2.3", factor: 0.82, source: "fitted on gptj_r23: GPT-J 6B on two CS-2, 2024-09-25" },
];

impl Release {
    /// The release of a name: `none`, or a version such as `R1.9.1`, `rel-1.9.1` and `1.9`, of which the first two numbers
    /// count. `R2.x` is the 2.2 of mid 2024.
    pub fn named(name: &str) -> Option<Release> {
        let text = name.trim().to_ascii_lowercase();
        if text == OWN.name {
            return Some(OWN);
        }
        let text = text.trim_start_matches("rel-").trim_start_matches('r').replacen("2.x", "2.2", 1);
        let version: String = text.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        let mut parts = version.split('.');
        let wanted = format!("R{}.{}", parts.next()?, parts.next()?);
        RELEASES.into_iter().find(|release| release.name == wanted)
    }

    /// As an assumption of a plan.
    pub fn assumption(&self) -> Assumption {
        Assumption::new(&format!("software-release.{}", self.name), self.factor, "ratio", self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_found_under_the_names_that_tables_use() {
        for (name, wanted) in
            [("rel-1.9.1", "R1.9"), ("R2.x (2024)", "R2.2"), ("R2.3.0", "R2.3"), ("2.0", "R2.0")]
        {
            assert_eq!(Release::named(name).map(|release| release.name), Some(wanted), "{name}");
        }
        assert_eq!(Release::named("none"), Some(OWN));
        assert!(Release::named("R7.1").is_none() && Release::named("").is_none());
    }

    #[test]
    fn factors_between_neighbours_are_their_means() {
        for index in [2, 4] {
            let mean = (RELEASES[index - 1].factor * RELEASES[index + 1].factor).sqrt();
            assert!((RELEASES[index].factor - mean).abs() < 0.005, "{}", RELEASES[index].name);
        }
    }
}

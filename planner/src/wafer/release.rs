//! How much longer than this compiler's kernels those of a published software release take, and what the release takes
//! for every micro-batch beside them (`releases.toml`).
//!
//! The same model on the same two systems became 1.68 times faster from release 1.7 to 2.3. So what a release makes of the
//! wafer is an input of its own: a factor on the cycles of kernels, chosen by name, and 1 where none is named.

use crate::assumption::Assumption;
use lapidary_hardware::Seconds;
use serde::Deserialize;
use std::sync::LazyLock;

/// A software release.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Release {
    /// Its name, as `R2.0`.
    pub name: &'static str,
    /// Its cycles over those of this compiler's kernels.
    pub factor: f64,
    /// What it takes at least for every micro-batch beside what the wafer computes.
    pub turn: Seconds,
    /// Where that comes from.
    pub turn_source: &'static str,
    /// Rows that the factor is fitted on; none where it lies between two others.
    pub fitted_on: &'static [String],
    /// Where the factor comes from.
    pub source: &'static str,
}

/// This compiler's own kernels.
pub const OWN: Release = Release {
    name: "none",
    factor: 1.0,
    turn: Seconds(0.0),
    turn_source: "this compiler's programs follow one another without a gap",
    fitted_on: &[],
    source: "the kernels of this compiler",
};

/// Every release there is a factor for, oldest first.
pub static RELEASES: LazyLock<Vec<Release>> = LazyLock::new(|| read(include_str!("releases.toml")));

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Releases {
    release: Vec<Entry>,
}

/// A release in the file: with a factor, or a share of the way from one to another.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Entry {
    name: String,
    factor: Option<f64>,
    turn_s: Option<f64>,
    turn_source: Option<String>,
    #[serde(default)]
    fitted_on: Vec<String>,
    between: Option<[String; 2]>,
    share: Option<f64>,
    source: String,
}

/// The releases of a file's text; those that cannot be read are left out, which a test does not allow.
fn read(text: &str) -> Vec<Release> {
    let entries = toml::from_str::<Releases>(text).map_or_else(|_| Vec::new(), |file| file.release);
    let named = |name: &String| entries.iter().find(|entry| entry.name == *name);
    // The way from one to another is even in the logarithm.
    let on_the_way = |entry: &Entry, value: &dyn Fn(&Entry) -> Option<f64>| {
        let [from, to] = entry.between.as_ref()?;
        let share = entry.share?;
        Some(value(named(from)?)?.powf(1.0 - share) * value(named(to)?)?.powf(share))
    };
    let of = |entry: &Entry| {
        // The file lives as long as the program: its words may too.
        Some(Release {
            name: entry.name.clone().leak(),
            factor: entry.factor.or_else(|| on_the_way(entry, &|entry| entry.factor))?,
            turn: Seconds(entry.turn_s.or_else(|| on_the_way(entry, &|entry| entry.turn_s))?),
            turn_source: entry.turn_source.clone().unwrap_or_else(|| entry.source.clone()).leak(),
            fitted_on: entry.fitted_on.clone().leak(),
            source: entry.source.clone().leak(),
        })
    };
    entries.iter().filter_map(of).collect()
}

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
        RELEASES.iter().copied().find(|release| release.name == wanted)
    }

    /// What it takes for every micro-batch, as an assumption of a plan.
    pub fn turn_assumption(&self) -> Assumption {
        let name = format!("software-release.{}.turn", self.name);
        Assumption::new(&name, self.turn.0, "s/micro-batch", self.turn_source)
    }

    /// Its factor, as an assumption of a plan.
    pub fn assumption(&self) -> Assumption {
        let source = match self.fitted_on {
            [] => self.source.to_string(),
            rows => format!("fitted on {}: {}", rows.join(", "), self.source),
        };
        Assumption::new(&format!("software-release.{}", self.name), self.factor, "ratio", &source)
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
    fn every_entry_of_the_file_has_a_factor_and_later_releases_are_faster() {
        let file: Releases = toml::from_str(include_str!("releases.toml")).unwrap();
        assert_eq!(RELEASES.len(), file.release.len());
        assert!(RELEASES.windows(2).all(|pair| pair[0].factor > pair[1].factor), "{RELEASES:?}");
        let between: Vec<_> = file.release.iter().filter(|entry| entry.between.is_some()).collect();
        assert!(between.iter().all(|entry| entry.factor.is_none() && entry.fitted_on.is_empty()));
        assert!(RELEASES.iter().all(|release| release.turn.0 > 0.0 && release.turn.0 < 0.1), "{RELEASES:?}");
    }
}

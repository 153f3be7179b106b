//! Jobs for another machine: every kernel's text once, to be compiled here; there its digest stands in its place.
use super::{Jobs, Text};
use crate::compile::{Source, digest};
use std::collections::BTreeMap;

impl Jobs {
    /// Every text, those of all forms among them.
    fn texts(&mut self) -> impl Iterator<Item = &mut Text> {
        let checks = self.checks.iter_mut().flat_map(|check| &mut check.sources);
        let jobs = self.ceiling.iter_mut().chain(&mut self.jobs);
        let of_jobs = jobs.flat_map(|job| {
            let candidates = job.candidates.iter_mut().flat_map(|candidate| &mut candidate.sources);
            job.sources.iter_mut().chain(candidates)
        });
        checks.chain(of_jobs)
    }

    /// Puts its digest for an architecture in the place of every text, and returns each source with the name of its machine
    /// code as the jobs ask for it now.
    pub fn by_digest(&mut self, arch: &str) -> BTreeMap<String, Source> {
        let mut sources = BTreeMap::new();
        for text in self.texts() {
            let whole = Source { name: text.name.clone(), text: std::mem::take(&mut text.text) };
            text.text = digest(&whole, arch);
            let short = Source { name: text.name.clone(), text: text.text.clone() };
            sources.insert(digest(&short, arch), whole);
        }
        sources
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{CheckJob, sources};
    use crate::compile::{Compiler, Prebuilt};
    use crate::program::{Dtype, GpuProgram};

    #[test]
    fn machine_code_is_found_by_what_stands_in_the_place_of_texts() {
        let text = |name: &str, text: &str| Text { name: name.into(), text: text.into() };
        let program = GpuProgram {
            share: None,
            schema: String::new(),
            version: 1,
            name: String::new(),
            arch: "sm_80".into(),
            arena_bytes: 0,
            arena_naive_bytes: 0,
            buffers: Vec::new(),
            kernels: Vec::new(),
            steps: Vec::new(),
        };
        let check = CheckJob {
            name: String::new(),
            program,
            sources: vec![text("a", "one"), text("b", "one"), text("a", "two"), text("a", "one")],
            shapes: BTreeMap::new(),
            dtype: Dtype::Bf16,
            ids: Vec::new(),
            output: String::new(),
            width: 1,
            expected: Vec::new(),
            tolerance: 0.0,
        };
        let mut jobs = Jobs { checks: vec![check], ..Jobs::default() };
        let made = jobs.by_digest("sm_80");
        assert_eq!(made.len(), 3, "equal sources are one");
        let code = made.into_iter().map(|(name, source)| (name, (source.name + &source.text).into_bytes()));
        let found = Prebuilt(code.collect()).machine_code(&sources(&jobs.checks[0].sources), "sm_80");
        let found: Vec<String> =
            found.into_iter().map(|code| String::from_utf8(code.expect("code")).expect("text")).collect();
        assert_eq!(found, ["aone", "bone", "atwo", "aone"]);
    }
}

//! The checker against a slow one that walks every PE, every iteration and every element, on random programs with and
//! without faults.

pub mod cases;
mod slow;

use super::rows::Rows;
use super::{CheckError, holds_in_few_rows, memory, names, prove, words};
use crate::FabricSpec;
use crate::lower::lower;
use crate::network::{Links, Network, cover};
use crate::program::{Uses, WaferProgram};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_holds_in_few_rows_holds_in_all(case in cases::long_case()) {
        let program = case.program();
        if let Some((few, all)) = verdicts(&program) {
            prop_assert!(!few || all.is_ok(), "{:?}\n{}", all, crate::text::print(&program));
            prop_assert!(few || !case.is_told_by_few_rows(), "{}", crate::text::print(&program));
        }
    }

    #[test]
    fn the_verdict_is_that_of_a_walk_over_every_pe(case in cases::case()) {
        let (program, spec) = (case.program(), FabricSpec::wse2());
        let fast = prove(&program, &spec);
        prop_assert!(fast.is_ok() || !case.faults.is_empty(), "{:?}", fast);
        prop_assert_eq!(fast.is_ok(), slow::accepts(&program, &spec), "{:?}\n{}", fast, crate::text::print(&program));
    }
}

/// Each kind of fault is one that the slow walk refuses too, so that the law above is not about correct programs only.
#[test]
fn faults_in_one_row_of_many_are_found() {
    let spec = FabricSpec::wse2();
    let mut refused = 0;
    for (x, group) in [(0, 1), (0, 3), (1, 1), (1, 3), (2, 4)] {
        for fault in cases::all_faults(x, 5) {
            let program = cases::Case::with(group, fault.clone()).program();
            let fast = prove(&program, &spec);
            assert_eq!(fast.is_ok(), slow::accepts(&program, &spec), "{fault:?}: {fast:?}");
            refused += usize::from(fast.is_err());
        }
    }
    assert!(refused >= 300, "{refused}");
}

/// Whether routes and words are right as far as few rows of lines tell, and what is wrong as all rows tell it; none where
/// names or memory are wrong.
fn verdicts(program: &WaferProgram) -> Option<(bool, Result<(), Vec<CheckError>>)> {
    let spec = FabricSpec::wse2();
    let classes = lower(program, &spec);
    let class_of = cover(program).ok()?;
    if !names::check(program, &spec, &Uses::of_pieces(program)).is_empty()
        || !memory::check(program, &spec, &classes).is_empty()
    {
        return None;
    }
    let few = holds_in_few_rows(program, &spec, &class_of, &classes);
    let rows = Rows::all(program);
    let all = Network::of_rows(program, &spec, class_of, rows.traced.clone(), Links::Untold);
    let all = all.and_then(|net| super::refuse(words::check(program, &net, &classes, &rows)));
    Some((few, all))
}

/// In the middle of a line, or somewhere else, in one row or in all rows like it.
#[test]
fn faults_in_rows_of_a_line_are_found_as_in_all_rows() {
    let right = cases::Case::long(Vec::new()).program();
    assert_eq!(verdicts(&right), Some((true, Ok(()))));
    let (mut refused, mut few_rows_hold) = (0, 0);
    for (x, y) in [(0, 12), (1, 12), (49, 12), (20, 13), (20, 1), (20, 4), (20, 22), (20, 24)] {
        for fault in cases::all_faults(x, y) {
            let program = cases::Case::long(vec![fault.clone()]).program();
            let Some((few, all)) = verdicts(&program) else { continue };
            assert!(!few || all.is_ok(), "{fault:?}: {all:?}");
            assert_eq!(prove(&program, &FabricSpec::wse2()).is_ok(), all.is_ok(), "{fault:?}");
            refused += usize::from(all.is_err());
            few_rows_hold += usize::from(few);
        }
    }
    assert!(refused >= 400 && few_rows_hold >= 20, "{refused} {few_rows_hold}");
}

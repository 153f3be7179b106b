//! The checker against a slow one that walks every PE, every iteration and every element, on random programs with and
//! without faults.

pub mod cases;
mod slow;

use super::prove;
use crate::FabricSpec;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

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
        for fault in cases::all_faults(x) {
            let program = cases::Case::with(group, fault.clone()).program();
            let fast = prove(&program, &spec);
            assert_eq!(fast.is_ok(), slow::accepts(&program, &spec), "{fault:?}: {fast:?}");
            refused += usize::from(fast.is_err());
        }
    }
    assert!(refused >= 300, "{refused}");
}

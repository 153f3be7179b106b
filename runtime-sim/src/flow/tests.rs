//! Rows that follow others take the time they would take alone, and what level event says where queues do not fill and
//! links have room for the words of the host and of the PEs.

use super::engine::{Sharing, time_sharing};
use crate::check::tests::cases;
use crate::{FabricSpec, check, event};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn rows_that_follow_take_the_time_they_would_take_alone(mut case in cases::case()) {
        case.faults.clear();
        let roomy = FabricSpec { queue_in: 4096, link_words_per_cycle: 4, ..FabricSpec::wse2() };
        let checked = check(&case.program(), &roomy).unwrap();
        let (shared, alone) =
            (time_sharing(&checked, Sharing::Rows).unwrap(), time_sharing(&checked, Sharing::Nothing).unwrap());
        prop_assert_eq!(&shared, &alone);
        let event = event::simulate(&checked, Default::default()).unwrap().report;
        let off = shared.cycles.abs_diff(event.cycles);
        prop_assert!(off <= 2 || off as f64 <= 0.05 * event.cycles as f64, "{} {}", shared.cycles, event.cycles);
    }
}

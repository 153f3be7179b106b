//! Rows that follow others, and rows in a line, take the time they would take alone, and what level event says where
//! queues do not fill and links have room for the words of the host and of the PEs.

use super::timing::{Job, Sharing};
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
        let job = Job::new(&checked).unwrap();
        let [shared, alone] =
            [Sharing::Rows, Sharing::Nothing].map(|sharing| job.with_endless_queues(sharing).unwrap().1.0);
        prop_assert_eq!(&shared, &alone);
        let event = event::simulate(&checked, Default::default()).unwrap().report;
        let off = shared.cycles.abs_diff(event.cycles);
        prop_assert!(off <= 2 || off as f64 <= 0.05 * event.cycles as f64, "{} {}", shared.cycles, event.cycles);
    }
}

/// Rows that each add their own to what comes from above and pass on ever more words, to the host in the south.
const LINE: &str = "wafer 2 x 41 tensor t[408]
host sums out south lanes 0 .. 2 colour 0 tensor t dims 204 at d0 + 204*x
class top at (0, 0) 2 x 1 { buffer v: f32[8] @0 route 0: ramp -> south
  task t start { loop 5 { mul v <- v, 2.0 len 8 mov out(0) <- v len 8 } mov out(0) <- v len 4 } }
class odd at (0, 1) 2 x 20 step 1 x 2 { buffer v: f32[8] @0 route 0: north -> ramp route 1: ramp -> south
  task t start { loop 5 { mul v <- v, 2.0 len 8 add out(1) <- v, in(0) len 8 }
    mov out(1) <- in(0) len 4*y mov out(1) <- v len 4 } }
class even at (0, 2) 2 x 20 step 1 x 2 { buffer v: f32[8] @0 route 1: north -> ramp route 0: ramp -> south
  task t start { loop 5 { mul v <- v, 2.0 len 8 add out(0) <- v, in(1) len 8 }
    mov out(0) <- in(1) len 4*y mov out(0) <- v len 4 } }";

#[test]
fn rows_in_a_line_are_foretold_from_two_of_them() {
    let roomy = FabricSpec { queue_in: 4096, ..FabricSpec::wse2() };
    let checked = check(&crate::text::parse(LINE, "line").unwrap(), &roomy).unwrap();
    let job = Job::new(&checked).unwrap();
    let (_, rows) = job.chosen(Some(2)).unwrap();
    assert!(rows.chosen.len() < 10 && rows.skips.len() == 1, "{:?}", rows.chosen);
    let [mut line, alone] =
        [Sharing::Rows, Sharing::Nothing].map(|sharing| job.with_endless_queues(sharing).unwrap().1.0);
    let event = event::simulate(&checked, Default::default()).unwrap().report;
    assert_eq!((line.cycles, line.words, line.word_hops), (event.cycles, event.words, event.word_hops));
    assert!((line.pe_busy_pct - event.pe_busy_pct).abs() < 1e-9);
    let busy = |report: &crate::Report| report.classes.iter().map(|c| c.busy_pct).collect::<Vec<_>>();
    assert!(busy(&line).iter().zip(busy(&alone)).all(|(a, b)| (a - b).abs() < 1.0), "{:?}", busy(&line));
    line.classes = alone.classes.clone();
    line.heat = alone.heat.clone();
    line.pe_busy_pct = alone.pe_busy_pct;
    assert_eq!(line, alone);
}

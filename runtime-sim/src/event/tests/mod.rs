//! The order of work, the number of threads and the size of batches change neither a cycle nor a number.

mod idle;
pub mod mesh;

use super::{Options, Run, SimError, simulate_with};
use crate::check::tests::cases;
use crate::program::WaferProgram;
use crate::{Checked, FabricSpec, check, collectives};
use proptest::prelude::*;

fn run(checked: &Checked<WaferProgram>, options: &Options) -> Result<Run, SimError> {
    let tensors = checked.get().tensors.iter();
    let values = |count: u64| (0..count).map(|i| (i % 7) as f32 - 2.0).collect();
    simulate_with(checked, tensors.map(|(name, t)| (name.clone(), values(t.elements))).collect(), options)
}

/// What every way to run must agree on.
fn agreed(checked: &Checked<WaferProgram>) -> Run {
    let plain = Options { threads: 1, ..Options::default() };
    let mut first = run(checked, &plain).unwrap_or_else(|e| panic!("{e}"));
    let others = [
        Options { threads: 2, ..plain.clone() },
        Options { threads: 5, shuffle: 3, ..plain.clone() },
        Options { shuffle: 1, ..plain.clone() },
        Options { shuffle: 77, ..plain.clone() },
        Options { compiled: !plain.compiled, ..plain.clone() },
    ];
    for options in others {
        assert_eq!(run(checked, &options).as_ref(), Ok(&first), "{options:?}");
    }
    let explained = run(checked, &Options { critical_path: true, trace: true, ..plain }).unwrap();
    let path = &explained.report.critical_path;
    assert_eq!(path.values().sum::<u64>(), first.report.cycles, "{path:?}");
    first.report.critical_path = path.clone();
    assert_eq!((&explained.report, &explained.tensors), (&first.report, &first.tensors));
    assert!(explained.trace.is_some());
    first
}

#[test]
fn collectives_and_switches_run_the_same_in_any_order() {
    let programs = [
        collectives::chain_reduce(7, 30),
        collectives::star_reduce(6, 20),
        collectives::tree_reduce(8, 9),
        collectives::two_phase_reduce(&[3, 3, 3], 14),
        collectives::xy_reduce(5, 8),
        collectives::all_reduce_2d(6, 5, 12),
    ];
    for program in programs {
        agreed(&check(&program, &FabricSpec::wse2()).unwrap());
    }
}

#[test]
fn a_deadlock_is_explained_in_the_same_words_on_any_number_of_threads() {
    let program = mesh::deadlock();
    let checked = check(&program, &FabricSpec::wse2()).unwrap();
    let error = |threads| run(&checked, &Options { threads, ..Options::default() }).unwrap_err();
    assert_eq!(error(1), error(2));
    assert!(error(1).to_string().contains("in a circle"), "{}", error(1));
}

/// Words of two colours meet on a link: the one that comes first passes first, and both lose no more than they must.
#[test]
fn colours_share_a_link_in_order_of_arrival() {
    let text = "wafer 3 x 1
class a at (0, 0) { buffer v: f32[8] @0 route 0: ramp -> east task t start { mov out(0) <- v len 8 } }
class b at (1, 0) { buffer v: f32[8] @0 route 0: west -> east route 1: ramp -> east
  task t start { mov out(1) <- v len 8 } }
class c at (2, 0) { buffer v: f32[8] @0 buffer w: f32[8] @6144 route 0: west -> ramp route 1: west -> ramp
  task t start { par { mov v <- in(0) len 8 mov w <- in(1) len 8 } } }";
    let program = crate::text::parse(text, "shared").unwrap();
    let run = agreed(&check(&program, &FabricSpec::wse2()).unwrap());
    // The first word of `b` enters the link at 1 + 2, the last of 16 words 15 cycles later; one hop, the ramp and its
    // own cycle follow. Both streams share the ramp of `c`, which takes one word of each every two cycles.
    assert!((3 + 15 + 1 + 2 + 1..=3 + 15 + 1 + 2 + 4).contains(&run.report.cycles), "{}", run.report.cycles);
    assert!(run.report.hottest_link.unwrap().words == 16);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn columns_chains_and_steps_run_the_same_in_any_order(mut case in cases::case()) {
        case.faults.clear();
        agreed(&check(&case.program(), &FabricSpec::wse2()).unwrap());
    }

    #[test]
    fn messages_and_data_tasks_run_the_same_in_any_order(case in mesh::case()) {
        let program = case.program();
        let checked = check(&program, &FabricSpec::wse2()).unwrap_or_else(|e| panic!("{e:#?}"));
        let run = agreed(&checked);
        prop_assert_eq!(&run.tensors["out"], &case.expected(&run.tensors["v"]));
        let narrow = FabricSpec { queue_in: 1, queue_out: 1, queue_hop: 1, ..FabricSpec::wse2() };
        let tight = agreed(&check(&program, &narrow).unwrap());
        prop_assert_eq!(tight.tensors, run.tensors);
    }
}

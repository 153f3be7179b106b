//! Rows that follow others, and rows in a line, take the time they would take alone, and what level event says where
//! queues do not fill and links have room for the words of the host and of the PEs.

use super::FlowError;
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

/// A PE that answers each message with a word, which the other waits for: quick ones at first, then slow ones.
fn answers(slow: u32, last: &str) -> String {
    format!(
        "wafer 2 x 1
class ask at (0, 0) {{ buffer v: f32[64] @0 route 0: ramp -> east route 1: east -> ramp route 2: east -> ramp
  task t start {{ loop 40 {{ mov out(0) <- v len 8 mov v <- in(1) len 1 }}
    {last}
    loop 60 {{ loop {slow} {{ mul v <- v, 2.0 len 64 }} mov out(0) <- v len 8 mov v <- in(1) len 1 }} }} }}
class answer at (1, 0) {{ buffer v: f32[64] @0 route 0: west -> ramp route 1: ramp -> west route 2: ramp -> west
  task t start {{ loop 100 {{ mov v <- in(0) len 8 mov out(1) <- v len 1 }} mov out(2) <- v len 1 }} }}"
    )
}

#[test]
fn words_read_on_credit_that_come_later_are_waited_for() {
    let ends = "loop 1 { mul v <- v, 2.0 len 1 }";
    for slow in [1, 3, 20] {
        let text =
            answers(slow, ends).replace("route 2: east -> ramp", "").replace("route 2: ramp -> west", "");
        let text = text.replace("mov out(2) <- v len 1", "");
        let checked = check(&crate::text::parse(&text, "answers").unwrap(), &FabricSpec::wse2()).unwrap();
        let event = event::simulate(&checked, Default::default()).unwrap().report.cycles;
        let flow = Job::new(&checked).unwrap().on_credit(f64::INFINITY).unwrap().unwrap().0;
        let off = flow.cycles.abs_diff(event) as f64 / event as f64;
        assert!(off <= 0.05, "{slow}: {} {event} {:?}", flow.cycles, flow.limits);
    }
}

/// Answers that the one who asks cannot know to come slower from some time on.
#[test]
fn words_read_on_credit_that_come_too_late_end_the_run() {
    for slow in [0, 3, 20] {
        let text = format!(
            "wafer 2 x 1
class ask at (0, 0) {{ buffer v: f32[64] @0 route 0: ramp -> east route 1: east -> ramp
  task t start {{ loop 100 {{ mov out(0) <- v len 8 mov v <- in(1) len 1 }} }} }}
class answer at (1, 0) {{ buffer v: f32[64] @0 route 0: west -> ramp route 1: ramp -> west
  task t start {{ loop 40 {{ mov v <- in(0) len 8 mov out(1) <- v len 1 }}
    loop 60 {{ mov v <- in(0) len 8 {} mov out(1) <- v len 1 }} }} }}",
            "mul v <- v, 2.0 len 64 ".repeat(slow)
        );
        let checked = check(&crate::text::parse(&text, "answers").unwrap(), &FabricSpec::wse2()).unwrap();
        let job = Job::new(&checked).unwrap();
        let on_credit = |most_late: f64| job.on_credit(most_late).unwrap().map(|timed| timed.0);
        let believed = on_credit(f64::INFINITY).unwrap();
        let late = believed.limits.iter().any(|limit| limit.contains("came up to"));
        let event = event::simulate(&checked, Default::default()).unwrap().report.cycles;
        println!("{slow}: {} {event} {:?}", believed.cycles, believed.limits);
        assert_eq!(late, slow > 0, "{slow}: {:?}", believed.limits);
        assert_eq!(on_credit(1.0).is_none(), late, "{slow}");
        assert_eq!(on_credit(event as f64), Some(believed), "{slow}: what is late by less is believed");
    }
}

#[test]
fn words_read_on_credit_that_never_come_are_a_deadlock() {
    let program = crate::text::parse(&answers(1, "mov v <- in(2) len 1"), "answers").unwrap();
    let spec = FabricSpec::wse2();
    let refused = Job::unchecked(&program, &spec).on_credit(f64::INFINITY).unwrap_err();
    let told = refused.to_string();
    assert!(matches!(refused, FlowError::Deadlock { .. }), "{told}");
    assert!(told.contains("PE (0, 0) waits for words on colour 2 from PE (1, 0)"), "{told}");
}

/// Two PEs that send each other as many words as they read, in portions of an order of their own.
fn exchange(portions: [&[(bool, u32)]; 2]) -> String {
    let code = |portions: &[(bool, u32)], own: u8, other: u8| -> String {
        let piece = |(sends, words): &(bool, u32)| match sends {
            true => format!("mov out({own}) <- v len {words} "),
            false => format!("mov v <- in({other}) len {words} "),
        };
        portions.iter().map(piece).collect()
    };
    format!(
        "wafer 3 x 1
class a at (0, 0) {{ buffer v: f32[64] @0 route 0: ramp -> east route 1: east -> ramp task t start {{ {} }} }}
class between at (1, 0) {{ route 0: west -> east route 1: east -> west }}
class b at (2, 0) {{ buffer v: f32[64] @0 route 1: ramp -> west route 0: west -> ramp task t start {{ {} }} }}",
        code(portions[0], 0, 1),
        code(portions[1], 1, 0)
    )
}

/// Portions of both PEs: `a` sends the sizes of the first list and `b` those of the second, each before or after it reads.
fn portions() -> impl Strategy<Value = [Vec<(bool, u32)>; 2]> {
    proptest::collection::vec((1u32..40, 1u32..40, any::<bool>(), any::<bool>()), 1..5).prop_map(|rounds| {
        let order = |first: bool, sent: u32, read: u32| match first {
            true => [(true, sent), (false, read)],
            false => [(false, read), (true, sent)],
        };
        let own = |(to, from, a, _): &(u32, u32, bool, bool)| order(*a, *to, *from);
        let other = |(to, from, _, b): &(u32, u32, bool, bool)| order(*b, *from, *to);
        [rounds.iter().flat_map(own).collect(), rounds.iter().flat_map(other).collect()]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_program_without_room_is_refused_where_level_event_refuses_it(portions in portions()) {
        let program = crate::text::parse(&exchange([&portions[0], &portions[1]]), "exchange").unwrap();
        // Both wait for each other's words: the checker refuses it.
        if let Ok(checked) = check(&program, &FabricSpec::wse2()) {
            let event = event::simulate(&checked, Default::default());
            let flow = super::time(&checked);
            match (event, flow) {
                (Ok(event), Ok(flow)) => {
                    let off = flow.cycles.abs_diff(event.report.cycles);
                    prop_assert!(off <= 2 || off as f64 <= 0.05 * event.report.cycles as f64);
                }
                (Err(event), Err(flow)) => {
                    let (event, flow) = (event.to_string(), flow.to_string());
                    let chain = |text: &str| text.split_once(": ").map(|(_, chain)| chain.to_string());
                    prop_assert!(chain(&event).is_some() && chain(&event) == chain(&flow), "{} // {}", event, flow);
                    let analytic = crate::analytic::time(&checked).map_err(|error| error.to_string());
                    prop_assert_eq!(analytic.map(|report| report.cycles), Err(flow));
                }
                (event, flow) => prop_assert!(false, "{:?} {:?}", event.map(|e| e.report.cycles), flow.map(|f| f.cycles)),
            }
        }
    }
}

/// 24 rows of chains that begin as the host's words come, in phases.
fn phases() -> String {
    let class = |name: &str, columns: &str, rows: &str, on: &str, routes: &str, code: [&str; 3]| {
        format!(
            "class {name} at {columns} x {rows} step 2 x 1 {{ buffer v: f32[40] @0 route 0: north -> ramp{on} {routes}
  task t start {{ phase one loop 300 {{ mul v <- scalar(0), v len 40 {} }} phase two {} phase three
    loop 300 {{ mul v <- scalar(0), v len 40 {} }} }} }}\n",
            code[0], code[1], code[2]
        )
    };
    let mut text = String::from(
        "wafer 6 x 24 tensor w[3600] tensor s[432000] phase one phase two phase three
host w in north lanes 0 .. 6 colour 0 tensor w dims 600 at d0 + 600*x interval 3
host s out east lanes 0 .. 24 colour 2 tensor s dims 18000 at d0 + 18000*y\n",
    );
    let busy = "loop 10*x + 20 { mul v <- v, 2.0 len 30 }";
    for (part, y, rows, on) in [("upper", 0, 23, ", south"), ("last", 23, 1, "")] {
        let mut add = |name: &str, x: u32, columns: u32, routes: &str, code: [&str; 3]| {
            let (name, columns) = (format!("{name}.{part}"), format!("({x}, {y}) {columns}"));
            text += &class(&format!("\"{name}\""), &columns, &rows.to_string(), on, routes, code);
        };
        add(
            "first",
            0,
            1,
            "route 1: ramp -> east",
            ["mov out(1) <- v len 40", busy, "mov out(1) <- v len 20"],
        );
        let code = ["add out(2) <- v, in(1) len 40", busy, "add out(2) <- v, in(1) len 20"];
        add("odd", 1, 3, "route 1: west -> ramp route 2: ramp -> east", code);
        let code = ["add out(1) <- v, in(2) len 40", busy, "add out(1) <- v, in(2) len 20"];
        add("even", 2, 2, "route 2: west -> ramp route 1: ramp -> east", code);
    }
    text
}

#[test]
fn groups_that_begin_alike_take_one_run_and_are_off_by_no_more_than_they_say() {
    let program = crate::text::parse(&phases(), "phases").unwrap();
    let spec = FabricSpec::wse2();
    let checked = check(&program, &spec).unwrap_or_else(|faults| panic!("{}", faults[0]));
    let job = Job::new(&checked).unwrap();
    let net = crate::network::Network::build(&program, &spec).unwrap();
    let alone = job.followed(&net, None);
    for most in [0.0, 30.0, 1e9] {
        let (steps, last, said) = job.followed(&net, Some(most));
        assert!(steps * 2 < alone.0 || most == 0.0, "{most}: {steps} of {} instructions", alone.0);
        assert!((last - alone.1).abs() <= said + 1e-6, "{most}: {last} {} but {said}", alone.1);
        assert!(said <= 3.0 * f64::min(most, 50.0), "{most} {said}");
    }
}

/// Rows of 10 PEs: a block travels eastwards, every PE adds to the sums that come from the row above. Rows begin after
/// `begin` cycles; the first works `top` times as much.
fn outer(begin: &str, top: usize, rows: usize) -> String {
    let mut text = format!(
        "wafer 10 x {rows} tensor s[3600] phase wait phase work
host s out south lanes 0 .. 10 colour 3 tensor s dims 360 at d0 + 360*x\n",
    );
    for (row, y, rows) in [(0, 0, 1), (1, 1, rows / 2), (2, 2, (rows - 1) / 2)] {
        for (x, columns) in [(0, 1), (1, 4), (2, 4), (9, 1)] {
            let (east, west) = (x % 2, (x + 1) % 2);
            let (south, north) = (2 + y % 2, 2 + (y + 1) % 2);
            let (mut routes, mut code) = (format!("route {south}: ramp -> south"), String::new());
            if x > 0 {
                routes += &format!(" route {west}: west -> ramp");
                code += &format!("mov v <- in({west}) len 8 ");
            }
            if x < 9 {
                routes += &format!(" route {east}: ramp -> east");
                code += &format!("mov out({east}) <- v len 8 ");
            }
            code += &"mul v <- v, 2.0 len 40 ".repeat(if y > 0 { 1 } else { top });
            if y > 0 {
                routes += &format!(" route {north}: north -> ramp");
                code += &format!("add out({south}) <- v, in({north}) len 6");
            } else {
                code += &format!("mov out({south}) <- v len 6");
            }
            text += &format!(
                "class c{x}r{row} at ({x}, {y}) {columns} x {rows} step 2 x 2 {{ buffer v: f32[40] @0 {routes}\n  task t start {{ phase wait code {begin} phase work loop 60 {{ {code} }} }} }}\n"
            );
        }
    }
    text
}

#[test]
fn rows_of_a_chain_follow_rows_that_were_fed_alike() {
    let spec = FabricSpec::wse2();
    // Rows side by side; each behind the one above; each before it, held up by its words; and by those of a slow row.
    for (begin, top) in [("0", 1), ("90*y", 1), ("9000 - 90*y", 1), ("0", 3), ("50*y", 3), ("y - 7*y/7", 3)] {
        let program = crate::text::parse(&outer(begin, top, 24), "outer").unwrap();
        let checked = check(&program, &spec).unwrap_or_else(|faults| panic!("{}", faults[0]));
        let job = Job::new(&checked).unwrap();
        let net = crate::network::Network::build(&program, &spec).unwrap();
        let alone = job.followed(&net, None);
        let (steps, last, said) = job.followed(&net, Some(0.0));
        // All PEs run the two instructions of the first phase. Words of a slow row come in pieces, which take turns of their own.
        let waits = 2 * 240;
        let fewer = 2 * (steps - waits) < alone.0 - waits;
        assert!(fewer || top > 1, "{begin} {top}: {steps} of {} instructions", alone.0);
        assert!((last - alone.1).abs() < 1e-6 && said == 0.0, "{begin} {top}: {last} {} {said}", alone.1);
        let event = event::simulate(&checked, Default::default()).unwrap().report.cycles as f64;
        assert!((last / event - 1.0).abs() < 0.05, "{begin} {top}: {last} {event}");
    }
}

#[test]
fn rows_behind_skipped_ones_follow_those_before() {
    // Every seventh row begins seven cycles before the one above it.
    for begin in ["y - 7*y/7", "300*y - 7*y/7", "30000 - 300*y + y - 7*y/7"] {
        let program = crate::text::parse(&outer(begin, 1, 100), "outer").unwrap();
        let spec = FabricSpec { queue_in: 4096, ..FabricSpec::wse2() };
        let checked = check(&program, &spec).unwrap_or_else(|faults| panic!("{}", faults[0]));
        let job = Job::new(&checked).unwrap();
        let (net, rows) = job.chosen(Some(2)).unwrap();
        let [skip] = rows.skips[..] else { panic!("{begin}: {:?}", rows.chosen) };
        let behind = rows.chosen.iter().filter(|y| skip.is_behind(**y)).count();
        assert!(behind >= 4, "{begin}: {behind} rows are not worth a chain");
        // The rows behind run the two instructions of the first phase; in the second one, of eight a PE, one row at most is timed.
        let [before, all] = job.instructions(&net, &rows);
        assert!(
            all - before <= 10 * (2 * behind as u64 + 8),
            "{begin}: {before} {all}, {behind} rows behind"
        );
        let whole = crate::network::Network::build(&program, &spec).unwrap();
        let alone = job.followed(&whole, None).1;
        let report = job.with_endless_queues(Sharing::Rows).unwrap().1.0;
        let egress = report.terms["egress"] as f64;
        assert!((report.cycles as f64 - egress - alone).abs() < 1.0, "{begin}: {} {alone}", report.cycles);
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
    let apart = line.critical_path.iter().map(|(cause, cycles)| cycles.abs_diff(alone.critical_path[cause]));
    assert!(apart.max() <= Some(line.cycles / 20), "{:?} {:?}", line.critical_path, alone.critical_path);
    line.critical_path = alone.critical_path.clone();
    assert_eq!(line, alone);
    let closed = crate::analytic::time(&checked).unwrap();
    assert_eq!((closed.words, closed.word_hops), (event.words, event.word_hops));
    assert!(closed.cycles.abs_diff(event.cycles) * 50 <= event.cycles, "{} {}", closed.cycles, event.cycles);
}

/// A ring of `columns` PEs that give each other a block, turn by turn.
fn ring(columns: usize, turns: u32) -> String {
    let class = |column: usize| {
        let (next, before) = (column % 2, (column + 1) % 2);
        let (out, to) = if column + 1 < columns { (next, "east") } else { (5, "west") };
        let (come, home) = match column {
            0 => (5, String::new()),
            _ if column + 1 == columns => (before, format!("route {before}: west -> ramp")),
            _ => (before, format!("route {before}: west -> ramp route 5: east -> west")),
        };
        let home = if column == 0 { "route 5: east -> ramp".into() } else { home };
        format!(
            "class c{column} at ({column}, 0) {{ buffer a: f32[8] @0 buffer b: f32[8] @32 {home} route {out}: ramp -> {to}
  task t start {{ loop {turns} {{ par {{ mov out({out}) <- a len 8 mov b <- in({come}) len 8 }} mov a <- b len 8 }} }} }}"
        )
    };
    let classes: Vec<String> = (0..columns).map(class).collect();
    format!("wafer {columns} x 1\n{}", classes.join("\n"))
}

#[test]
fn ops_side_by_side_wait_for_their_own_words_only() {
    for (columns, turns) in [(3, 40), (4, 64), (8, 64), (23, 100)] {
        let checked =
            check(&crate::text::parse(&ring(columns, turns), "ring").unwrap(), &FabricSpec::wse2()).unwrap();
        let event = event::simulate(&checked, Default::default()).unwrap().report.cycles;
        let endless = Job::new(&checked).unwrap().with_endless_queues(Sharing::Rows).unwrap().1.0.cycles;
        assert!(endless.abs_diff(event) <= 2, "{columns} columns, {turns} turns: {endless} {event}");
    }
}

/// Rows whose western PE sends on in its first phase what the eastern one gives it in its second one.
const ACROSS: &str = "wafer 2 x 41 tensor t[40] phase one phase two
host sums out south lanes 0 .. 1 colour 0 tensor t dims 40 at d0
class top at (0, 0) { buffer v: f32[8] @0 route 0: ramp -> south route 2: east -> ramp
  task t start { phase one mov v <- in(2) len 8 loop 5 { mov out(0) <- v len 8 } phase two mul v <- v, 2.0 len 8 } }
class odd at (0, 1) 1 x 20 step 1 x 2 { buffer v: f32[8] @0 route 0: north -> ramp route 1: ramp -> south route 2: east -> ramp
  task t start { phase one mov v <- in(2) len 8 loop 5 { add out(1) <- v, in(0) len 8 } phase two mul v <- v, 2.0 len 8 } }
class even at (0, 2) 1 x 20 step 1 x 2 { buffer v: f32[8] @0 route 1: north -> ramp route 0: ramp -> south route 2: east -> ramp
  task t start { phase one mov v <- in(2) len 8 loop 5 { add out(0) <- v, in(1) len 8 } phase two mul v <- v, 2.0 len 8 } }
class east at (1, 0) 1 x 41 { buffer v: f32[8] @0 route 2: ramp -> west
  task t start { phase one loop 2*y { mul v <- v, 2.0 len 8 } phase two mov out(2) <- v len 8 } }";

#[test]
fn rows_behind_wait_until_those_before_can_tell_what_they_get() {
    let roomy = FabricSpec { queue_in: 4096, ..FabricSpec::wse2() };
    let checked = check(&crate::text::parse(ACROSS, "across").unwrap(), &roomy).unwrap();
    let job = Job::new(&checked).unwrap();
    assert_eq!(job.chosen(Some(2)).unwrap().1.skips.len(), 1);
    let [line, alone] =
        [Sharing::Rows, Sharing::Nothing].map(|sharing| job.with_endless_queues(sharing).unwrap().1.0);
    let event = event::simulate(&checked, Default::default()).unwrap().report;
    assert_eq!((line.cycles, line.words), (alone.cycles, alone.words));
    assert_eq!((line.cycles, line.words, line.word_hops), (event.cycles, event.words, event.word_hops));
}

/// PEs that no route leads to have no input either.
#[test]
fn a_program_without_a_word_comes_to_its_end() {
    let text =
        "wafer 2 x 1 class a at (0, 0) 2 x 1 { buffer v: f32[4] @0 task t start { mov v <- 1.0 len 4 } }";
    let (program, spec) = (crate::text::parse(text, "silent").unwrap(), FabricSpec::wse2());
    let flow = super::time(&check(&program, &spec).unwrap()).unwrap();
    assert!(flow.limits.is_empty(), "there are no queues to settle: {:?}", flow.limits);
    let net = crate::network::Network::build(&program, &spec).unwrap();
    let ending = super::standstill::ending(&program, &net, &crate::lower::lower(&program, &spec), &|_| 1.0);
    assert!(matches!(ending, super::standstill::Ending::Reached));
}

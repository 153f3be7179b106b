//! A `.wafer` text: read, printed and read back equal; checked; and what is sound and small is simulated, with the same
//! result in any order of work and without an access beyond a buffer that the checker could have seen.
#![no_main]

use lapidary_runtime_sim::event::{Options, SimError, simulate_with};
use lapidary_runtime_sim::program::{Affine, Stmt, Var, WaferProgram};
use lapidary_runtime_sim::{FabricSpec, check, flow, text};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;

/// Largest grid, in PEs.
const PES: u64 = 64;
/// Most elements of all tensors, and most work of all PEs, by an upper bound.
const WORK: i64 = 100_000;

fuzz_target!(|input: &[u8]| {
    let Ok(source) = std::str::from_utf8(input) else { return };
    let program = match text::parse(source, "fuzz.wafer") {
        Ok(program) => program,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert_eq!(text::parse(&text::print(&program), "again.wafer").as_ref(), Ok(&program));
    if u64::from(program.width) * u64::from(program.height) > PES || work(&program) > WORK {
        return;
    }
    let checked = match check(&program, &FabricSpec::wse2()) {
        Ok(checked) => checked,
        Err(faults) => return assert!(faults.iter().all(|fault| !fault.to_string().is_empty())),
    };
    let options = |shuffle| Options { threads: 1, compiled: false, shuffle, ..Options::default() };
    let run = simulate_with(&checked, BTreeMap::new(), &options(0));
    match &run {
        Ok(run) => {
            let report = &run.report;
            assert_eq!(report.terms.values().sum::<u64>(), report.cycles);
            assert!(report.hottest_link.as_ref().is_none_or(|link| link.words <= report.cycles));
            let threads = Options { threads: 3, ..options(7) };
            let again = simulate_with(&checked, BTreeMap::new(), &threads);
            // As text, since what is no number differs from itself.
            assert_eq!(format!("{:?}", again.as_ref()), format!("{:?}", Ok::<_, &SimError>(run)));
        }
        Err(SimError::Deadlock { chain, .. }) => assert!(!chain.is_empty()),
        Err(other) => assert!(!other.to_string().is_empty()),
    }
    let _ = flow::time(&checked).map_err(|error| error.to_string());
});

/// An upper bound of the elements that are loaded, moved and computed.
fn work(program: &WaferProgram) -> i64 {
    let (width, height) = (i64::from(program.width), i64::from(program.height));
    let tensors = program.tensors.values().map(|t| t.elements.min(1 << 40) as i64).fold(0, i64::saturating_add);
    let place = |var: Var, loops: &[i64]| match var {
        Var::X | Var::XOver(_) => width,
        Var::Y | Var::YOver(_) => height,
        Var::Loop(depth) => loops.get(usize::from(depth)).copied().unwrap_or(0),
        Var::Turn | Var::Dim(_) => WORK,
    };
    let most = |a: &Affine, loops: &[i64]| {
        let term = |(var, c): (&Var, &i64)| c.saturating_abs().saturating_mul(place(*var, loops));
        a.terms.iter().map(term).fold(a.base.saturating_abs(), i64::saturating_add)
    };
    let mut sum = tensors;
    for host in &program.host {
        let words = host.dims.iter().map(|d| most(d, &[])).fold(i64::from(host.lanes), i64::saturating_mul);
        sum = sum.saturating_add(words);
    }
    for class in &program.classes {
        for task in &class.tasks {
            let runs = most(&task.times, &[]).max(1);
            let once = body(&task.body, &mut Vec::new(), &most);
            sum = sum.saturating_add(runs.saturating_mul(once).saturating_mul(class.count().min(PES) as i64));
        }
    }
    sum
}

fn body(stmts: &[Stmt], loops: &mut Vec<i64>, most: &dyn Fn(&Affine, &[i64]) -> i64) -> i64 {
    let mut sum = 1i64;
    for stmt in stmts {
        let work = match stmt {
            Stmt::Op(op) => op.dims.iter().map(|d| most(d, loops)).fold(1, i64::saturating_mul),
            Stmt::Par(ops) => {
                let of = |op: &lapidary_runtime_sim::program::VectorOp| {
                    op.dims.iter().map(|d| most(d, loops)).fold(1, i64::saturating_mul)
                };
                ops.iter().map(of).fold(0, i64::saturating_add)
            }
            Stmt::Loop { count, body: inner } => {
                let count = most(count, loops);
                loops.push(count);
                let once = body(inner, loops, most);
                loops.pop();
                count.saturating_mul(once)
            }
            Stmt::Piece(piece) => body(&piece.body, loops, most),
            _ => 1,
        };
        sum = sum.saturating_add(work);
    }
    sum
}

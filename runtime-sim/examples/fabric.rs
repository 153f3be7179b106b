//! One program at level event, for measurements from outside (`benches/fabric-peers/compare.sh`):
//!
//! ```text
//! fabric neighbour K ROUNDS THREADS           every PE of a K x K mesh sends ROUNDS x 100 words to (x + 1, y + 1) mod K
//! fabric all-reduce WIDTH HEIGHT WORDS THREADS   a vector per PE is summed over the grid and broadcast
//! fabric idle WIDTH HEIGHT THREADS            two PEs send words through a row of others; all further rows do nothing
//! ```
//! Prints the PEs, cycles and word-hops, and what it needed the clock for.

#[allow(dead_code, reason = "each target uses some of the programs")]
#[path = "../tests/programs/mod.rs"]
mod programs;

use lapidary_runtime_sim::event::{Options, simulate_with};
use lapidary_runtime_sim::text::parse;
use lapidary_runtime_sim::{FabricSpec, check};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

/// Words of one vector op.
const WORDS: u32 = 100;

/// The routers from one PE to another, first along the row: place, port of entry and port of exit.
fn way(from: (u32, u32), to: (u32, u32)) -> Vec<((u32, u32), &'static str, &'static str)> {
    let (mut at, mut entered, mut way) = (from, "ramp", Vec::new());
    while at != to {
        let here = at;
        let (left, next) = match (at.0.cmp(&to.0), at.1.cmp(&to.1)) {
            (std::cmp::Ordering::Less, _) => ("east", "west"),
            (std::cmp::Ordering::Greater, _) => ("west", "east"),
            (_, std::cmp::Ordering::Less) => ("south", "north"),
            _ => ("north", "south"),
        };
        match left {
            "east" => at.0 += 1,
            "west" => at.0 -= 1,
            "south" => at.1 += 1,
            _ => at.1 -= 1,
        }
        way.push((here, entered, left));
        entered = next;
    }
    way.push((at, entered, "ramp"));
    way
}

/// A colour such that no two messages on it share a router: by parity, and others for those that wrap round.
fn colour((x, y): (u32, u32), last: u32) -> u32 {
    match (x == last, y == last) {
        (false, false) => x % 2 + 2 * (y % 2),
        (true, false) => 4 + y % 2,
        (false, true) => 6 + x % 2,
        (true, true) => 8,
    }
}

/// The program of BookSim's traffic pattern `neighbor`.
fn neighbour(k: u32, rounds: u32) -> String {
    let mut routes: BTreeMap<(u32, u32), Vec<String>> = BTreeMap::new();
    let mut code: BTreeMap<(u32, u32), [u32; 2]> = BTreeMap::new();
    for from in (0..k).flat_map(|y| (0..k).map(move |x| (x, y))) {
        let (to, colour) = (((from.0 + 1) % k, (from.1 + 1) % k), colour(from, k - 1));
        for (at, entered, left) in way(from, to) {
            routes.entry(at).or_default().push(format!("route {colour}: {entered} -> {left}"));
        }
        code.entry(from).or_default()[0] = colour;
        code.entry(to).or_default()[1] = colour;
    }
    let mut classes: BTreeMap<String, Vec<(u32, u32)>> = BTreeMap::new();
    for (at, mut routes) in routes {
        routes.sort();
        let [out, into] = code[&at];
        let body = format!(
            "buffer v: f32[{WORDS}] @0 buffer w: f32[{WORDS}] @{} {}
  task t start {{ loop {rounds} {{ par {{ mov out({out}) <- v len {WORDS} mov w <- in({into}) len {WORDS} }} }} }}",
            4 * WORDS,
            routes.join(" ")
        );
        classes.entry(body).or_default().push(at);
    }
    let mut text = format!("wafer {k} x {k}\n");
    for (number, (body, pes)) in classes.iter().enumerate() {
        let pes: Vec<String> = pes.iter().map(|(x, y)| format!("({x}, {y})")).collect();
        let _ = writeln!(text, "class c{number} at {} {{ {body} }}", pes.join(", "));
    }
    text
}

/// Most PEs have nothing to do, and one number each.
fn idle(width: u32, height: u32) -> String {
    let (between, last, rest) = (width - 2, width - 1, height - 1);
    format!(
        "wafer {width} x {height}
class pass at (1, 0) {between} x 1 {{ route 0: west -> east }}
class rest at (0, 1) {width} x {rest} {{ buffer v: f32[1] @0 }}
class a at (0, 0) {{ buffer v: f32[500] @0 route 0: ramp -> east task t start {{ mov out(0) <- v len 500 }} }}
class b at ({last}, 0) {{ buffer v: f32[500] @0 route 0: west -> ramp task t start {{ mov v <- in(0) len 500 }} }}
"
    )
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let kind = words.first().map_or("", String::as_str);
    let numbers: Vec<u32> = words.iter().skip(1).filter_map(|word| word.parse().ok()).collect();
    let (text, threads) = match (kind, &numbers[..]) {
        ("neighbour", &[k, rounds, threads]) => (neighbour(k, rounds), threads),
        ("all-reduce", &[width, height, words, threads]) => {
            (programs::all_reduce(width, height, words), threads)
        }
        ("idle", &[width, height, threads]) if width > 2 && height > 1 => (idle(width, height), threads),
        _ => {
            eprintln!(
                "fabric neighbour K ROUNDS THREADS | all-reduce WIDTH HEIGHT WORDS THREADS | idle WIDTH HEIGHT THREADS"
            );
            std::process::exit(2);
        }
    };
    let program = parse(&text, kind).unwrap_or_else(|e| panic!("{e}"));
    let begin = Instant::now();
    let checked = check(&program, &FabricSpec::wse2()).unwrap_or_else(|e| panic!("{}", e[0]));
    let proved = begin.elapsed();
    let options = Options { threads: threads as usize, ..Options::default() };
    let run = simulate_with(&checked, BTreeMap::new(), &options).unwrap_or_else(|e| panic!("{e}"));
    let (report, all) = (&run.report, begin.elapsed());
    println!(
        "{} PEs, {} cycles, {} word-hops, checked in {:.3} s, simulated in {:.3} s",
        report.pes,
        report.cycles,
        report.word_hops,
        proved.as_secs_f64(),
        (all - proved).as_secs_f64()
    );
}

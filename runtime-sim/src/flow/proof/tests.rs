//! What is proven of the end of a program is what looking at all PEs says, and what level event does.

use crate::flow::FlowError;
use crate::flow::standstill::{Ending, ending};
use crate::flow::timing::Job;
use crate::network::Network;
use crate::text::parse;
use crate::{FabricSpec, check, event};
use std::fmt::Write;

/// Numbers that look random.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % most
    }

    fn says(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

/// A message between neighbours of a row, or from the host to all.
#[derive(Clone, Copy)]
struct Message {
    /// The western one of the two.
    west: u64,
    /// From west to east, from east to west, or from the host.
    way: u64,
    words: u64,
}

impl Message {
    /// What a PE does with it, if anything.
    fn at(&self, x: u64, short: u64) -> Option<String> {
        let Message { west, way, words } = *self;
        let (sends, colour) = match way {
            0 => (x == west, west % 2),
            1 => (x == west + 1, 2 + west % 2),
            _ => return Some(format!("mov v <- in(4) len {words}")),
        };
        let words = words - short;
        let text = if sends {
            format!("mov out({colour}) <- v len {words}")
        } else {
            format!("mov v <- in({colour}) len {words}")
        };
        (x == west || x == west + 1).then_some(text)
    }
}

/// PEs that send messages to their neighbours in rows, with words of the host for all rows; some do not keep to the order,
/// and the rows of the south may send shorter messages, or have an order of their own.
fn program(dice: &mut Dice) -> String {
    let (width, height, times) = (2 + dice.below(4), 1 + dice.below(4), 1 + dice.below(3) * 2);
    let message = |dice: &mut Dice| Message {
        west: dice.below(width - 1),
        way: dice.below(5) % 3,
        words: [2, 9, 20, 30, 40][dice.below(5) as usize],
    };
    let messages: Vec<Message> = (0..1 + dice.below(6)).map(|_| message(dice)).collect();
    let of_host: u64 = messages.iter().filter(|m| m.way == 2).map(|m| m.words).sum();
    let (south, short, own) = (dice.below(height), u64::from(dice.says(2)), dice.says(4));
    let mut code: Vec<Vec<String>> = Vec::new();
    let mut text = format!("wafer {width} x {height} tensor w[{}]\n", (of_host * times).max(1));
    if of_host > 0 {
        let words = of_host * times;
        writeln!(text, "host w in north lanes 0 .. {width} colour 4 tensor w dims {words} at d0").unwrap();
    }
    for x in 0..width {
        for y in 0..height {
            let in_south = y >= south && south > 0;
            let short = if in_south { short } else { 0 };
            let mut ops: Vec<String> = messages.iter().filter_map(|m| m.at(x, short)).collect();
            match y {
                _ if y == 0 || (own && y == south) => {
                    for n in 1..ops.len() {
                        if dice.says(3) {
                            ops.swap(n - 1, n);
                        }
                    }
                    for n in (1..ops.len()).rev() {
                        if dice.says(4)
                            && !ops[n].contains("par")
                            && ops[n].split(" len").next() != ops[n - 1].split(" len").next()
                        {
                            let second = ops.remove(n);
                            ops[n - 1] = format!("par {{ {} {second} }}", ops[n - 1]);
                        }
                    }
                    code.push(ops.clone());
                }
                // The same order as the row above, with words of its own number.
                _ => {
                    let above = &code[code.len() - 1];
                    let fewer = |op: &String| match short == 1 && y == south && !op.contains("in(4)") {
                        true => shorter(op),
                        false => op.clone(),
                    };
                    code.push(above.iter().map(fewer).collect());
                }
            }
            let ops = &code[code.len() - 1];
            write!(text, "class c{x}_{y} at ({x}, {y}) {{ buffer v: f32[64] @0").unwrap();
            let uses =
                |way: u64, west: Option<u64>| messages.iter().any(|m| m.way == way && Some(m.west) == west);
            let mut route = |colour: u64, way: &str| write!(text, " route {colour}: {way}").unwrap();
            if uses(0, Some(x)) {
                route(x % 2, "ramp -> east");
            }
            if uses(1, Some(x)) {
                route(2 + x % 2, "east -> ramp");
            }
            if uses(0, x.checked_sub(1)) {
                route((x - 1) % 2, "west -> ramp");
            }
            if uses(1, x.checked_sub(1)) {
                route(2 + (x - 1) % 2, "ramp -> west");
            }
            if of_host > 0 {
                route(4, if y + 1 < height { "north -> ramp, south" } else { "north -> ramp" });
            }
            writeln!(text, "\n  task t start {{ loop {times} {{ {} }} }} }}", ops.join(" ")).unwrap();
        }
    }
    text
}

/// An op with one word less.
fn shorter(op: &str) -> String {
    let mut parts = op.split(" len ");
    let mut text: String = parts.next().unwrap().into();
    for part in parts {
        let (number, rest) = part.split_once(' ').unwrap_or((part, ""));
        let words: u64 = number.parse().unwrap();
        text += &format!(" len {} {rest}", words - 1);
    }
    text.trim_end().into()
}

#[test]
fn what_is_proven_to_end_does() {
    let (mut dice, spec) = (Dice(7), FabricSpec::wse2());
    let (mut proven, mut ended, mut stuck) = (0, 0, 0);
    for _ in 0..800 {
        let text = program(&mut dice);
        let Ok(checked) = check(&parse(&text, "messages").unwrap(), &spec) else { continue };
        let net = Network::build(checked.get(), &spec).unwrap();
        let job = Job::new(&checked).unwrap();
        let surely = job.unproven() == Some(Vec::new());
        let ends = ending(checked.get(), &net, checked.classes(), &|_| 1.0);
        let event = event::simulate(&checked, Default::default());
        assert_eq!(event.is_ok(), ends == Ending::Reached, "{text}");
        assert!(event.is_ok() || !surely, "{text}");
        proven += u32::from(surely);
        ended += u32::from(event.is_ok());
        stuck += u32::from(event.is_err());
    }
    assert!(stuck > 15 && 10 * proven > 9 * ended, "{proven} of {ended}; {stuck} do not end");
}

/// Pairs of PEs in 200 rows of 128 that send each other messages, the eastern one first what it is told to do first; the pairs of
/// one row do `odd`.
fn pairs(even: &str, odd: &str) -> String {
    let class = |name: &str, x: u32, rows: &str, routes: &str, code: &str| {
        let at = rows.replace("X", &x.to_string());
        format!(
            "class {name} at {at} {{ buffer v: f32[64] @0 {routes}\n  task t start {{ loop 3 {{ {code} }} }} }}\n"
        )
    };
    let (most, one) =
        ("(X, 0) 64 x 137 step 2 x 1, (X, 138) 64 x 62 step 2 x 1", "(X, 137) 64 x 1 step 2 x 1");
    let (west, east) =
        ("route 0: ramp -> east route 1: east -> ramp", "route 0: west -> ramp route 1: ramp -> west");
    let ask = "mov out(0) <- v len 40 mov v <- in(1) len 40";
    let answer = |first: &str| match first {
        "reads" => "mov v <- in(0) len 40 mov out(1) <- v len 40",
        _ => "mov out(1) <- v len 40 mov v <- in(0) len 40",
    };
    let classes = [
        class("west", 0, most, west, ask),
        class("west_odd", 0, one, west, ask),
        class("east", 1, most, east, answer(even)),
        class("east_odd", 1, one, east, answer(odd)),
    ];
    format!("wafer 128 x 200\n{}", classes.concat())
}

#[test]
fn a_large_grid_without_room_is_refused_with_who_waits_for_whom() {
    for (even, odd, stuck) in [("sends", "sends", 25_600), ("reads", "sends", 128), ("reads", "reads", 0)] {
        let checked = check(&parse(&pairs(even, odd), "pairs").unwrap(), &FabricSpec::wse2()).unwrap();
        assert_eq!(event::simulate(&checked, Default::default()).is_err(), stuck > 0);
        let timed = crate::flow::time(&checked);
        let unproven = Job::new(&checked).unwrap().unproven();
        let Err(FlowError::Standstill { stuck: counted, chain }) = timed else {
            let limits = timed.unwrap().limits;
            assert!(stuck == 0 && unproven == Some(Vec::new()), "{even} {odd}: {limits:?}");
            assert!(!limits.iter().any(|limit| limit.contains("room")), "{limits:?}");
            continue;
        };
        assert_eq!((counted, unproven), (stuck, Some(vec![None])));
        let row = if stuck == 128 { 137 } else { 0 };
        let class = if stuck == 128 { "west_odd" } else { "west" };
        let waits = format!(
            "PE (0, {row}) of class `{class}` waits for room for word 12 on colour 0, to be taken by PE (1, {row})"
        );
        assert!(chain[0].starts_with(&waits), "{chain:?}");
    }
}

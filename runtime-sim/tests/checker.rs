//! Programs that could fault the machine are refused, with the place, the cause and a hint.

use lapidary_runtime_sim::check::Fault;
use lapidary_runtime_sim::program::Coord;
use lapidary_runtime_sim::text::parse;
use lapidary_runtime_sim::{CheckError, FabricSpec, check, collectives};

fn faults(text: &str) -> Vec<CheckError> {
    let program = parse(text, "test.wafer").unwrap_or_else(|e| panic!("{e}"));
    check(&program, &FabricSpec::wse2()).err().unwrap_or_default()
}

/// Two PEs; `a` sends to `b`.
fn pair(a: &str, b: &str) -> String {
    format!(
        "wafer 2 x 1\ntensor t[8]\nphase p phase q\nclass a at (0, 0) {{ {a} }}\nclass b at (1, 0) {{ {b} }}\n"
    )
}

const SENDER: &str = "buffer v: f32[8] @0 route 0: ramp -> east task main start { mov out(0) <- v len 8 }";
const READER: &str = "buffer v: f32[8] @0 route 0: west -> ramp task main start { mov v <- in(0) len 8 }";

#[test]
fn correct_programs_pass() {
    assert_eq!(faults(&pair(SENDER, READER)), []);
    let spec = FabricSpec::wse2();
    for program in [
        collectives::chain_reduce(8, 4),
        collectives::star_reduce(8, 4),
        collectives::tree_reduce(8, 4),
        collectives::two_phase_reduce(&[3, 3, 3], 4),
        collectives::all_reduce_2d(5, 7, 3),
    ] {
        assert_eq!(check(&program, &spec).err(), None);
    }
}

#[test]
fn faults_name_the_pe_the_cause_and_a_hint() {
    let memory = SENDER.replace("v: f32[8] @0", "v: f32[8] @0 buffer big: f16[24576] @32");
    let overlap = SENDER.replace("v: f32[8] @0", "v: f32[8] @0 buffer w: f16[4] @24");
    let apart = SENDER.replace("v: f32[8] @0", "v: f32[8] @0 alive p..p buffer w: f16[4] @24 alive q..q");
    let dead = SENDER.replace("v: f32[8] @0", "v: f32[8] @0 alive q..q");
    let longer = SENDER.replace("len 8", "len 9");
    let fewer = READER.replace("len 8", "len 7");
    let unread = "buffer v: f32[8] @0 route 0: west -> ramp";
    let both = "buffer v: f32[8] @0 route 0: ramp -> west task main start { mov out(0) <- v len 8 }";
    let waits = "route 0: west -> ramp task t data(0) times 9 { }";
    let cases = [
        (pair(&memory, READER), "PE (0, 0), class `a`: buffer `big` ends at byte 49184, a PE has 49152"),
        (
            pair(&overlap, READER),
            "PE (0, 0), class `a`: buffers `v` and `w` overlap in bytes 24..32 while both are alive",
        ),
        (pair(&dead, READER), "PE (0, 0), class `a`: buffer `v` is used in phase `p`, where it is not alive"),
        (pair(&longer, READER), "PE (0, 0), class `a`: `mov` reaches element 8 of buffer `v`, which has 8"),
        (
            pair(SENDER, &fewer),
            "PE (1, 0), class `b`, colour 0: PE (0, 0) sends 8 words, but PE (1, 0) reads 7",
        ),
        (
            pair(SENDER, unread),
            "PE (1, 0), class `b`, colour 0: PE (0, 0) sends 8 words, but PE (1, 0) reads 0",
        ),
        (
            pair(SENDER, ""),
            "PE (1, 0), class `b`, colour 0: words sent by PE (0, 0) arrive from the west and nothing takes them",
        ),
        (
            pair(SENDER, "route 0: west -> east"),
            "PE (1, 0), class `b`, colour 0: words sent by PE (0, 0) leave the grid to the east, where no host stream takes them",
        ),
        (
            pair(SENDER, both),
            "PE (1, 0), class `b`, colour 0: words sent by PE (0, 0) arrive from the west, but the router takes the colour from the ramp",
        ),
        (
            pair(SENDER, waits),
            "PE (1, 0), class `b`, colour 0: PE (0, 0) sends 8 words, but PE (1, 0) reads 9",
        ),
        (
            pair(SENDER, &READER.replace("in(0)", "in(1)")),
            "PE (1, 0), class `b`, colour 1: `mov` in task `main` reads the colour, but no route of the class connects it to the ramp",
        ),
        (
            pair(&SENDER.replace("<- v", "<- w"), READER),
            "PE (0, 0), class `a`: `mov` in task `main` uses the buffer `w`, which is not declared",
        ),
        (
            pair(&SENDER.replace("len 8", "len i0"), READER),
            "PE (0, 0), class `a`: a length of `mov` in task `main` uses `i0`, which has no meaning there",
        ),
        (
            pair("route 0: ramp -> east | west -> west", READER),
            "PE (0, 0), class `a`, colour 0: switch position 1: it sends back to where words come from",
        ),
        (
            pair(&format!("{SENDER} task more local times 2 {{ }}"), READER),
            "PE (0, 0), class `a`: task `more` should run 2 times, but is triggered 0 times",
        ),
        ("wafer 800 x 900".into(), "the grid is 800 x 900 PEs, the wafer has 750 x 994"),
        (
            "wafer 2 x 1 class a at (0, 0) 3 x 1 { }".into(),
            "PE (2, 0), class `a`: the class covers a PE outside the grid of 2 x 1",
        ),
        (
            pair(&SENDER.replace("ramp -> east", "west -> east"), READER),
            "PE (0, 0), class `a`, colour 0: `mov` in task `main` sends on the colour, but no route",
        ),
        (
            "wafer 2 x 1 class a at (0, 0) 2 x 1 { } class b at (1, 0) { }".into(),
            "PE (1, 0): the PE is in class `a` and in class `b`",
        ),
    ];
    for (text, message) in cases {
        let found: Vec<String> = faults(&text).iter().map(CheckError::to_string).collect();
        assert!(found.iter().any(|f| f.starts_with(message)), "expected {message}\nfound {found:#?}");
        assert!(found.iter().all(|f| f.ends_with(')')), "a hint in each of {found:?}");
    }
    assert_eq!(faults(&pair(&apart, READER)), []);
}

#[test]
fn more_colours_than_the_fabric_has_are_refused() {
    let routes: String = (0..25).map(|c| format!(" route {c}: west -> east")).collect();
    let found = faults(&format!("wafer 1 x 1 class a at (0, 0) {{ {routes} }}"));
    assert!(matches!(found[0].fault, Fault::Colours { used: 25, limit: 24 }), "{found:?}");
    let told = found[0].to_string();
    assert!(told.starts_with("PE (0, 0), class `a`, colour 24: the program uses 25 colours"), "{told}");
}

#[test]
fn a_route_in_a_circle_is_refused() {
    let text = "wafer 2 x 2
class a at (0, 0) { route 0: south -> east }
class b at (1, 0) { route 0: west -> south }
class c at (1, 1) { route 0: north -> west }
class d at (0, 1) { buffer v: f32[1] @0 route 0: ramp -> north task t start { mov out(0) <- v len 1 } }";
    let found = faults(text);
    assert!(matches!(found[0].fault, Fault::TwoSenders { .. } | Fault::Circle { .. }), "{found:?}");
}

/// Rows that look the same may still differ in where the words that the host sends from the side go on to.
#[test]
fn words_from_the_side_are_followed_in_every_row() {
    let host = |lanes: &str| {
        format!("tensor w[16] host w in west lanes {lanes} colour 0 tensor w dims 4 at d0 + 4*y ")
    };
    let reads = "{ buffer v: f32[4] @0 route 0: west -> ramp task t start { mov v <- in(0) len 4 } }";
    assert_eq!(faults(&format!("wafer 1 x 3 {} class a at (0, 0) 1 x 3 {reads}", host("0 .. 3"))), []);
    let passes = format!(
        "class a at (0, 0) 1 x 2 step 1 x 2 {{ route 0: west -> south }} class b at (0, 1) {}",
        reads.replace("west", "north")
    );
    let found = faults(&format!("wafer 1 x 4 {} {passes}", host("0 .. 2 step 2")));
    assert!(matches!(found[..], [CheckError { fault: Fault::DeadEnd { .. }, .. }]), "{found:?}");
    assert_eq!(found[0].at, Some(Coord { x: 0, y: 3 }));
}

/// Faults next to programs that are right, so that each case turns on one figure.
#[test]
fn counts_and_bounds_are_exact() {
    let sends = |code: &str| {
        format!(
            "buffer v: f32[8] @0 buffer h: f16[8] @6144 route 0: ramp -> east task main start {{ {code} }}"
        )
    };
    let reads = |code: &str| {
        format!(
            "buffer v: f32[8] @0 buffer h: f16[8] @6144 route 0: west -> ramp task main start {{ {code} }}"
        )
    };
    let plain = || reads("mov v <- in(0) len 8");
    let pairs = [
        // Packed wires carry two elements a word, scalars take one word per op.
        (sends("mov out(0: f16x2) <- h len 8"), reads("mov h <- in(0: f16x2) len 8"), true),
        (sends("mov out(0: f16x2) <- h len 8"), reads("mov h <- in(0: f16) len 8"), false),
        (sends("mov out(0) <- v len 8"), reads("loop 8 { mul v <- v, scalar(0) len 8 }"), true),
        (sends("mov out(0) <- v len 8"), reads("loop 7 { mul v <- v, scalar(0) len 8 }"), false),
        (sends("mov out(0) <- v len 8"), reads("par { mov v[0] <- in(0) len 8 }"), true),
        (sends("loop 2 { mov out(0) <- v len 4 * 1 }").replace("4 * 1", "4"), plain(), true),
        (sends("loop 3 { mov out(0) <- v len 4 }"), plain(), false),
        (sends("loop 4 { mov out(0) <- v[i0] len i0 }"), reads("mov v <- in(0) len 6"), true),
        (sends("loop 4 { mov out(0) <- v[i0] len i0 }"), reads("mov v <- in(0) len 5"), false),
        // Strides, forwards and backwards, reach the last element and no further.
        (sends("mov out(0) <- v[0; 2] len 4 mov out(0) <- v[1; 2] len 4"), plain(), true),
        (sends("mov out(0) <- v[0; 2] len 4 mov out(0) <- v[2; 2] len 4"), plain(), false),
        (sends("mov out(0) <- v[7; -1] len 8"), plain(), true),
        (sends("mov out(0) <- v[6; -1] len 8"), plain(), false),
        (sends("mov out(0) <- v[0; 4, 1] len 2, 4"), plain(), true),
        (sends("mov out(0) <- v[1; 4, 1] len 2, 4"), plain(), false),
        (sends("mov out(0) <- v[0; 0] len 8"), plain(), true),
        // Tasks on words run as often as words come.
        (sends("mov out(0) <- v len 8"), "route 0: west -> ramp task t data(0) times 8 { }".into(), true),
        (sends("mov out(0) <- v len 8"), "route 0: west -> ramp task t data(0) times 7 { }".into(), false),
        (
            sends("mov out(0) <- v len 8"),
            "route 0: west -> ramp task t data(0) times 8 { activate more } task more local times 8 { }"
                .into(),
            true,
        ),
        (
            sends("mov out(0) <- v len 8"),
            "route 0: west -> ramp task t data(0) times 8 { activate more } task more local times 7 { }"
                .into(),
            false,
        ),
    ];
    for (a, b, right) in pairs {
        let found = faults(&pair(&a, &b));
        assert_eq!(found.is_empty(), right, "{a}\n{b}\n{found:#?}");
    }
}

/// Memory ends where the PE's memory ends, and neighbours may touch but not overlap.
#[test]
fn memory_is_exact_to_the_byte() {
    let with = |more: &str| pair(&SENDER.replace("@0 ", &format!("@0 {more} ")), READER);
    assert_eq!(faults(&with("buffer w: f16[24560] @32")), []);
    assert_ne!(faults(&with("buffer w: f16[24561] @32")), []);
    assert_eq!(faults(&with("buffer w: f16[4] @32")), []);
    assert_ne!(faults(&with("buffer w: f16[4] @30")), []);
    assert_ne!(faults(&with("buffer w: f32[4] @34")), [], "not aligned");
}

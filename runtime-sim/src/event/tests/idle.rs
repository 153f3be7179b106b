//! PEs that have nothing to do cost little room beside their memory, and no time.

use super::super::engine::{Options, Setup};
use super::super::plan::Plan;
use super::super::strip::Strip;
use crate::FabricSpec;
use crate::lower::lower;
use crate::network::Network;

/// Most bytes that an idle PE may cost beside its memory.
const MOST: usize = 1024;

/// Two PEs that send each other words through a row of idle ones, and as many rows of idle ones as make `height`.
fn grid(width: u32, height: u32) -> String {
    let last = width - 1;
    format!(
        "wafer {width} x {height}
class idle at (1, 0) {} x 1, (0, 1) {width} x {} {{ buffer v: f32[500] @0 route 0: west -> east }}
class a at (0, 0) {{ buffer v: f32[500] @0 route 0: ramp -> east task t start {{ mov out(0) <- v len 500 }} }}
class b at ({last}, 0) {{ buffer v: f32[500] @0 route 0: west -> ramp task t start {{ mov v <- in(0) len 500 }} }}",
        width - 2,
        height - 1,
    )
}

/// Bytes held beside the memories, and how often anything was set to work.
fn cost(width: u32, height: u32) -> (usize, usize) {
    let program = crate::text::parse(&grid(width, height), "idle").unwrap_or_else(|e| panic!("{e}"));
    let (spec, options) = (FabricSpec::wse2(), Options { threads: 1, ..Options::default() });
    let net = Network::build(&program, &spec).unwrap_or_else(|e| panic!("{e:?}")).thinned();
    let (classes, plan) = (lower(&program, &spec), Plan::of(&net, 1));
    let setup = Setup {
        program: &program,
        spec: &spec,
        net: &net,
        classes: &classes,
        plan: &plan,
        tensors: &[],
        options: &options,
        compiled: None,
    };
    let mut strip = Strip::new(&setup, 0);
    let mut turns = 0;
    while let Some(actor) = strip.links.work.next() {
        strip.act(actor);
        turns += 1;
    }
    assert!(strip.members().all(|(.., pe)| pe.finished));
    (strip.held_bytes() + net.held_bytes(), turns)
}

#[test]
fn an_idle_pe_costs_less_than_a_kibibyte_and_no_time() {
    let ((few, turns), (many, same)) = (cost(64, 2), cost(64, 202));
    let each = (many - few) / (64 * 200);
    println!("{each} bytes for each idle PE beside its memory, {turns} turns");
    assert!(each < MOST, "{each} bytes");
    assert!(each > std::mem::size_of::<super::super::pe::Pe>(), "something was left out of the count");
    assert_eq!(turns, same, "idle PEs were set to work");
}

//! Where the time of level flow goes, for measurements from outside: every program given is read, checked, asked for
//! the room in its queues, and timed.
//!
//! ```text
//! flow layer.wafer layer_backward.wafer ...
//! ```
//! Prints for each the PEs, its cycles, the seconds that reading, checking, the proof of room (on one thread) and timing (with that
//! proof beside it) took, and what the report leaves out.

use lapidary_runtime_sim::text::parse;
use lapidary_runtime_sim::{FabricSpec, check_shared, flow};
use std::sync::Arc;
use std::time::Instant;

fn main() -> Result<(), String> {
    let files: Vec<String> = std::env::args().skip(1).collect();
    if files.is_empty() {
        return Err("usage: flow FILE.wafer ...".into());
    }
    for file in files {
        let begun = Instant::now();
        let text = std::fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?;
        let program = Arc::new(parse(&text, &file).map_err(|error| error.to_string())?);
        let read = begun.elapsed();
        let checked = check_shared(&program, &FabricSpec::wse2()).map_err(|errors| {
            let told: Vec<String> = errors.iter().map(|error| format!("{file}: {error}")).collect();
            told.join("\n")
        })?;
        let proven = begun.elapsed();
        flow::room(&checked).map_err(|error| format!("{file}: {error}"))?;
        let roomy = begun.elapsed();
        let report = flow::time(&checked).map_err(|error| format!("{file}: {error}"))?;
        let timed = begun.elapsed();
        println!(
            "{file}: {} PEs, {} cycles; read {:.2} s, checked {:.2} s, room {:.2} s, timed {:.2} s",
            report.pes,
            report.cycles,
            read.as_secs_f64(),
            (proven - read).as_secs_f64(),
            (roomy - proven).as_secs_f64(),
            (timed - roomy).as_secs_f64(),
        );
        report.limits.iter().for_each(|limit| println!("  {limit}"));
    }
    Ok(())
}

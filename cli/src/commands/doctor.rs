//! `lapidary doctor`: which parts of the toolchain are here, and how to get the rest.

use crate::failure::Failure;
use crate::show;
use crate::toolchain::{self, Found};

/// Runs the verb. Missing parts are told, not failed: everything but what they are for works without them.
pub fn run() -> Result<(), Failure> {
    let rows = toolchain::parts().into_iter().map(|part| {
        let (state, detail) = match part.found {
            Found::Yes(detail) => ("ok", detail),
            Found::No(help) => ("missing", help),
        };
        vec![part.name.to_string(), state.to_string(), part.purpose.to_string(), detail]
    });
    println!("{}", show::table(&["part", "state", "for", "detail"], &[], rows));
    Ok(())
}

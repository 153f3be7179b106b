//! Tests of the models crate through its public door.

mod builtins;
mod graphs;
mod imports;
mod laws;
mod loading;
mod training;

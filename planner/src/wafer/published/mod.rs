//! Holds predictions for wafers against published measurements: a table in, predictions and their errors out.

mod document;
pub mod inference;
pub mod sdk;
mod table;
pub mod training;

pub use document::{Document, Limits, Outcome, Prediction, Skipped};
pub use table::{Table, TableRow};

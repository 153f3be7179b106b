//! Holds predictions for wafers against published measurements: a table in, predictions and their errors out.

mod document;
pub mod inference;
mod table;
pub mod training;

pub use document::{Document, Errors, Limits, Outcome, Prediction, Skipped};
pub use table::{Table, TableRow};

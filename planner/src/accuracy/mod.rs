//! Holds the step-time model against published measurements: a table in, predictions and their errors out.

pub mod campaign;
pub mod case;
pub mod csv;
pub mod document;
pub mod family;
pub mod fault;
pub mod fit;
pub mod like;
pub mod row;
pub mod score;
pub mod source;

pub use campaign::Campaigns;
pub use case::{Case, Skip};
pub use document::{Check, Document, LeftOut};
pub use fault::{Fault, TableError};
pub use fit::{Constants, Samples};
pub use like::{Bar, error_bar};
pub use row::{Metric, Row, read};
pub use score::{Prediction, Report, score};

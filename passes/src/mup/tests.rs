//! The algebra on plain functions.

//! Emission of wafer programs from placed operations.

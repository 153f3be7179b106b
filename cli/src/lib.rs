//! The outer door: files, environment, clock, colours and progress bars.

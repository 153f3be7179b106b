//! Emits machine code for a row function.

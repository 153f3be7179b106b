//! GPU programs: their definition, checks, compilation to cubin, and execution.

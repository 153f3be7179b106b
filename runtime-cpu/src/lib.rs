//! CPU programs: their definition and execution on the host.

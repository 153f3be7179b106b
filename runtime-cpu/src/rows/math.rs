//! Functions of four lanes that Cranelift has no instruction for.

//! Wafer programs: their definition, checks and the cycle-approximate simulator.

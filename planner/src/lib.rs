//! How to spread a model over a machine: search space, memory, schedule, score, explanation.

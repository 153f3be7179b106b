//! What to compute: model specifications, their graphs, shapes and work.

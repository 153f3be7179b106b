//! Plans by machine, and the work they are priced from.

mod everything;
mod experts;
mod gpu;
mod launch;
mod nearest;
mod page;
mod physical;
mod support;
mod wafer;
mod work;

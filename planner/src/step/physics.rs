//! Constants that hold for every model and every software: data with sources, and their fitted ranges.

use serde::Deserialize;
use std::collections::BTreeMap;

/// One constant.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constant {
    /// Its value.
    pub value: f64,
    /// Unit of the value.
    pub unit: String,
    /// Where it comes from.
    pub source: String,
    /// Where a fit may look for it; absent for constants that are not fitted.
    #[serde(default)]
    pub range: Option<(f64, f64)>,
    /// What is measured of it outside training steps, which a fit leaves only for what it gains.
    #[serde(default)]
    pub prior: Option<Prior>,
}

/// What is known of a constant before any step is looked at.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prior {
    /// Its value.
    pub value: f64,
    /// Where it comes from.
    pub source: String,
}

macro_rules! constants {
    ($($(#[$doc:meta])* $name:ident = $key:literal;)*) => {
        /// The constants, by name.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Physics {
            $($(#[$doc])* pub $name: f64,)*
        }

        impl Physics {
            /// Names in the order of the fields.
            pub const NAMES: &'static [&'static str] = &[$($key),*];

            fn from_table(table: &BTreeMap<String, Constant>) -> Option<Physics> {
                Some(Physics { $($name: table.get($key)?.value,)* })
            }

            /// A constant to be changed, by name.
            pub fn get_mut(&mut self, name: &str) -> Option<&mut f64> {
                match name { $($key => Some(&mut self.$name),)* _ => None }
            }

            /// A constant by name.
            pub fn get(&self, name: &str) -> Option<f64> {
                match name { $($key => Some(self.$name),)* _ => None }
            }
        }
    };
}

constants! {
    /// Part of the peak that long products reach in training.
    product_peak = "product-peak";
    /// Part of their peak that the best products reach on the devices of the fitted runs.
    best_product = "best-product";
    /// Part of their memory's bandwidth that streaming kernels reach there.
    best_stream = "best-stream";
    /// Contraction length at which a product reaches half of that.
    product_ramp = "product-ramp";
    /// Part of wave quantisation that is felt; other kernels and the scheduler fill the rest.
    product_waves = "product-waves";
    /// Rate of a weight gradient over that of a forward product.
    product_weight_gradient = "product-weight-gradient";
    /// Rate of a product with a side that is no multiple of 8 elements.
    product_unaligned = "product-unaligned";
    /// Contraction length at which a batched product of attention reaches half of the rate.
    batched_ramp = "batched-ramp";
    /// Part of the memory's peak bandwidth that row kernels reach.
    stream = "stream";
    /// Rate of flash attention in training over its published rate.
    flash = "flash";
    /// The same of the Triton kernel, whose published rate is of another version.
    flash_triton = "flash-triton";
    /// Rate of a forward flash kernel over that of a backward one.
    flash_forward = "flash-forward";
    /// Seconds between two kernels on a busy device.
    gap = "kernel-gap";
    /// Seconds that a launch of an eager framework keeps the host busy.
    host_launch = "host-launch";
    /// Seconds by which ranks of a tensor-parallel group miss each other at a collective, for each rank.
    skew = "collective-skew";
    /// Part of a host's lead over its device that makes up for ranks that miss each other.
    lead = "queue-lead";
    /// Time of collectives of a node over the measured tables.
    inner_collective = "inner-collective";
    /// Part of the adapters' rate that collectives between nodes reach inside an application.
    outer_collective = "outer-collective";
    /// Slow-down of compute while a collective runs beside it, as a part of the collective's time.
    contention = "contention";
    /// Seconds of a message between stages beside its transfer.
    message = "stage-message";
    /// Seconds of a step that no other term explains.
    step = "step-constant";
    /// Seconds, for each doubling of the nodes, that a step waits for its slowest member.
    straggler = "straggler";
}

/// The constants as data.
pub const TEXT: &str = include_str!("../../physics.toml");

impl Physics {
    /// The constants that come with the program.
    pub fn builtin() -> Physics {
        Physics::from_table(&table()).unwrap_or_else(|| unreachable!("a test reads planner/physics.toml"))
    }
}

/// Every constant with its source and range.
pub fn table() -> BTreeMap<String, Constant> {
    toml::from_str(TEXT).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_constant_has_a_value_within_its_range_and_a_source() {
        let table: BTreeMap<String, Constant> = toml::from_str(TEXT).unwrap();
        assert_eq!(table.len(), Physics::NAMES.len());
        let physics = Physics::builtin();
        for name in Physics::NAMES {
            let constant = &table[*name];
            assert_eq!(physics.get(name), Some(constant.value));
            assert!(!constant.source.is_empty() && !constant.unit.is_empty(), "{name}");
            let (low, high) = constant.range.unwrap_or((constant.value, constant.value));
            assert!(low <= constant.value && constant.value <= high, "{name}");
        }
    }
}

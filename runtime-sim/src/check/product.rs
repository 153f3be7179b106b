//! Products of counts and lengths.

use crate::lower::MAX_DEPTH;

/// Positions in a list of lengths: those of the loops around an op and of its own lengths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Product {
    factors: [u16; MAX_DEPTH + 4],
    /// How many factors there are.
    pub count: u8,
}

impl Product {
    /// This with one more factor, in ascending order.
    pub fn times(mut self, factor: u16) -> Self {
        let count = usize::from(self.count).min(self.factors.len() - 1);
        self.factors[count] = factor;
        self.factors[..=count].sort_unstable();
        self.count = count as u8 + 1;
        self
    }

    /// The positions, ascending.
    pub fn factors(&self) -> &[u16] {
        &self.factors[..usize::from(self.count)]
    }

    /// The product of its constants, and what is left without them.
    pub fn fold(&self, constant: &[Option<u64>]) -> (u64, Product) {
        self.factors().iter().fold((1, Product::default()), |(known, rest), at| {
            match constant[usize::from(*at)] {
                Some(n) => (known.saturating_mul(n), rest),
                None => (known, rest.times(*at)),
            }
        })
    }

    /// The product of these values.
    pub fn of(&self, values: &[u64]) -> u64 {
        self.factors().iter().fold(1, |product, at| product.saturating_mul(values[usize::from(*at)]))
    }
}

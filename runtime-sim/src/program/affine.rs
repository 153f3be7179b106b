//! Affine integer expressions over a PE's coordinates and the counters of its loops.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::{Add, Mul, Sub};

/// A quantity that is known only at one PE or in one iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Var {
    /// Column of the PE in the program's grid, 0 in the west. On a host stream: the lane of a north or south edge.
    X,
    /// Row of the PE in the program's grid, 0 in the north. On a host stream: the lane of a west or east edge.
    Y,
    /// Counter of the loop at this depth of nesting, 0 outermost.
    Loop(u8),
    /// How many times the running task has been triggered before.
    Turn,
    /// Counter of a dimension of a [`super::TensorMap`] or [`super::HostStream`], 0 outermost.
    Dim(u8),
}

/// `base + sum of coefficient * variable`, in 64-bit integers.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Affine {
    /// The constant term.
    pub base: i64,
    /// Non-zero coefficients by variable.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub terms: BTreeMap<Var, i64>,
}

impl Affine {
    /// A constant.
    pub fn constant(base: i64) -> Self {
        Affine { base, terms: BTreeMap::new() }
    }

    /// `coefficient * var`.
    pub fn term(var: Var, coefficient: i64) -> Self {
        Affine::constant(0).plus(var, coefficient)
    }

    /// This expression with `coefficient * var` added to it.
    pub fn plus(mut self, var: Var, coefficient: i64) -> Self {
        let sum = self.terms.get(&var).copied().unwrap_or(0).saturating_add(coefficient);
        if sum == 0 {
            self.terms.remove(&var);
        } else {
            self.terms.insert(var, sum);
        }
        self
    }

    /// The value if no variable occurs.
    pub fn as_constant(&self) -> Option<i64> {
        self.terms.is_empty().then_some(self.base)
    }

    /// Whether `var` occurs.
    pub fn uses(&self, var: Var) -> bool {
        self.terms.contains_key(&var)
    }

    /// The value where `lookup` gives each variable; saturates instead of overflowing.
    pub fn eval(&self, lookup: impl Fn(Var) -> i64) -> i64 {
        self.terms.iter().fold(self.base, |sum, (var, c)| sum.saturating_add(c.saturating_mul(lookup(*var))))
    }
}

impl From<i64> for Affine {
    fn from(base: i64) -> Self {
        Affine::constant(base)
    }
}

impl From<Var> for Affine {
    fn from(var: Var) -> Self {
        Affine::term(var, 1)
    }
}

impl Add for Affine {
    type Output = Affine;
    fn add(self, other: Affine) -> Affine {
        let base = Affine { base: self.base.saturating_add(other.base), terms: self.terms };
        other.terms.into_iter().fold(base, |sum, (var, c)| sum.plus(var, c))
    }
}

impl Sub for Affine {
    type Output = Affine;
    fn sub(self, other: Affine) -> Affine {
        self + other * -1
    }
}

impl Mul<i64> for Affine {
    type Output = Affine;
    fn mul(self, factor: i64) -> Affine {
        let base = Affine::constant(self.base.saturating_mul(factor));
        self.terms.into_iter().fold(base, |sum, (var, c)| sum.plus(var, c.saturating_mul(factor)))
    }
}

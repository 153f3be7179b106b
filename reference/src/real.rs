//! The number types of the oracle.

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// f32 or f64, or what a test computes in.
pub trait Real:
    Copy
    + PartialOrd
    + std::fmt::Debug
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
{
    /// Rounds to this type.
    fn from_f64(x: f64) -> Self;
    /// The exact value.
    fn to_f64(self) -> f64;
    /// e to the power.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// The error function.
    fn erf(self) -> Self;
    /// Sine.
    fn sin(self) -> Self;
    /// Cosine.
    fn cos(self) -> Self;
    /// The number as an operand of a product of matrices. f32 and f64 stay as they are; machines round here to the type
    /// that they multiply in, and so may a number that stands for one.
    fn operand(self, of: Operand) -> Self {
        let _ = of;
        self
    }
}

/// What a number is to the product that it enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// Of a row that is multiplied by a matrix of weights.
    Row,
    /// Of the weights.
    Weight,
    /// Of a query.
    Query,
    /// Of a key.
    Key,
    /// A share of attention.
    Share,
    /// Of a value that shares are multiplied by.
    Value,
}

macro_rules! real {
    ($type:ty, $erf:path) => {
        impl Real for $type {
            fn from_f64(x: f64) -> Self {
                x as $type
            }
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            fn exp(self) -> Self {
                self.exp()
            }
            fn ln(self) -> Self {
                self.ln()
            }
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            fn tanh(self) -> Self {
                self.tanh()
            }
            fn erf(self) -> Self {
                $erf(self)
            }
            fn sin(self) -> Self {
                self.sin()
            }
            fn cos(self) -> Self {
                self.cos()
            }
        }
    };
}

real!(f32, libm::erff);
real!(f64, libm::erf);

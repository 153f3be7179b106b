//! Affine integer expressions over a PE's coordinates and the counters of its loops.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Add, Mul, Sub};
use std::str::FromStr;

/// A quantity that is known only at one PE or in one iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Var {
    /// Column of the PE in the program's grid, 0 in the west. On a host stream: the lane of a north or south edge.
    X,
    /// Row of the PE in the program's grid, 0 in the north. On a host stream: the lane of a west or east edge.
    Y,
    /// `floor(x / n)`: which block of `n` columns (a head) the PE is in. Never 0.
    XOver(u32),
    /// `floor(y / n)`: which block of `n` rows (a sequence) the PE is in. Never 0.
    YOver(u32),
    /// Counter of the loop at this depth of nesting, 0 outermost.
    Loop(u8),
    /// How many times the running task has been triggered before.
    Turn,
    /// Counter of a dimension of a [`super::TensorMap`] or [`super::HostStream`], 0 outermost.
    Dim(u8),
}

/// `base + sum of coefficient * variable`, in 64-bit integers.
///
/// Written as text, and in serialised form, as a sum: `64*i0 + 2*x + x/31 - 3`, with the variables `x`, `y`, `x/n`,
/// `y/n`, `t` (turn), `i0..` (loops) and `d0..` (dimensions).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Affine {
    /// The constant term.
    pub base: i64,
    /// Non-zero coefficients by variable.
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

impl Var {
    /// The value at a place, if the variable depends on nothing else.
    pub fn at_place(self, x: u32, y: u32) -> Option<i64> {
        match self {
            Var::X => Some(i64::from(x)),
            Var::Y => Some(i64::from(y)),
            Var::XOver(n) => Some(i64::from(x / n.max(1))),
            Var::YOver(n) => Some(i64::from(y / n.max(1))),
            Var::Loop(_) | Var::Turn | Var::Dim(_) => None,
        }
    }
}

impl fmt::Display for Var {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Var::X => write!(f, "x"),
            Var::Y => write!(f, "y"),
            Var::XOver(n) => write!(f, "x/{n}"),
            Var::YOver(n) => write!(f, "y/{n}"),
            Var::Loop(depth) => write!(f, "i{depth}"),
            Var::Turn => write!(f, "t"),
            Var::Dim(k) => write!(f, "d{k}"),
        }
    }
}

impl FromStr for Var {
    type Err = String;

    fn from_str(text: &str) -> Result<Var, String> {
        let unknown = || format!("unknown variable `{text}`: use x, y, x/n, y/n, t, i0.. or d0..");
        let split = text.char_indices().nth(1).map_or(text.len(), |(at, _)| at);
        let (head, tail) = text.split_at(split);
        let number = || tail.parse::<u8>().map_err(|_| unknown());
        let block =
            || tail.strip_prefix('/').and_then(|n| n.parse().ok()).filter(|&n| n > 0).ok_or_else(unknown);
        match (head, tail) {
            ("x", "") => Ok(Var::X),
            ("y", "") => Ok(Var::Y),
            ("t", "") => Ok(Var::Turn),
            ("x", _) => block().map(Var::XOver),
            ("y", _) => block().map(Var::YOver),
            ("i", _) => number().map(Var::Loop),
            ("d", _) => number().map(Var::Dim),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Affine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for (var, c) in &self.terms {
            let sign = if *c < 0 { "-" } else { "+" };
            match (first, sign) {
                (true, "+") => {}
                (true, _) => write!(f, "-")?,
                (false, _) => write!(f, " {sign} ")?,
            }
            first = false;
            if c.unsigned_abs() != 1 {
                write!(f, "{}*", c.unsigned_abs())?;
            }
            write!(f, "{var}")?;
        }
        match (first, self.base) {
            (true, base) => write!(f, "{base}"),
            (false, 0) => Ok(()),
            (false, base) if base < 0 => write!(f, " - {}", base.unsigned_abs()),
            (false, base) => write!(f, " + {base}"),
        }
    }
}

impl FromStr for Affine {
    type Err = String;

    fn from_str(text: &str) -> Result<Affine, String> {
        let mut sum = Affine::constant(0);
        let (mut sign, mut term) = (1, String::new());
        for c in text.chars().filter(|c| !c.is_whitespace()).chain(['+']) {
            match c {
                '+' | '-' if term.is_empty() => {}
                '+' | '-' => sum = sum + parse_term(&std::mem::take(&mut term), sign)?,
                _ => {
                    term.push(c);
                    continue;
                }
            }
            sign = if c == '-' { -1 } else { 1 };
        }
        if text.trim().is_empty() || text.trim_end().ends_with(['+', '-']) {
            return Err("expected an expression".into());
        }
        Ok(sum)
    }
}

/// One product: `3`, `x`, `2*x` or `x*2`.
fn parse_term(term: &str, sign: i64) -> Result<Affine, String> {
    let number = |s: &str| s.parse::<i64>().ok();
    if let Some(n) = number(term) {
        return Ok(Affine::constant(n.saturating_mul(sign)));
    }
    let Some((a, b)) = term.split_once('*') else { return Ok(Affine::term(term.parse()?, sign)) };
    match (number(a), number(b)) {
        (Some(c), None) => Ok(Affine::term(b.parse()?, c.saturating_mul(sign))),
        (None, Some(c)) => Ok(Affine::term(a.parse()?, c.saturating_mul(sign))),
        (Some(a), Some(b)) => Ok(Affine::constant(a.saturating_mul(b).saturating_mul(sign))),
        (None, None) => Err(format!("`{term}` is a product of two variables: expressions are linear")),
    }
}

impl From<Affine> for String {
    fn from(affine: Affine) -> String {
        affine.to_string()
    }
}

impl TryFrom<String> for Affine {
    type Error = String;
    fn try_from(text: String) -> Result<Affine, String> {
        text.parse()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_print_and_parse() {
        for text in ["0", "-3", "x", "2*x - x/31 + 64*i0 - 3", "-y/16 + t - d2"] {
            let affine: Affine = text.parse().unwrap();
            assert_eq!(affine.to_string().parse::<Affine>(), Ok(affine), "{text}");
        }
        let affine: Affine = "x*4 - 2*3 + x".parse().unwrap();
        assert_eq!(affine, Affine::term(Var::X, 5).plus(Var::Y, 0) + Affine::constant(-6));
        assert!(
            "x*y".parse::<Affine>().is_err()
                && "z".parse::<Affine>().is_err()
                && "".parse::<Affine>().is_err()
        );
        assert!("x/0".parse::<Affine>().is_err());
    }
}

//! Where the PEs of a class are: between which bounds an expression stays there, and at which of its PEs expressions
//! can differ at all.

use crate::lower::Linear;
use crate::program::{Coord, Region};
use std::collections::{BTreeMap, BTreeSet};

/// The places of a class.
pub struct Area<'a> {
    regions: &'a [Region],
    /// The rows of sets of columns.
    spans: Vec<(Vec<Span>, Vec<Span>)>,
    columns: Vec<u32>,
    rows: Vec<u32>,
    /// Bounds of the parts of columns and of rows of expressions met before.
    known: [Vec<(Linear, Bounds)>; 2],
}

/// Least and greatest value.
pub type Bounds = (i64, i64);

impl<'a> Area<'a> {
    /// The area of some regions.
    pub fn new(regions: &'a [Region]) -> Self {
        let mut spans: BTreeMap<Span, Vec<Span>> = BTreeMap::new();
        for r in regions {
            spans.entry((r.x, r.columns, r.step_x)).or_default().push((r.y, r.rows, r.step_y));
        }
        let columns: BTreeSet<u32> = spans.keys().flat_map(members).collect();
        let rows: BTreeSet<u32> = spans.values().flatten().flat_map(members).collect();
        let (columns, rows) = (columns.into_iter().collect(), rows.into_iter().collect());
        let spans = spans.into_iter().map(|(columns, rows)| (vec![columns], rows)).collect();
        Area { regions, spans, columns, rows, known: Default::default() }
    }

    /// Everywhere where one of these columns meets one of these rows.
    pub fn over(columns: Vec<u32>, rows: Vec<u32>) -> Area<'static> {
        let spans = |places: &[u32]| places.iter().map(|at| (*at, 1, 1)).collect();
        let spans = vec![(spans(&columns), spans(&rows))];
        Area { regions: &[], spans, columns, rows, known: Default::default() }
    }

    /// The first PE.
    pub fn first(&self) -> Option<Coord> {
        self.regions.first().map(|r| Coord { x: r.x, y: r.y })
    }

    /// Bounds of an expression over all columns and rows, with every counter at 0: never narrower than its values.
    pub fn bounds(&mut self, expression: &Linear) -> Bounds {
        if let Some(value) = expression.as_constant() {
            return (value, value);
        }
        let base = expression.base();
        let (by_x, by_y) = expression.uses_place();
        let x = if by_x { self.part(expression, true) } else { (0, 0) };
        let y = if by_y { self.part(expression, false) } else { (0, 0) };
        (base.saturating_add(x.0 + y.0), base.saturating_add(x.1 + y.1))
    }

    fn part(&mut self, expression: &Linear, of_x: bool) -> Bounds {
        let known = &mut self.known[usize::from(!of_x)];
        if let Some((_, bounds)) = known.iter().find(|(other, _)| other.same_part(expression, of_x)) {
            return *bounds;
        }
        let places = if of_x { &self.columns } else { &self.rows };
        let values = places.iter().map(|at| expression.part(of_x, i64::from(*at)));
        let bounds = values.fold((i64::MAX, i64::MIN), |b, v| (b.0.min(v), b.1.max(v)));
        let bounds = if bounds.0 > bounds.1 { (0, 0) } else { bounds };
        known.push((expression.clone(), bounds));
        bounds
    }

    /// One place for each way in which the expressions can differ over the regions: as a sum of a part of the column
    /// and a part of the row, an expression has the same value wherever both parts are the same. None if they are more than
    /// `most`.
    pub fn places(&self, expressions: &[&Linear], most: usize) -> Option<Vec<Coord>> {
        let (mut columns, mut rows) = (Kinds::new(expressions, true), Kinds::new(expressions, false));
        let mut places = BTreeMap::new();
        for (xs, ys) in &self.spans {
            let (xs, ys) = (columns.among(xs), rows.among(ys));
            if xs.len().saturating_mul(ys.len()) > most {
                return None;
            }
            for (kind_y, y) in ys {
                for &(kind_x, x) in &xs {
                    places.entry((kind_y, kind_x)).or_insert(Coord { x, y });
                }
            }
        }
        Some(places.into_values().collect())
    }
}

/// Columns (or rows) `first + i * step`.
type Span = (u32, u32, u32);

/// The members of a span.
fn members(&(first, count, step): &Span) -> impl Iterator<Item = u32> + use<> {
    (0..count).map(move |i| first + i * step)
}

/// Columns or rows by what they contribute to some expressions.
struct Kinds<'a> {
    /// The expressions that depend on the column (or row).
    expressions: Vec<&'a Linear>,
    of_x: bool,
    /// Kind and first member by contribution.
    kinds: BTreeMap<Vec<i64>, (u32, u32)>,
}

impl<'a> Kinds<'a> {
    fn new(expressions: &[&'a Linear], of_x: bool) -> Self {
        let mine = |l: &&&Linear| if of_x { l.uses_place().0 } else { l.uses_place().1 };
        let expressions = expressions.iter().filter(mine).copied().collect();
        Kinds { expressions, of_x, kinds: BTreeMap::new() }
    }

    /// The kinds among some columns (or rows), each with its first member.
    fn among(&mut self, spans: &[Span]) -> BTreeSet<(u32, u32)> {
        let some = if self.expressions.is_empty() { 1 } else { usize::MAX };
        let (of_x, expressions) = (self.of_x, &self.expressions);
        let mut found = BTreeSet::new();
        for at in spans.iter().flat_map(members).take(some) {
            let parts = expressions.iter().map(|l| l.part(of_x, i64::from(at))).collect();
            let next = self.kinds.len() as u32;
            found.insert(*self.kinds.entry(parts).or_insert((next, at)));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_hold_every_value_and_places_show_them_all() {
        let regions = [Region::rect(3, 1, 5, 4).every(7, 2), Region::pe(60, 0)];
        for text in ["4", "x - 7*x/7", "x - 9*x/9 - 2*y", "3*y - x + 5", "y/3 - x/11"] {
            let expression = Linear::from(&text.parse().unwrap());
            let value = |at: Coord| {
                expression.base() + expression.part(true, at.x.into()) + expression.part(false, at.y.into())
            };
            let values: BTreeSet<i64> = regions.iter().flat_map(Region::pes).map(value).collect();
            let mut area = Area::new(&regions);
            let (low, high) = area.bounds(&expression);
            assert!(low <= *values.first().unwrap() && *values.last().unwrap() <= high, "{text}");
            let shown: BTreeSet<i64> =
                area.places(&[&expression], 999).unwrap().into_iter().map(value).collect();
            assert_eq!(shown, values, "{text}");
        }
    }
}

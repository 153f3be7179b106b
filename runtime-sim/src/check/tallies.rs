//! The tallies of all PEs, each counted once for PEs that cannot differ.

use super::places::Grid;
use super::sums::Sums;
use super::tally::{Body, Tally};
use crate::lower::{Linear, LoweredClass, segments};
use crate::network::{NONE, Network};
use crate::parallel;

use std::collections::BTreeMap;

/// The code of all segments, by number, ready to be counted.
pub fn bodies(net: &Network, classes: &[LoweredClass]) -> Vec<Body> {
    let mut grid = Grid::new(net.width, net.height);
    let segments = segments(classes).into_iter();
    let segments: Vec<_> = segments.map(|segment| (segment, grid.kinds(segment.placed()))).collect();
    parallel::map(&segments, |(segment, places)| Body::of(segment, places.clone()))
}

/// What every PE of a traced row sends and reads.
pub struct Tallies {
    /// Tally by PE; [`NONE`] where there is none.
    id_of: Vec<u32>,
    tallies: Vec<Tally>,
}

impl Tallies {
    /// Counts all PEs of the traced rows. `bodies` are those of all segments, by number.
    pub fn of(net: &Network, classes: &[LoweredClass], bodies: &[Body]) -> Self {
        let mut kinds: Vec<Kinds> = parallel::map(classes, |class| Kinds::of(class, bodies, net));
        let mut ids: BTreeMap<(u16, u32, u32), u32> = BTreeMap::new();
        let (mut id_of, mut places) = (vec![NONE; net.class_of.len()], Vec::new());
        for (pe, class) in net.traced_pes() {
            let (at, kinds) = (net.coord(pe), &mut kinds[usize::from(class)]);
            let (x, y) = (kinds.kind(true, at.x), kinds.kind(false, at.y));
            let id = *ids.entry((class, x, y)).or_insert_with(|| {
                places.push((class, at, [x as usize, y as usize]));
                places.len() as u32 - 1
            });
            id_of[pe as usize] = id;
        }
        for kinds in &mut kinds {
            let counts = [0, 1].map(|axis: usize| kinds.parts[axis].len());
            kinds.sums.prepare(counts);
        }
        let tallies = parallel::map(&places, |(class, at, of)| kinds[usize::from(*class)].sums.at(*at, *of));
        Tallies { id_of, tallies }
    }

    /// The tally of a PE of a traced row.
    pub fn at(&self, pe: u32) -> &Tally {
        &self.tallies[self.id_of[pe as usize] as usize]
    }

    /// The number of a PE's tally; PEs of one number do the same.
    pub fn id(&self, pe: u32) -> u32 {
        self.id_of[pe as usize]
    }
}

/// Columns and rows of a class by what they contribute to its counts.
struct Kinds<'a> {
    sums: Sums<'a>,
    /// Counts that depend on the column, and on the row.
    lengths: [Vec<Linear>; 2],
    /// The kind of each column and of each row met, or [`NONE`].
    known: [Vec<u32>; 2],
    /// Numbers of kinds by contributions.
    parts: [BTreeMap<Vec<i64>, u32>; 2],
}

impl<'a> Kinds<'a> {
    fn of(class: &'a LoweredClass, bodies: &'a [Body], net: &Network) -> Self {
        Kinds {
            sums: Sums::of(class, bodies),
            lengths: [class.lengths_of(true), class.lengths_of(false)],
            known: [vec![NONE; net.width as usize], vec![NONE; net.height as usize]],
            parts: Default::default(),
        }
    }

    fn kind(&mut self, of_x: bool, at: u32) -> u32 {
        let axis = usize::from(!of_x);
        let known = &mut self.known[axis][at as usize];
        if *known == NONE {
            let parts = self.lengths[axis].iter().map(|l| l.part(of_x, i64::from(at))).collect();
            let next = self.parts[axis].len() as u32;
            *known = *self.parts[axis].entry(parts).or_insert(next);
        }
        *known
    }
}

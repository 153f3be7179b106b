//! The tallies of all PEs, each counted once for PEs that cannot differ.

use super::places::Grid;
use super::sums::Sums;
use super::tally::{Body, Tally};
use crate::lower::{Linear, LoweredClass, segments};
use crate::network::{NONE, Network};
use crate::parallel;
use crate::program::Trigger;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The code of all segments, by number, ready to be counted: once for all that do the same.
pub fn bodies(net: &Network, classes: &[LoweredClass]) -> Vec<Arc<Body>> {
    let mut grid = Grid::new(net.width, net.height);
    let segments = segments(classes);
    let first = segments.iter().filter(|segment| segment.like == segment.number);
    let first: Vec<_> = first.map(|segment| (segment, grid.kinds(segment.placed()))).collect();
    let bodies = parallel::map(&first, |(segment, places)| Arc::new(Body::of(segment, places.clone())));
    let of: BTreeMap<u32, Arc<Body>> = first.iter().map(|(segment, _)| segment.number).zip(bodies).collect();
    segments.into_iter().map(|segment| Arc::clone(&of[&segment.like])).collect()
}

/// What every PE of a traced row sends and reads.
pub struct Tallies {
    /// Tally by PE; [`NONE`] where there is none.
    id_of: Vec<u32>,
    tallies: Vec<Tally>,
}

impl Tallies {
    /// Counts all PEs of the traced rows. `bodies` are those of all segments, by number.
    pub fn of(net: &Network, classes: &[LoweredClass], bodies: &[Arc<Body>]) -> Self {
        let (sort_of, first) = sorts(net, classes);
        let mut kinds: Vec<Kinds> = parallel::map(&first, |class| Kinds::of(class, bodies, net));
        // By number of a class and kinds of column and row.
        let mut ids: Vec<Vec<Vec<u32>>> = vec![Vec::new(); first.len()];
        let (mut id_of, mut places) = (vec![NONE; net.class_of.len()], Vec::new());
        for (pe, class) in net.traced_pes() {
            let sort = sort_of[usize::from(class)];
            let (at, kinds) = (net.coord(pe), &mut kinds[sort as usize]);
            let (x, y) = (kinds.kind(true, at.x), kinds.kind(false, at.y));
            let [x, y] = [x as usize, y as usize];
            let id = grown(grown(&mut ids[sort as usize], x, Vec::new()), y, NONE);
            if *id == NONE {
                *id = places.len() as u32;
                places.push((sort, at, [x, y]));
            }
            id_of[pe as usize] = *id;
        }
        for kinds in &mut kinds {
            let counts = [0, 1].map(|axis: usize| kinds.parts[axis].len());
            kinds.sums.prepare(counts);
        }
        let tallies = parallel::map(&places, |(sort, at, of)| kinds[*sort as usize].sums.at(*at, *of));
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

/// What is at a place of a list, which grows to hold it.
fn grown<T: Clone>(list: &mut Vec<T>, at: usize, new: T) -> &mut T {
    if list.len() <= at {
        list.resize(at + 1, new);
    }
    &mut list[at]
}

/// By class, the number of those that count alike; and one class of each number.
fn sorts<'a>(net: &Network, classes: &'a [LoweredClass]) -> (Vec<u32>, Vec<&'a LoweredClass>) {
    let mut used = vec![false; classes.len()];
    net.traced_pes().for_each(|(_, class)| used[usize::from(class)] = true);
    let (mut known, mut first) = (BTreeMap::new(), Vec::new());
    let mut sort = |(class, used): (&'a LoweredClass, bool)| {
        if !used {
            return NONE;
        }
        let mut look = [&class.inputs, &class.outputs].map(|colours| colours.len() as i64).to_vec();
        look.push(class.tasks.len() as i64);
        for task in &class.tasks {
            look.extend([task.slot as i64, i64::from(matches!(task.trigger, Trigger::Data { .. }))]);
            task.times.encode(false, &mut look);
            look.push(task.code.parts().len() as i64);
            look.extend(task.code.segments().map(|segment| i64::from(segment.like)));
        }
        *known.entry(look).or_insert_with(|| {
            first.push(class);
            first.len() as u32 - 1
        })
    };
    let sorts = classes.iter().zip(used).map(&mut sort).collect();
    (sorts, first)
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
    fn of(class: &'a LoweredClass, bodies: &'a [Arc<Body>], net: &Network) -> Self {
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

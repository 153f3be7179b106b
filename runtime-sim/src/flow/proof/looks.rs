//! Rows by what they look like in a stretch of code: in rows of one look the PEs of a column do the same.

use super::skeleton::Skeleton;
use super::templates::Templates;
use crate::flow::rows::Rows as Chosen;
use crate::lower::Linear;
use crate::network::{NOBODY, NONE, Network};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

/// Rows sorted by their shapes, whatever the stretch.
pub struct Kinds {
    /// By row: rows of one number have the same classes but for their names.
    of: Vec<u32>,
    /// By such a number: one class of each shape, from the first row.
    used: Vec<Vec<u16>>,
}

impl Kinds {
    /// Numbers rows by the shapes of their classes: those that are traced, and those of lines that are left out.
    pub fn of(net: &Network, chosen: &Chosen) -> Kinds {
        let shape = |class: u16| chosen.shape_of.get(usize::from(class)).copied().unwrap_or(NOBODY);
        let mut kinds = Kinds { of: vec![NONE; net.height as usize], used: Vec::new() };
        let mut by_class: BTreeMap<&[u16], u32> = BTreeMap::new();
        let mut by_shape: BTreeMap<Vec<u16>, u32> = BTreeMap::new();
        for (y, row) in net.class_of.chunks(net.width.max(1) as usize).enumerate() {
            let skipped = chosen.skips.iter().any(|skip| skip.skipped().contains(&(y as u32)));
            if !net.traced[y] && !skipped {
                continue;
            }
            kinds.of[y] = *by_class.entry(row).or_insert_with(|| {
                let next = by_shape.len() as u32;
                let number = *by_shape.entry(row.iter().map(|class| shape(*class)).collect()).or_insert(next);
                if number == next {
                    let one: BTreeMap<u16, u16> = row
                        .iter()
                        .filter(|class| **class != NOBODY)
                        .map(|class| (shape(*class), *class))
                        .collect();
                    kinds.used.push(one.into_values().collect());
                }
                number
            });
        }
        kinds
    }
}

/// Rows by what they look like.
pub struct Looks {
    width: u32,
    /// By row; [`NONE`] for rows that are not looked at.
    of: Vec<u32>,
    /// By look and column.
    pub skeletons: Vec<Vec<Option<Rc<Skeleton>>>>,
    /// Whether of rows in a line all periods look the same, from one known to the last but one.
    pub are_steady: bool,
}

impl Looks {
    /// Those of some rows, and of the rows of lines that are left out, each with the rows of a period; `templates` is by
    /// class.
    pub fn of(
        net: &Network,
        kinds: &Kinds,
        rows: impl Iterator<Item = u32>,
        lines: &[(Range<u32>, u32)],
        (templates, all): (&[u32], &mut Templates),
    ) -> Looks {
        let by_row = |used: &Vec<u16>| {
            let mut lengths: Vec<Linear> = Vec::new();
            for template in used.iter().filter_map(|class| all.get(templates[usize::from(*class)])) {
                for length in &template.by_row {
                    if !lengths.contains(length) {
                        lengths.push(length.clone());
                    }
                }
            }
            lengths
        };
        let lengths: Vec<Vec<Linear>> = kinds.used.iter().map(by_row).collect();
        let key = |y: u32| {
            let kind = kinds.of[y as usize];
            let values = lengths[kind as usize].iter().map(|length| length.part(false, i64::from(y)));
            (kind, values.collect::<Vec<i64>>())
        };
        let (mut known, mut first) = (BTreeMap::new(), Vec::new());
        let mut of = vec![NONE; net.height as usize];
        for y in rows {
            of[y as usize] = *known.entry(key(y)).or_insert_with(|| {
                first.push(y);
                first.len() as u32 - 1
            });
        }
        let mut are_steady = true;
        for y in lines.iter().flat_map(|(rows, period)| rows.clone().map(move |y| (y, y - period))) {
            let (y, before) = y;
            of[y as usize] = known.get(&key(y)).copied().unwrap_or(NONE);
            are_steady &= of[y as usize] != NONE && of[y as usize] == of[before as usize];
        }
        let mut skeletons = |y: u32| {
            let class = |x: u32| net.class_of[(y * net.width + x) as usize];
            let at = |x: u32| all.at(*templates.get(usize::from(class(x)))?, x, y);
            (0..net.width).map(at).collect()
        };
        let skeletons = first.into_iter().map(&mut skeletons).collect();
        Looks { width: net.width, of, skeletons, are_steady }
    }

    /// What a row looks like.
    pub fn of_row(&self, y: u32) -> usize {
        self.of[y as usize] as usize
    }

    /// What a PE does, if it does anything.
    pub fn skeleton(&self, pe: u32) -> Option<&Skeleton> {
        let row = self.skeletons.get(self.of_row(pe / self.width))?;
        row[(pe % self.width) as usize].as_deref()
    }
}

//! A stretch of code in which words only go down the columns, from each PE to one further south: no PE waits in a circle,
//! however many words there are, if each reads as many as are sent to it.
//!
//! Of rows in a line, whose words grow by the same number from period to period, as many are read as are sent everywhere if that is
//! so in the first periods and in the last one.

use super::skeleton::{Skeleton, Template};
use crate::network::{Network, Origin, Target};
use std::rc::Rc;

/// A stretch.
pub struct Columns<'a> {
    pub net: &'a Network,
    /// By class.
    pub templates: &'a [Option<Rc<Template>>],
    /// Rows of a period, if rows are left out: no word may come from further away.
    pub period: Option<u32>,
}

impl Columns<'_> {
    /// Whether all come to their end; none if there is no telling. Only what arrives in some rows is looked at.
    pub fn end(&self, rows: &[u32]) -> Option<()> {
        let width = self.net.width;
        rows.iter().flat_map(|y| y * width..(y + 1) * width).try_for_each(|pe| self.pe(pe))
    }

    fn template(&self, pe: u32) -> Option<&Template> {
        self.templates.get(usize::from(self.net.class_of[pe as usize]))?.as_deref()
    }

    fn skeleton(&self, pe: u32) -> Option<Skeleton> {
        let at = self.net.coord(pe);
        self.template(pe).map(|template| template.at(at.x, at.y))
    }

    fn pe(&self, pe: u32) -> Option<()> {
        let Some(template) = self.template(pe).filter(|template| !template.is_silent()) else {
            return Some(());
        };
        let skeleton = self.skeleton(pe)?;
        let y = i64::from(pe / self.net.width);
        let grows = template.by_row.iter().all(|length| length.base() + length.part(false, y) >= 0);
        if !template.is_linear || !grows {
            return None;
        }
        if let Some(slot) = single(&skeleton, true)? {
            self.sends(pe, &skeleton, slot)?;
        }
        match single(&skeleton, false)? {
            Some(slot) => self.hears(pe, &skeleton, slot),
            None => Some(()),
        }
    }

    /// That one PE further south reads all that a PE sends, if nobody is left out there.
    fn sends(&self, pe: u32, skeleton: &Skeleton, slot: usize) -> Option<()> {
        let stream = self.net.output(pe as usize, slot);
        self.net.streams.get(stream as usize)?;
        match self.net.ends_of(stream) {
            [] if self.period.is_some() => Some(()),
            [end] => match end.target {
                Target::Host(_) => Some(()),
                Target::Switch(..) => None,
                Target::Pe(to) => {
                    let reader = self.skeleton(to)?;
                    let read = single(&reader, false)??;
                    let same =
                        self.net.ends.get(self.net.input(to as usize, read) as usize)?.stream == stream;
                    (same && reader.words(read, false) == skeleton.words(slot, true)).then_some(())
                }
            },
            _ => None,
        }
    }

    /// That what a PE reads comes from one further north in its column, or from the host for it alone.
    fn hears(&self, pe: u32, skeleton: &Skeleton, slot: usize) -> Option<()> {
        let width = self.net.width;
        let end = self.net.ends.get(self.net.input(pe as usize, slot) as usize)?;
        let stream = self.net.ends_of(end.stream);
        let most = skeleton.uses(slot, false).map(|(_, words)| words).max().unwrap_or(0);
        if stream.len() > 1 || most > u64::from(end.depth) {
            return None;
        }
        match self.net.streams[end.stream as usize].origin {
            Origin::Host(_) => self.net.elsewhere.iter().all(|(other, _)| *other != end.stream).then_some(()),
            Origin::Switch(..) => None,
            Origin::Pe(from) => {
                let (sender, away) = (self.skeleton(from)?, (pe / width).checked_sub(from / width)?);
                let sent = single(&sender, true)??;
                let near = away > 0 && self.period.is_none_or(|period| away <= period);
                let own = from % width == pe % width && self.net.output(from as usize, sent) == end.stream;
                (near && own && sender.words(sent, true) == skeleton.words(slot, false)).then_some(())
            }
        }
    }
}

/// The only slot that is read, or written; none if there are several.
fn single(skeleton: &Skeleton, out: bool) -> Option<Option<usize>> {
    let mut slots = skeleton.operands.iter().filter(|(_, o)| o.out == out).map(|(_, o)| o.slot);
    let first = slots.next();
    slots.all(|slot| Some(slot) == first).then_some(first)
}

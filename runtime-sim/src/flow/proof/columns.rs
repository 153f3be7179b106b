//! A stretch of code in which words only go down the columns, from each PE to one further south: no PE waits in a circle,
//! however many words there are, if each reads as many as are sent to it.
//!
//! Of rows in a line, whose words grow by the same number from period to period, as many are read as are sent everywhere if that is
//! so in the first periods and in the last one.

use super::looks::Looks;
use super::skeleton::{Port, Skeleton, Template};
use super::templates::Templates;
use crate::network::{Network, Origin, Target};

/// A stretch.
pub struct Columns<'a> {
    pub net: &'a Network,
    pub looks: &'a Looks,
    /// By class, as their numbers.
    pub templates: (&'a [u32], &'a Templates),
    /// Rows of a period, if rows are left out: no word may come from further away.
    pub period: Option<u32>,
    /// By stream: whether its words arrive in rows that are left out.
    pub elsewhere: &'a [bool],
}

impl Columns<'_> {
    /// Whether all come to their end; none if there is no telling. Only what arrives in some rows is looked at.
    pub fn end(&self, rows: &[u32]) -> Option<()> {
        let width = self.net.width;
        rows.iter().flat_map(|y| y * width..(y + 1) * width).try_for_each(|pe| self.pe(pe))
    }

    fn template(&self, pe: u32) -> Option<&Template> {
        let (by_class, all) = self.templates;
        all.get(*by_class.get(usize::from(self.net.class_of[pe as usize]))?)
    }

    fn pe(&self, pe: u32) -> Option<()> {
        let Some(template) = self.template(pe).filter(|template| !template.is_silent()) else {
            return Some(());
        };
        let skeleton = self.looks.skeleton(pe)?;
        let y = i64::from(pe / self.net.width);
        let grows = template.by_row.iter().all(|length| length.base() + length.part(false, y) >= 0);
        if !template.is_linear || !grows {
            return None;
        }
        if let Some(port) = single(skeleton, true)? {
            self.sends(pe, port)?;
        }
        match single(skeleton, false)? {
            Some(port) => self.hears(pe, port),
            None => Some(()),
        }
    }

    /// That one PE further south reads all that a PE sends, if nobody is left out there.
    fn sends(&self, pe: u32, sent: &Port) -> Option<()> {
        let stream = self.net.output(pe as usize, sent.slot);
        self.net.streams.get(stream as usize)?;
        match self.net.ends_of(stream) {
            [] if self.period.is_some() => Some(()),
            [end] => match end.target {
                Target::Host(_) => Some(()),
                Target::Switch(..) => None,
                Target::Pe(to) => {
                    let read = single(self.looks.skeleton(to)?, false)??;
                    let same =
                        self.net.ends.get(self.net.input(to as usize, read.slot) as usize)?.stream == stream;
                    (same && read.words == sent.words).then_some(())
                }
            },
            _ => None,
        }
    }

    /// That what a PE reads comes from one further north in its column, or from the host for it alone.
    fn hears(&self, pe: u32, read: &Port) -> Option<()> {
        let width = self.net.width;
        let end = self.net.ends.get(self.net.input(pe as usize, read.slot) as usize)?;
        if self.net.ends_of(end.stream).len() > 1 || read.most > u64::from(end.depth) {
            return None;
        }
        match self.net.streams[end.stream as usize].origin {
            Origin::Host(_) => (!self.elsewhere[end.stream as usize]).then_some(()),
            Origin::Switch(..) => None,
            Origin::Pe(from) => {
                let away = (pe / width).checked_sub(from / width)?;
                let sent = single(self.looks.skeleton(from)?, true)??;
                let near = away > 0 && self.period.is_none_or(|period| away <= period);
                let own =
                    from % width == pe % width && self.net.output(from as usize, sent.slot) == end.stream;
                (near && own && sent.words == read.words).then_some(())
            }
        }
    }
}

/// The only stream that is read, or written; none if there are several.
fn single(skeleton: &Skeleton, out: bool) -> Option<Option<&Port>> {
    let mut ports = skeleton.ports.iter().filter(|port| port.out == out);
    let first = ports.next();
    ports.next().is_none().then_some(first)
}

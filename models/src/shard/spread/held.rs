//! From what a rank holds of a value to what an op needs of it: sums over ranks, all rows, the rank's rows.

use super::super::ShardError;
use super::super::layout::{Axis, Layout};
use super::{Held, Rank};
use crate::graph::ValueId;
use crate::op::{Op, Sharded};

type Found = Result<ValueId, ShardError>;

impl Rank<'_, '_> {
    /// The whole of a value: summed over the ranks where they hold summands, put together where they hold parts that are
    /// rows or words of the vocabulary.
    pub(super) fn needs_whole(&mut self, id: ValueId) -> Found {
        if let Some(whole) = self.gathered.get(&id) {
            return Ok(*whole);
        }
        let name = self.maker(id);
        let found = match self.held(id) {
            Held::Value(value, Layout::Whole) => return Ok(value),
            Held::Value(value, Layout::Rows) => return self.gathered_rows(id, value),
            Held::Value(value, Layout::Split(Axis::Vocab)) => {
                let width = self.whole.ty(id).last().unwrap_or(0);
                let whole =
                    self.push(&format!("{name}.all_gather"), Sharded::AllGather { width }.into(), &[value])?;
                self.gathered.insert(id, whole);
                return Ok(whole);
            }
            Held::Value(value, Layout::Partial) => self.sum(&name, value)?,
            Held::Sum { base: (_, Layout::Rows), .. } => {
                let rows = self.needs_rows(id)?;
                return self.gathered_rows(id, rows);
            }
            Held::Sum { base: (base, _), partial, name } => {
                let sum = self.sum(&name, partial)?;
                self.push(&name, Op::Add, &[base, sum])?
            }
            Held::Value(_, Layout::Split(axis)) => {
                let what = format!("its result is split by {axis:?} where all of it is needed");
                return Err(ShardError::Unsupported { node: name, what });
            }
        };
        self.held.insert(id, Held::Value(found, Layout::Whole));
        Ok(found)
    }

    fn gathered_rows(&mut self, id: ValueId, rows: ValueId) -> Found {
        let Some(of) = self.context.rows else { return Ok(rows) };
        let op = Sharded::GatherRows { batch: of.dims.batch, seq: of.dims.seq };
        let whole = self.push(&format!("{}.gather_rows", self.maker(id)), op.into(), &[rows])?;
        self.gathered.insert(id, whole);
        Ok(whole)
    }

    fn sum(&mut self, name: &str, partial: ValueId) -> Found {
        self.push(&format!("{name}.all_reduce"), Sharded::AllReduce.into(), &[partial])
    }

    /// The rank's rows of a value.
    pub(super) fn needs_rows(&mut self, id: ValueId) -> Found {
        let Some(rows) = self.context.rows else { return self.needs_whole(id) };
        let name = self.maker(id);
        let found = match self.held(id) {
            Held::Value(value, Layout::Rows) => return Ok(value),
            Held::Value(value, Layout::Partial) => self.scattered(&name, value, rows.ranks)?,
            Held::Sum { base: (base, layout), partial, name } => {
                let sum = self.scattered(&name, partial, rows.ranks)?;
                let base = match layout {
                    Layout::Rows => base,
                    _ => self.taken_rows(&name, base)?,
                };
                self.push(&name, Op::Add, &[base, sum])?
            }
            Held::Value(value, Layout::Whole) => {
                self.gathered.insert(id, value);
                self.taken_rows(&name, value)?
            }
            Held::Value(_, layout @ Layout::Split(_)) => {
                let what = format!("its result is {layout:?} where rows of it are needed");
                return Err(ShardError::Unsupported { node: name, what });
            }
        };
        self.held.insert(id, Held::Value(found, Layout::Rows));
        Ok(found)
    }

    fn scattered(&mut self, name: &str, partial: ValueId, ranks: u64) -> Found {
        self.push(&format!("{name}.reduce_scatter"), Sharded::ReduceScatter { ranks }.into(), &[partial])
    }

    fn taken_rows(&mut self, name: &str, value: ValueId) -> Found {
        let Some(rows) = self.context.rows else { return Ok(value) };
        let op = Sharded::TakeRows { first: rows.first, rows: rows.held };
        self.push(&format!("{name}.take_rows"), op.into(), &[value])
    }

    /// What layers and stages hand on: the rank's rows where rows are split between layers, everything elsewhere.
    pub(super) fn stream(&mut self, id: ValueId) -> Found {
        if self.context.rows.is_some() { self.needs_rows(id) } else { self.needs_whole(id) }
    }

    /// What an op works on that takes a value in parts as it is; summands are summed.
    pub(super) fn as_is(&mut self, id: ValueId) -> Result<(ValueId, Layout), ShardError> {
        match self.held(id) {
            Held::Value(value, layout @ (Layout::Whole | Layout::Split(_) | Layout::Rows)) => {
                Ok((value, layout))
            }
            _ if self.context.rows.is_some() && self.has_rows(id) => Ok((self.needs_rows(id)?, Layout::Rows)),
            _ => Ok((self.needs_whole(id)?, Layout::Whole)),
        }
    }

    /// The same for a value that must have all rows.
    pub(super) fn all_rows(&mut self, id: ValueId) -> Result<(ValueId, Layout), ShardError> {
        match self.held(id) {
            Held::Value(value, layout @ (Layout::Whole | Layout::Split(_))) => Ok((value, layout)),
            _ => Ok((self.needs_whole(id)?, Layout::Whole)),
        }
    }

    /// Whether a value has one row for each token: parameters and scores have not.
    pub(super) fn has_rows(&self, id: ValueId) -> bool {
        self.whole.ty(id).shape.len() == 3
    }
}

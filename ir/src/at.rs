//! Where new operations go, and what they are made of.

use crate::context::IrContext;
use crate::error::IrError;
use crate::raw::{self, Block, Op, Parts, Point, Value};
use melior::ir::{Attribute, Location, Type};

/// A place in a block and the location that new operations get.
#[derive(Clone, Copy, Debug)]
pub struct At<'c> {
    cx: &'c IrContext,
    point: Point<'c>,
    location: Location<'c>,
}

impl<'c> At<'c> {
    /// Before an operation, with its location.
    pub fn before(op: Op<'c>) -> Self {
        At { cx: op.context(), point: Point::Before(op), location: op.location() }
    }

    /// After an operation, with its location; a second new operation follows the first.
    pub fn after(op: Op<'c>) -> Self {
        match (op.next(), op.block()) {
            (Some(next), _) => At { point: Point::Before(next), ..At::before(op) },
            (None, Some(block)) => At { point: Point::End(block), ..At::before(op) },
            (None, None) => At::before(op),
        }
    }

    /// At the end of a block.
    pub fn end_of(block: Block<'c>) -> Self {
        At { cx: block.context(), point: Point::End(block), location: block.context().unknown() }
    }

    /// At the start of a block.
    pub fn start_of(block: Block<'c>) -> Self {
        match block.first() {
            Some(first) => At { location: block.context().unknown(), ..At::before(first) },
            None => At::end_of(block),
        }
    }

    /// The same place with another location.
    pub fn located(self, location: Location<'c>) -> Self {
        At { location, ..self }
    }

    /// The same place; new operations carry the name of a graph node.
    pub fn named(self, node: &str) -> Self {
        self.located(self.cx.named(node))
    }

    /// The context.
    pub fn context(self) -> &'c IrContext {
        self.cx
    }

    /// The location that new operations get.
    pub fn location(self) -> Location<'c> {
        self.location
    }

    /// Puts a new operation here. One without regions is verified at once; one with regions must be filled first.
    ///
    /// # Errors
    /// [`IrError::Invalid`] if types cannot be inferred or the operation does not verify; it is not inserted then.
    pub fn create(self, new: &New<'_, 'c>) -> Result<Op<'c>, IrError> {
        let parts = Parts {
            name: new.name,
            location: self.location,
            operands: &new.operands,
            attributes: &new.attributes,
            results: new.results.as_deref(),
            regions: new.regions,
        };
        let what = || format!("create {}", new.name);
        let op = self.cx.checked(what, || raw::create(self.cx, self.point, &parts))?;
        if new.regions == 0 {
            self.cx.checked(what, || op.verifies().then_some(())).inspect_err(|_| op.destroy())?;
        }
        Ok(op)
    }

    /// Puts a copy of an operation (and all it holds) here, reading `operands` instead of its own.
    pub fn copy(self, op: Op<'c>, operands: &[Value<'c>]) -> Op<'c> {
        let copy = op.cloned_into(self.point);
        copy.set_operands(operands);
        copy
    }
}

/// What a new operation is made of.
#[derive(Clone, Debug)]
pub struct New<'a, 'c> {
    name: &'a str,
    operands: Vec<Value<'c>>,
    attributes: Vec<(&'a str, Attribute<'c>)>,
    results: Option<Vec<Type<'c>>>,
    regions: usize,
}

impl<'a, 'c> New<'a, 'c> {
    /// An operation of this full name that infers its results.
    pub fn inferred(name: &'a str) -> Self {
        New { name, operands: Vec::new(), attributes: Vec::new(), results: None, regions: 0 }
    }

    /// An operation of this full name with these result types.
    pub fn of(name: &'a str, results: &[Type<'c>]) -> Self {
        New { results: Some(results.to_vec()), ..New::inferred(name) }
    }

    /// Appends operands.
    pub fn reads(mut self, operands: &[Value<'c>]) -> Self {
        self.operands.extend_from_slice(operands);
        self
    }

    /// Sets an attribute.
    pub fn with(mut self, name: &'a str, attribute: Attribute<'c>) -> Self {
        self.attributes.push((name, attribute));
        self
    }

    /// Sets an attribute if there is one.
    pub fn with_some(self, name: &'a str, attribute: Option<Attribute<'c>>) -> Self {
        match attribute {
            Some(attribute) => self.with(name, attribute),
            None => self,
        }
    }

    /// Gives it empty regions; fill them with [`Op::add_block`].
    pub fn regions(mut self, count: usize) -> Self {
        self.regions = count;
        self
    }
}

//! The code part of the grammar: tasks, statements, ops and operands.

use super::lexer::Token;
use super::parser::{Parsed, Parser};
use crate::program::{
    Affine, Colour, Command, Dest, OpKind, Operand, Serial, Slice, Stmt, Task, Trigger, VectorOp, Wire,
};

/// Blocks nested deeper than this are refused, so that a hostile text cannot exhaust the stack.
const DEEPEST: usize = 64;

impl Parser<'_> {
    pub(super) fn task(&mut self) -> Parsed<Task> {
        let name = self.name()?;
        let trigger = self.trigger()?;
        let times = match self.eat_word("times") {
            true => self.affine()?,
            false if trigger == Trigger::Start => Affine::constant(1),
            false => return self.expected("`times`", "say how often the task runs"),
        };
        Ok(Task { name, trigger, times, body: self.block()? })
    }

    fn trigger(&mut self) -> Parsed<Trigger> {
        if self.eat_word("start") {
            return Ok(Trigger::Start);
        }
        if self.eat_word("local") {
            return Ok(Trigger::Local);
        }
        if self.eat_word("data") {
            let (colour, wire) = self.wire_of()?;
            self.sign(")")?;
            return Ok(Trigger::Data { colour, wire });
        }
        if self.eat_word("control") {
            self.sign("(")?;
            let colour = self.colour()?;
            self.sign(")")?;
            return Ok(Trigger::Control { colour });
        }
        self.expected("a trigger", "start, data(colour: wire), control(colour) or local")
    }

    /// `(colour` or `(colour: wire`, without the closing parenthesis.
    fn wire_of(&mut self) -> Parsed<(Colour, Wire)> {
        self.sign("(")?;
        let colour = self.colour()?;
        let wire = if self.eat(":") { self.wire()? } else { Wire::F32 };
        Ok((colour, wire))
    }

    pub(super) fn wire(&mut self) -> Parsed<Wire> {
        for wire in [Wire::F32, Wire::F16, Wire::Bf16, Wire::F16x2, Wire::Bf16x2] {
            if self.eat_word(wire.name()) {
                return Ok(wire);
            }
        }
        self.expected("a wire", "f32, f16, bf16, f16x2 or bf16x2")
    }

    pub(super) fn block(&mut self) -> Parsed<Vec<Stmt>> {
        self.sign("{")?;
        self.depth += 1;
        if self.depth > DEEPEST {
            return self.expected("fewer nested blocks", "write flatter code");
        }
        let mut body = Vec::new();
        while !self.eat("}") {
            body.push(self.stmt()?);
        }
        self.depth -= 1;
        Ok(body)
    }

    fn stmt(&mut self) -> Parsed<Stmt> {
        if self.eat_word("loop") {
            let count = self.affine()?;
            return Ok(Stmt::Loop { count, body: self.block()? });
        }
        if self.eat_word("par") {
            self.sign("{")?;
            let mut ops = Vec::new();
            while !self.eat("}") {
                ops.push(self.op()?);
            }
            return Ok(Stmt::Par(ops));
        }
        if self.eat_word("control") {
            let colour = self.colour()?;
            return Ok(Stmt::Control { colour, command: self.command()? });
        }
        if self.eat_word("activate") {
            return Ok(Stmt::Activate(self.name()?));
        }
        if self.eat_word("phase") {
            return Ok(Stmt::Phase(self.name()?));
        }
        if self.is_word("do") && self.in_piece {
            return self.expected("a statement of its own", "a piece uses no other pieces");
        }
        if self.eat_word("do") {
            let Some(piece) = self.named().and_then(|name| self.pieces.get(name)).cloned() else {
                return self.expected("a piece", "define it above: piece NAME { .. }");
            };
            self.pass();
            return Ok(Stmt::Piece(piece));
        }
        for what in Serial::ALL {
            if self.eat_word(what.name()) {
                return Ok(Stmt::Serial { what, times: self.affine()? });
            }
        }
        Ok(Stmt::Op(self.op()?))
    }

    pub(super) fn command(&mut self) -> Parsed<Command> {
        for command in [Command::Advance, Command::Reset, Command::Nothing] {
            if self.eat_word(super::print::command(command)) {
                return Ok(command);
            }
        }
        self.expected("a command", "advance, reset or nothing")
    }

    fn op(&mut self) -> Parsed<VectorOp> {
        let Some(kind) = OpKind::ALL.into_iter().find(|k| self.is_word(k.name())) else {
            return self
                .expected("a statement", "an op such as `mov`, or loop, par, control, activate, phase, do, code, descriptors, transfers, tasks");
        };
        self.pass();
        let dst = self.dest()?;
        self.sign("<-")?;
        let mut src = vec![self.operand()?];
        while self.eat(",") {
            src.push(self.operand()?);
        }
        if src.len() != kind.arity() {
            let what = format!("{} operands of `{}`", kind.arity(), kind.name());
            return self.expected(&what, "operands are separated by commas and end at `len`");
        }
        self.word("len")?;
        Ok(VectorOp { kind, dst, src, dims: self.list()? })
    }

    fn dest(&mut self) -> Parsed<Dest> {
        if !self.eat_word("out") {
            return Ok(Dest::Mem(self.slice()?));
        }
        let (colour, wire) = self.wire_of()?;
        let then = if self.eat(",") { Some(self.command()?) } else { None };
        self.sign(")")?;
        Ok(match then {
            Some(then) => Dest::OutThen { colour, wire, then },
            None => Dest::Out { colour, wire },
        })
    }

    fn operand(&mut self) -> Parsed<Operand> {
        let negative = self.eat("-");
        let sign = if negative { -1.0 } else { 1.0 };
        let constant = match self.peek() {
            Token::Int(n) => Some(n as f32),
            Token::Float(v) => Some(v),
            Token::Word("inf") => Some(f32::INFINITY),
            Token::Word("nan") => Some(f32::NAN),
            _ => None,
        };
        if let Some(value) = constant {
            self.pass();
            return Ok(Operand::Const(sign * value));
        }
        if negative {
            return self.expected("a number", "only numbers can be negative here");
        }
        if self.eat_word("trigger") {
            return Ok(Operand::Trigger);
        }
        for stream in [true, false] {
            if self.eat_word(if stream { "in" } else { "scalar" }) {
                let (colour, wire) = self.wire_of()?;
                self.sign(")")?;
                return Ok(if stream {
                    Operand::In { colour, wire }
                } else {
                    Operand::Scalar { colour, wire }
                });
            }
        }
        Ok(Operand::Mem(self.slice()?))
    }

    fn slice(&mut self) -> Parsed<Slice> {
        let mut slice = Slice { buffer: self.name()?, at: Affine::constant(0), strides: Vec::new() };
        if !self.eat("[") {
            return Ok(slice);
        }
        slice.at = self.affine()?;
        if self.eat(";") {
            slice.strides.push(self.stride()?);
            while self.eat(",") {
                slice.strides.push(self.stride()?);
            }
        }
        self.sign("]")?;
        Ok(slice)
    }

    fn stride(&mut self) -> Parsed<i64> {
        let sign = if self.eat("-") { -1 } else { 1 };
        Ok(sign * self.int::<i64>("a stride")?)
    }
}

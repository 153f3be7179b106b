//! Text to programs: one function per construct, stopping at the first mistake.

use super::ParseError;
use super::lexer::{Lexer, Token};
use crate::program::{
    Affine, Buffer, Class, Colour, Direction, HostStream, Lifetime, Piece, Port, Position, Region, Route,
    Shared, TensorDecl, TensorMap, Var, WaferProgram, Wire,
};
use lapidary_models::dtype::DType;
use std::collections::BTreeMap;

/// Reads a program; `file` is the name to show in errors.
pub fn parse(text: &str, file: &str) -> Result<WaferProgram, ParseError> {
    let mut lexer = Lexer::new(text);
    let (token, at) = lexer.next();
    Parser {
        lexer,
        token,
        at,
        file,
        depth: 0,
        in_piece: false,
        pieces: BTreeMap::new(),
        memories: BTreeMap::new(),
    }
    .program()
}

/// A text being read.
pub(super) struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The current token and where it begins.
    token: Token<'a>,
    at: usize,
    file: &'a str,
    pub(super) depth: usize,
    /// Whether a piece is being read.
    pub(super) in_piece: bool,
    /// What has been defined so far, by name.
    pub(super) pieces: BTreeMap<String, Shared<Piece>>,
    memories: BTreeMap<String, Shared<Buffers>>,
}

/// A memory map.
type Buffers = BTreeMap<String, Buffer>;

/// A construct, or the first mistake.
pub(super) type Parsed<T> = Result<T, ParseError>;

impl<'a> Parser<'a> {
    /// The current token.
    pub(super) fn peek(&self) -> Token<'a> {
        self.token
    }

    /// Goes on to the next token.
    pub(super) fn pass(&mut self) {
        (self.token, self.at) = self.lexer.next();
    }

    /// An error at the current token.
    pub(super) fn expected<T>(&self, what: &str, hint: &str) -> Parsed<T> {
        let (line, column) = self.lexer.place(self.at);
        let found = self.token.describe();
        let (message, hint) = match self.token {
            Token::Unknown(_) | Token::Beyond(_) | Token::Open => {
                (format!("cannot read {found}"), "see the grammar of .wafer files")
            }
            _ => (format!("expected {what}, found {found}"), hint),
        };
        Err(ParseError { file: self.file.into(), line, column, message, hint: hint.into() })
    }

    /// A name at a place that something else of its kind already has.
    fn twice<T>(&self, at: usize, what: &str) -> Parsed<T> {
        let (line, column) = self.lexer.place(at);
        let (message, hint) = (format!("{what} is declared twice"), "give each its own".into());
        Err(ParseError { file: self.file.into(), line, column, message, hint })
    }

    pub(super) fn is_word(&self, word: &str) -> bool {
        matches!(self.token, Token::Word(w) if w == word)
    }

    fn is_sign(&self, sign: &str) -> bool {
        matches!(self.token, Token::Sign(s) if s == sign)
    }

    pub(super) fn eat_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        if found {
            self.pass();
        }
        found
    }

    pub(super) fn eat(&mut self, sign: &str) -> bool {
        let found = self.is_sign(sign);
        if found {
            self.pass();
        }
        found
    }

    pub(super) fn sign(&mut self, sign: &str) -> Parsed<()> {
        if self.eat(sign) {
            Ok(())
        } else {
            self.expected(&format!("`{sign}`"), "check the line against the grammar")
        }
    }

    pub(super) fn word(&mut self, word: &str) -> Parsed<()> {
        if self.eat_word(word) {
            Ok(())
        } else {
            self.expected(&format!("`{word}`"), "check the line against the grammar")
        }
    }

    pub(super) fn name(&mut self) -> Parsed<String> {
        match self.peek() {
            Token::Word(w) | Token::Quoted(w) => {
                self.pass();
                Ok(w.into())
            }
            _ => self.expected("a name", "quote names that are not plain words"),
        }
    }

    pub(super) fn int<T: TryFrom<i64>>(&mut self, what: &str) -> Parsed<T> {
        if let Token::Int(n) = self.peek()
            && let Ok(value) = T::try_from(n)
        {
            self.pass();
            return Ok(value);
        }
        self.expected(what, "write a whole number in range")
    }

    fn program(&mut self) -> Parsed<WaferProgram> {
        self.word("wafer")?;
        let width = self.int("the width")?;
        self.word("x")?;
        let height = self.int("the height")?;
        let mut program = WaferProgram::new(width, height);
        while self.peek() != Token::End {
            if self.eat_word("tensor") {
                let (at, name) = (self.at, self.name()?);
                if program.tensors.contains_key(&name) {
                    return self.twice(at, &format!("the tensor `{name}`"));
                }
                self.sign("[")?;
                let elements = self.int("the number of elements")?;
                self.sign("]")?;
                program.tensors.insert(name, TensorDecl { elements });
            } else if self.eat_word("phase") {
                program.phases.push(self.name()?);
            } else if self.eat_word("piece") {
                self.piece()?;
            } else if self.eat_word("memory") {
                self.memory()?;
            } else if self.eat_word("class") {
                program.classes.push(self.class()?);
            } else if self.eat_word("host") {
                program.host.push(self.host()?);
            } else {
                return self.expected(
                    "`tensor`, `phase`, `piece`, `memory`, `class` or `host`",
                    "one of them begins every item",
                );
            }
        }
        Ok(program)
    }

    /// The name of something new.
    fn new_name(&mut self, what: &str, is_known: bool) -> Parsed<String> {
        match is_known {
            true => self.expected(&format!("the name of another {what}"), "this one is defined above"),
            false => self.name(),
        }
    }

    fn piece(&mut self) -> Parsed<()> {
        let name = self.new_name("piece", self.named().is_some_and(|name| self.pieces.contains_key(name)))?;
        self.in_piece = true;
        let body = self.block()?;
        self.in_piece = false;
        self.pieces.insert(name.clone(), Piece { name, body }.into());
        Ok(())
    }

    fn memory(&mut self) -> Parsed<()> {
        let known = self.named().is_some_and(|name| self.memories.contains_key(name));
        let name = self.new_name("memory", known)?;
        let mut buffers = Buffers::new();
        self.sign("{")?;
        while !self.eat("}") {
            self.word("buffer")?;
            let name = self.name()?;
            let buffer = self.buffer()?;
            buffers.insert(name, buffer);
        }
        self.memories.insert(name, buffers.into());
        Ok(())
    }

    /// The name that comes next, if one does.
    pub(super) fn named(&self) -> Option<&'a str> {
        match self.token {
            Token::Word(name) | Token::Quoted(name) => Some(name),
            _ => None,
        }
    }

    fn class(&mut self) -> Parsed<Class> {
        let mut class = Class { name: self.name()?, ..Class::default() };
        self.word("at")?;
        class.regions.push(self.region()?);
        while self.eat(",") {
            class.regions.push(self.region()?);
        }
        self.sign("{")?;
        while !self.eat("}") {
            if self.eat_word("buffer") {
                let (at, name) = (self.at, self.name()?);
                if class.buffers.contains_key(&name) {
                    return self.twice(at, &format!("the buffer `{name}` of class `{}`", class.name));
                }
                let buffer = self.buffer()?;
                class.buffers.insert(name, buffer);
            } else if self.eat_word("memory") {
                let Some(memory) = self.named().and_then(|name| self.memories.get(name)).cloned() else {
                    return self.expected("a memory", "define it above: memory NAME { buffer .. }");
                };
                self.pass();
                match class.buffers.is_empty() {
                    true => class.buffers = memory,
                    false => class.buffers.extend(memory.iter().map(|(name, b)| (name.clone(), b.clone()))),
                }
            } else if self.eat_word("route") {
                let (at, colour) = (self.at, self.colour()?);
                if class.routes.contains_key(&colour) {
                    let Colour(colour) = colour;
                    return self
                        .twice(at, &format!("the route of colour {colour} in class `{}`", class.name));
                }
                self.sign(":")?;
                let route = self.route()?;
                class.routes.insert(colour, route);
            } else if self.eat_word("task") {
                class.tasks.push(self.task()?);
            } else {
                return self.expected(
                    "`memory`, `buffer`, `route`, `task` or `}`",
                    "one of them begins every item of a class",
                );
            }
        }
        Ok(class)
    }

    fn region(&mut self) -> Parsed<Region> {
        self.sign("(")?;
        let x = self.int("a column")?;
        self.sign(",")?;
        let mut region = Region::pe(x, self.int("a row")?);
        self.sign(")")?;
        if matches!(self.peek(), Token::Int(_)) {
            region.columns = self.int("the number of columns")?;
            self.word("x")?;
            region.rows = self.int("the number of rows")?;
        }
        if self.eat_word("step") {
            region.step_x = self.int("the distance of columns")?;
            self.word("x")?;
            region.step_y = self.int("the distance of rows")?;
        }
        Ok(region)
    }

    fn buffer(&mut self) -> Parsed<Buffer> {
        self.sign(":")?;
        let dtype = self.dtype()?;
        self.sign("[")?;
        let elements = self.int("the number of elements")?;
        self.sign("]")?;
        self.sign("@")?;
        let mut buffer = Buffer::new(dtype, elements, self.int("the first byte")?);
        loop {
            if self.eat_word("alive") {
                let first = self.name()?;
                self.sign("..")?;
                buffer.alive = Some(Lifetime { first, last: self.name()? });
            } else if self.eat_word("load") {
                buffer.load = Some(self.tensor_map()?);
            } else if self.eat_word("store") {
                buffer.store = Some(self.tensor_map()?);
            } else {
                return Ok(buffer);
            }
        }
    }

    fn dtype(&mut self) -> Parsed<DType> {
        for dtype in [DType::F32, DType::F16, DType::Bf16, DType::I32] {
            if self.eat_word(dtype.name()) {
                return Ok(dtype);
            }
        }
        self.expected("a dtype", "f32, f16 or bf16")
    }

    fn tensor_map(&mut self) -> Parsed<TensorMap> {
        let tensor = self.name()?;
        self.word("dims")?;
        let dims = self.list()?;
        self.word("at")?;
        Ok(TensorMap { tensor, dims, index: self.affine()? })
    }

    pub(super) fn list(&mut self) -> Parsed<Vec<Affine>> {
        let mut list = vec![self.affine()?];
        while self.eat(",") {
            list.push(self.affine()?);
        }
        Ok(list)
    }

    pub(super) fn affine(&mut self) -> Parsed<Affine> {
        let mut sum = Affine::constant(0);
        let mut sign = if self.eat("-") { -1 } else { 1 };
        loop {
            sum = sum + self.term()? * sign;
            sign = match (self.eat("+"), self.is_sign("-")) {
                (true, _) => 1,
                (false, true) => {
                    self.pass();
                    -1
                }
                (false, false) => return Ok(sum),
            };
        }
    }

    /// `3`, `x`, `2*x` or `x*2`.
    fn term(&mut self) -> Parsed<Affine> {
        if matches!(self.peek(), Token::Int(_)) {
            let n: i64 = self.int("a number")?;
            return if self.eat("*") { Ok(Affine::term(self.var()?, n)) } else { Ok(Affine::constant(n)) };
        }
        let var = self.var()?;
        let factor = if self.eat("*") { self.int("a number")? } else { 1 };
        Ok(Affine::term(var, factor))
    }

    fn var(&mut self) -> Parsed<Var> {
        let hint = "use x, y, x/n, y/n, t, i0.. (loops) or d0.. (dimensions)";
        let Token::Word(word) = self.peek() else {
            return self.expected("a number or variable", hint);
        };
        let Ok(var) = word.parse::<Var>() else { return self.expected("a number or variable", hint) };
        self.pass();
        if !(matches!(var, Var::X | Var::Y) && self.eat("/")) {
            return Ok(var);
        }
        if self.peek() == Token::Int(0) {
            return self.expected("a divisor", "divide by 1 or more");
        }
        let n = self.int("a divisor")?;
        Ok(if var == Var::X { Var::XOver(n) } else { Var::YOver(n) })
    }

    pub(super) fn colour(&mut self) -> Parsed<Colour> {
        Ok(Colour(self.int("a colour")?))
    }

    fn port(&mut self) -> Parsed<Port> {
        for port in [Port::Ramp, Port::North, Port::East, Port::South, Port::West] {
            if self.eat_word(port.name()) {
                return Ok(port);
            }
        }
        self.expected("a port", "ramp, north, east, south or west")
    }

    fn route(&mut self) -> Parsed<Route> {
        let mut positions = Vec::new();
        loop {
            let from = self.port()?;
            self.sign("->")?;
            let mut to = vec![self.port()?];
            while self.eat(",") {
                to.push(self.port()?);
            }
            positions.push(Position { from, to });
            if !self.eat("|") {
                return Ok(Route { positions });
            }
        }
    }

    fn host(&mut self) -> Parsed<HostStream> {
        let name = self.name()?;
        let direction = match self.peek() {
            Token::Word("in") => Direction::In,
            Token::Word("out") => Direction::Out,
            _ => return self.expected("`in` or `out`", "say whether words enter or leave the wafer"),
        };
        self.pass();
        let edge = self.port()?;
        self.word("lanes")?;
        let first = self.int("the first lane")?;
        self.sign("..")?;
        let lanes = self.int("the number of lanes")?;
        let step = if self.eat_word("step") { self.int("the distance of lanes")? } else { 1 };
        self.word("colour")?;
        let colour = self.colour()?;
        let wire = if self.eat(":") { self.wire()? } else { Wire::F32 };
        self.word("tensor")?;
        let TensorMap { tensor, dims, index } = self.tensor_map()?;
        let interval = if self.eat_word("interval") { self.int("cycles per word")? } else { 1 };
        let then = if self.eat_word("then") { Some(self.command()?) } else { None };
        Ok(HostStream {
            name,
            direction,
            edge,
            first,
            lanes,
            step,
            colour,
            wire,
            tensor,
            dims,
            index,
            then,
            interval,
        })
    }
}

//! Random programs on a grid: messages that travel along a row and then a column, each on a colour of its own, sent and
//! added up in one global order; then words that trigger tasks, in whatever order they come.

use crate::program::*;
use lapidary_models::dtype::DType;
use proptest::prelude::*;

/// Longest message.
pub const WORDS: u32 = 20;

/// One message: the first `words` elements of one PE are added to those of another.
#[derive(Clone, Debug)]
pub struct Message {
    from: (u32, u32),
    to: (u32, u32),
    words: u32,
    /// Times that the receiver then adds zero to its elements, to be busy.
    work: i64,
    /// Whether each word triggers a task that adds it to all elements, instead.
    triggers: bool,
}

/// A grid and its messages.
#[derive(Clone, Debug)]
pub struct Case {
    width: u32,
    height: u32,
    messages: Vec<Message>,
}

/// Random cases.
pub fn case() -> impl Strategy<Value = Case> {
    (2u32..5, 1u32..5).prop_flat_map(|(width, height)| {
        let at = || (0..width, 0..height);
        let message = (at(), at(), 1..=WORDS, 0i64..4, any::<bool>());
        let message = message.prop_map(move |(from, to, words, work, triggers)| {
            let to = if from == to { ((to.0 + 1) % width, to.1) } else { to };
            // A PE runs its tasks when it has sent all: triggers go one way, so that nobody waits in a circle.
            let back = triggers && (from.1, from.0) > (to.1, to.0);
            let (from, to) = if back { (to, from) } else { (from, to) };
            Message { from, to, words, work, triggers }
        });
        proptest::collection::vec(message, 1..14).prop_map(move |messages| Case { width, height, messages })
    })
}

impl Case {
    /// The messages in the order of the program: those that trigger tasks come last.
    fn ordered(&self) -> impl Iterator<Item = &Message> {
        let (first, last) = (self.messages.iter(), self.messages.iter());
        first.filter(|m| !m.triggers).chain(last.filter(|m| m.triggers))
    }

    /// The program, one class per PE.
    pub fn program(&self) -> WaferProgram {
        let mut program = WaferProgram::new(self.width, self.height);
        let all = u64::from(self.width * self.height * WORDS);
        program.tensor("v", all).tensor("out", all);
        for at in Region::rect(0, 0, self.width, self.height).pes() {
            let mut class = Class::new(format!("pe{}_{}", at.x, at.y), Region::pe(at.x, at.y));
            let row = i64::from(self.width * WORDS);
            let index = Affine::term(Var::X, i64::from(WORDS)).plus(Var::Y, row).plus(Var::Dim(0), 1);
            let map = |tensor: &str| {
                let dims = vec![Affine::constant(i64::from(WORDS))];
                Some(TensorMap { tensor: tensor.into(), dims, index: index.clone() })
            };
            let buffer = Buffer { load: map("v"), store: map("out"), ..Buffer::new(DType::F32, WORDS, 0) };
            class.buffers.insert("v".into(), buffer);
            let mut body = Vec::new();
            for (colour, message) in (0..).map(Colour).zip(self.ordered()) {
                message.member(at, colour, &mut class, &mut body);
            }
            class.start("main", body);
            program.classes.push(class);
        }
        program
    }

    /// What the messages do.
    pub fn expected(&self, v: &[f32]) -> Vec<f32> {
        let mut v = v.to_vec();
        let sent =
            |v: &[f32], m: &Message| -> Vec<f32> { v[self.first(m.from)..][..m.words as usize].to_vec() };
        for m in self.messages.iter().filter(|m| !m.triggers) {
            let words = sent(&v, m);
            v[self.first(m.to)..].iter_mut().zip(words).for_each(|(v, w)| *v += w);
        }
        let before = v.clone();
        for m in self.messages.iter().filter(|m| m.triggers) {
            let sum: f32 = sent(&before, m).iter().sum();
            v[self.first(m.to)..][..WORDS as usize].iter_mut().for_each(|v| *v += sum);
        }
        v
    }

    fn first(&self, at: (u32, u32)) -> usize {
        ((at.1 * self.width + at.0) * WORDS) as usize
    }
}

impl Message {
    /// The routers it passes, with the ports by which it enters and leaves.
    fn way(&self) -> Vec<((u32, u32), Port, Port)> {
        let (mut at, mut from, mut way) = (self.from, Port::Ramp, Vec::new());
        while at != self.to {
            let to = match (at.0.cmp(&self.to.0), at.1.cmp(&self.to.1)) {
                (std::cmp::Ordering::Less, _) => Port::East,
                (std::cmp::Ordering::Greater, _) => Port::West,
                (_, std::cmp::Ordering::Less) => Port::South,
                _ => Port::North,
            };
            way.push((at, from, to));
            from = to.opposite();
            match to {
                Port::East => at.0 += 1,
                Port::West => at.0 -= 1,
                Port::South => at.1 += 1,
                _ => at.1 -= 1,
            }
        }
        way.push((at, from, Port::Ramp));
        way
    }

    /// What the PE at `at` does for it.
    fn member(&self, at: Coord, colour: Colour, class: &mut Class, body: &mut Vec<Stmt>) {
        let here = |place: &(u32, u32)| *place == (at.x, at.y);
        if let Some((_, from, to)) = self.way().into_iter().find(|(place, ..)| here(place)) {
            class.routes.insert(colour, Route::fixed(from, &[to]));
        }
        let (wire, words) = (Wire::F32, self.words);
        if here(&self.from) {
            body.push(op(OpKind::Mov, Dest::Out { colour, wire }, vec![memory()], words));
        }
        if !here(&self.to) {
            return;
        }
        if self.triggers {
            let add = op(OpKind::Add, Dest::Mem(slice()), vec![memory(), Operand::Trigger], WORDS);
            class.tasks.push(Task {
                name: format!("on{}", colour.0),
                trigger: Trigger::Data { colour, wire },
                times: Affine::constant(i64::from(words)),
                body: vec![add],
            });
            return;
        }
        let sum = vec![memory(), Operand::In { colour, wire }];
        body.push(op(OpKind::Add, Dest::Mem(slice()), sum, words));
        let zero = vec![memory(), Operand::Const(0.0)];
        let busy = vec![op(OpKind::Add, Dest::Mem(slice()), zero, words)];
        body.push(Stmt::Loop { count: Affine::constant(self.work), body: busy });
    }
}

fn slice() -> Slice {
    Slice { buffer: "v".into(), at: Affine::constant(0), strides: Vec::new() }
}

fn memory() -> Operand {
    Operand::Mem(slice())
}

fn op(kind: OpKind, dst: Dest, src: Vec<Operand>, words: u32) -> Stmt {
    Stmt::Op(VectorOp { kind, dst, src, dims: vec![Affine::constant(i64::from(words))] })
}

/// Two PEs in two rows that send each other more than queues hold before they read.
pub fn deadlock() -> WaferProgram {
    let member = |own: u8, other: u8, port: &str| {
        format!(
            "buffer v: f32[64] @0 route {own}: ramp -> {port} route {other}: {port} -> ramp
  task t start {{ mov out({own}) <- v len 64 mov v <- in({other}) len 64 }}"
        )
    };
    let (a, b) = (member(0, 1, "south"), member(1, 0, "north"));
    let text = format!("wafer 1 x 2\nclass a at (0, 0) {{ {a} }}\nclass b at (0, 1) {{ {b} }}");
    crate::text::parse(&text, "exchange").unwrap_or_else(|error| panic!("{error}"))
}

//! One token's rotary embedding and its attention to a cache that stays in memory.
//!
//! Heads lie over blocks of rows; the cache's slots lie over the columns, so a PE has its rows' features of its columns'
//! tokens. Scores are sums over the rows of a block, the softmax and the result sums over the columns:
//!
//! ```text
//! scores[slot]    = sum over features of q k       rows of the head block
//! greatest        = max over slots                 row
//! sum, result[f]  = sums over slots of share, v    row, both at once
//! ```
//! Which slot is the new token's, and which slots it sees, follows from its position, one word that the host sends.

use super::rope::turned;
use super::sums::{LineSums, Sum};
use super::{Scratch, scratch_name};
use crate::wafer::channel::Channel;
use crate::wafer::code::{dims, from, number, op, slice, strided, to, words};
use crate::wafer::error::WaferError;
use crate::wafer::line::Axis;
use crate::wafer::placed::{CachedAttention, Layout, Placed, PlacedOp, RowHeads, Turn};
use crate::wafer::site::Site;
use crate::wafer::tile::Tiles;
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::program::{Affine, OpKind, Slice, Stmt, TensorMap, Var, Wire};

/// Far below any score, and finite, so that differences are numbers.
const MASKED: f64 = -1e30;

/// The host's tensor with the position of the token.
pub const POSITION: &str = "position";
/// The host's tensor of counting numbers.
pub const SLOTS: &str = "slots";
/// The caller's tensors `[slots, features]` with keys and values.
pub const CACHE: [&str; 2] = ["cache.keys", "cache.values"];

/// Statements of the rotation at one PE.
pub fn turn(site: &Site, at: &PlacedOp, turn: &Turn) -> Result<Vec<Stmt>, WaferError> {
    let (heads, queries) = head_rows(site.placed, at, &turn.value)?;
    let Some(row) = site.row_of(heads) else { return Ok(vec![]) };
    let (pairs, own) = (i64::from(heads.pair_tiles().size(row)), i64::from(heads.own(row)));
    let count = i64::from(heads.count(queries));
    let name = |scratch: &str| scratch_name(&at.name, scratch);
    let half = |second: bool| strided(&turn.value, if second { pairs } else { 0 }, &[own, 1]);
    let table = |table: &str| strided(&name(table), 0, &[0, 1]);
    let arrive = |name: String| {
        let come = words(site.channel(Channel::Along), Wire::F32);
        op(OpKind::Mov, to(slice(&name, 0)), [come], dims([pairs]))
    };
    let halves = [half(false), half(true)];
    let turns = turned(halves, [table("cos"), table("sin")], &["a", "b"].map(name), &dims([count, pairs]));
    Ok([arrive(name("cos")), arrive(name("sin"))].into_iter().chain(turns).collect())
}

/// The angles and two halves of the turned features.
pub fn turn_scratch(site: &Site, at: &PlacedOp, turn: &Turn) -> Result<Vec<Scratch>, WaferError> {
    let (heads, queries) = head_rows(site.placed, at, &turn.value)?;
    let Some(row) = site.row_of(heads) else { return Ok(vec![]) };
    let pairs = heads.pair_tiles().size(row);
    let all = pairs * heads.count(queries);
    let wide = |name, elements| Scratch::new(name, DType::F32, elements);
    Ok(vec![wide("cos", pairs), wide("sin", pairs), wide("a", all), wide("b", all)])
}

fn head_rows(placed: &Placed, at: &PlacedOp, value: &str) -> Result<(RowHeads, bool), WaferError> {
    match placed.layout(at, value)? {
        Layout::HeadRows { heads, queries } => Ok((heads, queries)),
        other => {
            let detail = format!("{value} lies as {other:?}, it must lie over the rows of heads");
            Err(WaferError::Layout { op: at.name.clone(), detail })
        }
    }
}

/// Statements of the attention at one PE.
pub fn code(site: &Site, at: &PlacedOp, attention: &CachedAttention) -> Result<Vec<Stmt>, WaferError> {
    let Some(k) = Kernel::new(site, at, attention)? else { return Ok(vec![position(site, at)]) };
    let [scores, greatest, result] = sums_of(site.placed, attention, k.heads);
    let mut body = k.place();
    body.extend(k.remember());
    body.extend(k.scores());
    body.extend(k.line(scores, "scores", OpKind::Add, k.count * k.slots));
    body.extend(k.mask());
    body.extend(k.line(greatest, "max", OpKind::Max, k.count));
    body.extend(k.weigh());
    body.extend(k.line(result, "result", OpKind::Add, k.count * (1 + k.own)));
    body.extend(k.divide());
    Ok(body)
}

/// Takes the position, which comes to all PEs of a column.
fn position(site: &Site, at: &PlacedOp) -> Stmt {
    let come = words(site.weights(), Wire::F32);
    op(OpKind::Mov, to(slice(&scratch_name(&at.name, "position"), 0)), [come], dims([1]))
}

/// The cache, scores, and the state of the softmax.
pub fn scratch(site: &Site, at: &PlacedOp, attention: &CachedAttention) -> Result<Vec<Scratch>, WaferError> {
    let Some(k) = Kernel::new(site, at, attention)? else {
        return Ok(vec![Scratch::new("position", DType::F32, 1)]);
    };
    let (slots, count) = (k.slots as u32, k.count as u32);
    let wide = |name, elements| Scratch::new(name, DType::F32, elements);
    let mut scratch = vec![
        wide("position", 1),
        wide("ahead", slots),
        wide("beyond", if attention.window.is_some() { slots } else { 0 }),
        wide("own", slots),
        wide("seen", slots),
        wide("scores", count * slots),
        Scratch::new("shares", site.placed.dtype, count * slots),
        wide("max", count),
        wide("result", count * (1 + k.own as u32)),
    ];
    scratch.push(Scratch::resident("slot", DType::F32, slots, k.slot_numbers()));
    let elements = k.cached();
    for (name, tensor) in ["keys", "values"].into_iter().zip(CACHE) {
        let part = k.cache_part(tensor);
        let stays = Scratch::resident(name, site.placed.dtype, elements as u32, part.clone());
        scratch.push(Scratch { store: Some(part), ..stays });
    }
    if !attention.slopes.is_empty() {
        scratch.push(Scratch::resident("slopes", DType::F32, count, k.slopes()));
    }
    Ok(scratch)
}

/// Its sums: scores, greatest score, result.
pub fn sums(placed: &Placed, attention: &CachedAttention) -> Vec<Sum> {
    match placed.values.get(&attention.query) {
        Some(Layout::HeadRows { heads, .. }) => sums_of(placed, attention, *heads).to_vec(),
        _ => vec![],
    }
}

fn sums_of(placed: &Placed, attention: &CachedAttention, heads: RowHeads) -> [Sum; 3] {
    let count = u64::from(heads.count(true));
    let slots = u64::from(Tiles::new(attention.capacity, placed.width).largest());
    let own = u64::from(heads.own(0));
    [
        Sum { axis: Axis::Rows(heads.blocks()), words: count * slots },
        Sum { axis: Axis::Row, words: count },
        Sum { axis: Axis::Row, words: count * (1 + own) },
    ]
}

struct Kernel<'a> {
    site: &'a Site<'a>,
    at: &'a PlacedOp,
    attention: &'a CachedAttention,
    heads: RowHeads,
    /// Query heads of the block, and key/value heads.
    count: i64,
    kv: i64,
    /// Features of a head in this row.
    own: i64,
    /// Slots of this column.
    slots: i64,
}

impl<'a> Kernel<'a> {
    fn new(
        site: &'a Site<'a>,
        at: &'a PlacedOp,
        attention: &'a CachedAttention,
    ) -> Result<Option<Self>, WaferError> {
        let (heads, _) = head_rows(site.placed, at, &attention.query)?;
        for value in [&attention.key, &attention.value, &attention.output] {
            head_rows(site.placed, at, value)?;
        }
        let Some(row) = site.row_of(heads) else { return Ok(None) };
        let slots = Tiles::new(attention.capacity, site.placed.width).size(site.at.x);
        let [count, kv] = [true, false].map(|queries| i64::from(heads.count(queries)));
        let (own, slots) = (heads.own(row).into(), slots.into());
        Ok(Some(Kernel { site, at, attention, heads, count, kv, own, slots }))
    }

    fn name(&self, scratch: &str) -> String {
        scratch_name(&self.at.name, scratch)
    }

    fn all(&self, scratch: &str) -> Slice {
        slice(&self.name(scratch), 0)
    }

    fn cached(&self) -> i64 {
        self.kv * self.slots * self.own
    }

    fn ways(&self) -> i64 {
        i64::from(self.heads.heads.ways)
    }

    fn line(&self, sum: Sum, buffer: &str, kind: OpKind, count: i64) -> Vec<Stmt> {
        let buffer = self.name(buffer);
        LineSums { site: self.site, sum, buffer: &buffer, kind, count }.share(vec![], count)
    }

    /// How far the slots are ahead of the token; 1 at its own slot and 0 at others; 0 at what it sees and far below zero at
    /// others.
    fn place(&self) -> Vec<Stmt> {
        let each = || dims([self.slots]);
        let (get, put) = (|name: &str| from(self.all(name)), |name: &str| to(self.all(name)));
        let position = from(strided(&self.name("position"), 0, &[0]));
        let mut body = vec![
            self::position(self.site, self.at),
            op(OpKind::Sub, put("ahead"), [get("slot"), position], each()),
            op(OpKind::Abs, put("own"), [get("ahead")], each()),
            op(OpKind::Sub, put("own"), [number(1.0), get("own")], each()),
            op(OpKind::Max, put("own"), [get("own"), number(0.0)], each()),
            op(OpKind::Max, put("seen"), [get("ahead"), number(0.0)], each()),
        ];
        if let Some(window) = self.attention.window {
            let beyond = [get("ahead"), number(-1.0), number(1.0 - f64::from(window))];
            body.extend([
                op(OpKind::Fmac, put("beyond"), beyond, each()),
                op(OpKind::Max, put("beyond"), [get("beyond"), number(0.0)], each()),
                op(OpKind::Add, put("seen"), [get("seen"), get("beyond")], each()),
            ]);
        }
        body.push(op(OpKind::Mul, put("seen"), [get("seen"), number(MASKED)], each()));
        body
    }

    /// Puts key and value of the token into its slot.
    fn remember(&self) -> Vec<Stmt> {
        let put = |cache: &str, value: &str| {
            let all = || slice(&self.name(cache), 0);
            let own = from(strided(&self.name("own"), 0, &[0, 1, 0]));
            let new = from(strided(value, 0, &[self.own, 0, 1]));
            op(OpKind::Fmac, to(all()), [new, own, from(all())], dims([self.kv, self.slots, self.own]))
        };
        vec![put("keys", &self.attention.key), put("values", &self.attention.value)]
    }

    /// Own parts of the scores.
    fn scores(&self) -> Vec<Stmt> {
        let (ways, slots, own) = (self.ways(), self.slots, self.own);
        let query = || slice(&self.attention.query, 0);
        let scores = || strided(&self.name("scores"), 0, &[ways * slots, slots, 1, 0]);
        let of_query = from(strided(&self.attention.query, 0, &[ways * own, own, 0, 1]));
        let keys = from(strided(&self.name("keys"), 0, &[slots * own, 0, own, 1]));
        let lengths = dims([self.kv, ways, slots, own]);
        vec![
            op(
                OpKind::Mul,
                to(query()),
                [from(query()), number(self.attention.scale)],
                dims([self.count * own]),
            ),
            op(OpKind::Mov, to(self.all("scores")), [number(0.0)], dims([self.count * slots])),
            op(OpKind::Fmac, to(scores()), [of_query, keys, from(scores())], lengths),
        ]
    }

    /// Adds what the distance makes of a score; the greatest of the own ones.
    fn mask(&self) -> Vec<Stmt> {
        let both = || dims([self.count, self.slots]);
        let scores = || from(self.all("scores"));
        let of_slot = |name: &str| from(strided(&self.name(name), 0, &[0, 1]));
        let greatest = || strided(&self.name("max"), 0, &[1, 0]);
        let mut body = Vec::new();
        if !self.attention.slopes.is_empty() {
            let slope = from(strided(&self.name("slopes"), 0, &[1, 0]));
            let add = [slope, of_slot("ahead"), scores()];
            body.push(op(OpKind::Fmac, to(self.all("scores")), add, both()));
        }
        body.extend([
            op(OpKind::Add, to(self.all("scores")), [scores(), of_slot("seen")], both()),
            op(OpKind::Mov, to(self.all("max")), [number(MASKED)], dims([self.count])),
            op(OpKind::Max, to(greatest()), [from(greatest()), scores()], both()),
        ]);
        body
    }

    /// Own parts of the sums of shares and of the result.
    fn weigh(&self) -> Vec<Stmt> {
        let (ways, slots, own, count) = (self.ways(), self.slots, self.own, self.count);
        let both = || dims([count, slots]);
        let scores = || from(self.all("scores"));
        let greatest = from(strided(&self.name("max"), 0, &[1, 0]));
        let sums = || strided(&self.name("result"), 0, &[1, 0]);
        let result = || strided(&self.name("result"), count, &[ways * own, own, 0, 1]);
        let shares = from(strided(&self.name("shares"), 0, &[ways * slots, slots, 1, 0]));
        let values = from(strided(&self.name("values"), 0, &[slots * own, 0, own, 1]));
        let lengths = dims([self.kv, ways, slots, own]);
        vec![
            op(OpKind::Sub, to(self.all("scores")), [scores(), greatest], both()),
            op(OpKind::Exp, to(self.all("shares")), [scores()], both()),
            op(OpKind::Mov, to(self.all("result")), [number(0.0)], dims([count * (1 + own)])),
            op(OpKind::Add, to(sums()), [from(sums()), from(self.all("shares"))], both()),
            op(OpKind::Fmac, to(result()), [shares, values, from(result())], lengths),
        ]
    }

    fn divide(&self) -> Vec<Stmt> {
        let sums = || slice(&self.name("result"), 0);
        let result = from(slice(&self.name("result"), self.count));
        let share = from(strided(&self.name("result"), 0, &[1, 0]));
        vec![
            op(OpKind::Recip, to(sums()), [from(sums())], dims([self.count])),
            op(
                OpKind::Mul,
                to(slice(&self.attention.output, 0)),
                [result, share],
                dims([self.count, self.own]),
            ),
        ]
    }

    fn first_slot(&self) -> Affine {
        Tiles::new(self.attention.capacity, self.site.placed.width).start_at(Var::X.into(), self.site.at.x)
    }

    fn slot_numbers(&self) -> TensorMap {
        let index = self.first_slot().plus(Var::Dim(0), 1);
        TensorMap { tensor: SLOTS.into(), dims: vec![self.slots.into()], index }
    }

    fn cache_part(&self, tensor: &str) -> TensorMap {
        let layout = Layout::HeadRows { heads: self.heads, queries: false };
        let (first, row) = (self.site.features(layout).1, i64::from(self.site.placed.features(layout)));
        let index = (self.first_slot() * row + first)
            .plus(Var::Dim(0), self.own)
            .plus(Var::Dim(1), row)
            .plus(Var::Dim(2), 1);
        TensorMap {
            tensor: tensor.into(),
            dims: vec![self.kv.into(), self.slots.into(), self.own.into()],
            index,
        }
    }

    fn slopes(&self) -> TensorMap {
        let index = (self.heads.blocks().block_of_y() * self.count).plus(Var::Dim(0), 1);
        TensorMap { tensor: self.name("slopes"), dims: vec![self.count.into()], index }
    }
}

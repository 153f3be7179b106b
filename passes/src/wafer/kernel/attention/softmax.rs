//! Scores of a block and the online softmax.

use super::{Kernel, Pass};
use crate::wafer::code::{dims, from, number, op, strided, to};
use lapidary_runtime_sim::program::{OpKind, Operand, Stmt};

impl Kernel<'_> {
    /// Scores of all own queries against the `keys` keys of the block, and what the pass makes of them.
    pub fn attend(&self, keys: i64, diagonal: bool) -> Vec<Stmt> {
        if keys == 0 || self.tokens() == 0 {
            return vec![];
        }
        let mut body = self.masked_scores(keys, diagonal);
        body.extend(match self.pass {
            Pass::Result => [self.soften(keys), self.weigh(keys)].concat(),
            Pass::Statistics { gradient } => {
                [self.soften(keys), self.shares_dx(gradient, keys), self.weigh_shares_dx(keys)].concat()
            }
            Pass::Gradients { gradient } => self.gradients(gradient, keys),
        });
        body
    }

    fn masked_scores(&self, keys: i64, diagonal: bool) -> Vec<Stmt> {
        let mut body = self.score(keys);
        if diagonal && keys > 1 {
            let lengths = dims([self.query_heads(), self.tokens(), keys]);
            let mask = from(strided(&self.name("mask"), 0, &[0, self.tokens(), 1]));
            body.push(op(OpKind::Add, to(self.all("scores")), [from(self.all("scores")), mask], lengths));
        }
        body.extend(self.weigh_distance(keys));
        body
    }

    fn score(&self, keys: i64) -> Vec<Stmt> {
        let (dim, queries) = (self.dim(), self.queries());
        let scores = || strided(&self.name("scores"), 0, &[queries * keys, keys, 1, 0]);
        let query = from(strided(self.scores.query, 0, &[queries * dim, dim, 0, 1]));
        let key = from(strided(&self.name("block"), 0, &[keys * dim, 0, dim, 1]));
        let count = self.key_heads() * queries * keys;
        let lengths = dims([self.key_heads(), queries, keys, dim]);
        vec![
            op(OpKind::Mov, to(self.all("scores")), [number(0.0)], dims([count])),
            op(OpKind::Fmac, to(scores()), [query, key, from(scores())], lengths),
        ]
    }

    /// The online softmax: moves the running maximum and turns scores into shares of it.
    fn soften(&self, keys: i64) -> Vec<Stmt> {
        let state = self.key_heads() * self.queries();
        let (each, both) = (|| dims([state]), || dims([state, keys]));
        let of_query = |name: &str| strided(&self.name(name), 0, &[1, 0]);
        let scores = || from(self.all("scores"));
        let get = |name: &str| from(self.all(name));
        let put = |name: &str| to(self.all(name));
        vec![
            op(OpKind::Mov, put("newmax"), [get("max")], each()),
            op(OpKind::Max, to(of_query("newmax")), [from(of_query("newmax")), scores()], both()),
            op(OpKind::Sub, put("shrink"), [get("max"), get("newmax")], each()),
            op(OpKind::Exp, put("shrink"), [get("shrink")], each()),
            op(OpKind::Sub, put("scores"), [scores(), from(of_query("newmax"))], both()),
            op(OpKind::Exp, put("shares"), [scores()], both()),
            op(OpKind::Mul, put("sum"), [get("sum"), get("shrink")], each()),
            op(OpKind::Add, to(of_query("sum")), [from(of_query("sum")), get("shares")], both()),
            op(OpKind::Mov, put("max"), [get("newmax")], each()),
        ]
    }

    /// Shrinks the result to the new maximum and adds the values by their shares.
    fn weigh(&self, keys: i64) -> Vec<Stmt> {
        let (dim, queries) = (self.dim(), self.queries());
        let state = self.key_heads() * queries;
        let shrink: Operand = from(strided(&self.name("shrink"), 0, &[1, 0]));
        let result = || strided(&self.name("result"), 0, &[queries * dim, dim, 0, 1]);
        let share = from(strided(&self.name("shares"), 0, &[queries * keys, keys, 1, 0]));
        let value = from(strided(&self.name("block"), self.values_at(), &[keys * dim, 0, dim, 1]));
        let lengths = dims([self.key_heads(), queries, keys, dim]);
        vec![
            op(OpKind::Mul, to(self.all("result")), [from(self.all("result")), shrink], dims([state, dim])),
            op(OpKind::Fmac, to(result()), [share, value, from(result())], lengths),
        ]
    }
}

//! Mean and inverse deviation of each token, in every column: what a norm and its derivatives begin with.

use crate::wafer::code::{dims, from, number, op, slice, strided, to};
use crate::wafer::kernel::sums::{self, LineSums};
use crate::wafer::kernel::{Scratch, scratch_name};
use crate::wafer::placed::{NormKind, PlacedOp};
use crate::wafer::site::Site;
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::program::{Affine, OpKind, Stmt, Var};

/// The statistics of one PE.
pub struct Statistics<'a> {
    site: &'a Site<'a>,
    input: &'a str,
    kind: NormKind,
    eps: f64,
    width: f64,
    sums: String,
    row: String,
    /// Features of the PE.
    pub features: i64,
    /// Tokens of the PE.
    pub tokens: i64,
}

impl<'a> Statistics<'a> {
    /// Of a value of `width` features.
    pub fn new(
        site: &'a Site<'a>,
        at: &PlacedOp,
        input: &'a str,
        kind: NormKind,
        eps: f64,
        width: u32,
    ) -> Self {
        let layout = crate::wafer::placed::Layout::Columns { features: width };
        Statistics {
            site,
            input,
            kind,
            eps,
            width: f64::from(width),
            sums: scratch_name(&at.name, "sums"),
            row: scratch_name(&at.name, "row"),
            features: i64::from(site.features(layout).0),
            tokens: i64::from(site.tokens()),
        }
    }

    /// Sums and a row of tokens.
    pub fn scratch(&self) -> Vec<Scratch> {
        let tokens = self.tokens as u32;
        let sums = tokens.saturating_mul(self.sums() as u32);
        vec![Scratch::new("sums", DType::F32, sums), Scratch::new("row", DType::F32, tokens)]
    }

    /// Sums per token: the squares, and for LayerNorm the values before them.
    fn sums(&self) -> i64 {
        match self.kind {
            NormKind::Rms => 1,
            NormKind::Layer => 2,
        }
    }

    /// First element of the sums of squares.
    fn squares(&self) -> i64 {
        (self.sums() - 1) * self.tokens
    }

    /// Own sums, and what the row makes of them.
    pub fn statements(&self) -> Vec<Stmt> {
        let count = self.sums() * self.tokens;
        let mut body = self.own_sums();
        let sum = sums::row(self.site.placed, self.sums());
        let sums = LineSums { site: self.site, sum, buffer: &self.sums, kind: OpKind::Add, count };
        body.extend(sums.share(self.finish(), count));
        body
    }

    fn own_sums(&self) -> Vec<Stmt> {
        let sums = &self.sums;
        let tile = || from(slice(self.input, 0));
        let lengths = || dims([self.features, self.tokens]);
        let per_token = |first: i64| strided(sums, first, &[0, 1]);
        let squares = || per_token(self.squares());
        let mut body =
            vec![op(OpKind::Mov, to(slice(sums, 0)), [number(0.0)], dims([self.sums() * self.tokens]))];
        if self.kind == NormKind::Layer {
            body.push(op(OpKind::Add, to(per_token(0)), [from(per_token(0)), tile()], lengths()));
        }
        body.push(op(OpKind::Fmac, to(squares()), [tile(), tile(), from(squares())], lengths()));
        body
    }

    /// Sums of the whole row to mean and inverse deviation, in the last column.
    fn finish(&self) -> Vec<Stmt> {
        let (sums, row) = (&self.sums, &self.row);
        let squares = || slice(sums, self.squares());
        let tokens = || dims([self.tokens]);
        let divide = from(slice(sums, 0));
        let all = dims([self.sums() * self.tokens]);
        let mut body = vec![op(OpKind::Mul, to(slice(sums, 0)), [divide, number(1.0 / self.width)], all)];
        if self.kind == NormKind::Layer {
            let mean = || from(slice(sums, 0));
            body.push(op(OpKind::Mul, to(slice(row, 0)), [mean(), mean()], tokens()));
            body.push(op(OpKind::Sub, to(squares()), [from(squares()), from(slice(row, 0))], tokens()));
            body.push(op(OpKind::Max, to(squares()), [from(squares()), number(0.0)], tokens()));
        }
        body.push(op(OpKind::Add, to(squares()), [from(squares()), number(self.eps)], tokens()));
        body.push(op(OpKind::Rsqrt, to(squares()), [from(squares())], tokens()));
        body
    }

    /// The normalised feature of the loop around, in the row: `(x - mean) * inverse`.
    pub fn normalised(&self) -> Vec<Stmt> {
        let x = from(slice(self.input, Affine::term(Var::Loop(0), self.tokens)));
        let row = || slice(&self.row, 0);
        let inverse = from(slice(&self.sums, self.squares()));
        let tokens = || dims([self.tokens]);
        match self.kind {
            NormKind::Rms => vec![op(OpKind::Mul, to(row()), [x, inverse], tokens())],
            NormKind::Layer => vec![
                op(OpKind::Sub, to(row()), [x, from(slice(&self.sums, 0))], tokens()),
                op(OpKind::Mul, to(row()), [from(row()), inverse], tokens()),
            ],
        }
    }
}

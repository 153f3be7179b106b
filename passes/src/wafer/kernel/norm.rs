//! RMSNorm and LayerNorm over the features of each token.
//!
//! Each PE sums its own features (and their squares) per token; the sums run eastwards along the row, every PE adding
//! its own; the last column turns them into mean and inverse deviation and sends these back over the row at once. That
//! is one word per token for RMSNorm and two for LayerNorm, whatever the number of features.

use super::{Scratch, scratch_name};
use crate::wafer::channel::Channel;
use crate::wafer::code::{dims, from, number, op, repeat, send, slice, strided, to, words};
use crate::wafer::error::WaferError;
use crate::wafer::placed::{Layout, Norm, NormKind, PlacedOp};
use crate::wafer::site::Site;
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::program::{Affine, OpKind, Stmt, Var, Wire};

/// Statements of one PE.
pub fn code(site: &Site, at: &PlacedOp, norm: &Norm) -> Result<Vec<Stmt>, WaferError> {
    let k = Kernel::new(site, at, norm)?;
    let mut body = k.receive_weights();
    body.extend(k.own_sums());
    body.extend(k.share_sums());
    body.extend(k.apply());
    Ok(body)
}

/// Sums, one row of features, weight and bias.
pub fn scratch(site: &Site, at: &PlacedOp, norm: &Norm) -> Result<Vec<Scratch>, WaferError> {
    let k = Kernel::new(site, at, norm)?;
    let (features, tokens) = (k.features as u32, k.tokens as u32);
    let biases = if norm.bias.is_some() { features } else { 0 };
    let sums = k.sums() as u32;
    Ok(vec![
        Scratch::new("sums", DType::F32, sums.saturating_mul(tokens)),
        Scratch::new("row", DType::F32, tokens),
        Scratch::new("weight", DType::F32, features),
        Scratch::new("bias", DType::F32, biases),
    ])
}

struct Kernel<'a> {
    site: &'a Site<'a>,
    at: &'a PlacedOp,
    norm: &'a Norm,
    features: i64,
    tokens: i64,
    width: f64,
}

impl<'a> Kernel<'a> {
    fn new(site: &'a Site<'a>, at: &'a PlacedOp, norm: &'a Norm) -> Result<Self, WaferError> {
        let (input, output) = (site.placed.layout(at, &norm.input)?, site.placed.layout(at, &norm.output)?);
        let Layout::Columns { features: width } = input else {
            let detail = "a norm needs features over all columns".into();
            return Err(WaferError::Layout { op: at.name.clone(), detail });
        };
        if input != output {
            let detail = format!("{} and {} lie differently", norm.input, norm.output);
            return Err(WaferError::Layout { op: at.name.clone(), detail });
        }
        let features = i64::from(site.features(input).0);
        Ok(Kernel { site, at, norm, features, tokens: i64::from(site.tokens()), width: f64::from(width) })
    }

    /// Sums per token: the squares, and for LayerNorm the values before them.
    fn sums(&self) -> i64 {
        match self.norm.kind {
            NormKind::Rms => 1,
            NormKind::Layer => 2,
        }
    }

    fn name(&self, scratch: &str) -> String {
        scratch_name(&self.at.name, scratch)
    }

    /// First element of the sums of squares.
    fn squares(&self) -> i64 {
        (self.sums() - 1) * self.tokens
    }

    fn receive_weights(&self) -> Vec<Stmt> {
        let arrive = |name: &str| {
            let word = words(self.site.weights(), Wire::F32);
            op(OpKind::Mov, to(slice(&self.name(name), 0)), [word], dims([self.features]))
        };
        let bias = self.norm.bias.iter().map(|_| arrive("bias"));
        std::iter::once(arrive("weight")).chain(bias).collect()
    }

    fn own_sums(&self) -> Vec<Stmt> {
        let sums = self.name("sums");
        let tile = || from(slice(&self.norm.input, 0));
        let lengths = || dims([self.features, self.tokens]);
        let per_token = |first: i64| strided(&sums, first, &[0, 1]);
        let squares = || per_token(self.squares());
        let mut body =
            vec![op(OpKind::Mov, to(slice(&sums, 0)), [number(0.0)], dims([self.sums() * self.tokens]))];
        if self.norm.kind == NormKind::Layer {
            body.push(op(OpKind::Add, to(per_token(0)), [from(per_token(0)), tile()], lengths()));
        }
        body.push(op(OpKind::Fmac, to(squares()), [tile(), tile(), from(squares())], lengths()));
        body
    }

    fn share_sums(&self) -> Vec<Stmt> {
        let sums = || slice(&self.name("sums"), 0);
        let all = || dims([self.sums() * self.tokens]);
        let come = words(self.site.previous_column(), Wire::F32);
        let on = send(self.site.next_column(), Wire::F32);
        let back = self.site.channel(Channel::Back);
        if self.site.is_last() {
            let mut body = vec![op(OpKind::Add, to(sums()), [from(sums()), come], all())];
            body.extend(self.finish());
            body.push(op(OpKind::Mov, send(back, Wire::F32), [from(sums())], all()));
            return body;
        }
        let forward = if self.site.at.x == 0 {
            op(OpKind::Mov, on, [from(sums())], all())
        } else {
            op(OpKind::Add, on, [from(sums()), come], all())
        };
        vec![forward, op(OpKind::Mov, to(sums()), [words(back, Wire::F32)], all())]
    }

    /// Sums of the whole row to mean and inverse deviation, in the last column.
    fn finish(&self) -> Vec<Stmt> {
        let (sums, row) = (self.name("sums"), self.name("row"));
        let squares = || slice(&sums, self.squares());
        let tokens = || dims([self.tokens]);
        let divide = from(slice(&sums, 0));
        let all = dims([self.sums() * self.tokens]);
        let mut body = vec![op(OpKind::Mul, to(slice(&sums, 0)), [divide, number(1.0 / self.width)], all)];
        if self.norm.kind == NormKind::Layer {
            let mean = || from(slice(&sums, 0));
            body.push(op(OpKind::Mul, to(slice(&row, 0)), [mean(), mean()], tokens()));
            body.push(op(OpKind::Sub, to(squares()), [from(squares()), from(slice(&row, 0))], tokens()));
            body.push(op(OpKind::Max, to(squares()), [from(squares()), number(0.0)], tokens()));
        }
        body.push(op(OpKind::Add, to(squares()), [from(squares()), number(self.norm.eps)], tokens()));
        body.push(op(OpKind::Rsqrt, to(squares()), [from(squares())], tokens()));
        body
    }

    /// `(x - mean) * inverse * weight + bias`, feature by feature, rounded once.
    fn apply(&self) -> Vec<Stmt> {
        let (sums, row) = (self.name("sums"), self.name("row"));
        let feature = Affine::term(Var::Loop(0), self.tokens);
        let one = |buffer: &str| from(strided(buffer, Affine::from(Var::Loop(0)), &[0]));
        let x = from(slice(&self.norm.input, feature.clone()));
        let current = || from(slice(&row, 0));
        let inverse = from(slice(&sums, self.squares()));
        let result = to(slice(&self.norm.output, feature));
        let tokens = || dims([self.tokens]);
        let mut body = Vec::new();
        match self.norm.kind {
            NormKind::Rms => body.push(op(OpKind::Mul, to(slice(&row, 0)), [x, inverse], tokens())),
            NormKind::Layer => {
                body.push(op(OpKind::Sub, to(slice(&row, 0)), [x, from(slice(&sums, 0))], tokens()));
                body.push(op(OpKind::Mul, to(slice(&row, 0)), [current(), inverse], tokens()));
            }
        }
        let weight = one(&self.name("weight"));
        body.push(match self.norm.bias {
            Some(_) => op(OpKind::Fmac, result, [current(), weight, one(&self.name("bias"))], tokens()),
            None => op(OpKind::Mul, result, [current(), weight], tokens()),
        });
        repeat(self.features, body)
    }
}

//! A product of one token with weights that stay in memory.
//!
//! A PE holds the weights of its own input and output features: what lies over columns is summed over rows of PEs, what
//! lies over rows over columns of PEs. The sums of all outputs of a line go back to all of its PEs, so that the result
//! lies over the other axis, the same on every line of it.

use super::sums::{LineSums, Sum};
use super::{Scratch, scratch_name};
use crate::wafer::code::{dims, from, number, op, slice, strided, to};
use crate::wafer::error::WaferError;
use crate::wafer::line::Axis;
use crate::wafer::placed::{Layout, Linear, Placed, PlacedOp, Segment};
use crate::wafer::site::Site;
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::program::{Affine, OpKind, Stmt, TensorMap, Var};

/// Statements of one PE.
pub fn code(site: &Site, at: &PlacedOp, linear: &Linear) -> Result<Vec<Stmt>, WaferError> {
    let k = Kernel::new(site, at, linear)?;
    let (sums, total) = (k.name("sums"), k.outputs().iter().map(|output| output.own).sum::<i64>());
    let mut body = vec![op(OpKind::Mov, to(slice(&sums, 0)), [number(0.0)], dims([total]))];
    body.extend(k.outputs().iter().map(|output| k.product(output)));
    let line = LineSums { site, sum: k.sum, buffer: &sums, kind: OpKind::Add, count: total };
    body.extend(line.share(vec![], total));
    for output in k.outputs() {
        body.extend(k.finish(&output));
    }
    Ok(body)
}

/// The sums, and the weights and biases that stay.
pub fn scratch(site: &Site, at: &PlacedOp, linear: &Linear) -> Result<Vec<Scratch>, WaferError> {
    let k = Kernel::new(site, at, linear)?;
    let mut scratch = Vec::new();
    let mut total = 0;
    for output in k.outputs() {
        total += output.own;
        scratch.push(k.weights(&output));
        scratch.extend(output.segment.bias.iter().map(|_| k.bias(&output)));
    }
    scratch.push(Scratch::new("sums", DType::F32, total as u32));
    Ok(scratch)
}

/// The sum of the outputs, whose words are those of the fullest line.
pub fn sum(placed: &Placed, linear: &Linear) -> Option<Sum> {
    let layouts = linear.outputs.iter().map(|segment| placed.values.get(&segment.value));
    let layouts = layouts.collect::<Option<Vec<&Layout>>>()?;
    let words = layouts.iter().map(|layout| placed.fullest(**layout)).sum();
    let axis = if layouts.first()?.is_over_rows() { Axis::Row } else { Axis::Column };
    Some(Sum { axis, words })
}

struct Kernel<'a> {
    site: &'a Site<'a>,
    at: &'a PlacedOp,
    linear: &'a Linear,
    input: Layout,
    sum: Sum,
}

/// One output at a PE.
struct Output<'a> {
    number: usize,
    segment: &'a Segment,
    layout: Layout,
    own: i64,
    /// First of its sums.
    first: i64,
}

impl<'a> Kernel<'a> {
    fn new(site: &'a Site<'a>, at: &'a PlacedOp, linear: &'a Linear) -> Result<Self, WaferError> {
        let fault = |detail: String| WaferError::Layout { op: at.name.clone(), detail };
        let input = site.placed.layout(at, &linear.input)?;
        for segment in &linear.outputs {
            if site.placed.layout(at, &segment.value)?.is_over_rows() == input.is_over_rows() {
                let detail = format!("{} and {} must lie over different axes", linear.input, segment.value);
                return Err(fault(detail));
            }
        }
        let sum = sum(site.placed, linear).ok_or_else(|| fault("it has no outputs".into()))?;
        Ok(Kernel { site, at, linear, input, sum })
    }

    fn name(&self, scratch: &str) -> String {
        scratch_name(&self.at.name, scratch)
    }

    fn outputs(&self) -> Vec<Output<'a>> {
        let mut first = 0;
        let layouts = self.linear.outputs.iter().enumerate();
        layouts
            .filter_map(|(number, segment)| {
                let layout = *self.site.placed.values.get(&segment.value)?;
                let own = i64::from(self.site.features(layout).0);
                first += own;
                Some(Output { number, segment, layout, own, first: first - own })
            })
            .collect()
    }

    fn inputs(&self) -> i64 {
        i64::from(self.site.features(self.input).0)
    }

    /// `sums[output] += weight[output][input] * x[input]`.
    fn product(&self, output: &Output) -> Stmt {
        let sums = || strided(&self.name("sums"), output.first, &[1, 0]);
        let weight = from(slice(&self.name(weight_name(output.number)), 0));
        let x = from(strided(&self.linear.input, 0, &[0, 1]));
        op(OpKind::Fmac, to(sums()), [weight, x, from(sums())], dims([output.own, self.inputs()]))
    }

    /// Adds bias and old value, and rounds once.
    fn finish(&self, output: &Output) -> Vec<Stmt> {
        let sums = || slice(&self.name("sums"), output.first);
        let value = || slice(&output.segment.value, 0);
        let own = || dims([output.own]);
        let bias = output.segment.bias.iter().map(|_| {
            let bias = from(slice(&self.name(bias_name(output.number)), 0));
            op(OpKind::Add, to(sums()), [from(sums()), bias], own())
        });
        let end = match self.linear.accumulate {
            true => op(OpKind::Add, to(value()), [from(value()), from(sums())], own()),
            false => op(OpKind::Mov, to(value()), [from(sums())], own()),
        };
        bias.chain([end]).collect()
    }

    fn weights(&self, output: &Output) -> Scratch {
        let ((inputs, first_input), (outputs, first_output)) =
            (self.site.features(self.input), self.site.features(output.layout));
        let columns = i64::from(self.site.placed.features(self.input));
        let index = (first_output * columns + first_input).plus(Var::Dim(0), columns).plus(Var::Dim(1), 1);
        let lengths = vec![i64::from(outputs).into(), i64::from(inputs).into()];
        let name = weight_name(output.number);
        let load = TensorMap { tensor: self.name(name), dims: lengths, index };
        Scratch::resident(name, self.site.placed.dtype, outputs.saturating_mul(inputs), load)
    }

    fn bias(&self, output: &Output) -> Scratch {
        let (outputs, first) = self.site.features(output.layout);
        let name = bias_name(output.number);
        let index: Affine = first.plus(Var::Dim(0), 1);
        let load = TensorMap { tensor: self.name(name), dims: vec![i64::from(outputs).into()], index };
        Scratch::resident(name, DType::F32, outputs, load)
    }
}

/// Most outputs of one product: query, key and value.
const OUTPUTS: usize = 4;

/// Names of the buffers, and of the host's tensors, by the number of the output.
pub fn weight_name(number: usize) -> &'static str {
    const NAMES: [&str; OUTPUTS] = ["weight0", "weight1", "weight2", "weight3"];
    NAMES[number.min(OUTPUTS - 1)]
}

/// As [`weight_name`].
pub fn bias_name(number: usize) -> &'static str {
    const NAMES: [&str; OUTPUTS] = ["bias0", "bias1", "bias2", "bias3"];
    NAMES[number.min(OUTPUTS - 1)]
}

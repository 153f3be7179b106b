//! Writes the code that evaluates a region's operations on a run of `W` neighbouring columns of one row.
//!
//! A value is a C array `float v7[W]`. The code around it provides `row`, `col` (first column of the run) and `valid` (how
//! many of the `W` columns exist), and `cached` where the region works at positions. Nothing is rounded between
//! operations; values are rounded once, when they are stored.
use super::source::{Signature, c_float, constants};
use super::spec::{
    ActivationFn, Anchor, Backward, KernelOp, KernelSpec, Mask, Pairing, Rope, RopeScaling, Source,
    TensorType, ValueId,
};
use super::{CudaError, Operand};
use lapidary_runtime_gpu::program::{Access, Dtype, RowOrder};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Where the code stands: the name of a value's array and of the column it starts at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Appended to `v7`: `[c]` in an unrolled loop over runs, `_p` at a rotation's partner columns, else nothing.
    pub suffix: String,
    /// C name of the first column.
    pub col: String,
    /// C name of the number of columns that exist.
    pub valid: String,
}

impl Place {
    /// The place with names `col` and `valid` and the given suffix.
    pub fn here(suffix: &str) -> Place {
        Place { suffix: suffix.into(), col: "col".into(), valid: "valid".into() }
    }
}

/// What an evaluation of a region knows while it writes code.
pub(crate) struct Evaluator<'a> {
    pub spec: &'a KernelSpec,
    /// C expression prefix of pointers: empty in an entry point, `args.` where they come in a struct.
    pub pointers: &'static str,
    /// Rows of the loop around the code.
    pub rows: u64,
    /// Rows of one sequence: row r is at position `cached + r % sequence` of sequence `r / sequence`.
    pub sequence: u64,
    /// Columns of a run.
    pub width: u64,
    /// Whether half-split pairs were made neighbours when the weights were packed.
    pub paired: bool,
    /// Values already in their arrays.
    pub done: BTreeSet<(ValueId, String)>,
    /// Whether arrays are declared where they are first written.
    pub declare: bool,
}

impl<'a> Evaluator<'a> {
    /// The array of a value.
    pub fn name(&self, value: ValueId, place: &Place) -> String {
        format!("v{value}{}", place.suffix)
    }

    /// Says that a value's array is filled by other means.
    pub fn provide(&mut self, value: ValueId, place: &Place) {
        self.done.insert((value, place.suffix.clone()));
    }

    /// Code after which the value is in its array, operands first.
    pub fn value(&mut self, value: ValueId, place: &Place) -> Result<String, CudaError> {
        if self.done.contains(&(value, place.suffix.clone())) {
            return Ok(String::new());
        }
        let mut code = String::new();
        let spec = self.spec;
        let Some(op) = spec.op(value) else {
            self.declaration(value, place, &mut code);
            code.push_str(&self.load_input(value, place)?);
            self.provide(value, place);
            return Ok(code);
        };
        if matches!(op.op, KernelOp::Embed | KernelOp::EmbedPart { .. }) {
            self.declaration(value, place, &mut code);
            code.push_str(&self.gather(value, place)?);
            self.provide(value, place);
            return Ok(code);
        }
        for &operand in streamed(&op.op, &op.operands) {
            code.push_str(&self.value(operand, place)?);
        }
        if let (Some((rope, _)), false) = (rotation(&op.op), self.neighbours(&op.op)) {
            code.push_str(&self.at_partner(op.operands[0], rope, place)?);
        }
        self.declaration(value, place, &mut code);
        code.push_str(&self.operation(value, place)?);
        self.provide(value, place);
        Ok(code)
    }

    fn declaration(&self, value: ValueId, place: &Place, code: &mut String) {
        if self.declare {
            let _ = writeln!(code, "float {}[{}];", self.name(value, place), self.width);
        }
    }

    fn neighbours(&self, op: &KernelOp) -> bool {
        rotation(op).is_some_and(|(rope, _)| self.paired || rope.pairing == Pairing::Interleaved)
    }

    fn load_input(&self, input: ValueId, place: &Place) -> Result<String, CudaError> {
        let ty = &self.spec.inputs[input].ty;
        if matches!(self.spec.inputs[input].source, Source::Param { .. }) {
            return Err(self
                .spec
                .unsupported("a parameter is used as an activation", "use it in bias, norm or linear"));
        }
        let row = self.row_of(ty)?;
        let (name, pitch) = (self.name(input, place), ty.pitch());
        let (col, valid, pointers) = (&place.col, &place.valid, self.pointers);
        Ok(format!("lp_load(&{pointers}in{input}[size_t({row}) * {pitch} + {col}], {valid}, {name});\n"))
    }

    /// The row of a tensor that belongs to the loop's row: the same one, or the last of its sequence.
    fn row_of(&self, ty: &TensorType) -> Result<String, CudaError> {
        if ty.rows() == self.rows {
            return Ok("row".into());
        }
        match ty.shape.as_slice() {
            [b, s, _] if *b == self.rows => Ok(format!("(row * {s} + {})", s - 1)),
            shape => Err(self.spec.unsupported(
                format!("a tensor {shape:?} in a loop over {} rows", self.rows),
                "all tensors of a region share their rows, or meet after last_token",
            )),
        }
    }

    fn gather(&self, value: ValueId, place: &Place) -> Result<String, CudaError> {
        let op = self.spec.op(value).ok_or_else(|| self.spec.malformed("no such value"))?;
        let (ids, table) = (op.operands[0], op.operands[1]);
        let (name, pitch, p) = (self.name(value, place), self.spec.ty(table).pitch(), self.pointers);
        let (col, valid) = (&place.col, &place.valid);
        if let KernelOp::EmbedPart { first } = op.op {
            let rows = self.spec.ty(table).rows();
            return Ok(format!(
                "{{ const int id = {p}in{ids}[row] - {first}; const bool here = id >= 0 && id < {rows};\n    \
                 lp_load(&{p}in{table}[size_t(here ? id : 0) * {pitch} + {col}], here ? {valid} : 0, {name}); }}\n"
            ));
        }
        Ok(format!("lp_load(&{p}in{table}[size_t({p}in{ids}[row]) * {pitch} + {col}], {valid}, {name});\n"))
    }

    fn each(&self, body: &str) -> String {
        format!("LP_UNROLL for (int e = 0; e < {}; ++e) {body}\n", self.width)
    }

    fn operation(&self, value: ValueId, place: &Place) -> Result<String, CudaError> {
        let Some(op) = self.spec.op(value) else { return Ok(String::new()) };
        let y = self.name(value, place);
        let x = self.name(op.operands[0], place);
        let second = op.operands.get(1).copied();
        let code = match &op.op {
            KernelOp::Add => {
                self.each(&format!("{y}[e] = {x}[e] + {}[e];", self.name(second.unwrap_or(0), place)))
            }
            KernelOp::Mul => {
                self.each(&format!("{y}[e] = {x}[e] * {}[e];", self.name(second.unwrap_or(0), place)))
            }
            KernelOp::Scale { by } => self.each(&format!("{y}[e] = {x}[e] * {};", c_float(*by))),
            KernelOp::Activation(f) => self.each(&format!("{y}[e] = {}({x}[e]);", function(*f))),
            KernelOp::LastToken | KernelOp::KvAppend { .. } => self.each(&format!("{y}[e] = {x}[e];")),
            KernelOp::Bias => {
                self.with_vector(second.unwrap_or(0), place, &format!("{y}[e] = {x}[e] + p[e];"))
            }
            KernelOp::Position { .. } => self.add_position(second.unwrap_or(0), &x, &y, place),
            KernelOp::Rope(_) | KernelOp::Backward(Backward::RopeDx(_)) => {
                self.rotate(value, &x, &y, place)?
            }
            KernelOp::Mask(mask) => self.mask(value, mask, "-LP_INFINITY", &x, &y, place),
            KernelOp::Backward(Backward::MaskDx(mask)) => {
                self.mask(value, &Mask { alibi: false, ..mask.clone() }, "0.0f", &x, &y, place)
            }
            KernelOp::Backward(Backward::ActivationDx(f)) => self.each(&format!(
                "{y}[e] = {}_dx({x}[e]) * {}[e];",
                function(*f),
                self.name(second.unwrap_or(0), place)
            )),
            KernelOp::Backward(Backward::Gradient { .. }) => self.each(&format!("{y}[e] = {x}[e];")),
            other => {
                let what = format!("{} inside a kernel that evaluates element by element", other.word());
                return Err(self.spec.unsupported(what, "give it a region of its own"));
            }
        };
        Ok(code)
    }

    /// Code that has the parameter's columns in `p`.
    pub fn with_vector(&self, param: ValueId, place: &Place, body: &str) -> String {
        let (width, col, valid, pointers) = (self.width, &place.col, &place.valid, self.pointers);
        let load = format!("float p[{width}]; lp_load(&{pointers}in{param}[{col}], {valid}, p);");
        format!("{{ {load} {} }}\n", self.each(body).trim_end())
    }

    fn add_position(&self, table: ValueId, x: &str, y: &str, place: &Place) -> String {
        let (width, pitch, p) = (self.width, self.spec.ty(table).pitch(), self.pointers);
        let (col, valid, s) = (&place.col, &place.valid, self.sequence);
        let load =
            format!("lp_load(&{p}in{table}[size_t(cached + row % {s}) * {pitch} + {col}], {valid}, p);");
        let add = self.each(&format!("{y}[e] = {x}[e] + p[e];"));
        format!("{{ float p[{width}]; {load} {} }}\n", add.trim_end())
    }

    /// Hidden scores of a run of keys, and ALiBi's slopes on the others.
    fn mask(&self, value: ValueId, mask: &Mask, hidden: &str, x: &str, y: &str, place: &Place) -> String {
        let shape = &self.spec.ty(value).shape;
        let (heads, queries) = (shape[1], shape[2]);
        let mut hides = vec!["false".to_string()];
        if mask.causal {
            hides.push("key > query".into());
        }
        if mask.window > 0 {
            hides.push(format!("key <= query - {}", mask.window));
        }
        let slope = match mask.alibi {
            true => format!(" + lp_slope{value}[row / {queries} % {heads}] * float(key - query)"),
            false => String::new(),
        };
        format!(
            "{{\n    const int query = cached + row % {queries};\n    LP_UNROLL for (int e = 0; e < {}; ++e) {{\n        \
             const int key = {} + e;\n        {y}[e] = {} ? {hidden} : {x}[e]{slope};\n    }}\n}}\n",
            self.width,
            place.col,
            hides.join(" || ")
        )
    }

    fn rotate(&self, value: ValueId, x: &str, y: &str, place: &Place) -> Result<String, CudaError> {
        let Some((op, Some((rope, back)))) = self.spec.op(value).map(|op| (op, rotation(&op.op))) else {
            return Err(self.spec.malformed("no such rotation"));
        };
        let turn = if back { "sine = -sine;" } else { "" };
        match self.neighbours(&op.op) {
            true => self.rotate_neighbours(value, (rope, turn), x, y, place),
            false => self.rotate_halves(value, op.operands[0], (rope, turn), y, place),
        }
    }

    /// Rotation where the two values of a pair are neighbours.
    fn rotate_neighbours(
        &self,
        value: ValueId,
        (rope, turn): (&Rope, &str),
        x: &str,
        y: &str,
        place: &Place,
    ) -> Result<String, CudaError> {
        if !self.width.is_multiple_of(2)
            || !rope.head_dim.is_multiple_of(2)
            || !rope.rot_dims.is_multiple_of(2)
        {
            return Err(self
                .spec
                .unsupported("a rotation of an odd number of columns", "head_dim and rot_dims are even"));
        }
        let (head, rot, col, s) = (rope.head_dim, rope.rot_dims, &place.col, self.sequence);
        let angle = format!("float(cached + row % {s}) * lp_frequency{value}[at / 2]");
        Ok(format!(
            "LP_UNROLL for (int e = 0; e < {width}; e += 2) {{\n    const int at = ({col} + e) % {head};\n    \
             float sine = 0.0f, cosine = 1.0f;\n    if (at < {rot}) lp_sincos({angle}, sine, cosine);\n    {turn}\n    \
             {y}[e] = {x}[e] * cosine - {x}[e + 1] * sine;\n    {y}[e + 1] = {x}[e + 1] * cosine + {x}[e] * sine;\n}}\n",
            width = self.width,
        ))
    }

    /// Code after which the operand is known at the columns that its own columns are rotated with.
    fn at_partner(&mut self, operand: ValueId, rope: &Rope, place: &Place) -> Result<String, CudaError> {
        if !place.suffix.is_empty() {
            return Err(self
                .spec
                .unsupported("a half-split rotation in a kernel with statistics", "give it its own region"));
        }
        let half = rope.rot_dims / 2;
        if !half.is_multiple_of(self.width) || !rope.head_dim.is_multiple_of(self.width) {
            return Err(self.spec.malformed("the run's width does not divide the rotation's half"));
        }
        let (head, rot, w) = (rope.head_dim, rope.rot_dims, self.width);
        let partner = Place { suffix: "_p".into(), col: "col_p".into(), valid: w.to_string() };
        let shift = format!("col % {head} >= {rot} ? 0 : col % {head} < {half} ? {half} : -{half}");
        let code = format!("const int col_p = col + ({shift});\n");
        Ok(code + &self.value(operand, &partner)?)
    }

    fn rotate_halves(
        &self,
        value: ValueId,
        operand: ValueId,
        (rope, turn): (&Rope, &str),
        y: &str,
        place: &Place,
    ) -> Result<String, CudaError> {
        let (head, rot, half, s) = (rope.head_dim, rope.rot_dims, rope.rot_dims / 2, self.sequence);
        let x = self.name(operand, place);
        let partner = format!("v{operand}_p");
        Ok(format!(
            "LP_UNROLL for (int e = 0; e < {width}; ++e) {{\n    const int at = (col + e) % {head};\n    \
             float sine = 0.0f, cosine = 1.0f;\n    \
             if (at < {rot}) lp_sincos(float(cached + row % {s}) * lp_frequency{value}[at % {half}], sine, cosine);\n    {turn}\n    \
             {y}[e] = {x}[e] * cosine + (at < {half} ? -{partner}[e] : {partner}[e]) * sine;\n}}\n",
            width = self.width,
        ))
    }

    /// Code that stores output `i` of the region.
    pub fn store(&self, output: usize, place: &Place) -> Result<String, CudaError> {
        let value = self.spec.outputs[output];
        let (name, p, col, valid) = (self.name(value, place), self.pointers, &place.col, &place.valid);
        let ty = self.spec.ty(value);
        let pitch = ty.pitch();
        let row = match self.spec.op(value).map(|op| &op.op) {
            Some(KernelOp::KvAppend { .. }) => {
                let (s, capacity) = (self.sequence, ty.shape.get(1).copied().unwrap_or(1));
                format!("size_t(row / {s}) * {capacity} + cached + row % {s}")
            }
            _ if ty.rows() == self.rows => "size_t(row)".into(),
            _ => {
                let hint = "values before last_token cannot leave the region";
                return Err(self
                    .spec
                    .unsupported(format!("an output {:?} before last_token", ty.shape), hint));
            }
        };
        let at = format!("&{p}out{output}[({row}) * {pitch} + {col}], {valid}");
        if self.spec.gradient(value).is_some() {
            let add = self.each(&format!("old[e] += {name}[e];"));
            let width = self.width;
            return Ok(format!(
                "{{ float old[{width}]; lp_load({at}, old); {} lp_store({at}, old); }}\n",
                add.trim_end()
            ));
        }
        Ok(format!("lp_store({at}, {name});\n"))
    }
}

/// Operands that are arrays of the same columns; parameters are read where they are used.
pub(crate) fn streamed<'b>(op: &KernelOp, operands: &'b [ValueId]) -> &'b [ValueId] {
    match op {
        KernelOp::Add | KernelOp::Mul => operands,
        KernelOp::Backward(Backward::ActivationDx(_) | Backward::SoftmaxDx) => operands,
        _ => &operands[..1],
    }
}

/// A rotation, and whether it turns back.
fn rotation(op: &KernelOp) -> Option<(&Rope, bool)> {
    match op {
        KernelOp::Rope(rope) => Some((rope, false)),
        KernelOp::Backward(Backward::RopeDx(rope)) => Some((rope, true)),
        _ => None,
    }
}

fn function(f: ActivationFn) -> &'static str {
    match f {
        ActivationFn::Silu => "lp_silu",
        ActivationFn::Gelu => "lp_gelu",
        ActivationFn::GeluTanh => "lp_gelu_tanh",
        ActivationFn::Relu => "lp_relu",
        ActivationFn::Relu2 => "lp_relu2",
    }
}

/// Rotation frequencies per pair, in radians per position, computed in f64 and rounded once.
pub(crate) fn frequencies(rope: &Rope) -> Vec<f64> {
    let plain = (0..rope.rot_dims / 2).map(|i| rope.theta.powf(-(2.0 * i as f64) / rope.rot_dims as f64));
    plain.map(|frequency| scaled(frequency, rope.scaling)).collect()
}

fn scaled(frequency: f64, scaling: RopeScaling) -> f64 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low_freq, high_freq, original } => {
            let wavelength = 2.0 * std::f64::consts::PI / frequency;
            let keep = ((original / wavelength - low_freq) / (high_freq - low_freq)).clamp(0.0, 1.0);
            frequency * keep + frequency / factor * (1.0 - keep)
        }
    }
}

/// The frequency tables of all rotations in a region.
pub(crate) fn frequency_tables(spec: &KernelSpec) -> String {
    let mut text = String::new();
    for id in spec.results() {
        if let Some(KernelOp::Mask(mask)) =
            spec.op(id).map(|op| &op.op).filter(|_| spec.anchor != Anchor::Attention)
        {
            text.push_str(&slope_table(id, mask, spec.ty(id).shape[1]));
        }
        let Some((rope, _)) = spec.op(id).and_then(|op| rotation(&op.op)) else { continue };
        let mut values: Vec<String> = frequencies(rope).into_iter().map(c_float).collect();
        if values.is_empty() {
            values.push("0.0f".into());
        }
        let lines: Vec<String> = values.chunks(8).map(|line| line.join(", ")).collect();
        let _ = writeln!(text, "// Radians per position of each rotated pair.");
        let _ = writeln!(
            text,
            "__device__ const float lp_frequency{id}[{}] = {{\n    {}}};",
            values.len(),
            lines.join(",\n    ")
        );
    }
    text
}

/// ALiBi's slopes of a mask that is evaluated element by element.
fn slope_table(id: ValueId, mask: &Mask, heads: u64) -> String {
    if !mask.alibi {
        return String::new();
    }
    let slopes = mask.slopes(heads).into_iter().map(|slope| c_float(slope * mask.alibi_scaling));
    let lines: Vec<String> = slopes.collect::<Vec<_>>().chunks(8).map(|line| line.join(", ")).collect();
    format!("__device__ const float lp_slope{id}[{heads}] = {{\n    {}}};\n", lines.join(",\n    "))
}

/// The pointers of a region's inputs, outputs and position, except the inputs named in `skip` (they are bound elsewhere).
/// `orders` gives the column order of vectors that belong to permuted columns.
pub(crate) fn signature(
    spec: &KernelSpec,
    skip: &BTreeSet<ValueId>,
    orders: &BTreeMap<ValueId, RowOrder>,
) -> Result<Signature, CudaError> {
    let mut signature = Signature::default();
    for (i, input) in spec.inputs.iter().enumerate() {
        if skip.contains(&i) || spec.users(i).is_empty() {
            continue;
        }
        let operand = match input.source {
            Source::Activation => Operand::Input(i),
            Source::Param { .. } => {
                let order = orders.get(&i).copied().unwrap_or_default();
                Operand::Param(spec.plain_packing(i, order)?, input.ty.dtype)
            }
        };
        signature.read(operand, input.ty.dtype, format!("in{i}"));
    }
    for (j, &value) in spec.outputs.iter().enumerate() {
        let appends = matches!(spec.op(value).map(|op| &op.op), Some(KernelOp::KvAppend { .. }));
        let adds = spec.gradient(value).is_some();
        let access = if appends || adds { Access::Update } else { Access::Write };
        signature.write(Operand::Output(j), access, spec.ty(value).dtype, format!("out{j}"));
    }
    if spec.cached().is_some() {
        signature.read(Operand::Position, Dtype::I32, "position");
    }
    Ok(signature)
}

/// `const int cached = ...;`: read at run time where the region was compiled behind a cache, else zero.
pub(crate) fn cached_line(spec: &KernelSpec, pointers: &str) -> String {
    match spec.cached() {
        Some(_) => format!("    const int cached = *{pointers}position;\n"),
        None => "    constexpr int cached = 0;\n".into(),
    }
}

/// Rows of one sequence: the second dimension from the right of the first activation of rank 3 that is not a cache.
pub(crate) fn sequence(spec: &KernelSpec) -> u64 {
    let of = |ty: &TensorType| (ty.shape.len() == 3).then(|| ty.shape[1]);
    let positional = spec.ops.iter().find(|op| op.op.position().is_some());
    let from_op = positional.and_then(|op| of(spec.ty(op.operands[0])));
    let ids = spec.inputs.iter().find(|i| i.ty.dtype == Dtype::I32).and_then(|i| i.ty.shape.last().copied());
    from_op.or(ids).unwrap_or(1)
}

/// Constants that many texts share.
pub(crate) fn width_constant(width: u64) -> String {
    constants(&[("W", width)])
}

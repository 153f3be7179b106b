//! The home of types, attributes and dialects, and the sink of every diagnostic.

use crate::error::{Diagnostic, IrError, Place, Severity};
use crate::raw;
use lapidary_models::{DType, TensorType};
use melior::diagnostic::DiagnosticSeverity;
use melior::ir::attribute::{
    ArrayAttribute, DenseI64ArrayAttribute, FlatSymbolRefAttribute, FloatAttribute, IntegerAttribute,
    StringAttribute, TypeAttribute,
};
use melior::ir::r#type::{FunctionType, IntegerType, RankedTensorType};
use melior::ir::{Attribute, Location, Type};
use std::cell::RefCell;
use std::rc::Rc;

/// An MLIR context with the dialects `builtin`, `arith`, `func`, `nn`, `wafer` and `cuda`, and no others.
///
/// Unregistered dialects are refused. MLIR's threads are off: modules are small (a layer is one function), so one
/// thread is as fast, and diagnostics and results come in the same order every time. A context therefore belongs to
/// one thread; compile two models at once with two contexts.
#[derive(Debug)]
pub struct IrContext {
    melior: melior::Context,
    sink: Rc<RefCell<Vec<Diagnostic>>>,
}

impl Default for IrContext {
    fn default() -> Self {
        IrContext::new()
    }
}

impl IrContext {
    /// A context with all dialects loaded.
    pub fn new() -> Self {
        let melior = melior::Context::new_with_threading(false);
        melior.set_allow_unregistered_dialects(false);
        raw::load_dialects(&melior);
        raw::register_builtin_passes();
        let sink = Rc::new(RefCell::new(Vec::new()));
        let handler = Rc::clone(&sink);
        melior.attach_diagnostic_handler(move |diagnostic| {
            handler.borrow_mut().push(read(&diagnostic));
            true
        });
        IrContext { melior, sink }
    }

    /// The wrapped context, for melior's own constructors.
    pub fn melior(&self) -> &melior::Context {
        &self.melior
    }

    /// Diagnostics that no error has carried away: warnings and remarks, oldest first.
    pub fn take_diagnostics(&self) -> Vec<Diagnostic> {
        self.sink.take()
    }

    /// Runs `action`; when it returns none, the diagnostics it caused become the error.
    pub(crate) fn checked<T>(
        &self,
        what: impl FnOnce() -> String,
        action: impl FnOnce() -> Option<T>,
    ) -> Result<T, IrError> {
        let before = self.sink.borrow().len();
        action().ok_or_else(|| IrError::Invalid { what: what(), diagnostics: self.since(before) })
    }

    pub(crate) fn mark(&self) -> usize {
        self.sink.borrow().len()
    }

    pub(crate) fn since(&self, mark: usize) -> Vec<Diagnostic> {
        let mut sink = self.sink.borrow_mut();
        let start = mark.min(sink.len());
        sink.split_off(start)
    }

    /// No place.
    pub fn unknown(&self) -> Location<'_> {
        Location::unknown(&self.melior)
    }

    /// The place of a graph node, such as `layers.*.attn.q`.
    pub fn named(&self, node: &str) -> Location<'_> {
        Location::name(&self.melior, node, self.unknown())
    }

    /// The type of a tensor.
    pub fn tensor(&self, ty: &TensorType) -> Type<'_> {
        RankedTensorType::new(&ty.shape, self.element(ty.dtype), None).into()
    }

    /// The type of one element.
    pub fn element(&self, dtype: DType) -> Type<'_> {
        match dtype {
            DType::F32 => Type::float32(&self.melior),
            DType::Bf16 => Type::bfloat16(&self.melior),
            DType::F16 => Type::float16(&self.melior),
            DType::I32 => IntegerType::new(&self.melior, 32).into(),
        }
    }

    /// MLIR's `index`.
    pub fn index(&self) -> Type<'_> {
        Type::index(&self.melior)
    }

    /// The type of a function.
    pub fn function<'c>(&'c self, inputs: &[Type<'c>], results: &[Type<'c>]) -> Type<'c> {
        FunctionType::new(&self.melior, inputs, results).into()
    }

    /// A type from its text, such as `!wafer.tile<8x64xbf16>`.
    ///
    /// # Errors
    /// [`IrError::Invalid`] if it does not parse.
    pub fn parse_type(&self, text: &str) -> Result<Type<'_>, IrError> {
        self.checked(|| format!("parse type {text}"), || Type::parse(&self.melior, text))
    }

    /// An attribute from its text, such as `#nn<anchor matmul>`.
    ///
    /// # Errors
    /// [`IrError::Invalid`] if it does not parse.
    pub fn parse_attribute(&self, text: &str) -> Result<Attribute<'_>, IrError> {
        self.checked(|| format!("parse attribute {text}"), || Attribute::parse(&self.melior, text))
    }

    /// An f64 attribute.
    pub fn f64(&self, value: f64) -> Attribute<'_> {
        FloatAttribute::new(&self.melior, Type::float64(&self.melior), value).into()
    }

    /// An i64 attribute.
    pub fn i64(&self, value: i64) -> Attribute<'_> {
        IntegerAttribute::new(IntegerType::new(&self.melior, 64).into(), value).into()
    }

    /// A string attribute.
    pub fn text(&self, value: &str) -> Attribute<'_> {
        StringAttribute::new(&self.melior, value).into()
    }

    /// A reference to a symbol of the same table.
    pub fn symbol(&self, name: &str) -> Attribute<'_> {
        FlatSymbolRefAttribute::new(&self.melior, name).into()
    }

    /// The attribute that says yes by being there.
    pub fn unit(&self) -> Attribute<'_> {
        Attribute::unit(&self.melior)
    }

    /// A type as an attribute.
    pub fn type_attribute<'c>(&'c self, ty: Type<'c>) -> Attribute<'c> {
        TypeAttribute::new(ty).into()
    }

    /// `array<i64: ...>`.
    pub fn i64s(&self, values: &[i64]) -> Attribute<'_> {
        DenseI64ArrayAttribute::new(&self.melior, values).into()
    }

    /// `[...]`.
    pub fn array<'c>(&'c self, values: &[Attribute<'c>]) -> Attribute<'c> {
        ArrayAttribute::new(&self.melior, values).into()
    }
}

fn read(diagnostic: &melior::diagnostic::Diagnostic<'_>) -> Diagnostic {
    let notes = (0..diagnostic.note_count()).filter_map(|index| diagnostic.note(index).ok());
    Diagnostic {
        severity: match diagnostic.severity() {
            DiagnosticSeverity::Error => Severity::Error,
            DiagnosticSeverity::Warning => Severity::Warning,
            DiagnosticSeverity::Remark => Severity::Remark,
            DiagnosticSeverity::Note => Severity::Note,
        },
        place: place(diagnostic.location()),
        message: diagnostic.to_string(),
        notes: notes.map(|note| read(&note)).collect(),
    }
}

/// The file position and the innermost name of a location; of a fused location, the first part that has any.
pub(crate) fn place(location: Location<'_>) -> Place {
    if location.is_name() {
        let child = place(location.name_child_location());
        let own = raw::identifier(location.name_value()).to_owned();
        return Place { node: Some(own), ..child };
    }
    if location.is_call_site() {
        return place(location.call_site_callee());
    }
    if location.is_fused() {
        let parts = (0..location.fused_num_locations()).map(|index| place(location.fused_location(index)));
        return parts.into_iter().find(|part| *part != Place::default()).unwrap_or_default();
    }
    if location.is_file_line_col_range() {
        let file = raw::identifier(location.file_line_col_range_filename()).to_owned();
        let start = (location.file_line_col_range_start_line(), location.file_line_col_range_start_column());
        return Place { file: Some((file, start.0, start.1)), node: None };
    }
    Place::default()
}

//! What can be asked of and done to operations, values and blocks beyond the bare pointers of [`crate::raw`].

use crate::context::place;
use crate::error::{IrError, Place};
use crate::raw::{self, Block, Op, Value};
use lapidary_models::{DType, TensorType};
use melior::ir::attribute::{
    DenseI64ArrayAttribute, FlatSymbolRefAttribute, FloatAttribute, IntegerAttribute,
};
use melior::ir::r#type::{DimSize, IntegerType, RankedTensorType};
use melior::ir::{ShapedTypeLike, Type, TypeLike};
use std::fmt;

/// A typed view of one kind of operation, such as [`crate::nn::Linear`].
pub trait View<'c>: Copy {
    /// The full name of the operation, such as `nn.linear`.
    const NAME: &'static str;
    /// The view, if the operation is of this kind.
    fn of(op: Op<'c>) -> Option<Self>;
    /// The operation.
    fn op(self) -> Op<'c>;
}

impl<'c> Op<'c> {
    /// Whether it has this full name.
    pub fn is(self, name: &str) -> bool {
        self.name() == name
    }

    /// The typed view, if it is of that kind.
    pub fn cast<V: View<'c>>(self) -> Option<V> {
        V::of(self)
    }

    /// The operands in order.
    pub fn operands(self) -> Vec<Value<'c>> {
        (0..self.operand_count()).filter_map(|index| self.operand(index)).collect()
    }

    /// The results in order.
    pub fn results(self) -> Vec<Value<'c>> {
        (0..self.result_count()).filter_map(|index| self.result(index)).collect()
    }

    /// File position and node name of its location.
    pub fn place(self) -> Place {
        place(self.location())
    }

    /// A float attribute.
    pub fn f64(self, name: &str) -> Option<f64> {
        self.attribute(name)
            .and_then(|attribute| FloatAttribute::try_from(attribute).ok())
            .map(|value| value.value())
    }

    /// An integer attribute.
    pub fn i64(self, name: &str) -> Option<i64> {
        self.attribute(name)
            .and_then(|attribute| IntegerAttribute::try_from(attribute).ok())
            .map(|value| value.value())
    }

    /// A string attribute.
    pub fn text(self, name: &str) -> Option<&'c str> {
        self.attribute(name).and_then(raw::string_value)
    }

    /// The symbol that an attribute refers to, without `@`.
    pub fn symbol(self, name: &str) -> Option<&'c str> {
        let attribute = self.attribute(name)?;
        FlatSymbolRefAttribute::try_from(attribute).ok().map(|value| value.value())
    }

    /// The word of an enum attribute, such as `rms`.
    pub fn word(self, name: &str) -> Option<&'static str> {
        self.attribute(name).and_then(raw::enum_word)
    }

    /// Whether a unit attribute is there.
    pub fn flag(self, name: &str) -> bool {
        self.attribute(name).is_some()
    }

    /// An `array<i64: ...>` attribute.
    pub fn i64s(self, name: &str) -> Option<Vec<i64>> {
        let array = DenseI64ArrayAttribute::try_from(self.attribute(name)?).ok()?;
        (0..array.len()).map(|index| array.element(index).ok()).collect()
    }

    /// The name that it defines in its symbol table.
    pub fn symbol_name(self) -> Option<&'c str> {
        self.text("sym_name")
    }

    /// The operations of this kind inside, itself included, parents before children.
    pub fn find<V: View<'c>>(self) -> Vec<V> {
        self.walk().into_iter().filter_map(V::of).collect()
    }

    /// The functions of a module, in order.
    pub fn functions(self) -> Vec<Op<'c>> {
        self.region_block(0)
            .map_or_else(Vec::new, |body| body.ops().into_iter().filter(|op| op.is("func.func")).collect())
    }

    /// The operation of this module (or program) that defines a symbol.
    pub fn lookup(self, symbol: &str) -> Option<Op<'c>> {
        self.region_block(0)?.ops().into_iter().find(|op| op.symbol_name() == Some(symbol))
    }

    /// Whether any result is read.
    pub fn is_read(self) -> bool {
        self.results().into_iter().any(|result| !result.uses().is_empty())
    }

    /// Checks the operation and all it holds.
    ///
    /// # Errors
    /// [`IrError::Invalid`] with every diagnostic.
    pub fn verify(self) -> Result<(), IrError> {
        self.context().checked(|| format!("verify {}", self.name()), || self.verifies().then_some(()))
    }

    /// Destroys it; handles to it and to what it holds must not be used any more.
    ///
    /// # Errors
    /// [`IrError::StillRead`] if a result has readers; nothing is changed then.
    pub fn erase(self) -> Result<(), IrError> {
        let reader = self.results().into_iter().flat_map(Value::uses).next();
        match reader {
            None => {
                self.destroy();
                Ok(())
            }
            Some(reader) => {
                Err(IrError::StillRead { op: self.name().into(), reader: reader.op.name().into() })
            }
        }
    }

    /// Lets the readers of its results read `values` instead, then destroys it.
    ///
    /// # Errors
    /// [`IrError::Missing`] if there are fewer values than results that are read.
    pub fn replace_with(self, values: &[Value<'c>]) -> Result<(), IrError> {
        for (index, result) in self.results().into_iter().enumerate() {
            match values.get(index) {
                Some(value) => result.replace_all_uses_with(*value),
                None if result.uses().is_empty() => {}
                None => {
                    let what = format!("replacement for result {index}");
                    return Err(IrError::Missing { op: self.name().into(), what });
                }
            }
        }
        self.erase()
    }

    /// The text, with `loc(...)` if asked.
    pub fn to_text(self, locations: bool) -> String {
        self.print(locations)
    }
}

impl fmt::Display for Op<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.print(false))
    }
}

impl<'c> Value<'c> {
    /// Shape and element type, if it is a tensor of a type that models know.
    pub fn tensor(self) -> Option<TensorType> {
        tensor_type(self.ty())
    }

    /// The lengths of its axes; empty for what is not a tensor.
    pub fn shape(self) -> Vec<u64> {
        shape(self.ty()).unwrap_or_default()
    }

    /// Length of the last axis; 1 for what is not a tensor.
    pub fn width(self) -> u64 {
        self.shape().last().copied().unwrap_or(1)
    }

    /// Product of all axes but the last.
    pub fn rows(self) -> u64 {
        let shape = self.shape();
        shape.iter().take(shape.len().saturating_sub(1)).product()
    }

    /// The view of the operation that makes it, if it is of that kind.
    pub fn defined_by<V: View<'c>>(self) -> Option<V> {
        self.defining_op().and_then(V::of)
    }

    /// The operations that read it, each once, oldest use first.
    pub fn users(self) -> Vec<Op<'c>> {
        let mut users: Vec<Op<'c>> = Vec::new();
        for usage in self.uses() {
            if !users.contains(&usage.op) {
                users.push(usage.op);
            }
        }
        users
    }

    /// Whether exactly one operand reads it.
    pub fn has_one_use(self) -> bool {
        self.uses().len() == 1
    }

    /// The only operation that reads it, if there is only one use.
    pub fn only_user(self) -> Option<Op<'c>> {
        match self.uses().as_slice() {
            [only] => Some(only.op),
            _ => None,
        }
    }
}

impl<'c> Block<'c> {
    /// The arguments in order.
    pub fn arguments(self) -> Vec<Value<'c>> {
        (0..self.argument_count()).filter_map(|index| self.argument(index)).collect()
    }

    /// The operations in order, the terminator included.
    pub fn ops(self) -> Vec<Op<'c>> {
        std::iter::successors(self.first(), |op| op.next()).collect()
    }
}

/// The lengths of the axes of a ranked tensor.
pub fn shape(ty: Type<'_>) -> Option<Vec<u64>> {
    let tensor = RankedTensorType::try_from(ty).ok()?;
    (0..tensor.rank())
        .map(|axis| match tensor.dim_size(axis) {
            Ok(DimSize::Static(size)) => Some(size),
            _ => None,
        })
        .collect()
}

/// Shape and element type of a tensor type, if models know the element type.
pub fn tensor_type(ty: Type<'_>) -> Option<TensorType> {
    let tensor = RankedTensorType::try_from(ty).ok()?;
    Some(TensorType { dtype: dtype(tensor.element())?, shape: shape(ty)? })
}

/// The element type that models know it by.
pub fn dtype(ty: Type<'_>) -> Option<DType> {
    let i32 = || IntegerType::try_from(ty).is_ok_and(|int| int.width() == 32 && int.is_signless());
    [(ty.is_f32(), DType::F32), (ty.is_bf16(), DType::Bf16), (ty.is_f16(), DType::F16), (i32(), DType::I32)]
        .into_iter()
        .find_map(|(is, dtype)| is.then_some(dtype))
}

pub(crate) fn missing(op: Op<'_>, what: &str) -> IrError {
    IrError::Missing { op: op.name().into(), what: what.into() }
}

//! The only file with `unsafe`: MLIR's C API behind handles that are safe to copy and compare.
//!
//! A handle ([`Op`], [`Value`], [`Block`]) is a pointer into a module together with the context that owns its types
//! and attributes. MLIR owns what it points to. The lifetime `'c` is the context's, so a handle cannot outlive the
//! context; it must also not be used after its operation was erased or its module dropped, which the borrow checker
//! does not see. Two habits keep that true: handles live inside one pass, and a rewrite collects first and erases
//! last.
#![allow(unsafe_code)]

use crate::context::IrContext;
use crate::error::PassFailure;
use melior::StringRef;
use melior::ir::{Attribute, AttributeLike, Identifier, Location, Type, TypeLike};
use mlir_sys as sys;
use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_void};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

unsafe extern "C" {
    fn mlirGetDialectHandle__nn__() -> sys::MlirDialectHandle;
    fn mlirGetDialectHandle__wafer__() -> sys::MlirDialectHandle;
    fn mlirGetDialectHandle__cuda__() -> sys::MlirDialectHandle;
    fn mlirGetDialectHandle__arith__() -> sys::MlirDialectHandle;
    fn mlirGetDialectHandle__func__() -> sys::MlirDialectHandle;
    fn lapidaryPointOnly(context: sys::MlirContext);
    fn lapidaryIsDead(op: sys::MlirOperation) -> bool;
    fn lapidaryNnEnumWord(attribute: sys::MlirAttribute) -> sys::MlirStringRef;
    fn lapidaryWaferEnumWord(attribute: sys::MlirAttribute) -> sys::MlirStringRef;
    fn lapidaryCudaEnumWord(attribute: sys::MlirAttribute) -> sys::MlirStringRef;
    fn lapidaryWaferRect(attribute: sys::MlirAttribute, out: *mut i64) -> bool;
    fn lapidaryWaferTile(ty: sys::MlirType, out: *mut i64, element: *mut sys::MlirType) -> bool;
    fn lapidaryParseModule(
        context: sys::MlirContext,
        text: sys::MlirStringRef,
        name: sys::MlirStringRef,
    ) -> sys::MlirModule;
}

/// Loads the dialects this crate knows into a context.
pub(crate) fn load_dialects(context: &melior::Context) {
    // SAFETY: the handles are static objects of the linked dialects; the context is alive for the call.
    unsafe {
        for handle in [
            mlirGetDialectHandle__arith__(),
            mlirGetDialectHandle__func__(),
            mlirGetDialectHandle__nn__(),
            mlirGetDialectHandle__wafer__(),
            mlirGetDialectHandle__cuda__(),
        ] {
            sys::mlirDialectHandleLoadDialect(handle, context.to_raw());
        }
        lapidaryPointOnly(context.to_raw());
    }
}

/// The word of an enum attribute of our dialects (`rms` of `#nn<norm_kind rms>`); none for other attributes.
pub(crate) fn enum_word(attribute: Attribute<'_>) -> Option<&'static str> {
    let readers = [lapidaryNnEnumWord, lapidaryWaferEnumWord, lapidaryCudaEnumWord];
    // SAFETY: the attribute is alive; the words are string literals compiled into the dialects.
    let words = readers.map(|reader| unsafe { text_of(reader(attribute.to_raw())) });
    words.into_iter().find(|word| !word.is_empty())
}

/// The text behind MLIR's pointer and length, which may be null and zero; text that is not UTF-8 reads as a mark.
///
/// # Safety
/// The bytes must live for `'t`.
unsafe fn text_of<'t>(text: sys::MlirStringRef) -> &'t str {
    if text.data.is_null() || text.length == 0 {
        return "";
    }
    // SAFETY: not null, and the caller promises the lifetime.
    let bytes = unsafe { std::slice::from_raw_parts(text.data.cast::<u8>(), text.length) };
    std::str::from_utf8(bytes).unwrap_or("\u{fffd}")
}

/// The text of an identifier, which the context keeps.
pub(crate) fn identifier<'c>(identifier: Identifier<'c>) -> &'c str {
    // SAFETY: identifiers are interned in the context, which outlives 'c.
    unsafe { text_of(sys::mlirIdentifierStr(identifier.to_raw())) }
}

/// The value of a string attribute.
pub(crate) fn string_value<'c>(attribute: Attribute<'c>) -> Option<&'c str> {
    // SAFETY: the attribute is alive, its kind is checked, its text is kept by the context, which outlives 'c.
    unsafe {
        sys::mlirAttributeIsAString(attribute.to_raw())
            .then(|| text_of(sys::mlirStringAttrGetValue(attribute.to_raw())))
    }
}

/// x, y, w, h of a `#wafer.rect`.
pub(crate) fn wafer_rect(attribute: Attribute<'_>) -> Option<[i64; 4]> {
    let mut out = [0; 4];
    // SAFETY: the attribute is alive; the callee writes four numbers.
    unsafe { lapidaryWaferRect(attribute.to_raw(), out.as_mut_ptr()) }.then_some(out)
}

/// Tokens, features, rows, cols, blocks of a `!wafer.tile`, 1 if columns of a block share tokens, and its elements.
pub(crate) fn wafer_tile<'c>(ty: Type<'c>) -> Option<([i64; 6], Type<'c>)> {
    let (mut out, mut element) = ([0; 6], ty.to_raw());
    // SAFETY: the type is alive; the callee writes six numbers and a type of the same context.
    unsafe {
        lapidaryWaferTile(ty.to_raw(), out.as_mut_ptr(), &mut element).then(|| (out, Type::from_raw(element)))
    }
}

/// A mutable reference to an operation of a module. Cheap to copy; equal when it is the same operation.
#[derive(Clone, Copy)]
pub struct Op<'c> {
    raw: sys::MlirOperation,
    cx: &'c IrContext,
}

/// A value: the result of an operation or the argument of a block.
#[derive(Clone, Copy)]
pub struct Value<'c> {
    raw: sys::MlirValue,
    cx: &'c IrContext,
}

/// A block of a region.
#[derive(Clone, Copy)]
pub struct Block<'c> {
    raw: sys::MlirBlock,
    cx: &'c IrContext,
}

/// One operand of one operation that reads a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use<'c> {
    /// The operation that reads.
    pub op: Op<'c>,
    /// Which of its operands.
    pub index: usize,
}

impl PartialEq for Op<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.raw.ptr == other.raw.ptr
    }
}
impl Eq for Op<'_> {}

impl PartialEq for Value<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.raw.ptr == other.raw.ptr
    }
}
impl Eq for Value<'_> {}

impl PartialEq for Block<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.raw.ptr == other.raw.ptr
    }
}
impl Eq for Block<'_> {}

unsafe extern "C" fn append_text(text: sys::MlirStringRef, target: *mut c_void) {
    // SAFETY: MLIR passes back the pointer that the printing functions below give it, to a String on their stack.
    let (target, text) = unsafe { (&mut *target.cast::<String>(), text_of(text)) };
    target.push_str(text);
}

fn printed(print: impl FnOnce(sys::MlirStringCallback, *mut c_void)) -> String {
    let mut text = String::new();
    print(Some(append_text), (&raw mut text).cast());
    text
}

impl<'c> Op<'c> {
    fn from_raw(raw: sys::MlirOperation, cx: &'c IrContext) -> Option<Self> {
        (!raw.ptr.is_null()).then_some(Op { raw, cx })
    }

    /// The context that the operation lives in.
    pub fn context(self) -> &'c IrContext {
        self.cx
    }

    /// The full name, such as `nn.linear`.
    pub fn name(self) -> &'c str {
        // SAFETY: the operation is alive; its name is interned in the context, which outlives 'c.
        unsafe { text_of(sys::mlirIdentifierStr(sys::mlirOperationGetName(self.raw))) }
    }

    /// Where it comes from.
    pub fn location(self) -> Location<'c> {
        // SAFETY: the operation is alive; locations live in the context.
        unsafe { Location::from_raw(sys::mlirOperationGetLocation(self.raw)) }
    }

    /// Number of operands.
    pub fn operand_count(self) -> usize {
        // SAFETY: the operation is alive.
        unsafe { sys::mlirOperationGetNumOperands(self.raw) as usize }
    }

    /// One operand.
    pub fn operand(self, index: usize) -> Option<Value<'c>> {
        // SAFETY: the operation is alive and the index is in range.
        (index < self.operand_count()).then(|| Value {
            raw: unsafe { sys::mlirOperationGetOperand(self.raw, index as isize) },
            cx: self.cx,
        })
    }

    /// Replaces one operand; out-of-range indices are ignored.
    pub fn set_operand(self, index: usize, value: Value<'c>) {
        if index < self.operand_count() {
            // SAFETY: operation and value are alive, the index is in range.
            unsafe { sys::mlirOperationSetOperand(self.raw, index as isize, value.raw) }
        }
    }

    /// Replaces all operands, whatever their number; the operation should be verified afterwards.
    pub fn set_operands(self, values: &[Value<'c>]) {
        let raw: Vec<_> = values.iter().map(|value| value.raw).collect();
        // SAFETY: operation and values are alive; MLIR copies the array.
        unsafe { sys::mlirOperationSetOperands(self.raw, raw.len() as isize, raw.as_ptr()) }
    }

    /// Number of results.
    pub fn result_count(self) -> usize {
        // SAFETY: the operation is alive.
        unsafe { sys::mlirOperationGetNumResults(self.raw) as usize }
    }

    /// One result.
    pub fn result(self, index: usize) -> Option<Value<'c>> {
        // SAFETY: the operation is alive and the index is in range.
        (index < self.result_count()).then(|| Value {
            raw: unsafe { sys::mlirOperationGetResult(self.raw, index as isize) },
            cx: self.cx,
        })
    }

    /// An attribute, inherent or discardable.
    pub fn attribute(self, name: &str) -> Option<Attribute<'c>> {
        // SAFETY: the operation is alive; attributes live in the context.
        unsafe {
            Attribute::from_option_raw(sys::mlirOperationGetAttributeByName(
                self.raw,
                StringRef::new(name).to_raw(),
            ))
        }
    }

    /// Sets an attribute, inherent or discardable.
    pub fn set_attribute(self, name: &str, attribute: Attribute<'c>) {
        // SAFETY: operation and attribute are alive and of one context.
        unsafe {
            sys::mlirOperationSetAttributeByName(self.raw, StringRef::new(name).to_raw(), attribute.to_raw());
        }
    }

    /// Removes an attribute; says whether it was there.
    pub fn remove_attribute(self, name: &str) -> bool {
        // SAFETY: the operation is alive.
        unsafe { sys::mlirOperationRemoveAttributeByName(self.raw, StringRef::new(name).to_raw()) }
    }

    /// The attributes in MLIR's order (by name).
    pub fn attributes(self) -> Vec<(&'c str, Attribute<'c>)> {
        // SAFETY: the operation is alive, the indices are in range, names and attributes live in the context.
        unsafe {
            (0..sys::mlirOperationGetNumAttributes(self.raw))
                .map(|index| {
                    let named = sys::mlirOperationGetAttribute(self.raw, index);
                    (text_of(sys::mlirIdentifierStr(named.name)), Attribute::from_raw(named.attribute))
                })
                .collect()
        }
    }

    /// The operation that this one is nested in.
    pub fn parent(self) -> Option<Op<'c>> {
        // SAFETY: the operation is alive.
        Op::from_raw(unsafe { sys::mlirOperationGetParentOperation(self.raw) }, self.cx)
    }

    /// The block that holds it.
    pub fn block(self) -> Option<Block<'c>> {
        // SAFETY: the operation is alive.
        Block::from_raw(unsafe { sys::mlirOperationGetBlock(self.raw) }, self.cx)
    }

    /// The operation after it in its block.
    pub fn next(self) -> Option<Op<'c>> {
        // SAFETY: the operation is alive.
        Op::from_raw(unsafe { sys::mlirOperationGetNextInBlock(self.raw) }, self.cx)
    }

    /// Whether it stands before `other`; false when they are in different blocks.
    pub fn is_before(self, other: Op<'c>) -> bool {
        // SAFETY: both are alive and, as MLIR demands, in one block.
        self.block() == other.block()
            && self.block().is_some()
            && unsafe { sys::mlirOperationIsBeforeInBlock(self.raw, other.raw) }
    }

    /// Number of regions.
    pub fn region_count(self) -> usize {
        // SAFETY: the operation is alive.
        unsafe { sys::mlirOperationGetNumRegions(self.raw) as usize }
    }

    /// The first block of a region.
    pub fn region_block(self, region: usize) -> Option<Block<'c>> {
        if region >= self.region_count() {
            return None;
        }
        // SAFETY: the operation is alive and the index is in range.
        let raw =
            unsafe { sys::mlirRegionGetFirstBlock(sys::mlirOperationGetRegion(self.raw, region as isize)) };
        Block::from_raw(raw, self.cx)
    }

    /// Appends a block with these arguments to a region; none if there is no such region.
    pub fn add_block(self, region: usize, arguments: &[Type<'c>]) -> Option<Block<'c>> {
        if region >= self.region_count() {
            return None;
        }
        let types: Vec<_> = arguments.iter().map(|ty| ty.to_raw()).collect();
        // SAFETY: types and locations live in the context; the region takes ownership of the new block at once.
        unsafe {
            let location = sys::mlirOperationGetLocation(self.raw);
            let locations = vec![location; types.len()];
            let block = sys::mlirBlockCreate(types.len() as isize, types.as_ptr(), locations.as_ptr());
            sys::mlirRegionAppendOwnedBlock(sys::mlirOperationGetRegion(self.raw, region as isize), block);
            Block::from_raw(block, self.cx)
        }
    }

    /// Whether the operation and all that it holds verify; diagnostics go to the context.
    pub(crate) fn verifies(self) -> bool {
        // SAFETY: the operation is alive.
        unsafe { sys::mlirOperationVerify(self.raw) }
    }

    /// Moves it before `other`.
    pub fn move_before(self, other: Op<'c>) {
        // SAFETY: both are alive and attached.
        unsafe { sys::mlirOperationMoveBefore(self.raw, other.raw) }
    }

    /// Moves it after `other`.
    pub fn move_after(self, other: Op<'c>) {
        // SAFETY: both are alive and attached.
        unsafe { sys::mlirOperationMoveAfter(self.raw, other.raw) }
    }

    /// Destroys the operation and what it holds. Private: [`Op::erase`] checks that nobody reads its results.
    pub(crate) fn destroy(self) {
        // SAFETY: the caller has checked that no use of a result is left; handles to it are not used again.
        unsafe { sys::mlirOperationDestroy(self.raw) }
    }

    /// A copy of the operation before `self`'s place `before`, with operands replaced in order.
    pub(crate) fn cloned_into(self, point: Point<'c>) -> Op<'c> {
        // SAFETY: the operation is alive; the clone is owned by the block that `insert` puts it into.
        let raw = unsafe { sys::mlirOperationClone(self.raw) };
        insert(raw, point);
        Op { raw, cx: self.cx }
    }

    /// Whether nobody reads its results and it has no other effect, by the traits of its definition.
    pub fn is_dead(self) -> bool {
        // SAFETY: the operation is alive and only looked at.
        unsafe { lapidaryIsDead(self.raw) }
    }

    /// All operations inside, itself first, parents before children.
    pub fn walk(self) -> Vec<Op<'c>> {
        unsafe extern "C" fn collect(op: sys::MlirOperation, found: *mut c_void) -> sys::MlirWalkResult {
            // SAFETY: MLIR passes back the pointer to the Vec below, which lives during the walk.
            unsafe { (*found.cast::<Vec<sys::MlirOperation>>()).push(op) };
            sys::MlirWalkResult_MlirWalkResultAdvance
        }
        let mut found: Vec<sys::MlirOperation> = Vec::new();
        // SAFETY: the operation is alive and the walk changes nothing.
        unsafe {
            sys::mlirOperationWalk(
                self.raw,
                Some(collect),
                (&raw mut found).cast(),
                sys::MlirWalkOrder_MlirWalkPreOrder,
            );
        }
        found.into_iter().map(|raw| Op { raw, cx: self.cx }).collect()
    }

    /// The text, with `loc(...)` behind every operation if asked.
    pub(crate) fn print(self, locations: bool) -> String {
        // SAFETY: the operation is alive; the flags are destroyed after use.
        unsafe {
            let flags = sys::mlirOpPrintingFlagsCreate();
            if locations {
                sys::mlirOpPrintingFlagsEnableDebugInfo(flags, true, false);
            }
            let text = printed(|callback, data| {
                sys::mlirOperationPrintWithFlags(self.raw, flags, callback, data);
            });
            sys::mlirOpPrintingFlagsDestroy(flags);
            text
        }
    }
}

impl<'c> Value<'c> {
    /// The context that the value lives in.
    pub fn context(self) -> &'c IrContext {
        self.cx
    }

    /// The type.
    pub fn ty(self) -> Type<'c> {
        // SAFETY: the value is alive; types live in the context.
        unsafe { Type::from_raw(sys::mlirValueGetType(self.raw)) }
    }

    /// Changes the type; users should be verified afterwards.
    pub fn set_type(self, ty: Type<'c>) {
        // SAFETY: value and type are alive and of one context.
        unsafe { sys::mlirValueSetType(self.raw, ty.to_raw()) }
    }

    /// The operation whose result it is; none for block arguments.
    pub fn defining_op(self) -> Option<Op<'c>> {
        // SAFETY: the value is alive and, where asked for its owner, a result.
        unsafe {
            sys::mlirValueIsAOpResult(self.raw)
                .then(|| Op { raw: sys::mlirOpResultGetOwner(self.raw), cx: self.cx })
        }
    }

    /// Which result of its operation it is; none for block arguments.
    pub fn result_index(self) -> Option<usize> {
        // SAFETY: the value is alive and, where asked for its number, a result.
        unsafe {
            sys::mlirValueIsAOpResult(self.raw).then(|| sys::mlirOpResultGetResultNumber(self.raw) as usize)
        }
    }

    /// The block and position whose argument it is; none for results.
    pub fn block_argument(self) -> Option<(Block<'c>, usize)> {
        // SAFETY: the value is alive and, where asked for its owner, a block argument.
        unsafe {
            sys::mlirValueIsABlockArgument(self.raw).then(|| {
                let block = Block { raw: sys::mlirBlockArgumentGetOwner(self.raw), cx: self.cx };
                (block, sys::mlirBlockArgumentGetArgNumber(self.raw) as usize)
            })
        }
    }

    /// The operands that read it, oldest first.
    pub fn uses(self) -> Vec<Use<'c>> {
        let mut uses = Vec::new();
        // SAFETY: the value is alive and the list of uses does not change during the loop.
        unsafe {
            let mut operand = sys::mlirValueGetFirstUse(self.raw);
            while !sys::mlirOpOperandIsNull(operand) {
                let op = Op { raw: sys::mlirOpOperandGetOwner(operand), cx: self.cx };
                uses.push(Use { op, index: sys::mlirOpOperandGetOperandNumber(operand) as usize });
                operand = sys::mlirOpOperandGetNextUse(operand);
            }
        }
        uses.reverse();
        uses
    }

    /// Lets every reader of this value read `other` instead.
    pub fn replace_all_uses_with(self, other: Value<'c>) {
        // SAFETY: both values are alive.
        unsafe { sys::mlirValueReplaceAllUsesOfWith(self.raw, other.raw) }
    }
}

impl<'c> Block<'c> {
    fn from_raw(raw: sys::MlirBlock, cx: &'c IrContext) -> Option<Self> {
        (!raw.ptr.is_null()).then_some(Block { raw, cx })
    }

    /// The context that the block lives in.
    pub fn context(self) -> &'c IrContext {
        self.cx
    }

    /// Number of arguments.
    pub fn argument_count(self) -> usize {
        // SAFETY: the block is alive.
        unsafe { sys::mlirBlockGetNumArguments(self.raw) as usize }
    }

    /// One argument.
    pub fn argument(self, index: usize) -> Option<Value<'c>> {
        // SAFETY: the block is alive and the index is in range.
        (index < self.argument_count()).then(|| Value {
            raw: unsafe { sys::mlirBlockGetArgument(self.raw, index as isize) },
            cx: self.cx,
        })
    }

    /// Appends an argument.
    pub fn add_argument(self, ty: Type<'c>, location: Location<'c>) -> Value<'c> {
        // SAFETY: the block is alive; type and location live in the context.
        let raw = unsafe { sys::mlirBlockAddArgument(self.raw, ty.to_raw(), location.to_raw()) };
        Value { raw, cx: self.cx }
    }

    /// Removes an argument that nobody reads; says whether it did.
    pub fn erase_argument(self, index: usize) -> bool {
        let unread = self.argument(index).is_some_and(|argument| argument.uses().is_empty());
        if unread {
            // SAFETY: the block is alive, the index is in range, the argument has no uses.
            unsafe { sys::mlirBlockEraseArgument(self.raw, index as u32) }
        }
        unread
    }

    /// The first operation.
    pub fn first(self) -> Option<Op<'c>> {
        // SAFETY: the block is alive.
        Op::from_raw(unsafe { sys::mlirBlockGetFirstOperation(self.raw) }, self.cx)
    }

    /// The terminator; none while the block is under construction.
    pub fn terminator(self) -> Option<Op<'c>> {
        // SAFETY: the block is alive.
        Op::from_raw(unsafe { sys::mlirBlockGetTerminator(self.raw) }, self.cx)
    }

    /// The operation whose region holds the block.
    pub fn parent(self) -> Option<Op<'c>> {
        // SAFETY: the block is alive.
        Op::from_raw(unsafe { sys::mlirBlockGetParentOperation(self.raw) }, self.cx)
    }
}

/// A place where operations are put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point<'c> {
    Before(Op<'c>),
    End(Block<'c>),
}

fn insert(raw: sys::MlirOperation, point: Point<'_>) {
    // SAFETY: `raw` is a detached operation; the block of the point takes ownership of it.
    unsafe {
        match point {
            Point::End(block) => sys::mlirBlockAppendOwnedOperation(block.raw, raw),
            Point::Before(op) => {
                sys::mlirBlockInsertOwnedOperationBefore(sys::mlirOperationGetBlock(op.raw), op.raw, raw);
            }
        }
    }
}

/// What an operation is made of, as [`create`] takes it.
pub(crate) struct Parts<'a, 'c> {
    pub name: &'a str,
    pub location: Location<'c>,
    pub operands: &'a [Value<'c>],
    pub attributes: &'a [(&'a str, Attribute<'c>)],
    /// None: inferred by the operation.
    pub results: Option<&'a [Type<'c>]>,
    pub regions: usize,
}

/// Creates an operation and inserts it; none if its types cannot be inferred (diagnostics go to the context).
pub(crate) fn create<'c>(cx: &'c IrContext, point: Point<'c>, parts: &Parts<'_, 'c>) -> Option<Op<'c>> {
    let operands: Vec<_> = parts.operands.iter().map(|value| value.raw).collect();
    let results: Vec<_> = parts.results.unwrap_or(&[]).iter().map(|ty| ty.to_raw()).collect();
    // SAFETY: everything named lives in the context; the state copies the arrays and is consumed by the creation,
    // which also takes the regions.
    unsafe {
        let attributes: Vec<_> = parts
            .attributes
            .iter()
            .map(|(name, attribute)| sys::MlirNamedAttribute {
                name: sys::mlirIdentifierGet(cx.melior().to_raw(), StringRef::new(name).to_raw()),
                attribute: attribute.to_raw(),
            })
            .collect();
        let regions: Vec<_> = (0..parts.regions).map(|_| sys::mlirRegionCreate()).collect();
        let mut state =
            sys::mlirOperationStateGet(StringRef::new(parts.name).to_raw(), parts.location.to_raw());
        sys::mlirOperationStateAddOperands(&mut state, operands.len() as isize, operands.as_ptr());
        sys::mlirOperationStateAddAttributes(&mut state, attributes.len() as isize, attributes.as_ptr());
        sys::mlirOperationStateAddOwnedRegions(&mut state, regions.len() as isize, regions.as_ptr());
        match parts.results {
            Some(_) => {
                sys::mlirOperationStateAddResults(&mut state, results.len() as isize, results.as_ptr())
            }
            None => sys::mlirOperationStateEnableResultTypeInference(&mut state),
        }
        let raw = sys::mlirOperationCreate(&mut state);
        let op = Op::from_raw(raw, cx)?;
        insert(raw, point);
        Some(op)
    }
}

/// A module as MLIR owns it; destroyed when dropped.
pub(crate) struct OwnedModule(sys::MlirModule);

impl OwnedModule {
    pub(crate) fn empty(location: Location<'_>) -> Self {
        // SAFETY: the location lives in its context.
        OwnedModule(unsafe { sys::mlirModuleCreateEmpty(location.to_raw()) })
    }

    /// Parses and verifies; none if it fails (diagnostics go to the context).
    pub(crate) fn parse(cx: &IrContext, text: &CString, name: &str) -> Option<Self> {
        // SAFETY: MLIR reads text and name during the call; the text ends with the NUL that its lexer expects.
        let raw = unsafe {
            lapidaryParseModule(
                cx.melior().to_raw(),
                StringRef::from_c_str(text).to_raw(),
                StringRef::new(name).to_raw(),
            )
        };
        (!raw.ptr.is_null()).then_some(OwnedModule(raw))
    }

    pub(crate) fn op<'c>(&self, cx: &'c IrContext) -> Op<'c> {
        // SAFETY: the module is alive.
        Op { raw: unsafe { sys::mlirModuleGetOperation(self.0) }, cx }
    }
}

impl Drop for OwnedModule {
    fn drop(&mut self) {
        // SAFETY: the module is owned by this value alone.
        unsafe { sys::mlirModuleDestroy(self.0) }
    }
}

/// What a pass of ours does to the operation that it runs on.
pub(crate) type RunPass<'c> = dyn Fn(Op<'c>) -> Result<(), PassFailure> + Send + Sync + 'c;

struct External<'a, 'c> {
    run: &'a RunPass<'c>,
    cx: &'c IrContext,
    outcome: &'a RefCell<Result<(), PassFailure>>,
}

/// Runs a Rust pass on a module inside MLIR's pass manager, which verifies the module afterwards.
///
/// Returns what the pass returned and whether the pass manager was content. A panic does not reach MLIR's frames,
/// which cannot unwind; it comes back as [`PassFailure::Panic`].
pub(crate) fn run_external<'c>(
    cx: &'c IrContext,
    module: &OwnedModule,
    name: &str,
    run: &RunPass<'c>,
) -> (Result<(), PassFailure>, bool) {
    let outcome = RefCell::new(Ok(()));
    let mut external = External { run, cx, outcome: &outcome };
    let callbacks = sys::MlirExternalPassCallbacks {
        construct: Some(nothing),
        destruct: Some(nothing),
        initialize: None,
        clone: Some(same),
        run: Some(run_callback),
    };
    // SAFETY: the pass borrows `external`, which lives until the pass manager is destroyed below; the context runs
    // passes on this thread only, so the RefCell is not shared. A pass id is an address of static storage.
    let passed = unsafe {
        let id = sys::mlirTypeIDCreate((&raw const PASS_ID).cast());
        let name = StringRef::new(name).to_raw();
        let none = StringRef::new("").to_raw();
        let pass = sys::mlirCreateExternalPass(
            id,
            name,
            name,
            none,
            none,
            0,
            std::ptr::null_mut(),
            callbacks,
            (&raw mut external).cast(),
        );
        with_manager(cx, module, |manager| {
            sys::mlirPassManagerAddOwnedPass(manager, pass);
            true
        })
    };
    (outcome.into_inner(), passed)
}

/// Runs a textual pipeline of MLIR's own passes, such as `canonicalize,cse`, on a module.
///
/// # Errors
/// The parser's message, if the pipeline does not parse.
pub(crate) fn run_textual(cx: &IrContext, module: &OwnedModule, pipeline: &str) -> Result<bool, String> {
    let mut message = String::new();
    // SAFETY: the callback writes to `message`, which outlives the calls.
    let passed = unsafe {
        with_manager(cx, module, |manager| {
            let parsed = sys::mlirOpPassManagerAddPipeline(
                sys::mlirPassManagerGetAsOpPassManager(manager),
                StringRef::new(pipeline).to_raw(),
                Some(append_text),
                (&raw mut message).cast(),
            );
            parsed.value != 0
        })
    };
    if message.is_empty() { Ok(passed) } else { Err(message) }
}

/// # Safety
/// What `fill` adds to the manager must outlive the call.
unsafe fn with_manager(
    cx: &IrContext,
    module: &OwnedModule,
    fill: impl FnOnce(sys::MlirPassManager) -> bool,
) -> bool {
    // SAFETY: context and module are alive; the manager is destroyed before the end.
    unsafe {
        let manager = sys::mlirPassManagerCreate(cx.melior().to_raw());
        sys::mlirPassManagerEnableVerifier(manager, true);
        let passed = fill(manager)
            && sys::mlirPassManagerRunOnOp(manager, sys::mlirModuleGetOperation(module.0)).value != 0;
        sys::mlirPassManagerDestroy(manager);
        passed
    }
}

/// Registers MLIR's `canonicalize`, `cse`, `symbol-dce` and the like for textual pipelines.
pub(crate) fn register_builtin_passes() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    // SAFETY: registration writes to a global registry, once.
    ONCE.call_once(|| unsafe { sys::mlirRegisterTransformsPasses() });
}

#[repr(align(8))]
struct PassId(#[allow(dead_code)] u8);
static PASS_ID: PassId = PassId(0);

unsafe extern "C" fn nothing(_: *mut c_void) {}

unsafe extern "C" fn same(pass: *mut c_void) -> *mut c_void {
    pass
}

unsafe extern "C" fn run_callback(
    op: sys::MlirOperation,
    pass: sys::MlirExternalPass,
    external: *mut c_void,
) {
    // SAFETY: MLIR passes back the pointer to the External of `run_external`, alive during the run.
    let external = unsafe { &*external.cast::<External<'_, '_>>() };
    let op = Op { raw: op, cx: external.cx };
    let result = catch_unwind(AssertUnwindSafe(|| (external.run)(op)))
        .unwrap_or_else(|payload| Err(PassFailure::Panic(panic_text(payload.as_ref()))));
    if result.is_err() {
        *external.outcome.borrow_mut() = result;
        // SAFETY: the pass is the one that runs now.
        unsafe { sys::mlirExternalPassSignalFailure(pass) }
    }
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

impl fmt::Debug for Op<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Op({})", self.name())
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: the value is alive.
        let text = printed(|callback, data| unsafe { sys::mlirValuePrint(self.raw, callback, data) });
        write!(f, "Value({text})")
    }
}

impl fmt::Debug for Block<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({} arguments)", self.argument_count())
    }
}

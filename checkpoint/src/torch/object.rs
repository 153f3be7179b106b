//! What a pickle of tensors can hold.

use crate::element::Element;

/// A value; others are named by their place among the machine's objects.
#[derive(Clone, Debug)]
pub(super) enum Object {
    None,
    Bool,
    Int(i64),
    Float,
    Text(String),
    Bytes,
    Tuple(Vec<usize>),
    List(Vec<usize>),
    Dict(Vec<(usize, usize)>),
    Global(Global),
    Storage(Storage),
    Tensor(View),
}

impl Object {
    /// What it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Object::None => "None",
            Object::Bool => "a truth value",
            Object::Int(_) => "a whole number",
            Object::Float => "a float",
            Object::Text(_) => "a string",
            Object::Bytes => "bytes",
            Object::Tuple(_) => "a tuple",
            Object::List(_) => "a list",
            Object::Dict(_) => "a dict",
            Object::Global(_) => "a class or function",
            Object::Storage(_) => "a storage",
            Object::Tensor(_) => "a tensor",
        }
    }
}

/// A name that a pickle may mention. None of them is called: the machine builds the value that the call would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildFromType,
    RebuildParameter,
    TensorType,
    Storage(Element),
}

impl Global {
    /// The global of a module and a name; none for every other one.
    pub fn find(module: &str, name: &str) -> Option<Global> {
        match (module, name) {
            ("collections", "OrderedDict") => Some(Global::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Global::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Global::RebuildParameter),
            ("torch._tensor", "_rebuild_from_type_v2") => Some(Global::RebuildFromType),
            ("torch", "Tensor") | ("torch.nn.parameter", "Parameter") => Some(Global::TensorType),
            ("torch", class) => Element::from_storage(class).map(Global::Storage),
            _ => None,
        }
    }
}

/// A storage: an entry of the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Storage {
    pub element: Element,
    /// Where the machine keeps its name under `data/`.
    pub key: usize,
    pub elements: u64,
}

/// A tensor: a view of a storage, in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub storage: Storage,
    pub offset: u64,
    pub shape: Vec<u64>,
    /// As many as axes.
    pub strides: Vec<u64>,
}

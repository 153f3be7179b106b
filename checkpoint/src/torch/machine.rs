//! Reads a pickle as data: a stack, a memo, and the few constructors that describe tensors.
//!
//! Pickles are programs that may call anything. Here nothing is called: a class or function that is not in
//! [`Global::find`] stops the reading at the opcode that names it, and the known ones stand for values that this
//! file builds itself. Opcodes that create other objects (NEWOBJ, INST, EXT1, ..) stop it too.

use super::object::{Global, Object, Storage, View};
use super::opcode;
use crate::fault::printable;
use std::collections::BTreeMap;

/// Why the reading stopped.
#[derive(Debug)]
pub(super) struct Stop {
    /// The byte of the opcode.
    pub at: u64,
    /// What was found there.
    pub message: String,
    /// What would help.
    pub hint: Option<String>,
}

/// The machine after its last opcode, or between two.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    /// The next byte to read.
    at: usize,
    /// Values are made once and named by their place here, as Python names them by address.
    objects: Vec<Object>,
    stack: Vec<usize>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: BTreeMap<u32, usize>,
    result: Option<usize>,
    /// Rows that calls of OrderedDict have copied out of lists.
    copied: usize,
}

/// Most axes of a tensor: PyTorch's own limit.
const MOST_AXES: usize = 64;

type Step<T> = Result<T, String>;

const UNSAFE: &str = "only what describes tensors is read, and nothing is called; convert it to safetensors";

impl<'a> Machine<'a> {
    /// Reads to the STOP opcode.
    pub fn run(bytes: &'a [u8]) -> Result<Machine<'a>, Stop> {
        let mut machine = Machine {
            bytes,
            at: 0,
            objects: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: BTreeMap::new(),
            result: None,
            copied: 0,
        };
        while machine.result.is_none() {
            let at = machine.at as u64;
            machine.step().map_err(|message| {
                let refused = message.starts_with("refused");
                Stop { at, message, hint: refused.then(|| UNSAFE.to_string()) }
            })?;
        }
        Ok(machine)
    }

    /// What the pickle holds.
    pub fn result(&self) -> &Object {
        self.result.map_or(&Object::None, |place| &self.objects[place])
    }

    /// The object at a place that another object names.
    pub fn object(&self, place: usize) -> &Object {
        &self.objects[place]
    }

    /// The string at a place; empty where it is none.
    pub fn text(&self, place: usize) -> &str {
        match self.object(place) {
            Object::Text(text) => text,
            _ => "",
        }
    }

    fn step(&mut self) -> Step<()> {
        let [code] = self.take::<1>()?;
        match code {
            0x80 => self.protocol(),
            0x95 => self.take::<8>().map(drop),
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'.' => {
                self.result = Some(self.pop()?);
                Ok(())
            }
            b'0' => self.pop().map(drop),
            b'1' => self.pop_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
                Ok(())
            }
            b'N' => self.push(Object::None),
            0x88 | 0x89 => self.push(Object::Bool),
            b'J' | b'K' | b'M' | 0x8a | 0x8b => self.integer(code),
            b'G' => self.take::<8>().and_then(|_| self.push(Object::Float)),
            b'X' | 0x8c | 0x8d | b'T' | b'U' => self.string(code),
            b'B' | b'C' | 0x8e => {
                self.counted(code)?;
                self.push(Object::Bytes)
            }
            b'}' => self.push(Object::Dict(Vec::new())),
            b']' => self.push(Object::List(Vec::new())),
            b')' => self.push(Object::Tuple(Vec::new())),
            0x85..=0x87 => self.short_tuple(usize::from(code - 0x84)),
            b't' => {
                let items = self.pop_mark()?;
                self.push(Object::Tuple(items))
            }
            b'a' | b'e' | b's' | b'u' => self.fill(code),
            b'q' | b'r' | 0x94 => self.put(code),
            b'h' | b'j' => self.get(code),
            b'c' | 0x93 => self.global(code),
            b'Q' => self.storage(),
            b'R' => self.reduce(),
            b'b' => self.build(),
            other => match opcode::name(other) {
                Some(name) => Err(format!("refused: the opcode {name} (0x{other:02x})")),
                None => Err(format!("0x{other:02x} is no pickle opcode")),
            },
        }
    }

    fn take<const N: usize>(&mut self) -> Step<[u8; N]> {
        let rest = self.bytes.get(self.at..).unwrap_or(&[]);
        let taken = rest.first_chunk::<N>().ok_or("the pickle is cut off")?;
        self.at += N;
        Ok(*taken)
    }

    fn slice(&mut self, length: u64) -> Step<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or(&[]);
        let slice = usize::try_from(length).ok().and_then(|length| rest.get(..length));
        let slice = slice.ok_or_else(|| format!("the pickle is cut off: {length} bytes expected"))?;
        self.at += slice.len();
        Ok(slice)
    }

    fn push(&mut self, object: Object) -> Step<()> {
        self.stack.push(self.objects.len());
        self.objects.push(object);
        Ok(())
    }

    fn top(&self) -> Step<usize> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack.get(floor..).and_then(<[usize]>::last).copied().ok_or("the stack is empty".into())
    }

    fn pop(&mut self) -> Step<usize> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Step<Vec<usize>> {
        let mark = self.marks.pop().ok_or("no mark is open")?;
        Ok(self.stack.split_off(mark))
    }

    fn protocol(&mut self) -> Step<()> {
        match self.take::<1>()? {
            [2..=5] => Ok(()),
            [other] => Err(format!("pickle protocol {other}, expected 2 to 5")),
        }
    }

    fn integer(&mut self, code: u8) -> Step<()> {
        let value = match code {
            b'J' => i64::from(i32::from_le_bytes(self.take()?)),
            b'K' => i64::from(self.take::<1>()?[0]),
            b'M' => i64::from(u16::from_le_bytes(self.take()?)),
            0x8a => {
                let [length] = self.take::<1>()?;
                two_complement(self.slice(u64::from(length))?)?
            }
            _ => {
                let length = u32::from_le_bytes(self.take()?);
                two_complement(self.slice(u64::from(length))?)?
            }
        };
        self.push(Object::Int(value))
    }

    /// The bytes of an opcode that counts them.
    fn counted(&mut self, code: u8) -> Step<&'a [u8]> {
        let length = match code {
            0x8c | b'U' | b'C' => u64::from(self.take::<1>()?[0]),
            0x8d | 0x8e => u64::from_le_bytes(self.take()?),
            _ => u64::from(u32::from_le_bytes(self.take()?)),
        };
        self.slice(length)
    }

    fn string(&mut self, code: u8) -> Step<()> {
        let bytes = self.counted(code)?;
        let text = std::str::from_utf8(bytes).map_err(|_| "a string that is not UTF-8")?;
        self.push(Object::Text(text.to_string()))
    }

    fn short_tuple(&mut self, length: usize) -> Step<()> {
        let mut items = Vec::with_capacity(length);
        for _ in 0..length {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Object::Tuple(items))
    }

    /// APPEND, APPENDS, SETITEM, SETITEMS.
    fn fill(&mut self, code: u8) -> Step<()> {
        let items = match code {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_mark()?,
        };
        let into = self.top()?;
        let pairs = matches!(code, b's' | b'u');
        match &mut self.objects[into] {
            Object::List(list) if !pairs => list.extend(items),
            Object::Dict(rows) if pairs && items.len() % 2 == 0 => {
                rows.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            }
            other => return Err(format!("{} values cannot be put into {}", items.len(), other.kind())),
        }
        Ok(())
    }

    fn put(&mut self, code: u8) -> Step<()> {
        let key = match code {
            b'q' => u32::from(self.take::<1>()?[0]),
            b'r' => u32::from_le_bytes(self.take()?),
            _ => self.memo.len() as u32,
        };
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn get(&mut self, code: u8) -> Step<()> {
        let key = match code {
            b'h' => u32::from(self.take::<1>()?[0]),
            _ => u32::from_le_bytes(self.take()?),
        };
        let place = self.memo.get(&key).ok_or_else(|| format!("nothing was kept under {key}"))?;
        self.stack.push(*place);
        Ok(())
    }

    fn line(&mut self) -> Step<&'a str> {
        let rest = self.bytes.get(self.at..).unwrap_or(&[]);
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or("a name without an end")?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| "a name that is not UTF-8".into())
    }

    fn global(&mut self, code: u8) -> Step<()> {
        let (module, name) = match code {
            b'c' => (self.line()?.to_string(), self.line()?.to_string()),
            _ => {
                let name = self.pop_text()?;
                (self.pop_text()?, name)
            }
        };
        let global = Global::find(&module, &name)
            .ok_or_else(|| format!("refused: `{}.{}`", printable(&module), printable(&name)))?;
        self.push(Object::Global(global))
    }

    fn pop_text(&mut self) -> Step<String> {
        let place = self.pop()?;
        match &self.objects[place] {
            Object::Text(text) => Ok(text.clone()),
            other => Err(format!("expected a string, found {}", other.kind())),
        }
    }

    fn tuple(&self, place: usize) -> Step<&[usize]> {
        match self.object(place) {
            Object::Tuple(items) => Ok(items),
            other => Err(format!("expected a tuple, found {}", other.kind())),
        }
    }

    /// BINPERSID: `("storage", class, key, device, elements)`.
    fn storage(&mut self) -> Step<()> {
        let id = self.pop()?;
        let storage = match *self.tuple(id)? {
            [tag, class, key, _, elements, ..] if self.text(tag) == "storage" => {
                match (self.object(class), self.object(key), self.object(elements)) {
                    (Object::Global(Global::Storage(element)), Object::Text(_), Object::Int(elements)) => {
                        let elements =
                            u64::try_from(*elements).map_err(|_| "a storage of negative length")?;
                        Storage { element: *element, key, elements }
                    }
                    _ => return Err("a persistent id that is no storage".into()),
                }
            }
            _ => return Err("a persistent id that is no storage".into()),
        };
        self.push(Object::Storage(storage))
    }

    fn reduce(&mut self) -> Step<()> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let mut copied = self.copied;
        let arguments = self.tuple(arguments)?;
        let object = match self.object(callee) {
            Object::Global(Global::OrderedDict) => self.ordered_dict(arguments, &mut copied)?,
            Object::Global(Global::RebuildTensor) => self.tensor(arguments)?,
            Object::Global(Global::RebuildFromType) => self.typed_tensor(arguments)?,
            Object::Global(Global::RebuildParameter) => match arguments.first().map(|a| self.object(*a)) {
                Some(Object::Tensor(view)) => Object::Tensor(view.clone()),
                _ => return Err("_rebuild_parameter without a tensor".into()),
            },
            Object::Global(other) => return Err(format!("refused: a call of {other:?}")),
            other => return Err(format!("refused: a call of {}", other.kind())),
        };
        self.copied = copied;
        self.push(object)
    }

    /// `OrderedDict()` or `OrderedDict([(key, value), ..])`.
    fn ordered_dict(&self, arguments: &[usize], copied: &mut usize) -> Step<Object> {
        let items = match *arguments {
            [] => return Ok(Object::Dict(Vec::new())),
            [list] => match self.object(list) {
                Object::List(items) => items,
                other => return Err(format!("OrderedDict of {}", other.kind())),
            },
            _ => return Err("OrderedDict with more than one argument".into()),
        };
        *copied += items.len();
        if *copied > self.bytes.len() {
            return Err("refused: one list for many an OrderedDict".into());
        }
        let pair = |item: &usize| match self.object(*item) {
            Object::Tuple(pair) | Object::List(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
            _ => Err("OrderedDict with an item that is no pair".to_string()),
        };
        items.iter().map(pair).collect::<Step<_>>().map(Object::Dict)
    }

    /// `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks, metadata?)`.
    fn tensor(&self, arguments: &[usize]) -> Step<Object> {
        let [storage, offset, shape, strides, ..] = arguments else {
            return Err("_rebuild_tensor_v2 with too few arguments".into());
        };
        let parts = (self.object(*storage), self.object(*offset));
        let (Object::Storage(storage), Object::Int(offset)) = parts else {
            return Err("_rebuild_tensor_v2 without a storage and an offset".into());
        };
        let (shape, strides) = (self.counts(*shape)?, self.counts(*strides)?);
        let offset = u64::try_from(*offset).map_err(|_| format!("a negative offset {offset}"))?;
        if shape.len() != strides.len() {
            return Err(format!("{} axes with {} strides", shape.len(), strides.len()));
        }
        Ok(Object::Tensor(View { storage: *storage, offset, shape, strides }))
    }

    fn counts(&self, place: usize) -> Step<Vec<u64>> {
        let count = |item: &usize| match self.object(*item) {
            Object::Int(n) => u64::try_from(*n).map_err(|_| format!("a negative length {n}")),
            other => Err(format!("expected a length, found {}", other.kind())),
        };
        let items = self.tuple(place)?;
        match items.len() {
            axes if axes > MOST_AXES => Err(format!("{axes} axes, expected at most {MOST_AXES}")),
            _ => items.iter().map(count).collect(),
        }
    }

    /// `_rebuild_from_type_v2(_rebuild_tensor_v2, torch.Tensor, arguments, state)`; the state is attributes of the
    /// Python object, which hold no elements.
    fn typed_tensor(&self, arguments: &[usize]) -> Step<Object> {
        let [function, class, inner, ..] = arguments else {
            return Err("_rebuild_from_type_v2 with too few arguments".into());
        };
        match (self.object(*function), self.object(*class)) {
            (Object::Global(Global::RebuildTensor), Object::Global(Global::TensorType)) => {
                self.tensor(self.tuple(*inner)?)
            }
            _ => Err("refused: _rebuild_from_type_v2 of something other than a tensor".into()),
        }
    }

    /// BUILD: attributes of a Python object, such as the `_metadata` of a state dict. They hold no elements.
    fn build(&mut self) -> Step<()> {
        self.pop()?;
        let of = self.top()?;
        match self.object(of) {
            Object::Dict(_) | Object::Tensor(_) => Ok(()),
            other => Err(format!("refused: attributes of {}", other.kind())),
        }
    }
}

fn two_complement(bytes: &[u8]) -> Step<i64> {
    let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
    let mut whole = [if negative { 0xff } else { 0 }; 8];
    match whole.get_mut(..bytes.len()) {
        Some(low) => low.copy_from_slice(bytes),
        None => return Err(format!("a whole number of {} bytes", bytes.len())),
    }
    Ok(i64::from_le_bytes(whole))
}

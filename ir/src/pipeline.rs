//! Passes in MLIR's pass manager: each runs alone, the module is verified after it, and an observer sees it.

use crate::context::IrContext;
use crate::error::{IrError, PassFailure};
use crate::module::Module;
use crate::raw::{self, Op, RunPass};
use std::error::Error;

/// What a pass returns: nothing, or why it refused.
pub type PassResult = Result<(), Box<dyn Error + Send + Sync>>;

enum Step<'c> {
    Ours(Box<RunPass<'c>>),
    /// A pass of MLIR's own, in its textual form.
    Builtin(String),
}

/// What happens while a pipeline runs. Clocks belong to the observer: time is what passes between two events.
pub enum Event<'e, 'c> {
    /// A pass begins.
    Started {
        /// Its name.
        pass: &'e str,
    },
    /// A pass has run and the module verifies.
    Finished {
        /// Its name.
        pass: &'e str,
        /// The module after it.
        module: &'e Module<'c>,
    },
}

/// A list of passes over a module.
#[derive(Default)]
pub struct Pipeline<'c> {
    steps: Vec<(String, Step<'c>)>,
}

impl<'c> Pipeline<'c> {
    /// No passes.
    pub fn new() -> Self {
        Pipeline { steps: Vec::new() }
    }

    /// Appends a pass of ours; it gets the `builtin.module` operation.
    ///
    /// A panic inside does not abort the process: it becomes [`PassFailure::Panic`]. The bound keeps passes free of
    /// thread-bound state, although the context runs them on one thread.
    pub fn add(&mut self, name: &str, run: impl Fn(Op<'c>) -> PassResult + Send + Sync + 'c) -> &mut Self {
        let run = move |op: Op<'c>| run(op).map_err(PassFailure::from);
        self.steps.push((name.to_owned(), Step::Ours(Box::new(run))));
        self
    }

    /// Appends a pass of MLIR's own in its textual form, such as `cse` or `canonicalize{max-iterations=3}`.
    pub fn add_builtin(&mut self, text: &str) -> &mut Self {
        self.steps.push((text.to_owned(), Step::Builtin(text.to_owned())));
        self
    }

    /// The names in order.
    pub fn names(&self) -> Vec<&str> {
        self.steps.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// Runs every pass in order and stops at the first that fails; the module may be half changed then.
    ///
    /// # Errors
    /// [`IrError::Pass`] if a pass refuses or panics, [`IrError::Invalid`] if the module does not verify after it,
    /// [`IrError::Pipeline`] if MLIR does not know a pass.
    pub fn run(
        &self,
        module: &mut Module<'c>,
        observe: &mut dyn FnMut(Event<'_, 'c>),
    ) -> Result<(), IrError> {
        for (name, step) in &self.steps {
            observe(Event::Started { pass: name });
            run_step(module, name, step)?;
            observe(Event::Finished { pass: name, module });
        }
        Ok(())
    }
}

fn run_step<'c>(module: &Module<'c>, name: &str, step: &Step<'c>) -> Result<(), IrError> {
    let cx: &'c IrContext = module.context();
    let mark = cx.mark();
    let (outcome, passed) = match step {
        Step::Ours(run) => raw::run_external(cx, &module.raw, name, run.as_ref()),
        Step::Builtin(text) => {
            let passed = raw::run_textual(cx, &module.raw, text);
            (Ok(()), passed.map_err(|message| IrError::Pipeline { text: text.clone(), message })?)
        }
    };
    if let Err(failure) = outcome {
        return Err(IrError::Pass { pass: name.to_owned(), failure, diagnostics: cx.since(mark) });
    }
    match passed {
        true => Ok(()),
        false => Err(IrError::Invalid { what: format!("verify after {name}"), diagnostics: cx.since(mark) }),
    }
}

/// One element of a textual pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassText {
    /// Name, such as `cse`; of a nested pipeline the operation's, such as `func.func`.
    pub name: String,
    /// The whole element with its options, such as `canonicalize{max-iterations=3}`.
    pub text: String,
    /// What stands between the braces.
    pub options: Option<String>,
}

/// Splits `builtin.module(a,b{x=1},func.func(c))` or `a,b` into its top-level elements.
///
/// # Errors
/// [`IrError::Pipeline`] for brackets that do not match and for empty elements.
pub fn parse_pipeline(text: &str) -> Result<Vec<PassText>, IrError> {
    let fault = |message: &str| IrError::Pipeline { text: text.to_owned(), message: message.to_owned() };
    let inner = text.trim();
    let inner =
        inner.strip_prefix("builtin.module(").and_then(|rest| rest.strip_suffix(')')).unwrap_or(inner);
    if inner.trim().is_empty() {
        return Ok(Vec::new());
    }
    let elements = split(inner).ok_or_else(|| fault("brackets do not match"))?;
    elements
        .into_iter()
        .map(|element| element_of(element).ok_or_else(|| fault("a pass has no name")))
        .collect()
}

/// Splits at commas outside all brackets; none if the brackets do not match.
fn split(text: &str) -> Option<Vec<&str>> {
    let (mut open, mut start, mut elements) = (Vec::new(), 0, Vec::new());
    for (at, letter) in text.char_indices() {
        match letter {
            '(' | '{' => open.push(letter),
            ')' if open.pop() != Some('(') => return None,
            '}' if open.pop() != Some('{') => return None,
            ',' if open.is_empty() => {
                elements.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    elements.push(&text[start..]);
    open.is_empty().then_some(elements)
}

fn element_of(element: &str) -> Option<PassText> {
    let text = element.trim();
    let name = text.split(['{', '(']).next().unwrap_or("").trim();
    let options = text
        .split_once('{')
        .and_then(|(_, rest)| rest.strip_suffix('}'))
        .map(|options| options.trim().to_owned());
    (!name.is_empty()).then(|| PassText { name: name.to_owned(), text: text.to_owned(), options })
}

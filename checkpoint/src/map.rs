//! Which stored tensor holds which parameter of a model, and everything that does not fit.

use crate::binding::Binding;
use crate::checkpoint::Checkpoint;
use crate::fault::{Fault, FaultKind, Faults};
use crate::stored::Stored;
use crate::values::Values;
use lapidary_models::ModelSpec;
use lapidary_models::weights::{self, Source};
use std::collections::{BTreeMap, BTreeSet};

/// What becomes of a stored tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Fate {
    /// It holds these parameters, each in its rows.
    Parameters(Vec<Source>),
    /// It repeats the tensor of this published name.
    Repeats(String),
    /// It is a buffer of the publishing program, known by this pattern.
    Ignored(String),
    /// The model has no place for it.
    Extra,
}

/// One stored tensor.
#[derive(Clone, Debug)]
pub struct Entry<'c, 'a> {
    /// The tensor.
    pub stored: &'c Stored<'a>,
    /// The published name that its own stands for.
    pub published: String,
    /// What becomes of it.
    pub fate: Fate,
}

/// The map from a checkpoint to a model.
#[derive(Clone, Debug)]
pub struct Map<'c, 'a> {
    /// Every stored tensor, in the checkpoint's order.
    pub entries: Vec<Entry<'c, 'a>>,
    /// Missing, extra and unfit tensors: whatever names, shapes and types tell.
    pub faults: Vec<Fault>,
    /// The prefix that every published name of the family has and this checkpoint's names lack, with its dot.
    pub without_prefix: Option<String>,
    pub(crate) checkpoint: &'c Checkpoint<'a>,
}

impl<'c, 'a> Map<'c, 'a> {
    /// Maps a checkpoint to a model.
    ///
    /// # Errors
    /// When the model has no published form. What is wrong with the checkpoint is in [`Map::faults`].
    pub fn new(spec: &ModelSpec, checkpoint: &'c Checkpoint<'a>) -> Result<Self, Faults> {
        let sources = weights::sources(spec)
            .map_err(|error| Fault::new(FaultKind::Model, &spec.name, error.to_string()))?;
        let names = Names::new(spec, &sources);
        let without_prefix = names.absent_prefix(checkpoint);
        let entries = checkpoint.tensors().iter().map(|stored| {
            let (published, fate) = names.fate(&stored.name, without_prefix.as_deref());
            Entry { stored, published, fate }
        });
        let mut map = Map { entries: entries.collect(), faults: Vec::new(), without_prefix, checkpoint };
        map.take_twin(&names);
        map.check_missing(&names);
        map.check_forms(&names);
        Ok(map)
    }

    /// Checks the values too, and gives the parameters by name.
    ///
    /// # Errors
    /// Every fault of names, shapes, types and values in one.
    pub fn bind(self, values: Values) -> Result<Binding<'c, 'a>, Faults> {
        let faults = self.all_faults(values);
        if faults.is_empty() { Ok(Binding::new(&self)) } else { Err(Faults { faults }) }
    }

    /// The faults of names, shapes and types, and of the values where they are to be checked.
    pub fn all_faults(&self, values: Values) -> Vec<Fault> {
        self.faults.iter().cloned().chain(values.faults(self)).collect()
    }

    /// The entry that holds the parameters published under a name.
    pub(crate) fn holder(&self, published: &str) -> Option<&Entry<'c, 'a>> {
        let holds = |entry: &&Entry<'_, '_>| matches!(entry.fate, Fate::Parameters(_));
        self.entries.iter().filter(holds).find(|entry| entry.published == published)
    }

    /// A tied table may be stored under the head's name only.
    fn take_twin(&mut self, names: &Names<'_>) {
        let Some(twin) = names.twin.filter(|twin| self.holder(twin).is_none()) else { return };
        let repeats = |entry: &&mut Entry<'_, '_>| matches!(entry.fate, Fate::Repeats(_));
        if let Some(entry) = self.entries.iter_mut().find(repeats) {
            entry.published = twin.to_string();
            entry.fate = Fate::Parameters(names.sources_of(twin));
        }
    }

    fn check_missing(&mut self, names: &Names<'_>) {
        let held: BTreeSet<&str> = self
            .entries
            .iter()
            .filter(|entry| matches!(entry.fate, Fate::Parameters(_)))
            .map(|entry| entry.published.as_str())
            .collect();
        let missing = names.in_order.iter().filter(|published| !held.contains(**published));
        let fault = |published: &&str| {
            let sources = &names.wanted[published];
            let shape = &sources[0].published_shape;
            let message = format!("missing; it holds {} as {shape:?}", parameters(sources));
            Fault::new(FaultKind::Missing, self.place(), message).tensor(published)
        };
        let faults: Vec<Fault> = missing.map(fault).collect();
        self.faults.extend(faults);
    }

    /// What the whole checkpoint is called: its file, where it is one.
    fn place(&self) -> &'c str {
        match self.checkpoint.files() {
            [file] => &file.name,
            _ => "",
        }
    }

    fn check_forms(&mut self, names: &Names<'_>) {
        for entry in &self.entries {
            let fault = |kind, message: String| {
                let file = self.checkpoint.file_name(entry.stored);
                Fault::new(kind, file, message).tensor(&entry.stored.name)
            };
            let wanted = match &entry.fate {
                Fate::Ignored(_) => continue,
                Fate::Extra => {
                    self.faults.push(fault(FaultKind::Extra, "the model has no place for it".into()));
                    continue;
                }
                Fate::Parameters(sources) => sources[0].published_shape.as_slice(),
                Fate::Repeats(twin) => names.shape(twin),
            };
            if entry.stored.shape != wanted {
                let message = format!("found shape {:?}, expected {wanted:?}", entry.stored.shape);
                self.faults.push(fault(FaultKind::Shape, message));
            }
            if entry.stored.element.dtype().is_none() {
                let message = format!("found {} elements, expected F32, BF16 or F16", entry.stored.element);
                self.faults.push(fault(FaultKind::Element, message));
            }
        }
    }
}

/// The parameters of a published tensor in a few words.
fn parameters(sources: &[&Source]) -> String {
    match sources {
        [one] => one.canonical.clone(),
        many => many.iter().map(|source| source.canonical.as_str()).collect::<Vec<_>>().join(", "),
    }
}

/// The published names of a model.
struct Names<'s> {
    spec: &'s ModelSpec,
    /// In the model's order, each once.
    in_order: Vec<&'s str>,
    wanted: BTreeMap<&'s str, Vec<&'s Source>>,
    /// The tensor that duplicates repeat: the embedding table.
    twin: Option<&'s str>,
}

impl<'s> Names<'s> {
    fn new(spec: &'s ModelSpec, sources: &'s [Source]) -> Self {
        let mut names = Names { spec, in_order: Vec::new(), wanted: BTreeMap::new(), twin: None };
        for source in sources {
            let same = names.wanted.entry(&source.published).or_default();
            if same.is_empty() {
                names.in_order.push(&source.published);
            }
            same.push(source);
        }
        let table = sources.iter().find(|source| source.canonical == "embed.weight");
        names.twin = table.map(|source| source.published.as_str());
        names
    }

    fn sources_of(&self, published: &str) -> Vec<Source> {
        self.wanted.get(published).into_iter().flatten().copied().cloned().collect()
    }

    fn shape(&self, published: &str) -> &'s [u64] {
        self.wanted.get(published).map_or(&[], |sources| &sources[0].published_shape)
    }

    /// The family's prefix, with its dot, where no stored name has it: a checkpoint of the bare model.
    fn absent_prefix(&self, checkpoint: &Checkpoint<'_>) -> Option<String> {
        if self.spec.weights.names == "canonical" {
            return None;
        }
        let prefix = format!("{}.", self.twin?.split_once('.')?.0);
        let has = checkpoint.tensors().iter().any(|stored| stored.name.starts_with(&prefix));
        (!has).then_some(prefix)
    }

    /// The published name that a stored name stands for, and what becomes of the tensor.
    fn fate(&self, stored: &str, prefix: Option<&str>) -> (String, Fate) {
        let known = |name: String| self.known(&name).map(|fate| (name, fate));
        known(stored.to_string())
            .or_else(|| known(format!("{}{stored}", prefix?)))
            .unwrap_or_else(|| (stored.to_string(), Fate::Extra))
    }

    fn known(&self, name: &str) -> Option<Fate> {
        let matching =
            |patterns: &'s [String]| patterns.iter().find(|pattern| weights::matches_wildcard(pattern, name));
        if self.wanted.contains_key(name) {
            return Some(Fate::Parameters(self.sources_of(name)));
        }
        if let (Some(_), Some(twin)) = (matching(&self.spec.weights.duplicates), self.twin) {
            return Some(Fate::Repeats(twin.to_string()));
        }
        matching(&self.spec.weights.ignore).map(|pattern| Fate::Ignored(pattern.clone()))
    }
}

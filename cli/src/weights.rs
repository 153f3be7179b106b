//! Weights as the user names them: a folder with a checkpoint, or one file of it.
//!
//! ```text
//! weights::with(path, &spec, |opened| Model::load(program, opened, ..))
//!     Files::open(path)        maps them
//!     files.checkpoint()       every fault of form: exit 3
//!     Map::new(&spec, ..)      every fault of names, shapes, types, values: exit 3
//! ```

use crate::failure::{Exit, Failure, Fault};
use crate::input;
use crate::map::Mapped;
use lapidary_checkpoint::folder::{self, Choice};
use lapidary_checkpoint::{Binding, Checkpoint, Faults, File, Index, Map, Values};
use lapidary_models::{DType, ModelSpec};
use lapidary_reference::{Params, Real, Tensor};
use lapidary_runtime_cpu::program::WeightType;
use lapidary_runtime_cpu::weights::Held;
use lapidary_runtime_cpu::{TensorView, WeightError, Weights};
use lapidary_runtime_gpu::execute::{Tensor as DeviceTensor, Tensors};
use std::path::Path;

/// The mapped files of a checkpoint.
pub struct Files {
    files: Vec<Mapped>,
    index: Option<Index>,
}

impl Files {
    /// Maps the checkpoint of a folder, with all its shards; the shards of an index; or one file.
    ///
    /// # Errors
    /// Exit 3 when there is none, an index points elsewhere, or a file cannot be read.
    pub fn open(path: &Path) -> Result<Files, Failure> {
        if path.is_dir() {
            return match folder::choose(names(path)?.iter().map(String::as_str)) {
                Some(Choice::Single(file)) => Files::single(&path.join(file)),
                Some(Choice::Sharded(file)) => Files::sharded(&path.join(file)),
                None => Err(no_checkpoint(path)),
            };
        }
        match path.to_string_lossy().ends_with(".index.json") {
            true => Files::sharded(path),
            false => Files::single(path),
        }
    }

    fn single(path: &Path) -> Result<Files, Failure> {
        Ok(Files { files: vec![Mapped::open(path)?], index: None })
    }

    fn sharded(path: &Path) -> Result<Files, Failure> {
        let index = Index::parse(&input::read(path)?, &path.display().to_string()).map_err(failure)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        // A plain name cannot leave the folder; a link inside it may, as the caches of hubs have them.
        let files = index.shards().into_iter().map(|shard| Mapped::open(&folder.join(shard)));
        let files = together(files)?;
        Ok(Files { files, index: Some(index) })
    }

    /// Reads what the files hold.
    ///
    /// # Errors
    /// Exit 3 with every fault of every file.
    pub fn checkpoint(&self) -> Result<Checkpoint<'_>, Failure> {
        let file = |mapped: &'_ Mapped| mapped.name.clone();
        let files: Vec<File<'_>> =
            self.files.iter().map(|mapped| File { name: file(mapped), bytes: mapped.bytes() }).collect();
        Checkpoint::open(&files, self.index.as_ref()).map_err(failure)
    }

    /// The index, where the checkpoint has one.
    pub fn index(&self) -> Option<&Index> {
        self.index.as_ref()
    }
}

/// All results, or all faults.
fn together<T>(results: impl Iterator<Item = Result<T, Failure>>) -> Result<Vec<T>, Failure> {
    let (mut values, mut faults) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(value) => values.push(value),
            Err(failure) => faults.extend(failure.faults),
        }
    }
    if faults.is_empty() { Ok(values) } else { Err(Failure { exit: Exit::InvalidInput, faults }) }
}

fn names(folder: &Path) -> Result<Vec<String>, Failure> {
    let refused = |error: std::io::Error| {
        Failure::new(Exit::InvalidInput, format!("{}: cannot read: {error}", folder.display()))
    };
    let entries = std::fs::read_dir(folder).map_err(refused)?;
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
    };
    entries.map(name).collect::<Result<_, _>>().map_err(refused)
}

fn no_checkpoint(folder: &Path) -> Failure {
    let names: Vec<&str> = folder::names().collect();
    Failure::new(Exit::InvalidInput, format!("{}: no checkpoint in this folder", folder.display()))
        .help(format!("expected one of {}", names.join(", ")))
}

/// The faults of a checkpoint as a failure with exit code 3.
pub fn failure(found: Faults) -> Failure {
    let fault =
        |fault: lapidary_checkpoint::Fault| Fault { help: fault.hint.clone(), ..Fault::new(fault.line()) };
    Failure { exit: Exit::InvalidInput, faults: found.faults.into_iter().map(fault).collect() }
}

/// Every parameter of a model, by canonical name with the layer filled in.
pub struct Opened<'b> {
    files: &'b Files,
    map: &'b Map<'b, 'b>,
    binding: &'b Binding<'b, 'b>,
}

/// Opens the checkpoint at `path`, a folder or a file, for as long as `work` needs it; what runs from the files keeps
/// them mapped. Values are checked on all threads of the current pool.
///
/// # Errors
/// Exit 3 with everything that is wrong with the files, or does not fit the model.
pub fn with<T>(
    path: &Path,
    spec: &ModelSpec,
    work: impl FnOnce(&Opened<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    with_unread(path, spec, |opened| {
        opened.check_values()?;
        work(opened)
    })
}

/// As [`with`], but `work` has to call [`Opened::check_values`] before it uses a value: until then only names, shapes and
/// types have been looked at, so what does not fit into memory is refused without reading it.
///
/// # Errors
/// Exit 3 with everything that is wrong with the files, or does not fit the model.
pub fn with_unread<T>(
    path: &Path,
    spec: &ModelSpec,
    work: impl FnOnce(&Opened<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let files = Files::open(path)?;
    let checkpoint = files.checkpoint()?;
    let map = Map::new(spec, &checkpoint).map_err(failure)?;
    if !map.faults.is_empty() {
        return Err(failure(Faults { faults: map.all_faults(Values::Check) }));
    }
    let binding = map.clone().bind(Values::Trust).map_err(failure)?;
    work(&Opened { files: &files, map: &map, binding: &binding })
}

impl Opened<'_> {
    /// Reads every value, on all threads of the current pool.
    ///
    /// # Errors
    /// Exit 3 with everything that is not finite, repeated wrongly or damaged.
    pub fn check_values(&self) -> Result<(), Failure> {
        let faults = self.map.all_faults(Values::Check);
        if faults.is_empty() { Ok(()) } else { Err(failure(Faults { faults })) }
    }

    /// The smaller element type that holds every weight exactly.
    pub fn lossless(&self) -> WeightType {
        let bf16 = self.binding.names().all(|name| self.binding.dtype(name) == Some(DType::Bf16));
        if bf16 { WeightType::Bf16 } else { WeightType::F32 }
    }

    /// Every parameter as the reference interpreter takes it.
    ///
    /// # Errors
    /// Exit 3 for a tensor that cannot be read.
    pub fn params<T: Real>(&self) -> Result<Params<T>, Failure> {
        self.binding.names().map(|name| Ok((name.to_string(), self.values(name)?))).collect()
    }

    fn values<T: Real>(&self, name: &str) -> Result<Tensor<T>, Failure> {
        let refused = |error: WeightError| Failure::new(Exit::InvalidInput, error.to_string());
        let view = Weights::tensor(self, name).map_err(refused)?;
        view.expect(name, &view.shape.clone()).map_err(refused)?;
        let mut values = vec![0f32; view.shape.iter().product::<u64>() as usize];
        view.read(0, &mut values);
        let shape = view.shape.iter().map(|n| *n as usize).collect();
        Ok(Tensor::new(shape, values.into_iter().map(|x| T::from_f64(f64::from(x))).collect()))
    }
}

impl Weights for Opened<'_> {
    fn tensor(&self, name: &str) -> Result<TensorView<'_>, WeightError> {
        let missing = || WeightError::Missing { name: name.into() };
        let tensor = self.binding.tensor(name).ok_or_else(missing)?;
        Ok(TensorView { dtype: tensor.dtype, shape: tensor.shape, bytes: tensor.bytes })
    }

    fn held(&self, bytes: &[u8]) -> Option<Held> {
        self.files.files.iter().find_map(|mapped| Held::of(&mapped.owner(), bytes))
    }
}

impl Tensors for Opened<'_> {
    fn tensor(&self, name: &str) -> Option<DeviceTensor<'_>> {
        let view = Weights::tensor(self, name).ok()?;
        let shape = view.shape.clone();
        Some(DeviceTensor { shape, read: Box::new(move |first, out| view.read(first as usize, out)) })
    }
}

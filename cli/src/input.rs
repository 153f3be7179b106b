//! Finding and reading what the user named: models and machines, as files, folders or built-in names.

use crate::args::Global;
use crate::failure::{Exit, Failure, Fault};
use lapidary_hardware::{HardwareSpec, MachineError};
use lapidary_models::{FaultKind, ImportReport, ModelSpec};
use serde::de::DeserializeOwned;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A model as read, with what was made of a foreign configuration.
pub struct Model {
    /// The specification.
    pub spec: ModelSpec,
    /// What became of each key of a Hugging Face configuration; none for our own files.
    pub import: Option<ImportReport>,
}

/// Reads a model.toml, a Hugging Face folder or config.json, a built-in name, or `-`.
///
/// # Errors
/// As of [`model`]; exit 5 for a model with experts.
pub fn runnable_model(name: &str) -> Result<Model, Failure> {
    let model = model(name)?;
    match model.spec.experts {
        None => Ok(model),
        Some(_) => {
            let message =
                format!("{}: models with experts are planned for, not compiled yet", model.spec.name);
            Err(Failure::new(Exit::Unsupported, message)
                .help("lapidary plan, check and models show read them"))
        }
    }
}

/// Reads a model, wherever it is described.
///
/// # Errors
/// Exit 3 with every fault of the file, 5 for a family that is not supported.
pub fn model(name: &str) -> Result<Model, Failure> {
    let path = Path::new(name);
    if name == "-" {
        let text = stdin()?;
        return if text.trim_start().starts_with('{') { import(&text, "-", None) } else { own(&text, "-") };
    }
    if path.is_dir() {
        let config = path.join("config.json");
        let own_file = path.join("model.toml");
        if !config.exists() && own_file.exists() {
            return own(&read(&own_file)?, &own_file.display().to_string());
        }
        return import(&read(&config)?, &config.display().to_string(), folder_name(path));
    }
    if looks_like_file(path) {
        let text = read(path)?;
        return match path.extension().is_some_and(|e| e == "json") {
            true => import(&text, name, path.parent().and_then(folder_name)),
            false => own(&text, name),
        };
    }
    let spec = lapidary_models::builtin(name).map_err(|error| {
        Failure::new(Exit::InvalidInput, error.to_string())
            .help("name a model.toml, a Hugging Face folder, or one of `lapidary models list`")
    })?;
    Ok(Model { spec, import: None })
}

/// Reads a JSON document.
///
/// # Errors
/// What is wrong, behind the key where it is, with line and column.
pub fn json<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let mut json = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let what = error.into_inner();
        if path == "." { what.to_string() } else { format!("key {path}: {what}") }
    })?;
    json.end().map_err(|error| error.to_string())?;
    Ok(value)
}

/// The threads that a command may use.
///
/// # Errors
/// Exit 1 when the system gives none.
pub fn pool(global: &Global) -> Result<rayon::ThreadPool, Failure> {
    let threads = global.jobs.map_or(0, usize::from);
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|error| Failure::new(Exit::Internal, format!("cannot start threads: {error}")))
}

/// Reads a machine file or takes a built-in machine.
///
/// # Errors
/// Exit 3 with every fault of the file.
pub fn machine(name: &str) -> Result<HardwareSpec, Failure> {
    let path = Path::new(name);
    let read = match name {
        "-" => HardwareSpec::from_toml(&stdin()?, name),
        _ if looks_like_file(path) => HardwareSpec::from_toml(&read(path)?, name),
        _ => lapidary_hardware::builtin::machine(name),
    };
    read.map_err(machine_failure)
}

/// Reads a text file.
///
/// # Errors
/// Exit 3 when it cannot be read.
pub fn read(path: &Path) -> Result<String, Failure> {
    let refused = |what: String| Failure::new(Exit::InvalidInput, format!("{}: {what}", path.display()));
    let bytes = std::fs::read(path).map_err(|error| refused(format!("cannot read: {error}")))?;
    String::from_utf8(bytes).map_err(|error| {
        let line =
            error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
        refused(format!("line {}: not UTF-8 text", line + 1))
    })
}

/// Reads a text file, or stdin for `-`.
///
/// # Errors
/// Exit 3 when it cannot be read.
pub fn text(path: &Path) -> Result<String, Failure> {
    if path == Path::new("-") { stdin() } else { read(path) }
}

fn stdin() -> Result<String, Failure> {
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .map_err(|error| Failure::new(Exit::InvalidInput, format!("-: cannot read: {error}")))?;
    Ok(text)
}

fn looks_like_file(path: &Path) -> bool {
    let has_suffix = path.extension().is_some_and(|e| e == "toml" || e == "json");
    has_suffix || path.components().count() > 1 || path.is_file()
}

fn folder_name(path: &Path) -> Option<String> {
    let whole: PathBuf = path.canonicalize().ok()?;
    Some(whole.file_name()?.to_string_lossy().into_owned())
}

fn own(text: &str, name: &str) -> Result<Model, Failure> {
    let spec = lapidary_models::parse_model(text, name).map_err(|faults| model_failure(faults, text))?;
    Ok(Model { spec, import: None })
}

fn import(text: &str, name: &str, folder: Option<String>) -> Result<Model, Failure> {
    let import = lapidary_models::import_config(text, name).map_err(|faults| model_failure(faults, text))?;
    let mut spec = import.spec;
    if let Some(folder) = folder {
        spec.name = folder;
    }
    Ok(Model { spec, import: Some(import.report) })
}

fn model_failure(found: lapidary_models::Faults, text: &str) -> Failure {
    let unsupported = found.faults.iter().all(|fault| fault.kind == FaultKind::Unsupported);
    let exit = if unsupported { Exit::Unsupported } else { Exit::InvalidInput };
    let source = found.source_name;
    let faults = found.faults.into_iter().map(|fault| Fault {
        message: placed(&source, fault.line, fault.column, &fault.key, &fault.message),
        source: Some((source.clone(), text.to_string())),
        span: Some((fault.span.start, fault.span.len())),
        help: fault.hint,
    });
    Failure { exit, faults: faults.collect() }
}

fn machine_failure(error: MachineError) -> Failure {
    let MachineError::Invalid { file, text, faults } = error else {
        return Failure::new(Exit::InvalidInput, error.to_string())
            .help("name a machine file or one of `lapidary machines list`");
    };
    let faults = faults.into_iter().map(|fault| Fault {
        message: placed(&file, fault.line, fault.column, &fault.key, &fault.message),
        span: fault.span.map(|span| (span.start, span.len())),
        source: Some((file.clone(), text.clone())),
        help: fault.hint,
    });
    Failure { exit: Exit::InvalidInput, faults: faults.collect() }
}

fn placed(source: &str, line: usize, column: usize, key: &str, message: &str) -> String {
    match key {
        "" => format!("{source}:{line}:{column}: {message}"),
        key => format!("{source}:{line}:{column}: {key}: {message}"),
    }
}

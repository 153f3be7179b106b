//! Writing one file whole or not at all.

use crate::failure::{Exit, Failure};
use std::io::Write;
use std::path::Path;

/// Writes a text beside its place and renames it there; `-` is stdout.
///
/// # Errors
/// Exit 3 when the place cannot be written.
pub fn file(path: &Path, text: &str) -> Result<(), Failure> {
    if path == Path::new("-") {
        print!("{text}");
        return Ok(());
    }
    let refused = |error: std::io::Error| {
        Failure::new(Exit::InvalidInput, format!("{}: cannot write: {error}", path.display()))
    };
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut staged = staged(parent).map_err(refused)?;
    staged.write_all(text.as_bytes()).map_err(refused)?;
    staged.persist(path).map_err(|error| refused(error.error)).map(drop)
}

/// A file with a name of its own that whoever the user's mask allows may read.
fn staged(parent: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(parent)
}

/// The same for a script, which its owner may run.
///
/// # Errors
/// Exit 3 when the place cannot be written.
pub fn script(path: &Path, text: &str) -> Result<(), Failure> {
    file(path, text)?;
    runnable(path).map_err(|error| {
        Failure::new(Exit::InvalidInput, format!("{}: cannot be made a script: {error}", path.display()))
    })
}

#[cfg(unix)]
fn runnable(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn runnable(_: &Path) -> std::io::Result<()> {
    Ok(())
}

//! Programs from elsewhere that tests drive: curl, openssl, and the Python environment that `tests/run` makes.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::program::Program;

/// A test that cannot run here, and why. With `CI=true` it is a failure instead.
#[derive(Debug)]
pub struct Skipped(pub String);

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skipped: {}", self.0)
    }
}

impl std::error::Error for Skipped {}

/// The `kasbah` binary under test: `KASBAH_BIN`, or the one built beside this test.
pub fn kasbah() -> PathBuf {
    if let Some(path) = std::env::var_os("KASBAH_BIN") {
        return PathBuf::from(path);
    }
    let here = std::env::current_exe().unwrap_or_default();
    here.ancestors().skip(1).map(|folder| folder.join("kasbah")).find(|path| path.is_file()).unwrap_or_default()
}

/// A program of the system.
///
/// # Errors
/// [`Skipped`] when it is not installed.
pub fn system(name: &str) -> Result<Program> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|folder| folder.join(name).is_file()) {
        return Ok(Program::new(name));
    }
    Err(Skipped(format!("{name} is not installed")).into())
}

/// A program of the Python environment, such as `python`, `envoy` or `grpcurl`.
///
/// # Errors
/// [`Skipped`] when the environment is not there.
pub fn python_program(name: &str) -> Result<PathBuf> {
    let environment = std::env::var_os("KASBAH_TEST_PYTHON").map_or_else(|| source("../target/python"), PathBuf::from);
    let program = environment.join("bin").join(name);
    if program.is_file() {
        return Ok(program);
    }
    Err(Skipped(format!("{} is not there; tests/run makes it when PyPI can be reached", program.display())).into())
}

/// A script of `tests/interop`.
///
/// # Errors
/// [`Skipped`] when the Python environment is not there.
pub fn script(name: &str) -> Result<Program> {
    Ok(Program::new(python_program("python")?).arg(source("interop").join(name)))
}

/// A path below `tests/`.
pub fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Whether the run is CI's, where every tool has to be there.
pub fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true")
}

//! How a function becomes a test: it gets its mesh, and what it says on failure includes that mesh's logs.

#![allow(clippy::print_stdout, reason = "a skipped test says so on stdout, where tests/run counts it")]

use std::sync::{Mutex, PoisonError};

use anyhow::{Result, anyhow};
use harness::{Mesh, MeshOptions, Skipped, tools};
use libtest_mimic::{Completion, Failed, Trial};

/// A test that needs no mesh or starts its own.
pub(crate) fn alone(name: &str, test: fn() -> Result<()>) -> Trial {
    Trial::ignorable_test(name, move || verdict(test()))
}

/// A test on the mesh that many share; it must leave it as it was.
pub(crate) fn shared(name: &str, test: fn(&Mesh) -> Result<()>) -> Trial {
    Trial::ignorable_test(name, move || verdict(on_shared_mesh(test)))
}

/// A test on a mesh of its own, started with more options of `kasbah up`.
pub(crate) fn own(name: &str, options: &'static [&'static str], test: fn(&mut Mesh) -> Result<()>) -> Trial {
    Trial::ignorable_test(name, move || {
        let options = MeshOptions { options: options.iter().map(|o| (*o).to_owned()).collect() };
        verdict(on_own_mesh(&options, test))
    })
}

/// Stops the shared mesh, if a test started it.
pub(crate) fn stop_shared_mesh() {
    drop(SHARED.lock().unwrap_or_else(PoisonError::into_inner).take());
}

fn on_own_mesh(options: &MeshOptions, test: fn(&mut Mesh) -> Result<()>) -> Result<()> {
    let mut mesh = Mesh::start(options)?;
    let result = test(&mut mesh);
    with_logs(&mut mesh, result)
}

/// Tests of the shared mesh run one after the other; the second thread is for tests with their own.
fn on_shared_mesh(test: fn(&Mesh) -> Result<()>) -> Result<()> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let mesh = match shared.take() {
        Some(mesh) => shared.insert(mesh),
        None => shared.insert(Mesh::start(&MeshOptions::default())?),
    };
    let result = test(mesh);
    with_logs(mesh, result)
}

fn with_logs(mesh: &mut Mesh, result: Result<()>) -> Result<()> {
    result.map_err(|error| {
        if error.is::<Skipped>() {
            return error;
        }
        mesh.keep();
        anyhow!("{error:#}\n{}", mesh.logs())
    })
}

fn verdict(result: Result<()>) -> Result<Completion, Failed> {
    match result {
        Ok(()) => Ok(Completion::Completed),
        Err(error) if error.is::<Skipped>() && !tools::in_ci() => {
            println!("{error}");
            Ok(Completion::ignored_with(error))
        }
        Err(error) => Err(Failed::from(format!("{error:#}"))),
    }
}

static SHARED: Mutex<Option<Mesh>> = Mutex::new(None);

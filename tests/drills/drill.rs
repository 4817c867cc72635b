//! What every drill does: it sets the stage, waits until the whole mesh answers, plays acts under load, and reports.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use harness::wait;
use serde_json::Value;

use crate::Options;
use crate::load::Loads;
use crate::report::{Act, Report};
use crate::scene::Scene;

/// A drill that is being played.
pub(crate) struct Drill {
    pub(crate) report: Report,
    pub(crate) scene: Scene,
    pub(crate) loads: Loads,
}

impl Drill {
    /// Starts the mesh and the load, and waits until nothing fails.
    pub(crate) fn set(name: &'static str) -> Result<Self> {
        let scene = Scene::set()?;
        let loads = Loads::start(&scene)?;
        wait::until("the whole mesh to answer", LIMIT, || {
            loads.forget();
            std::thread::sleep(Duration::from_millis(500));
            loads.expect_no_failure("before the drill")
        })
        .with_context(|| scene.mesh.logs())?;
        let report = Report::new(name, &rotation_status(&scene)?, scene.mesh.roles()?.len());
        Ok(Self { report, scene, loads })
    }

    /// Plays one act and looks that the load felt nothing.
    pub(crate) fn act(&mut self, name: &str, play: impl FnOnce(&mut Self) -> Result<Act>) -> Result<()> {
        eprintln!("{name} …");
        let begun = Instant::now();
        let act = play(self).with_context(|| name.to_owned())?;
        // What comes late counts, too.
        std::thread::sleep(AFTER);
        let at = begun.saturating_duration_since(self.report.begun);
        self.report.acts.push(Act { name: name.into(), at, ..act });
        self.loads.expect_no_failure(name)
    }

    /// The report, whatever the outcome.
    pub(crate) fn finish(mut self, options: &Options, outcome: Result<()>) -> Result<()> {
        self.report.loads = self.loads.seen();
        self.report.error = outcome.as_ref().err().map(|error| format!("{error:#}"));
        drop(self.loads);
        match self.scene.envoy.finish() {
            Ok(seen) => self.report.envoy = seen,
            Err(error) if outcome.is_ok() => self.report.error = Some(format!("Envoy: {error:#}")),
            Err(_) => (),
        }
        println!("{}", self.report.markdown());
        if let Some(folder) = &options.report {
            std::fs::create_dir_all(folder)?;
            std::fs::write(folder.join(format!("{}.md", self.report.name)), self.report.markdown())?;
            std::fs::write(folder.join(format!("{}.html", self.report.name)), self.report.html())?;
            eprintln!("the report is in {}", folder.display());
        }
        outcome.with_context(|| self.scene.mesh.logs())?;
        if let Some(error) = &self.report.error {
            bail!("{error}");
        }
        ensure!(self.report.envoy["failed"] == 0, "calls of stock Envoy failed: {}", self.report.envoy);
        Ok(())
    }
}

/// What `kasbah ca rotate status` says.
pub(crate) fn rotation_status(scene: &Scene) -> Result<Value> {
    scene.mesh.kasbah(["ca", "rotate", "status", "-o", "json"]).ok()?.json()
}

/// Far more than anything should take.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
const AFTER: Duration = Duration::from_millis(500);

//! The rotation drill: the root of a mesh under load is replaced again and again; an agent sleeps in the middle; the CA is
//! killed after each step; each step is taken back. Nothing may fail, and when a root is dropped no connection rests on it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::{mesh, wait};

use crate::Options;
use crate::drill::{Drill, LIMIT, rotation_status as status};
use crate::report::Act;
use crate::resting;
use crate::scene::Scene;

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut drill = Drill::set("rotation")?;
    let outcome = drill.rotate_again_and_again(options);
    drill.finish(options, outcome)
}

impl Drill {
    fn rotate_again_and_again(&mut self, options: &Options) -> Result<()> {
        for number in 1..=options.rotations {
            self.rotation(&format!("rotation {number}"), Self::whole)?;
        }
        self.rotation("an agent sleeps in the middle", Self::sleeper)?;
        let old = root(&self.scene)?;
        for step in STEPS {
            let name = format!("the CA is killed after `{step}`");
            self.rotation_from(&old, &name, |drill| drill.one_step(step, true))?;
        }
        for (count, name) in [(1, "prepare"), (2, "activate"), (3, "taint")] {
            self.rotation(&format!("aborted after `{name}`"), |drill| drill.aborted(count))?;
        }
        self.rotation("a last rotation", Self::whole)
    }

    fn rotation(&mut self, name: &str, play: impl FnOnce(&Self) -> Result<Vec<(String, Duration)>>) -> Result<()> {
        let old = root(&self.scene)?;
        self.rotation_from(&old, name, play)
    }

    /// Looks meanwhile how many connections rest on the root `old`; when it is dropped, none does.
    fn rotation_from(
        &mut self,
        old: &str,
        name: &str,
        play: impl FnOnce(&Self) -> Result<Vec<(String, Duration)>>,
    ) -> Result<()> {
        self.act(name, |drill| {
            let proxies = resting::proxies(&drill.scene)?;
            drill.report.proxies = proxies.iter().map(|proxy| proxy.name.clone()).collect();
            let (steps, mut rows) = resting::watched(&drill.scene, &proxies, old, || play(drill))?;
            if is_dropped(&drill.scene, old)? {
                resting::expect_gone(&proxies, old, &mut rows)?;
            }
            Ok(Act { rows, ..Act::of(steps) })
        })
    }

    /// A whole rotation by one command; how long each phase took.
    fn whole(&self) -> Result<Vec<(String, Duration)>> {
        let before = root(&self.scene)?;
        let log = self.scene.mesh.scratch("rotate")?.join("rotate.log");
        let begun = Instant::now();
        let command = self.scene.mesh.kasbah(["ca", "rotate", "--yes"]).background(&log)?;
        command.finish(LIMIT).with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?;
        let took = begun.elapsed();
        let status = status(&self.scene)?;
        ensure!(status["phase"] == "idle", "{status:#}");
        ensure!(root(&self.scene)? != before, "the root is the old one");
        Ok(vec![("rotation".into(), took)])
    }

    /// The step is refused while a node sleeps, names it, and goes through when it is back.
    fn sleeper(&self) -> Result<Vec<(String, Duration)>> {
        let node = self.scene.nodes.last().context("no node")?;
        node.signal("-STOP")?;
        let refused = (|| {
            self.scene.mesh.kasbah(["ca", "rotate", "prepare"]).ok()?;
            wait::until("all but the sleeper", LIMIT, || {
                let status = status(&self.scene)?;
                ensure!(status["laggards"].as_array().is_some_and(|all| all.len() == 1), "{status:#}");
                Ok(())
            })?;
            let refused = self.scene.mesh.kasbah(["ca", "rotate", "activate"]).run()?;
            let laggard = status(&self.scene)?["laggards"][0]["id"].as_str().unwrap_or_default().to_owned();
            ensure!(refused.code == 1 && refused.stderr.contains(&laggard), "{}", refused.said());
            Ok::<_, anyhow::Error>(())
        })();
        node.signal("-CONT")?;
        refused?;
        let begun = Instant::now();
        self.wait_safe("activate")?;
        let back = begun.elapsed();
        let mut steps = vec![("awake until acknowledged".to_owned(), back)];
        for step in &STEPS[1..] {
            steps.extend(self.one_step(step, false)?);
        }
        Ok(steps)
    }

    /// One step by hand, perhaps with the CA killed right after it.
    fn one_step(&self, step: &str, kill: bool) -> Result<Vec<(String, Duration)>> {
        let begun = Instant::now();
        self.wait_safe(step)?;
        self.scene.mesh.kasbah(["ca", "rotate", step]).ok()?;
        let took = begun.elapsed();
        if !kill {
            return Ok(vec![(step.to_owned(), took)]);
        }
        let begun = Instant::now();
        let pid = ca_pid(&self.scene)?;
        mesh::kill(u64::from(pid))?;
        let phase = PHASES[STEPS.iter().position(|one| *one == step).unwrap_or(0)];
        wait::until("the next CA", LIMIT, || {
            ensure!(ca_pid(&self.scene)? != pid, "still the old one");
            let status = status(&self.scene)?;
            ensure!(status["phase"] == phase, "after {step} and a kill: {status:#}");
            Ok(())
        })?;
        Ok(vec![(step.to_owned(), took), ("the CA is back".into(), begun.elapsed())])
    }

    /// Some steps, then back: the root that signed before signs again.
    fn aborted(&self, count: usize) -> Result<Vec<(String, Duration)>> {
        let before = root(&self.scene)?;
        let mut steps = Vec::new();
        for step in &STEPS[..count] {
            steps.extend(self.one_step(step, false)?);
        }
        let begun = Instant::now();
        self.scene.mesh.kasbah(["ca", "rotate", "abort"]).ok()?;
        let status = status(&self.scene)?;
        ensure!(status["phase"] == "idle" && root(&self.scene)? == before, "not as before: {status:#}");
        steps.push(("abort".into(), begun.elapsed()));
        Ok(steps)
    }

    fn wait_safe(&self, step: &str) -> Result<()> {
        wait::until(&format!("a safe moment to {step}"), LIMIT, || {
            let status = status(&self.scene)?;
            ensure!(status["safe_to_proceed"] == true && status["next_step"] == step, "{status:#}");
            Ok(())
        })
    }
}

/// The id of the root that signs.
fn root(scene: &Scene) -> Result<String> {
    let status = status(scene)?;
    let active = status["authorities"].as_array().into_iter().flatten().find(|one| one["state"] == "active");
    active.and_then(|one| Some(one["id"].as_str()?.to_owned())).with_context(|| format!("no active root: {status:#}"))
}

fn is_dropped(scene: &Scene, root: &str) -> Result<bool> {
    let status = status(scene)?;
    Ok(status["authorities"].as_array().into_iter().flatten().all(|one| one["id"] != root))
}

fn ca_pid(scene: &Scene) -> Result<u32> {
    let ca = scene.mesh.roles()?.into_iter().find(|role| role.name == "ca");
    ca.and_then(|ca| ca.pid).context("no CA")
}

const STEPS: [&str; 4] = ["prepare", "activate", "taint", "revoke"];
/// After each step.
const PHASES: [&str; 4] = ["prepared", "activated", "tainted", "idle"];

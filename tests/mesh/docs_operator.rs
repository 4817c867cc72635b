//! `docs/operator.md`, `docs/check.md` and `docs/analyze.md`, typed at the running demo.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use harness::program::Answer;
use harness::{Mesh, Program, tools, wait};
use libtest_mimic::Trial;

use crate::docs_commands::commands_of;
use crate::trial::shared;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("docs_operator::requests_are_explained_as_the_page_says", operator),
        shared("docs_operator::a_mesh_is_checked_and_its_documents_are_analysed_as_the_pages_say", check_and_analyze),
    ]
}

/// Types a command where `documents` and `.kasbah` are those of the mesh.
fn type_in(mesh: &Mesh, command: &str) -> Result<Answer> {
    let folder = mesh.scratch("typed")?;
    for (name, to) in
        [("kasbah", tools::kasbah()), ("documents", mesh.dir().join("config")), (".kasbah", mesh.dir().into())]
    {
        if !folder.join(name).exists() {
            std::os::unix::fs::symlink(to, folder.join(name))?;
        }
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let shell = Program::new("bash").args(["-euo", "pipefail", "-c", command]).in_folder(&folder);
    let shell = shell.env("PATH", format!("{}:{path}", folder.display())).env("HOME", &folder).env("NO_COLOR", "1");
    shell.env("KASBAH_DIR", mesh.dir()).run()
}

/// What it ends with and the words that it must say.
#[track_caller]
fn expect(mesh: &Mesh, command: &str, codes: &[i32], words: &[&str]) -> Result<()> {
    let answer = type_in(mesh, command)?;
    ensure!(codes.contains(&answer.code), "`{command}` ended with {}: {}", answer.code, answer.said());
    for word in words {
        ensure!(answer.stdout.contains(word), "`{command}`: no {word} in {}", answer.said());
    }
    Ok(())
}

fn operator(mesh: &Mesh) -> Result<()> {
    let typed = mesh.scratch("typed")?;
    std::fs::create_dir_all(typed.join(".local/share/bash-completion/completions"))?;
    let ingress = format!("http://{}/test", mesh.at("/ingress/http")?);
    for command in commands_of("operator.md")? {
        match command.split(" #").next().unwrap_or_default().trim() {
            completions if completions.starts_with("kasbah completions") => expect(mesh, completions, &[0], &[])?,
            // A pager is not typed.
            "kasbah help man cert show | man -l -" => expect(mesh, "kasbah help man cert show", &[0], &["kasbah"])?,
            pages if pages.starts_with("kasbah help man --write") => expect(mesh, pages, &[0], &[])?,
            // The demo's gateway has another port than 80 here.
            token if token.starts_with("kasbah demo token") => {
                expect(mesh, &token.replace("http://localhost/test", &ingress), &[0], &["ALLOW"])?;
            }
            claims if claims.contains("--claims") => expect(mesh, claims, &[0], &["ALLOW"])?,
            without if without.starts_with("kasbah explain GET http://localhost/test") => {
                expect(mesh, without, &[1], &["GET http://localhost/test: DENY 401 JWT_MISSING", "decided at"])?;
            }
            from if from.contains("--from test") => expect(mesh, from, &[0], &["ALLOW"])?,
            peer if peer.contains("--peer") => expect(mesh, peer, &[0, 1], &["GET", "decided at"])?,
            workload if workload.starts_with("kasbah explain helloworld") => {
                expect(mesh, workload, &[0], &["helloworld"])?;
            }
            other => bail!("what is to be seen of `{other}`?"),
        }
    }
    ensure!(typed.join(".local/share/man/man1/kasbah-cert-show.1").exists(), "no manual pages");
    ensure!(
        std::fs::metadata(typed.join(".local/share/bash-completion/completions/kasbah"))?.len() > 0,
        "no completions"
    );
    Ok(())
}

fn check_and_analyze(mesh: &Mesh) -> Result<()> {
    let typed = mesh.scratch("typed")?;
    for folder in ["mesh", "apps"] {
        std::fs::create_dir_all(typed.join(folder))?;
    }
    std::fs::copy(mesh.dir().join("config/security.yaml"), typed.join("apps/security.yaml"))?;
    std::fs::copy(mesh.dir().join("config/mesh.yaml"), typed.join("mesh/mesh.yaml")).context("the demo's documents")?;
    for command in commands_of("check.md")? {
        wait::until("all is well", Duration::from_secs(30), || expect(mesh, &command, &[0], &["CA-01", "0 failed"]))?;
    }
    for command in commands_of("analyze.md")? {
        match command.split(" #").next().unwrap_or_default().trim() {
            "kasbah analyze -L" => expect(mesh, &command, &[0], &["IST0134", "KSB0101"])?,
            "kasbah analyze .kasbah/config" => expect(mesh, &command, &[0], &[])?,
            // 79: something reaches the threshold.
            json if json.contains("-o json") => {
                let answer = type_in(mesh, json)?;
                ensure!([0, 79].contains(&answer.code), "{}", answer.said());
                ensure!(answer.json()?.is_array(), "{}", answer.said());
            }
            other => expect(mesh, other, &[0, 79], &[])?,
        }
    }
    Ok(())
}

//! On a terminal and in a pipe: who is asked, what is drawn, where colour goes, and that everything is left in order.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::mesh::{free_port, kill_with};
use harness::terminal::Left;
use harness::{Mesh, Program, Terminal, tools, wait};
use libtest_mimic::Trial;

use crate::trial::{alone, own, shared};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("terminals::top_fits_and_gives_the_terminal_back", top_fits_and_gives_the_terminal_back),
        shared("terminals::top_ends_with_its_mesh_out_of_reach", top_ends_when_there_is_nothing_to_see),
        shared("terminals::a_closed_pipe_ends_quietly", a_closed_pipe_ends_quietly),
        shared("terminals::a_narrow_terminal_is_wide_enough", a_narrow_terminal_is_wide_enough),
        alone("terminals::only_a_terminal_gets_coloured_progress", only_a_terminal_gets_coloured_progress),
        own("terminals::a_rotation_asks_once_and_survives_ctrl_c", &[], a_rotation_asks_once_and_survives_ctrl_c),
    ]
}

/// `kasbah LINE` on a terminal.
fn on_terminal(mesh: &Mesh, line: &str, rows: u16, columns: u16) -> Result<Terminal> {
    Terminal::start(mesh.kasbah(line.split_whitespace()).env("TERM", "xterm"), rows, columns)
}

/// A page as it was drawn last, without what steers the terminal.
fn page(seen: &str) -> Vec<String> {
    let last = seen.rsplit("\u{1b}[H").next().unwrap_or_default();
    last.split("\u{1b}[J").next().unwrap_or_default().replace("\u{1b}[K", "").lines().map(str::to_owned).collect()
}

fn top_fits_and_gives_the_terminal_back(mesh: &Mesh) -> Result<()> {
    let mut terminal = on_terminal(mesh, "top --every 200ms", 30, 100)?;
    terminal.until("ROLE", LIMIT)?;
    ensure!(terminal.seen().starts_with("\u{1b}[?1049h"), "no screen of its own: {:?}", terminal.seen());
    for (rows, columns) in [(8, 33), (3, 10), (1, 1), (50, 132)] {
        terminal.forget();
        terminal.resize(rows, columns)?;
        terminal.until("\u{1b}[J", LIMIT)?;
        let page = page(&terminal.seen());
        ensure!(!page.is_empty() && page.len() <= rows.into(), "{} lines on {rows}: {page:?}", page.len());
        let widest = page.iter().map(|line| line.chars().count()).max().unwrap_or_default();
        ensure!(widest <= columns.into(), "a line of {widest} on {columns}: {page:?}");
    }
    // What is typed does nothing and is not shown.
    terminal.forget();
    terminal.types("xyzzy\n")?;
    terminal.until("requests ", LIMIT)?;
    ensure!(!terminal.seen().contains("xyzzy"), "{:?}", terminal.seen());
    terminal.types("q")?;
    left_well(terminal.end(LIMIT)?)?;
    let mut interrupted = on_terminal(mesh, "top --every 200ms", 24, 80)?;
    interrupted.until("ROLE", LIMIT)?;
    interrupted.types("\u{3}")?;
    left_well(interrupted.end(LIMIT)?)?;
    let terminated = on_terminal(mesh, "top --every 200ms", 24, 80)?;
    terminated.until("ROLE", LIMIT)?;
    kill_with("TERM", terminated.id().into())?;
    left_well(terminated.end(LIMIT)?)
}

fn left_well(left: Left) -> Result<()> {
    ensure!(left.code == 0 && left.restored, "{left:?}");
    ensure!(left.seen.ends_with("\u{1b}[?25h\u{1b}[?1049l"), "no screen given back: {:?}", left.seen);
    Ok(())
}

fn top_ends_when_there_is_nothing_to_see(mesh: &Mesh) -> Result<()> {
    let nothing = mesh.scratch("nothing")?.display().to_string();
    let left = on_terminal(mesh, &format!("top --dir {nothing}"), 24, 80)?.end(LIMIT)?;
    ensure!(left.code == 69 && left.restored, "{left:?}");
    let told = left.seen.rsplit("\u{1b}[?1049l").next().unwrap_or_default();
    ensure!(told.contains("MESH_NOT_RUNNING"), "what is wrong is said on the other screen: {left:?}");
    Ok(())
}

fn a_closed_pipe_ends_quietly(mesh: &Mesh) -> Result<()> {
    let kasbah = tools::kasbah().display().to_string();
    for line in [
        "help reasons",
        "help reasons -o json",
        "completions bash",
        "entry list -o json",
        "bundle show --format spiffe",
        "check -o json",
        "top --every 50ms",
        "top --every 50ms -o json",
        "edges --watch 50ms",
        "edges --watch 50ms -o json",
        "edges --watch 50ms -o yaml",
    ] {
        let script = format!("{kasbah} {line} | head -n 1");
        let program = Program::new("sh").args(["-c", &script]).env("KASBAH_DIR", mesh.dir()).limit(LIMIT);
        let answer = program.run().with_context(|| line.to_owned())?;
        ensure!(answer.stderr.is_empty() && answer.stdout.lines().count() == 1, "{line}: {}", answer.said());
    }
    let script = format!("yes '\"spiffe://example.org/cart\"' | {kasbah} spiffe-id --lines | head -n 1");
    let answer = Program::new("sh").args(["-c", &script]).limit(LIMIT).run()?;
    ensure!(answer.stderr.replace("yes: standard output: Broken pipe\n", "").is_empty(), "{}", answer.said());
    Ok(())
}

fn a_narrow_terminal_is_wide_enough(mesh: &Mesh) -> Result<()> {
    for columns in [1, 20] {
        for line in [
            "help",
            "entry create --help",
            "status",
            "entry list",
            "cert show helloworld",
            "check",
            "top --once --every 50ms",
        ] {
            let left = on_terminal(mesh, line, 5, columns)?.end(LIMIT)?;
            ensure!(left.code == 0 && left.restored && left.seen.len() > 20, "{line} on {columns} columns: {left:?}");
        }
    }
    Ok(())
}

fn only_a_terminal_gets_coloured_progress() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let dir = folder.path().join("mesh").display().to_string();
    let port = free_port()?.to_string();
    let up = |more: &[&str]| {
        let program = Program::new(tools::kasbah()).args(["up", "--dir", &dir, "--ingress-port", &port]).args(more);
        program.env("TERM", "xterm").limit(UP_LIMIT)
    };
    let down = || Program::new(tools::kasbah()).args(["down", "--dir", &dir]).run();
    let outcome = (|| {
        // In the foreground, and Ctrl-C ends it.
        for variable in [None, Some("NO_COLOR")] {
            let program = up(&[]);
            let program = variable.into_iter().fold(program, |program, name| program.env(name, "1"));
            let mut terminal = Terminal::start(program, 24, 80)?;
            terminal.until("Try:", UP_LIMIT)?;
            let seen = terminal.seen();
            let expected = if variable.is_none() { "\u{1b}[32m✓\u{1b}[0m ca " } else { "✓ ca " };
            ensure!(seen.contains(expected), "{variable:?}: {seen:?}");
            ensure!(variable.is_none() || !seen.contains('\u{1b}'), "{variable:?}: {seen:?}");
            terminal.types("\u{3}")?;
            let left = terminal.end(LIMIT)?;
            ensure!(left.code == 0 && left.restored, "{left:?}");
        }
        let piped = up(&["--detach"]).ok()?;
        ensure!(piped.stderr.contains("✓ ca ") && !piped.said().contains('\u{1b}'), "{}", piped.said());
        ensure!(!piped.stdout.contains('✓'), "progress on stdout: {}", piped.stdout);
        Ok(())
    })();
    down()?;
    outcome
}

fn phase(mesh: &Mesh) -> Result<String> {
    let status = mesh.kasbah(["ca", "rotate", "status", "-o", "json"]).ok()?.json()?;
    Ok(status["phase"].as_str().unwrap_or_default().to_owned())
}

fn a_rotation_asks_once_and_survives_ctrl_c(mesh: &mut Mesh) -> Result<()> {
    // Nobody to ask: nothing is done.
    let unasked = mesh.kasbah(["ca", "rotate"]).input("y\n").run()?;
    ensure!(unasked.code == 64 && unasked.stderr.contains("--yes") && unasked.stdout.is_empty(), "{}", unasked.said());
    let mut refused = on_terminal(mesh, "ca rotate", 24, 80)?;
    refused.until("[y/N]", LIMIT)?;
    refused.types("n\n")?;
    let left = refused.end(LIMIT)?;
    ensure!(left.code == 1 && left.seen.matches("[y/N]").count() == 1, "{left:?}");
    ensure!(phase(mesh)? == "idle", "refused, and yet a rotation runs: {}", phase(mesh)?);
    // Ctrl-C at the question changes nothing, and during the rotation leaves one that goes on.
    let mut asked = on_terminal(mesh, "ca rotate", 24, 80)?;
    asked.until("[y/N]", LIMIT)?;
    asked.types("\u{3}")?;
    ensure!(asked.end(LIMIT)?.code != 0 && phase(mesh)? == "idle", "{}", phase(mesh)?);
    let mut running = on_terminal(mesh, "ca rotate", 24, 80)?;
    running.until("[y/N]", LIMIT)?;
    running.types("y\n")?;
    running.until("nodes have acknowledged", LIMIT)?;
    running.types("\u{3}")?;
    let left = running.end(LIMIT)?;
    ensure!(left.restored && left.seen.matches("[y/N]").count() == 1, "{left:?}");
    // Going on with it asks nothing; results are on stdout alone, progress on stderr alone.
    let resumed = mesh.kasbah(["ca", "rotate", "--yes", "-o", "json"]).limit(ROTATION_LIMIT).ok()?;
    ensure!(resumed.json()?["phase"] == "idle", "{}", resumed.said());
    ensure!(resumed.stderr.contains("done: ") && !resumed.stderr.contains("[y/N]"), "{}", resumed.said());
    wait::until("all to be well", LIMIT, || mesh.expect_healthy())
}

const LIMIT: Duration = Duration::from_secs(30);
const UP_LIMIT: Duration = Duration::from_secs(90);
const ROTATION_LIMIT: Duration = Duration::from_secs(180);

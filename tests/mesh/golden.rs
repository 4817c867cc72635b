//! What each verb prints, as tables and as JSON, is pinned: transcripts in `golden/*.txt`, played on one mesh.
//!
//! A transcript is a list of commands (`$ …`, for `sh`) with what they printed: a line of stdout begins with two spaces, one of
//! stderr with `! `, and `= N` is an exit code other than 0. `#` begins a remark. Times, serials, keys, ports and the like
//! are replaced by names that stay. `KASBAH_BLESS=1` writes what is printed now; look at the difference before you commit it.
//! A new verb without a transcript fails the test.

mod names;
mod transcript;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use harness::{Mesh, Program, tools};
use libtest_mimic::Trial;

use crate::trial::{alone, own};
use names::Names;
use transcript::Transcript;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        own("golden::what_each_verb_prints", &[], what_each_verb_prints),
        alone("golden::each_verb_has_a_transcript", each_verb_has_a_transcript),
    ]
}

fn transcripts() -> Result<Vec<PathBuf>> {
    let folder = tools::source("mesh/golden");
    let entries = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut files: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    ensure!(!files.is_empty(), "no transcripts in {}", folder.display());
    Ok(files)
}

fn what_each_verb_prints(mesh: &mut Mesh) -> Result<()> {
    let stage = Stage::new(mesh)?;
    let bless = std::env::var_os("KASBAH_BLESS").is_some();
    let mut wrong = Vec::new();
    for file in transcripts()? {
        let text = std::fs::read_to_string(&file)?;
        let played = stage.play(&Transcript::parse(&text).with_context(|| file.display().to_string())?)?;
        if bless {
            std::fs::write(&file, &played)?;
        } else if played != text {
            wrong.push(difference(&stage.folder, &file, &played)?);
        }
    }
    if wrong.is_empty() { Ok(()) } else { bail!("{}\nKASBAH_BLESS=1 takes what is printed now", wrong.join("\n")) }
}

/// Where transcripts are played: a mesh, and a folder for their files.
struct Stage<'a> {
    mesh: &'a Mesh,
    folder: PathBuf,
    names: Names,
    path: String,
}

impl<'a> Stage<'a> {
    fn new(mesh: &'a Mesh) -> Result<Self> {
        let folder = mesh.scratch("stage")?;
        let programs = mesh.scratch("bin")?;
        std::os::unix::fs::symlink(tools::kasbah(), programs.join("kasbah"))?;
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
        let names = Names::new(&[(mesh.dir(), "DIR"), (folder.as_path(), "HERE"), (programs.as_path(), "BIN")])?;
        Ok(Self { mesh, folder, names, path })
    }

    fn play(&self, transcript: &Transcript) -> Result<String> {
        transcript.play(|command| {
            let mut program = Program::new("sh").args(["-c", command]).in_folder(&self.folder);
            for (name, value) in
                [("PATH", self.path.as_str()), ("NO_COLOR", "1"), ("TERM", "dumb"), ("CA", self.mesh.at("/ca/grpc")?)]
            {
                program = program.env(name, value);
            }
            for (name, pointer) in [
                ("TEST", "/workloads/test/spiffe_id"),
                ("HELLOWORLD", "/workloads/helloworld/spiffe_id"),
                ("INGRESS", "/ingress/https"),
            ] {
                program = program.env(name, self.mesh.at(pointer)?);
            }
            let mut answer = program.env("KASBAH_DIR", self.mesh.dir()).run()?;
            answer.stdout = self.names.replaced(&answer.stdout);
            answer.stderr = self.names.replaced(&answer.stderr);
            Ok(answer)
        })
    }
}

fn difference(folder: &Path, file: &Path, played: &str) -> Result<String> {
    let now = folder.join("played.txt");
    std::fs::write(&now, played)?;
    let answer =
        tools::system("diff")?.args(["-u", "--label", "golden", "--label", "now"]).arg(file).arg(&now).run()?;
    Ok(format!("{} differs:\n{}", file.display(), answer.said()))
}

/// The verbs are those that have a manual page of their own and none below it.
fn each_verb_has_a_transcript() -> Result<()> {
    let folder = tempfile::tempdir()?;
    Program::new(tools::kasbah()).args(["help", "man", "--write"]).arg(folder.path()).ok()?;
    let mut pages = BTreeSet::new();
    for entry in std::fs::read_dir(folder.path())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        pages.extend(name.strip_suffix(".1").map(str::to_owned));
    }
    let is_verb = |page: &&String| !pages.iter().any(|other| other.starts_with(&format!("{page}-")));
    let verbs: BTreeSet<&str> = pages.iter().filter(is_verb).map(String::as_str).collect();
    ensure!(verbs.contains("kasbah-entry-create") && verbs.len() > 50, "are these all verbs? {verbs:?}");
    let (mut played, mut as_json) = (BTreeSet::new(), BTreeSet::new());
    for file in transcripts()? {
        let transcript = Transcript::parse(&std::fs::read_to_string(&file)?)?;
        for command in transcript.commands() {
            let named = verbs_in(command);
            as_json.extend(named.iter().filter(|_| command.contains("-o json")).cloned());
            played.extend(named);
        }
    }
    for (verb, why) in WITHOUT {
        ensure!(verbs.contains(verb), "{verb} is no verb and needs no exception ({why})");
        ensure!(!played.contains(*verb), "{verb} has a transcript and needs no exception ({why})");
    }
    let excepted = |verb: &str| WITHOUT.iter().any(|(without, _)| *without == verb);
    let missing: Vec<&&str> = verbs.iter().filter(|verb| !excepted(verb) && !played.contains(**verb)).collect();
    ensure!(missing.is_empty(), "no transcript in tests/mesh/golden plays {missing:?}");
    let page = |verb: &str| std::fs::read_to_string(folder.path().join(format!("{verb}.1")));
    for verb in verbs.iter().filter(|verb| !excepted(verb)) {
        let prints_json = page(verb)?.contains("One JSON document");
        ensure!(!prints_json || as_json.contains(*verb), "no transcript plays {verb} with -o json");
    }
    Ok(())
}

/// The verbs that a command line may name, as their manual pages are called: of `kasbah a b c` also `a` and `a b`.
fn verbs_in(command: &str) -> BTreeSet<String> {
    let mut verbs = BTreeSet::new();
    for part in command.split("kasbah ").skip(1) {
        let mut name = "kasbah".to_owned();
        for word in part.split_whitespace().take(3) {
            if !word.starts_with(|c: char| c.is_ascii_lowercase()) {
                break;
            }
            name = format!("{name}-{word}");
            verbs.insert(name.clone());
        }
    }
    verbs
}

/// Verbs without a transcript, and why.
const WITHOUT: &[(&str, &str)] = &[
    ("kasbah-agent-run", "goes on until it is stopped, and prints its log alone"),
    ("kasbah-ca-run", "as agent run"),
    ("kasbah-ca-signer", "as agent run"),
    ("kasbah-discovery-run", "as agent run"),
    ("kasbah-down", "it would end the mesh that all transcripts share; mesh tests stop theirs by it"),
    ("kasbah-policy-run", "as agent run"),
    ("kasbah-proxy-run", "as agent run"),
    ("kasbah-up", "it would start a second mesh; cli::exit_codes_are_kept and every mesh test start one"),
];

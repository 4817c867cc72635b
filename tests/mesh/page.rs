//! A page of `docs/`, typed: its blocks and commands as they stand there, in a folder of their own, with an authority beside
//! them. Where the page names folders and addresses, the test puts its own.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::mesh::free_port;
use harness::program::Running;
use harness::{Program, tools, wait};

/// The page, and where its folders and addresses are here.
pub(crate) struct Page {
    pub(crate) folder: tempfile::TempDir,
    text: String,
    /// What stands in the page, and what is put in its place.
    names: Vec<(String, String)>,
    /// What the verbs find by `KASBAH_DIR`.
    pub(crate) dir: PathBuf,
    pub(crate) grpc: u16,
    /// Of the authority, and of agents.
    pub(crate) admin: u16,
    pub(crate) agent_admin: u16,
    pub(crate) ca: Option<Running>,
}

impl Page {
    pub(crate) fn open(name: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("docs-").tempdir()?;
        let text = std::fs::read_to_string(tools::source("../docs").join(name))?;
        let [grpc, admin, agent_admin] = [free_port()?, free_port()?, free_port()?];
        let dir = folder.path().join("lib");
        let mut page = Self { folder, text, names: Vec::new(), dir, grpc, admin, agent_admin, ca: None };
        for made in ["bin", "backup", "lib/run"] {
            std::fs::create_dir_all(page.path(made))?;
        }
        std::os::unix::fs::symlink(tools::kasbah(), page.path("bin/kasbah"))?;
        page.replace("/var/lib/kasbah", page.path("lib").display());
        Ok(page)
    }

    /// From now on something else stands for what the page says; what was said last comes first.
    pub(crate) fn replace(&mut self, there: &str, here: impl std::fmt::Display) {
        self.names.insert(0, (there.to_owned(), here.to_string()));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn here(&self, text: &str) -> String {
        self.names.iter().fold(text.to_owned(), |text, (there, here)| text.replace(there, here))
    }

    /// The blocks of a language below a heading.
    pub(crate) fn blocks(&self, heading: &str, language: &str) -> Result<Vec<String>> {
        let begin = self.text.find(&format!("\n## {heading}\n")).with_context(|| format!("no heading {heading}"))?;
        let section = &self.text[begin + 4..];
        let section = &section[..section.find("\n## ").unwrap_or(section.len())];
        let mut blocks = Vec::new();
        for piece in section.split(&format!("\n```{language}\n")).skip(1) {
            let block = piece.split("\n```").next().unwrap_or_default();
            blocks.push(self.here(block));
        }
        ensure!(!blocks.is_empty(), "no block of {language} below {heading}");
        Ok(blocks)
    }

    /// The first lines of all blocks, each after its language.
    pub(crate) fn openings(&self) -> Vec<(&str, &str)> {
        let blocks = self.text.split("\n```").skip(1).step_by(2);
        let parts = blocks.filter_map(|block| block.split_once('\n'));
        parts.map(|(language, rest)| (language, rest.lines().next().unwrap_or_default())).collect()
    }

    /// The one block of a language below a heading that has these words.
    pub(crate) fn block_with(&self, heading: &str, language: &str, words: &str) -> Result<String> {
        let words = &self.here(words);
        let found: Vec<String> =
            self.blocks(heading, language)?.into_iter().filter(|block| block.contains(words)).collect();
        let [block] = &found[..] else { anyhow::bail!("{} blocks with {words}", found.len()) };
        Ok(block.clone())
    }

    /// The commands below a heading, one a line.
    pub(crate) fn commands(&self, heading: &str) -> Result<Vec<String>> {
        let text = self.blocks(heading, "sh")?.join("\n").replace("\\\n", " ");
        Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    /// Types a command; it must end as its remark says.
    pub(crate) fn type_in(&self, command: &str) -> Result<String> {
        let path = std::env::var("PATH").unwrap_or_default();
        let shell = Program::new("bash").args(["-euo", "pipefail", "-c", command]).in_folder(self.folder.path());
        let shell = shell.env("PATH", format!("{}:{path}", self.path("bin").display())).env("NO_COLOR", "1");
        let answer = shell.env("KASBAH_DIR", &self.dir).input("y\n").limit(COMMAND_MAX).run()?;
        let expected = i32::from(command.contains("# exit 1"));
        ensure!(answer.code == expected, "`{command}` ended with {}: {}", answer.code, answer.said());
        Ok(answer.stdout)
    }

    /// Starts the authority of `ca.yaml`.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.ca = Some(self.role("ca", "ca")?);
        wait::until("the authority", START_MAX, || self.type_in("kasbah ca keys").map(drop))
            .with_context(|| self.log("ca"))
    }

    /// Starts a role with the settings of that name.
    pub(crate) fn role(&self, role: &str, name: &str) -> Result<Running> {
        let settings = self.path(&format!("{name}.yaml"));
        let program = Program::new(tools::kasbah()).args([role, "run", "--config"]).arg(settings);
        let program = program.env("KASBAH_AGENT_ADMIN", format!("127.0.0.1:{}", self.agent_admin));
        program.in_folder(self.folder.path()).background(&self.path(&format!("{name}.log")))
    }

    pub(crate) fn stop(&mut self) -> Result<()> {
        let ca = self.ca.take().context("it does not run")?;
        Program::new("kill").arg(ca.id().to_string()).ok()?;
        ca.finish(STOP_MAX)
    }

    pub(crate) fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }
}

pub(crate) const START_MAX: Duration = Duration::from_secs(20);
const STOP_MAX: Duration = Duration::from_secs(10);
const COMMAND_MAX: Duration = Duration::from_secs(60);

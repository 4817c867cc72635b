//! Transcripts: commands, and what they printed.

use anyhow::{Result, ensure};
use harness::Answer;

/// Commands with remarks between them; what stands there as printed is not kept.
#[derive(Debug)]
pub(crate) struct Transcript {
    lines: Vec<Line>,
}

#[derive(Debug)]
enum Line {
    Command(String),
    Other(String),
}

impl Transcript {
    /// # Errors
    /// When a line is of no known kind.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut lines = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            match line.strip_prefix("$ ") {
                Some(command) => lines.push(Line::Command(command.to_owned())),
                None if line.is_empty() || line.starts_with('#') => lines.push(Line::Other(line.to_owned())),
                None => {
                    let printed = ["  ", "! ", "= "].iter().any(|mark| line.starts_with(mark)) || line == "!";
                    ensure!(printed, "line {number} begins with none of `$ `, `#`, `  `, `! `, `= `: {line}");
                }
            }
        }
        Ok(Self { lines })
    }

    pub(crate) fn commands(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().filter_map(|line| match line {
            Line::Command(command) => Some(command.as_str()),
            Line::Other(_) => None,
        })
    }

    /// Runs the commands; the transcript of it.
    pub(crate) fn play(&self, mut run: impl FnMut(&str) -> Result<Answer>) -> Result<String> {
        let mut text = String::new();
        for line in &self.lines {
            match line {
                Line::Other(line) => text.push_str(&format!("{line}\n")),
                Line::Command(command) => {
                    let answer = run(command)?;
                    text.push_str(&format!("$ {command}\n"));
                    // Blank lines divide commands, so one that was printed is shown by two spaces.
                    answer.stdout.lines().for_each(|line| text.push_str(&format!("  {line}\n")));
                    answer.stderr.lines().for_each(|line| text.push_str(&format!("! {line}\n")));
                    if answer.code != 0 {
                        text.push_str(&format!("= {}\n", answer.code));
                    }
                }
            }
        }
        Ok(text)
    }
}

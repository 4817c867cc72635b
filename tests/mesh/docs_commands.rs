//! The commands of the documents: found in their blocks, and each of them one that the program knows, with all its options.
//!
//! What can be done on one machine is typed, by `ca_docs`, `docs_authority`, `docs_keys` and `docs_operator`; the rest is tried here
//! for its form only: what needs Kubernetes, SPIRE's programs or an agent at its place.

use anyhow::{Context, Result, ensure};
use harness::{Program, tools};
use libtest_mimic::Trial;

use crate::trial::alone;

pub(crate) fn trials() -> Vec<Trial> {
    vec![alone("docs_commands::every_command_is_one_that_the_program_knows", every_command_is_known)]
}

/// The commands of a page of `docs/`, in their order: lines of blocks of `sh`, and what follows a prompt in blocks of `console`.
pub(crate) fn commands_of(page: &str) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(tools::source("../docs").join(page)).with_context(|| page.to_owned())?;
    let commands = commands_in(&text);
    ensure!(!commands.is_empty(), "no command in {page}");
    Ok(commands)
}

fn commands_in(text: &str) -> Vec<String> {
    let (mut commands, mut language, mut open) = (Vec::<String>::new(), None, false);
    let mut here = false;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("```") {
            (language, open, here) = (language.is_none().then_some(name), false, false);
            continue;
        }
        let said = match language {
            Some("sh") => line,
            // `$ ` or `alice$ `.
            Some("console") if !open => match line.split_once("$ ") {
                Some((user, typed)) if !user.contains(' ') => typed,
                _ => continue,
            },
            Some("console") => line,
            _ => continue,
        };
        match commands.last_mut() {
            Some(before) if here => *before = format!("{before}\n{said}"),
            Some(before) if open => *before = format!("{} {said}", before.trim_end_matches('\\').trim()),
            _ if said.is_empty() || said.starts_with('#') => continue,
            _ => commands.push(said.to_owned()),
        }
        here = (here || said.contains("<<'EOF'")) && said != "EOF";
        open = here || said.ends_with('\\');
    }
    commands
}

/// Asks for the help of every `kasbah …` in a command, which fails for options and verbs that do not exist.
pub(crate) fn is_known(command: &str) -> Result<()> {
    for piece in command.split(" # ").next().unwrap_or_default().split(['|', '&', ';', '(', ')', '>', '<', '`']) {
        let words = words_of(piece);
        // Variables that are set for the call.
        let words: Vec<_> = words.iter().skip_while(|word| word.contains('=') && !word.starts_with('-')).collect();
        if words.first().is_none_or(|word| *word != "kasbah") {
            continue;
        }
        let args = words[1..].iter().take_while(|word| !["--", "#"].contains(&word.as_str()));
        let args = args.map(|word| if ["PID", "$$"].contains(&word.as_str()) { "1" } else { word.as_str() });
        let answer = Program::new(tools::kasbah()).args(args).arg("--help").run()?;
        ensure!(answer.code == 0, "`{}`: {}", piece.trim(), answer.said());
    }
    Ok(())
}

/// As a shell splits them, as far as the documents need it.
fn words_of(text: &str) -> Vec<String> {
    let (mut words, mut quote) = (vec![String::new()], None);
    for letter in text.chars() {
        let last = words.len() - 1;
        match (quote, letter) {
            (None, '\'' | '"') => quote = Some(letter),
            (Some(open), _) if letter == open => quote = None,
            (None, ' ') => words.push(String::new()),
            _ => words[last].push(letter),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn every_command_is_known() -> Result<()> {
    let mut tried = 0;
    let mut pages: Vec<_> = std::fs::read_dir(tools::source("../docs"))?.collect::<Result<_, _>>()?;
    pages.sort_by_key(std::fs::DirEntry::file_name);
    let pages =
        pages.iter().map(std::fs::DirEntry::path).filter(|page| page.extension().is_some_and(|end| end == "md"));
    for page in pages.chain([tools::source("../README.md")]) {
        for command in commands_in(&std::fs::read_to_string(&page)?) {
            is_known(&command).with_context(|| page.display().to_string())?;
            tried += usize::from(command.contains("kasbah "));
        }
    }
    ensure!(tried >= COMMANDS_MIN, "only {tried} commands were found");
    Ok(())
}

/// Fewer means that they are not found any more.
const COMMANDS_MIN: usize = 120;

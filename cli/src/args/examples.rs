//! Every command's help has examples, and every example can be typed.

use clap::{Command, CommandFactory, Parser};

use super::Cli;

/// All commands that do something, with their full names.
fn verbs(command: &Command, name: &str, found: &mut Vec<(String, Command)>) {
    let inner: Vec<&Command> = command.get_subcommands().filter(|inner| !inner.is_hide_set()).collect();
    if inner.is_empty() {
        found.push((name.to_owned(), command.clone()));
    }
    for inner in inner {
        verbs(inner, &format!("{name} {}", inner.get_name()), found);
    }
}

fn all_verbs() -> Vec<(String, Command)> {
    let mut found = Vec::new();
    verbs(&Cli::command(), "kasbah", &mut found);
    found
}

/// As they were written, before they are wrapped to the width of a terminal.
fn examples_of(command: &Command) -> Vec<String> {
    examples(&command.get_after_help().map(ToString::to_string).unwrap_or_default())
}

/// The command lines in a help text that begin with `kasbah`, or have it after a pipe.
fn examples(help: &str) -> Vec<String> {
    let mut lines = help.replace("\\\n", " ");
    lines.retain(|c| c != '\r');
    let begin = |line: &str| {
        let line = line.trim_start();
        let pipe = line.rfind("| kasbah ").map(|at| at + "| ".len());
        let at = if line.starts_with("kasbah ") { Some(0) } else { pipe };
        at.and_then(|at| line.get(at..)).map(str::to_owned)
    };
    lines.lines().filter_map(begin).collect()
}

/// Words as a shell splits them, up to a pipe, a redirection, another command or a remark.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let (word, after) = word(rest);
        if ["|", "&&", ">", "<", "#"].contains(&word.as_str()) {
            break;
        }
        words.push(word);
        // Before a remark there are two spaces or more.
        if words.len() > 1 && after.starts_with("  ") && is_remark(after) {
            break;
        }
        rest = after.trim_start();
    }
    words
}

fn is_remark(after: &str) -> bool {
    !after.trim_start().starts_with("--")
}

/// The first word and what follows it; quotes and `$(…)` hold words together.
fn word(text: &str) -> (String, &str) {
    let (mut word, mut quote, mut depth) = (String::new(), None, 0);
    for (at, c) in text.char_indices() {
        match (c, quote) {
            (c, Some(q)) if c == q => quote = None,
            ('\'' | '"', None) => quote = Some(c),
            (' ', None) if depth == 0 => return (word, &text[at..]),
            ('(', None) if word.ends_with('$') => {
                depth += 1;
                word.push(c);
            }
            (')', None) if depth > 0 => {
                depth -= 1;
                word.push(c);
            }
            _ => word.push(c),
        }
    }
    (word, "")
}

#[test]
fn every_verb_has_an_example() {
    let without: Vec<String> = all_verbs()
        .into_iter()
        .filter_map(|(name, command)| {
            let help = examples_of(&command);
            let own = help.iter().any(|line| line.contains(&name));
            (!own && !SHARED.contains(&name.as_str())).then_some(name)
        })
        .collect();
    assert!(without.is_empty(), "no example of their own in the help of: {without:#?}");
}

#[test]
fn every_example_can_be_typed() {
    let mut wrong = Vec::new();
    for (name, command) in all_verbs().into_iter().chain([("kasbah".to_owned(), Cli::command())]) {
        for line in examples_of(&command) {
            if let Err(error) = Cli::try_parse_from(words(&line)) {
                let allowed = [clap::error::ErrorKind::DisplayHelp, clap::error::ErrorKind::DisplayVersion];
                if !allowed.contains(&error.kind()) {
                    wrong.push(format!("{name}: {line}\n  {:?}\n  {error}", words(&line)));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The command lines in the code blocks of a page, without prompts and remarks.
fn typed_in(page: &str) -> Vec<String> {
    let mut inside = false;
    let mut lines = Vec::new();
    for line in page.replace("\\\n", " ").lines() {
        if line.starts_with("```") {
            inside = !inside;
        } else if inside {
            let line = line.trim_start_matches("$ ").trim_start();
            let line = line.split(" # ").next().unwrap_or_default().trim_end().trim_end_matches(" &");
            // Numbers that every reader has his own of.
            let line = line.replace("PID", "1").replace("$$", "1");
            lines.extend(examples(&line));
        }
    }
    lines
}

#[test]
fn every_command_of_the_documentation_can_be_typed() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let (mut wrong, mut count) = (Vec::new(), 0);
    for file in docs.chain([root.join("README.md")]) {
        for line in typed_in(&std::fs::read_to_string(&file).unwrap()) {
            count += 1;
            if let Err(error) = Cli::try_parse_from(words(&line)) {
                wrong.push(format!("{}: {line}\n  {:?}\n  {error}", file.display(), words(&line)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 80, "only {count} commands were found");
}

#[test]
fn lines_are_split_as_a_shell_does() {
    let split = |line: &str| words(line).join("·");
    assert_eq!(split("kasbah run -- sh -c 'a b'   a remark"), "kasbah·run·--·sh·-c·a b");
    assert_eq!(
        split("kasbah log prove $(kasbah audit list | jq -r '.[0]') -o json"),
        "kasbah·log·prove·$(kasbah audit list | jq -r .[0])·-o·json"
    );
    assert_eq!(split("kasbah up && kasbah down"), "kasbah·up");
    assert_eq!(split("kasbah log head -o json > head.json"), "kasbah·log·head·-o·json");
    assert_eq!(examples("  kasbah a \\\n   --b\n text\n  x | kasbah c"), ["kasbah a     --b", "kasbah c"]);
    assert!(Cli::try_parse_from(words("kasbah up --no-such-option")).is_err());
}

/// Three roles share one `run`, and so its example.
const SHARED: &[&str] = &["kasbah discovery run", "kasbah policy run"];

//! The shape of the tree: who may depend on whom, what every file begins with, which names are not given, what has to
//! be there. Each finding says what to do.

mod conformance;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Layer of each crate; a crate may use those of lower layers only. An additional crate needs a reason in ARCHITECTURE.md.
const LAYERS: [(&str, u8); 11] = [
    ("identity", 0),
    ("proto", 0),
    ("routing", 1),
    ("runtime", 1),
    ("ca", 2),
    ("agent", 2),
    ("proxy", 2),
    ("discovery", 2),
    ("policy", 2),
    ("cli", 3),
    ("tests", 3),
];

/// The only crates that may touch these libraries.
const RESERVED: [(&str, &[&str]); 6] = [
    ("rcgen", &["identity"]),
    ("x509-parser", &["identity"]),
    ("jsonwebtoken", &["identity"]),
    ("p12-keystore", &["identity"]),
    ("sqlx", &["ca", "discovery"]),
    ("clap", &["cli"]),
];

/// What the pure crates must not have at all: no runtime, sockets, files or dice.
const IMPURE: [&str; 8] = ["tokio", "tokio-util", "hyper", "hyper-util", "tonic", "socket2", "rand", "tracing"];
const PURE: [&str; 2] = ["identity", "routing"];

/// Names that say nothing; the nouns of the product say more.
const EMPTY_NAMES: [&str; 10] =
    ["common", "core", "util", "utils", "helper", "helpers", "shared", "misc", "manager", "base"];

const REQUIRED: [&str; 15] = [
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "Cargo.lock",
    "clippy.toml",
    "deny.toml",
    "rustfmt.toml",
    "rust-toolchain.toml",
    ".ci/run",
    "tests/run",
    "tests/bench/run",
    "deploy/demo",
];

/// rustfmt breaks code at 120; long sentences in strings stay whole.
const LINE_WIDTH_MAX: usize = 260;
const FILE_LINES_MAX: usize = 1_000;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the tree").to_owned()
}

/// Fails with all findings at once.
#[track_caller]
fn report(what_to_do: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{what_to_do}:\n  {}", findings.join("\n  "));
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files of the tree with that ending, but for what tools make.
fn files(ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the tree can be read") {
            let path = entry.expect("an entry of the tree can be read").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                let made = name == "target" || (name.starts_with('.') && name != ".ci");
                if !made && !path.is_symlink() {
                    folders.push(path);
                }
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The dependencies of a crate by section, read from its manifest.
fn dependencies(crate_name: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut sections: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut section = String::new();
    for line in read(&root().join(crate_name).join("Cargo.toml")).lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_owned();
            // [dependencies.name] is the same as a line below [dependencies].
            if let Some((parent, name)) = name.rsplit_once("dependencies.") {
                sections.entry(format!("{parent}dependencies")).or_default().insert(name.to_owned());
            }
        } else if section.ends_with("dependencies")
            && let Some((name, _)) = line.split_once(['.', '=', ' '])
            && !name.starts_with('#')
        {
            sections.entry(section.clone()).or_default().insert(name.trim().trim_matches('"').to_owned());
        }
    }
    sections
}

fn layer(crate_name: &str) -> Option<u8> {
    LAYERS.iter().find(|(name, _)| *name == crate_name).map(|(_, layer)| *layer)
}

#[test]
fn layers_point_one_way() {
    let mut findings = Vec::new();
    for (user, its_layer) in LAYERS {
        for (section, used) in dependencies(user) {
            for (used, used_layer) in used.iter().filter_map(|used| Some((used, layer(used)?))) {
                let lower = used_layer < its_layer;
                // Both of L1 stand side by side, and tests may try what they test against.
                if !lower && used != user && !(user == "tests" && used == "cli") {
                    findings.push(format!("{user} (L{its_layer}) uses {used} (L{used_layer}) in [{section}]"));
                }
            }
        }
    }
    report(
        "a crate may use crates of lower layers only: move the code down, or speak `proto` to the other role",
        &findings,
    );
}

#[test]
fn every_member_has_a_layer() {
    let manifest = read(&root().join("Cargo.toml"));
    let list = manifest.split("members = [").nth(1).and_then(|rest| rest.split("\n]").next()).unwrap_or_default();
    let members: BTreeSet<&str> =
        list.lines().filter_map(|line| line.trim().strip_prefix('"')?.split('"').next()).collect();
    let known: BTreeSet<&str> = LAYERS.iter().map(|(name, _)| *name).collect();
    assert_eq!(members, known, "tell tests/tidy the layer of each crate, and ARCHITECTURE.md its reason");
}

#[test]
fn libraries_stay_in_their_crates() {
    let mut findings = Vec::new();
    for (user, _) in LAYERS {
        let used: BTreeSet<String> =
            dependencies(user).into_iter().filter(|(s, _)| s == "dependencies").flat_map(|(_, d)| d).collect();
        for (library, owners) in RESERVED {
            if used.contains(library) && !owners.contains(&user) {
                findings.push(format!("{user} uses {library}, which only {owners:?} may"));
            }
        }
        if PURE.contains(&user) {
            findings
                .extend(IMPURE.iter().filter(|i| used.contains(**i)).map(|i| format!("{user} is pure and uses {i}")));
        }
    }
    report("ask the owner of the library for what you need", &findings);
}

#[test]
fn pure_crates_do_not_look_at_the_world() {
    let mut findings = Vec::new();
    for file in files(".rs").iter().filter(|f| PURE.iter().any(|p| f.starts_with(root().join(p).join("src")))) {
        let text = read(file);
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for word in ["SystemTime::now", "Instant::now", "std::fs", "std::net::Tcp", "std::env::", "async fn"] {
            let test_file = file.to_string_lossy().contains("test");
            if !test_file && code.lines().any(|line| line.contains(word) && !line.trim_start().starts_with("//")) {
                findings.push(format!("{}: {word}", shown(file)));
            }
        }
    }
    report("identity and routing have no clock, files, sockets or async: take it as an argument", &findings);
}

#[test]
fn every_file_says_what_it_is() {
    let findings: Vec<String> =
        files(".rs").iter().filter(|f| !read(f).starts_with("//! ")).map(|f| shown(f)).collect();
    report("begin the file with `//!`: what it is, what always holds, which standard it follows", &findings);
    let scripts: Vec<String> =
        files(".py").iter().filter(|f| !read(f).starts_with("\"\"\"")).map(|f| shown(f)).collect();
    report("begin the script with a docstring", &scripts);
}

#[test]
fn names_say_something() {
    let mut findings = Vec::new();
    for file in files(".rs") {
        let path = PathBuf::from(shown(&file));
        let names = path.iter().map(|part| part.to_string_lossy().trim_end_matches(".rs").to_owned());
        for name in names.filter(|name| EMPTY_NAMES.contains(&name.as_str())) {
            findings.push(format!("{}: {name}", path.display()));
        }
    }
    report("call it after the noun it is about", &findings);
}

#[test]
fn no_test_is_left_out() {
    let marks = [concat!("#[ig", "nore"), concat!("#[should_", "panic")];
    let mut findings = Vec::new();
    for file in files(".rs") {
        let text = read(&file);
        findings.extend(marks.iter().filter(|m| text.contains(**m)).map(|mark| format!("{}: {mark}", shown(&file))));
    }
    report("a test that cannot run prints `skipped: <why>`; one that expects a failure looks at the error", &findings);
}

#[test]
fn files_are_of_a_readable_size() {
    let mut findings = Vec::new();
    for file in files(".rs") {
        let text = read(&file);
        if text.lines().count() > FILE_LINES_MAX {
            findings.push(format!("{}: {} lines", shown(&file), text.lines().count()));
        }
        let long = text
            .lines()
            .enumerate()
            .filter(|(_, line)| line.chars().count() > LINE_WIDTH_MAX && !line.contains("http"));
        findings
            .extend(long.map(|(at, line)| format!("{}:{}: {} columns", shown(&file), at + 1, line.chars().count())));
    }
    report("split the file by nouns, wrap the line", &findings);
}

#[test]
fn what_a_project_has_is_there() {
    let root = root();
    let missing: Vec<String> =
        REQUIRED.iter().filter(|path| !root.join(path).exists()).map(|p| (*p).to_owned()).collect();
    report("a newcomer looks for it: write it", &missing);
    for script in [".ci/run", "tests/run", "tests/bench/run"] {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(root.join(script)).map_or(0, |m| m.permissions().mode());
        assert!(mode & 0o111 != 0, "{script} cannot be executed: chmod +x {script}");
    }
}

#[test]
fn the_map_names_every_crate() {
    let map = read(&root().join("ARCHITECTURE.md"));
    let missing: Vec<String> = LAYERS
        .iter()
        .filter(|(name, _)| !map.contains(&format!("`{name}`")) && !map.contains(&format!("`{name}/`")))
        .map(|(n, _)| (*n).to_owned())
        .collect();
    report("ARCHITECTURE.md says what each crate is and never does", &missing);
}

#[test]
fn the_documents_name_every_role_and_variable() {
    let mut text = read(&root().join("README.md"));
    for file in files(".md") {
        text.push_str(&read(&file));
    }
    let roles = ["ca run", "agent run", "proxy run", "discovery run", "policy run"];
    let variables = ["KASBAH_DIR", "KASBAH_LOG", "KASBAH_CORPORA", "SPIFFE_ENDPOINT_SOCKET", "KASBAH_<ROLE>_<SETTING>"];
    let verbs =
        ["kasbah up", "kasbah status", "kasbah down", "kasbah run", "demo token", "entry create", "token create"];
    let missing: Vec<String> = roles
        .iter()
        .chain(&variables)
        .chain(&verbs)
        .filter(|word| !text.contains(**word))
        .map(|w| (*w).to_owned())
        .collect();
    report("README.md or docs/ has to name it", &missing);
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut findings = Vec::new();
    for file in files(".md") {
        let folder = file.parent().map(Path::to_owned).unwrap_or_default();
        for link in read(&file).split("](").skip(1).filter_map(|rest| rest.split(')').next().map(str::to_owned)) {
            let path = link.split('#').next().unwrap_or_default();
            if !path.is_empty() && !path.contains("://") && !folder.join(path).exists() {
                findings.push(format!("{}: {link}", shown(&file)));
            }
        }
    }
    report("correct the link or write the page", &findings);
}

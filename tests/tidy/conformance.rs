//! docs/conformance.md lists every demand of the SPIFFE standards with tests that are there, and every test that is named
//! after a demand.

use std::collections::{BTreeMap, BTreeSet};

use super::{files, read, report, root};

/// How many demands each list has.
const DEMANDS: [(&str, usize); 8] =
    [("ID", 22), ("X", 24), ("J", 14), ("W", 21), ("B", 9), ("A", 23), ("F", 14), ("K", 8)];

#[test]
fn every_demand_of_the_standards_has_its_tests() {
    let (rows, known) = (rows(), functions());
    // Where names like `agent::…` stand.
    let mesh: String =
        files(".rs").iter().filter(|file| file.starts_with(root().join("tests/mesh"))).map(|file| read(file)).collect();
    let mut findings = Vec::new();
    for (list, count) in DEMANDS {
        for number in 1..=count {
            let item = format!("{list}-{number:02}");
            let Some(cell) = rows.get(&item) else {
                findings.push(format!("{item} is not listed"));
                continue;
            };
            let named: BTreeSet<&str> = cell.split('`').skip(1).step_by(2).collect();
            if named.is_empty() && cell.split_whitespace().count() < 3 {
                findings.push(format!("{item} has neither a test nor a reason"));
            }
            let is_there =
                |name: &str| known.contains(name) || (name.contains("::") && mesh.contains(&format!("\"{name}\"")));
            let gone = named.iter().filter(|name| !is_there(name));
            findings.extend(gone.map(|name| format!("{item}: there is no test {name}")));
            let after = known.iter().filter(|name| items_of(name).contains(&item));
            let unlisted = after.filter(|name| !named.contains(name.as_str()));
            findings.extend(unlisted.map(|name| format!("{item}: {name} is not listed")));
        }
    }
    report("docs/conformance.md says which tests stand for which demand", &findings);
}

/// The last cell of each row, by the item in the first.
fn rows() -> BTreeMap<String, String> {
    let text = read(&root().join("docs/conformance.md"));
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ");
        Some((cells.next()?.to_owned(), cells.last()?.to_owned()))
    };
    text.lines().filter_map(row).collect()
}

/// The names of all functions of the tree.
fn functions() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for file in files(".rs") {
        let text = read(&file);
        let name = |line: &str| Some(line.split_once("fn ")?.1.split_once(['(', '<'])?.0.to_owned());
        names.extend(text.lines().filter_map(name));
    }
    names
}

/// The demands that a name begins with: `x_07_x_14_…` those of.
fn items_of(name: &str) -> Vec<String> {
    let words: Vec<&str> = name.split('_').filter(|word| !matches!(*word, "and" | "to")).collect();
    let item = |pair: &[&str]| match pair {
        [list, number] if number.len() == 2 && number.bytes().all(|byte| byte.is_ascii_digit()) => {
            let list = list.to_uppercase();
            DEMANDS.iter().any(|(known, _)| *known == list).then(|| format!("{list}-{number}"))
        }
        _ => None,
    };
    words.chunks(2).map_while(item).collect()
}

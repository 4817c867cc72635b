//! Istio's own cases. Each was made for one analyzer, so that only its codes are compared.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::*;

/// Cases whose analyzer is not built; their name is told, so that nobody takes them for passed.
const NOT_BUILT: &[&str] = &[];

#[test]
fn istios_cases_are_told_as_istio_tells_them() {
    let Some(corpora) = std::env::var_os("KASBAH_CORPORA") else {
        println!("skipped: KASBAH_CORPORA names no folder with outside test data");
        return;
    };
    let folder = Path::new(&corpora).join("istio/analyzers");
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let codes = codes_by_analyzer(&cases);
    let (mut wrong, mut right, mut open) = (Vec::new(), 0, Vec::new());
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let analyzer = case["analyzer"].as_str().unwrap();
        if !ANALYZERS.iter().any(|known| known.name == analyzer) {
            open.push(name);
            continue;
        }
        let expected = expected(case);
        let found = found(&folder, case, &codes[analyzer]);
        if found == expected {
            right += 1;
        } else {
            wrong.push(format!("{name} ({analyzer})\n  expected {expected:#?}\n  found {found:#?}"));
        }
    }
    println!("{right} of {} cases agree; not built: {open:?}", cases.len());
    assert_eq!(open, NOT_BUILT);
    assert!(wrong.is_empty(), "{} cases differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// Codes that an analyzer can tell: by the cases, and by our own table.
fn codes_by_analyzer(cases: &[Value]) -> BTreeMap<String, BTreeSet<String>> {
    let mut codes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for case in cases {
        let of = codes.entry(case["analyzer"].as_str().unwrap().to_owned()).or_default();
        of.extend(case["expected"].as_array().unwrap().iter().map(|one| one["code"].as_str().unwrap().to_owned()));
    }
    for analyzer in ANALYZERS {
        let of = codes.entry(analyzer.name.to_owned()).or_default();
        of.extend(analyzer.codes.iter().filter(|code| code.starts_with("IST")).map(|code| (*code).to_owned()));
    }
    codes
}

/// Istio leaves out a namespace that the document leaves out.
fn plain(resource: &str) -> String {
    resource.replacen(" default/", " ", 1)
}

fn expected(case: &Value) -> Vec<(String, String, String)> {
    let text = |one: &Value, field: &str| one[field].as_str().unwrap().to_owned();
    let mut expected: Vec<_> = case["expected"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (text(one, "code"), text(one, "level"), plain(&text(one, "resource"))))
        .collect();
    expected.sort();
    expected
}

fn found(folder: &Path, case: &Value, codes: &BTreeSet<String>) -> Vec<(String, String, String)> {
    let files = |field: &str| -> Vec<PathBuf> {
        case[field].as_array().unwrap().iter().map(|file| folder.join(file.as_str().unwrap())).collect()
    };
    let paths: Vec<PathBuf> = [files("inputFiles"), files("meshNetworks_or_meshConfig")].concat();
    let own = [case["analyzer"].as_str().unwrap().to_owned()];
    let run = |analyzers: &[String]| analyze(&paths, &Options { now: SystemTime::UNIX_EPOCH, mesh: None, analyzers });
    let all = run(&[]);
    assert!(all.unreadable.is_empty(), "{}: {:?}", case["name"], all.unreadable);
    assert!(all.messages.iter().all(|one| one.code != "IST0001"), "{}", case["name"]);
    let mut found: Vec<_> = run(&own)
        .messages
        .iter()
        .filter(|one| codes.contains(one.code))
        .map(|one| (one.code.to_owned(), one.level.name().to_owned(), plain(&one.resource)))
        .collect();
    found.sort();
    found
}

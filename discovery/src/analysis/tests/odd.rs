//! Documents that are not what they should be never make an analyzer fail.

use serde_json::{Value, json};

use super::*;

/// Every document of a text as JSON.
fn documents(text: &str) -> Vec<Value> {
    crate::documents::tree::parse_stream(text)
        .unwrap_or_default()
        .iter()
        .map(crate::documents::tree::Node::to_json)
        .collect()
}

/// What a field may be instead.
fn instead() -> [Value; 8] {
    [
        Value::Null,
        json!(true),
        json!(-1),
        json!(1.5),
        json!("*"),
        json!("\u{e9}/\u{1f980}.svc.cluster.local"),
        json!([null, 7, "x", {}]),
        json!({"a": {"b": [1]}, "*": null}),
    ]
}

/// The number of places in a value.
fn places(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(places).sum(),
        Value::Object(fields) => fields.values().map(places).sum::<usize>(),
        _ => 0,
    }
}

/// The value with the place of a number, in depth first order, replaced, or dropped when there is nothing to replace it by.
fn changed(value: &Value, at: usize, by: Option<&Value>) -> Option<Value> {
    if at == 0 {
        return by.cloned();
    }
    let mut at = at - 1;
    let mut change = |inner: &Value| {
        let count = places(inner);
        let result = if at < count { changed(inner, at, by) } else { Some(inner.clone()) };
        at = if at < count { usize::MAX / 2 } else { at - count };
        result
    };
    Some(match value {
        Value::Array(items) => Value::Array(items.iter().filter_map(&mut change).collect()),
        Value::Object(fields) => {
            Value::Object(fields.iter().filter_map(|(name, inner)| Some((name.clone(), change(inner)?))).collect())
        }
        other => other.clone(),
    })
}

fn look(documents: &[Value], what: &str) {
    let text: Vec<String> = documents.iter().map(ToString::to_string).collect();
    let analysis = analysis(&text.join("\n---\n"), &[]);
    let failed: Vec<&Message> = analysis.messages.iter().filter(|one| one.code == "IST0001").collect();
    assert!(failed.is_empty(), "{what}: {failed:?}\n{}", text.join("\n---\n"));
}

/// Drops every `step`th place of every document, and replaces it in so many of the ways.
fn shake(documents: &[Value], what: &str, step: usize, ways: usize) -> usize {
    let mut count = 0;
    for (index, document) in documents.iter().enumerate() {
        for at in (0..places(document)).skip(index % step).step_by(step) {
            let all = instead();
            let picked = (0..ways).map(|way| &all[(index + at / step + way) % all.len()]);
            for by in picked.map(Some).chain([None]) {
                let mut other = documents.to_vec();
                match changed(document, at, by) {
                    Some(changed) => other[index] = changed,
                    None => drop(other.remove(index)),
                }
                look(&other, what);
                count += 1;
            }
        }
    }
    count
}

#[test]
fn a_place_is_replaced_or_dropped() {
    let value = json!({"a": [1, {"b": 2}], "c": 3});
    assert_eq!(places(&value), 6);
    assert_eq!(changed(&value, 0, None), None);
    assert_eq!(changed(&value, 2, None), Some(json!({"a": [{"b": 2}], "c": 3})));
    assert_eq!(changed(&value, 4, Some(&json!("x"))), Some(json!({"a": [1, {"b": "x"}], "c": 3})));
    assert_eq!(changed(&value, 5, None), Some(json!({"a": [1, {"b": 2}]})));
}

#[test]
fn our_own_documents_may_be_anything() {
    let count = shake(&documents(identity_cases::EVERYTHING), "our own", 1, instead().len());
    assert!(count > 1_000, "{count}");
}

#[test]
fn istios_documents_may_be_anything() {
    let Some(corpora) = std::env::var_os("KASBAH_CORPORA") else {
        println!("skipped: KASBAH_CORPORA names no folder with outside test data");
        return;
    };
    let folder = Path::new(&corpora).join("istio/analyzers/testdata");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
    files.sort();
    let mut count = 0;
    for file in files {
        let documents = documents(&std::fs::read_to_string(&file).unwrap());
        count += shake(&documents, &file.display().to_string(), 1 + documents.len(), 1);
    }
    assert!(count > 1_000, "{count}");
}

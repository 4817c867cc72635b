//! An exported log verifies offline, and no change of it does.

use identity::transparency::{LogKey, TreeHead};
use proto::kasbah::ca::v1 as wire;

use super::*;

fn entry(index: u64) -> EntryDocument {
    let record = wire::IssuanceRecord {
        kind: "x509".into(),
        serial: format!("{index:032x}"),
        spiffe_id: "spiffe://example.org/web".into(),
        issued_at: 1_700_000_000,
        not_after: 1_700_003_600,
        ..Default::default()
    };
    let mut entry = EntryDocument::from(wire::LogEntry { index, leaf_hash: Vec::new(), record: Some(record) });
    entry.leaf_hash = identity::digest::hex(&entry.record.as_ref().expect("is set").hash());
    if index.is_multiple_of(3) {
        entry.record = None;
    }
    entry
}

fn head_of(key: &LogKey, size: u64) -> HeadDocument {
    let mut frontier = Frontier::new();
    (0..size).for_each(|index| frontier.append(entry(index).verified().expect("good"), |_, _| ()));
    let head = TreeHead { size, root: frontier.root(), timestamp_ms: 1_700_000_000_000 };
    let signed = key.sign(head).expect("signs");
    HeadDocument::from(wire::SignedTreeHead {
        tree_size: size,
        root_hash: signed.head.root.to_vec(),
        timestamp_ms: signed.head.timestamp_ms,
        log_id: signed.log_id.to_vec(),
        signature: signed.signature,
        public_key: key.public().spki_der().to_vec(),
        trust_domain: "example.org".into(),
    })
}

struct Exported {
    dir: tempfile::TempDir,
    key: LogKey,
    lines: Vec<String>,
}

impl Exported {
    fn new(size: u64) -> Self {
        let key = LogKey::generate().expect("a key");
        let mut lines = vec![serde_json::to_string(&Header::new(head_of(&key, size))).expect("JSON")];
        lines.extend((0..size).map(|index| serde_json::to_string(&entry(index)).expect("JSON")));
        Self { dir: tempfile::tempdir().expect("a folder"), key, lines }
    }

    fn verify(&self, lines: &[String], since: Option<&HeadDocument>) -> Result<Told, Failure> {
        let (file, old) = (self.dir.path().join("log.jsonl"), self.dir.path().join("head.json"));
        std::fs::write(&file, lines.join("\n")).expect("written");
        if let Some(head) = since {
            std::fs::write(&old, serde_json::to_string(head).expect("JSON")).expect("written");
        }
        verify_file(&file, since.map(|_| old.as_path()))
    }
}

#[test]
fn an_exported_log_verifies_with_and_without_an_earlier_head() {
    for size in [0, 1, 2, 9, 20] {
        let exported = Exported::new(size);
        let told = exported.verify(&exported.lines, None).unwrap_or_else(|failure| panic!("{size}: {failure}"));
        assert_eq!((told.leaves, told.records), (size, size - size.div_ceil(3)));
        for old in 0..=size {
            let told = exported.verify(&exported.lines, Some(&head_of(&exported.key, old))).expect("continues");
            assert_eq!(told.since, Some(old));
        }
    }
}

#[test]
fn a_change_of_any_line_fails() {
    let exported = Exported::new(10);
    for at in 0..exported.lines.len() {
        let mut removed = exported.lines.clone();
        removed.remove(at);
        assert!(exported.verify(&removed, None).is_err(), "line {at} removed");
        let mut doubled = exported.lines.clone();
        doubled.insert(at, doubled[at].clone());
        assert!(exported.verify(&doubled, None).is_err(), "line {at} doubled");
        for (from, to) in
            [("x509", "jwt"), ("/web", "/db"), ("2023-11-14T22", "2023-11-14T21"), ("hash\":\"", "hash\":\"0")]
        {
            let mut changed = exported.lines.clone();
            changed[at] = changed[at].replacen(from, to, 1);
            let same = changed == exported.lines;
            let passed = exported.verify(&changed, None).is_ok();
            // The readable time of the head is beside what is signed.
            assert!(same || at == 0 || !passed, "line {at}: {}", changed[at]);
        }
    }
    assert!(exported.verify(&[], None).is_err());
    assert!(exported.verify(&["{}".into()], None).is_err());
}

#[test]
fn a_log_that_lost_or_changed_its_past_fails() {
    let exported = Exported::new(10);
    let longer = head_of(&exported.key, 11);
    assert!(exported.verify(&exported.lines, Some(&longer)).is_err(), "shorter than before");
    let stranger = head_of(&LogKey::generate().expect("a key"), 5);
    assert!(exported.verify(&exported.lines, Some(&stranger)).is_err(), "another log");
    let mut forged = head_of(&exported.key, 5);
    forged.root_hash = "00".repeat(32);
    assert!(exported.verify(&exported.lines, Some(&forged)).is_err(), "a forged head");
    let other = TreeHead { size: 5, root: [7; 32], timestamp_ms: 1 };
    let signed = exported.key.sign(other).expect("signs");
    let mut fork = head_of(&exported.key, 5);
    fork.root_hash = "07".repeat(32);
    fork.timestamp_ms = 1;
    fork.signature = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, signed.signature);
    let refused = exported.verify(&exported.lines, Some(&fork)).err().expect("a fork");
    assert!(refused.to_string().contains("LOG_HISTORY_CHANGED"), "{refused}");
}

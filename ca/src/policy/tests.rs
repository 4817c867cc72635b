//! Who gets what by which rule, and how a bad file is refused.

use std::path::Path;

use identity::spiffe_id::SpiffeId;

use super::*;

const SAMPLE: &str = "\
default: deny
rules:
  - name: no-root
    ids: [/ns/*/sa/root]
    deny: true
  - name: payments
    ids: [/ns/payments/sa/*]
    callers: [/spire/agent/join_token/pay]
    kinds: [x509, jwt]
    ttl: {min: 1m, max: 1h}
    dns_names: ['*.payments.svc']
    key_types: [P-256, RSA-3072]
  - name: rest
    ids: [/ns/**]
    callers: [local, /ops/*]
quotas:
  - {name: per-identity, by: identity, limit: 2, per: 1h}
";

fn parse(text: &str) -> Result<Policy, String> {
    Policy::parse(Path::new("p.yaml"), text, "td").map_err(|error| error.to_string())
}

struct Case {
    id: &'static str,
    caller: &'static str,
    kind: &'static str,
    secs: u64,
    dns_names: &'static [&'static str],
    key: KeyType,
}

const PAYMENT: Case = Case {
    id: "spiffe://td/ns/payments/sa/a",
    caller: "spiffe://td/spire/agent/join_token/pay",
    kind: "x509",
    secs: 600,
    dns_names: &["a.payments.svc"],
    key: KeyType::P256,
};

fn judge(policy: &Policy, case: &Case) -> Verdict {
    let id = SpiffeId::parse(case.id).unwrap();
    let callers = ["spiffe://td/spire/agent/other-name".to_owned(), case.caller.to_owned()];
    let dns_names: Vec<String> = case.dns_names.iter().map(|name| (*name).to_owned()).collect();
    let ttl = Duration::from_secs(case.secs);
    policy.judge(&Ask { id: &id, callers: &callers, kind: case.kind, ttl, dns_names: &dns_names, key: Some(case.key) })
}

#[track_caller]
fn check_allowed(case: &Case, rule: &str, secs: u64) {
    let verdict = judge(&parse(SAMPLE).unwrap(), case);
    assert_eq!(verdict, Verdict::Allowed { rule: Some(rule.into()), ttl: Duration::from_secs(secs) });
}

#[track_caller]
fn check_refused(case: &Case, reason: &str, says: &str) {
    match judge(&parse(SAMPLE).unwrap(), case) {
        Verdict::Refused(refusal) => {
            assert_eq!(refusal.reason(), reason, "{refusal}");
            assert!(refusal.to_string().contains(says), "{refusal}");
        }
        allowed => panic!("{allowed:?}"),
    }
}

#[test]
fn the_first_rule_that_speaks_decides_and_cuts_the_life() {
    check_allowed(&PAYMENT, "payments", 600);
    check_allowed(&Case { secs: 86_400, ..PAYMENT }, "payments", 3_600);
    check_allowed(&Case { key: KeyType::Rsa(4096), dns_names: &[], ..PAYMENT }, "payments", 600);
    check_allowed(&Case { caller: "local", kind: "mint_x509", secs: 86_400, ..PAYMENT }, "rest", 86_400);
    check_allowed(&Case { caller: "spiffe://td/ops/eve", id: "spiffe://td/ns/x/sa/y", ..PAYMENT }, "rest", 600);
}

#[test]
fn a_refusal_says_which_rule_and_what_would_be_allowed() {
    let root = Case { id: "spiffe://td/ns/payments/sa/root", ..PAYMENT };
    check_refused(&root, "ISSUANCE_NOT_ALLOWED", "rule `no-root`");
    let elsewhere = Case { caller: "spiffe://td/spire/agent/join_token/web", ..PAYMENT };
    check_refused(&elsewhere, "ISSUANCE_NOT_ALLOWED", "rule `payments` gives it to /spire/agent/join_token/pay");
    check_refused(&Case { kind: "csr", ..PAYMENT }, "ISSUANCE_NOT_ALLOWED", "gives it as x509, jwt");
    check_refused(&Case { id: "spiffe://td/other", ..PAYMENT }, "ISSUANCE_NOT_ALLOWED", "no rule");
    let named = Case { dns_names: &["a.payments.svc", "bank.example.org"], ..PAYMENT };
    check_refused(&named, "ISSUANCE_DNS_NAME_NOT_ALLOWED", "bank.example.org; it allows *.payments.svc");
    check_refused(&Case { key: KeyType::Ed25519, ..PAYMENT }, "ISSUANCE_KEY_NOT_ALLOWED", "it allows P-256, RSA-3072");
    check_refused(&Case { key: KeyType::Rsa(2048), ..PAYMENT }, "ISSUANCE_KEY_NOT_ALLOWED", "RSA-2048");
    check_refused(&Case { secs: 59, ..PAYMENT }, "ISSUANCE_TTL_NOT_ALLOWED", "60 s or more, not 59 s");
}

#[test]
fn no_policy_allows_what_entries_allow() {
    let verdict = judge(&Policy::default(), &PAYMENT);
    assert_eq!(verdict, Verdict::Allowed { rule: None, ttl: Duration::from_secs(600) });
    let open = parse("default: allow\n").unwrap();
    assert_eq!(judge(&open, &PAYMENT), Verdict::Allowed { rule: None, ttl: Duration::from_secs(600) });
    assert_eq!(open.counts(), (0, 0));
}

#[test]
fn a_bad_policy_is_refused_with_its_place() {
    let check = |text: &str, place: &str, says: &str| {
        let error = parse(text).unwrap_err();
        assert!(error.starts_with(&format!("p.yaml:{place}")) && error.contains(says), "{error}");
    };
    check("rules: []\n", "1:1", "default");
    check("default: maybe\n", "1:10", "maybe");
    check("default: deny\nrule: []\n", "2:1", "rule");
    check("default: deny\nrules:\n  - name: a\n    ids: [/a, /b*]\n", "4:15", "star beside other letters");
    check("default: deny\nrules:\n  - name: a\n    ids: []\n", "4:10", "at least one pattern");
    check("default: deny\nrules:\n  - name: a\n    ids: [/a]\n  - name: a\n    ids: [/b]\n", "5:11", "given twice");
    check("default: deny\nrules:\n  - name: a\n    ids: [/a]\n    kinds: [x508]\n", "5:13", "x508");
    check("default: deny\nrules:\n  - name: a\n    ids: [/a]\n    key_types: [RSA-1024]\n", "5:17", "RSA-1024");
    check("default: deny\nrules:\n  - name: a\n    ids: [/a]\n    ttl: {min: 2h, max: 1h}\n", "5:10", "min");
    check("default: deny\nquotas:\n  - {name: q, by: identity, limit: 0, per: 1h}\n", "3:36", "deny: true");
    check("default: deny\nquotas:\n  - {name: q, by: planet, limit: 1, per: 1h}\n", "3:", "planet");
    check("default: deny\nquotas:\n  - {name: q, by: node, limit: 1, per: 1ms}\n", "3:12", "1s to 31 days");
}

#[test]
fn a_bad_file_leaves_the_last_good_policy_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.yaml");
    let domain = identity::TrustDomain::parse("td").unwrap();
    assert_eq!(PolicyInForce::open(file.clone(), domain.clone()).unwrap_err().reason(), "ISSUANCE_POLICY_UNREADABLE");
    std::fs::write(&file, SAMPLE).unwrap();
    let (mut followed, in_force) = PolicyInForce::open(file.clone(), domain).unwrap();
    assert_eq!(in_force.current().counts(), (3, 1));
    std::fs::write(&file, "default: deny\nrules:\n  - nonsense\n").unwrap();
    followed.look();
    assert_eq!(in_force.current().counts(), (3, 1));
    let problem = in_force.problem().unwrap();
    assert!(problem.to_string().contains("policy.yaml:3:"), "{problem}");
    assert_eq!(problem.reason(), "ISSUANCE_POLICY_INVALID");
    std::fs::remove_file(&file).unwrap();
    followed.look();
    assert_eq!(in_force.problem().unwrap().reason(), "ISSUANCE_POLICY_UNREADABLE");
    std::fs::write(&file, "default: allow\n").unwrap();
    followed.look();
    assert_eq!((in_force.current().counts(), in_force.problem().is_none()), ((0, 0), true));
}

#[test]
fn quotas_outlive_a_new_policy() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.yaml");
    std::fs::write(&file, SAMPLE).unwrap();
    let (mut followed, in_force) =
        PolicyInForce::open(file.clone(), identity::TrustDomain::parse("td").unwrap()).unwrap();
    let id = SpiffeId::parse("spiffe://td/ns/a/sa/b").unwrap();
    let callers = ["local".to_owned()];
    let ask = Ask { id: &id, callers: &callers, kind: "x509", ttl: Duration::from_secs(60), dns_names: &[], key: None };
    let now = std::time::SystemTime::now();
    in_force.judge(&ask, now).unwrap();
    in_force.judge(&ask, now).unwrap();
    std::fs::write(&file, format!("{SAMPLE}# a remark\n")).unwrap();
    followed.look();
    let refusal = in_force.judge(&ask, now).unwrap_err();
    assert_eq!(refusal.reason(), "ISSUANCE_QUOTA_EXCEEDED");
    assert_eq!(refusal.retry_after, Some(Duration::from_secs(1_800)));
}

//! What the authorization rules answer.

use std::path::Path;

use super::super::Rules;
use crate::facts::{Facts, HttpFacts};

/// `METHOD host path [principal] [name=value]…` judged by the rules of `yaml`: `allow RULE` or `deny RULE STATUS`.
fn check(yaml: &str, request: &str) -> String {
    let rules = Rules::parse(Path::new("r.yaml"), yaml).unwrap();
    let words: Vec<&str> = request.split(' ').collect();
    let headers: Vec<(&str, &str)> = words[4..].iter().filter_map(|word| word.split_once('=')).collect();
    let http = HttpFacts::new(words[0], words[1], words[2], headers);
    let principal = if words[3] == "-" { "" } else { words[3] };
    show(&rules, &Facts { principal, http: Some(http) })
}

fn show(rules: &Rules, request: &Facts<'_>) -> String {
    match rules.authorization.decide(request) {
        super::Decision::Allow { rule } => format!("allow {}", rule.unwrap_or("-")),
        super::Decision::Deny { rule, status, .. } => format!("deny {} {status}", rule.unwrap_or("-")),
    }
}

fn refused(yaml: &str) -> String {
    Rules::parse(Path::new("r.yaml"), yaml).unwrap_err().to_string()
}

fn rule(action: &str, when: &str) -> String {
    format!("authorization:\n  rules:\n    - name: r\n      action: {action}\n      match: {when}\n")
}

#[test]
fn the_first_rule_that_matches_decides() {
    let yaml = "
authorization:
  default: deny
  rules:
    - {name: health, action: allow, match: {path_prefixes: [/healthz]}}
    - {name: gone, action: deny, status: 410, match: {methods: [DELETE]}}
    - {name: reads, action: allow, match: {methods: [GET, DELETE]}}
";
    assert_eq!(check(yaml, "DELETE h /healthz -"), "allow health");
    assert_eq!(check(yaml, "DELETE h /x -"), "deny gone 410");
    assert_eq!(check(yaml, "GET h /x -"), "allow reads");
    assert_eq!(check(yaml, "POST h /x -"), "deny - 403");
}

#[test]
fn all_given_parts_must_match() {
    let yaml =
        rule("deny", "{methods: [GET], hosts: [a.example], path_prefixes: [/p], headers: [{name: X-A, exact: '1'}]}");
    assert_eq!(check(&yaml, "GET a.example /p - x-a=1"), "deny r 403");
    for other in [
        "POST a.example /p - x-a=1",
        "GET b.example /p - x-a=1",
        "GET a.example /q - x-a=1",
        "GET a.example /p - x-a=2",
    ] {
        assert_eq!(check(&yaml, other), "allow -", "{other}");
    }
}

#[test]
fn a_prefix_means_whole_segments() {
    let yaml = rule("deny", "{path_prefixes: [/admin, /files/]}");
    for path in ["/admin", "/admin/", "/admin/x", "/admin?x=1", "/files/", "/files/a"] {
        assert_eq!(check(&yaml, &format!("GET h {path} -")), "deny r 403", "{path}");
    }
    for path in ["/administrator", "/files", "/", "/x/admin"] {
        assert_eq!(check(&yaml, &format!("GET h {path} -")), "allow -", "{path}");
    }
}

#[test]
fn a_deny_rule_sees_through_other_spellings_of_a_path() {
    let yaml = rule("deny", "{path_prefixes: [/admin]}");
    for path in [
        "//admin",
        "/./admin",
        "/x/../admin",
        "/%61dmin",
        "/x%2f..%2fadmin",
        "/x/%2e%2e/admin",
        "\\admin",
        "/admin/../x",
    ] {
        assert_eq!(check(&yaml, &format!("GET h {path} -")), "deny r 403", "{path}");
    }
}

#[test]
fn an_allow_rule_wants_every_spelling_to_match() {
    let yaml = format!("{}  default: deny\n", rule("allow", "{path_prefixes: [/public]}"));
    assert_eq!(check(&yaml, "GET h /public/x -"), "allow r");
    assert_eq!(check(&yaml, "GET h /public/../admin -"), "deny - 403");
    assert_eq!(check(&yaml, "GET h /public/%2e%2e/admin -"), "deny - 403");
}

#[test]
fn a_repeated_header_is_denied_by_any_line_and_allowed_only_by_all() {
    let deny = rule("deny", "{headers: [{name: x-demo-deny, exact: 'true'}]}");
    assert_eq!(check(&deny, "GET h / - x-demo-deny=false x-demo-deny=true"), "deny r 403");
    assert_eq!(check(&deny, "GET h / - x-demo-deny=false,true"), "deny r 403");
    assert_eq!(check(&deny, "GET h / - x-demo-deny=false"), "allow -");
    let allow = format!("{}  default: deny\n", rule("allow", "{headers: [{name: x-key, prefix: a}]}"));
    assert_eq!(check(&allow, "GET h / - x-key=a1 x-key=a2"), "allow r");
    assert_eq!(check(&allow, "GET h / - x-key=a1 x-key=b"), "deny - 403");
    assert_eq!(check(&allow, "GET h / -"), "deny - 403");
}

#[test]
fn presence_and_absence_of_headers() {
    let absent = rule("deny", "{headers: [{name: x-id, present: false}]}");
    assert_eq!(check(&absent, "GET h / -"), "deny r 403");
    assert_eq!(check(&absent, "GET h / - x-id=1"), "allow -");
    let present = rule("deny", "{headers: [{name: x-id, present: true}]}");
    assert_eq!(check(&present, "GET h / - x-id="), "deny r 403");
}

#[test]
fn hosts_match_without_port_and_case() {
    let yaml = rule("deny", "{hosts: [A.example, '*.b.example']}");
    for host in ["a.example", "A.Example:8080", "a.example.", "x.b.example", "x.y.b.example"] {
        assert_eq!(check(&yaml, &format!("GET {host} / -")), "deny r 403", "{host}");
    }
    for host in ["b.example", "xb.example", "[::1]:80", "a.example.org"] {
        assert_eq!(check(&yaml, &format!("GET {host} / -")), "allow -", "{host}");
    }
}

#[test]
fn principals_match_whole_or_by_prefix_and_never_without_proof() {
    let yaml = rule("deny", "{principals: ['spiffe://a.b/ns/x/sa/y', 'spiffe://a.b/ns/z/*']}");
    assert_eq!(check(&yaml, "GET h / spiffe://a.b/ns/x/sa/y"), "deny r 403");
    assert_eq!(check(&yaml, "GET h / spiffe://a.b/ns/z/sa/q"), "deny r 403");
    assert_eq!(check(&yaml, "GET h / spiffe://a.b/ns/x/sa/yy"), "allow -");
    assert_eq!(check(&yaml, "GET h / -"), "allow -");
    assert_eq!(check(&rule("deny", "{principals: ['*']}"), "GET h / -"), "allow -");
    assert_eq!(check(&rule("deny", "{principals: ['*']}"), "GET h / spiffe://x/y"), "deny r 403");
}

#[test]
fn what_is_not_http_is_denied_by_http_rules_and_not_allowed_by_them() {
    let tcp = Facts { principal: "", http: None };
    let rules = |yaml: &str| Rules::parse(Path::new("r.yaml"), yaml).unwrap();
    assert_eq!(show(&rules(&rule("deny", "{methods: [GET]}")), &tcp), "deny r 403");
    let allow = format!("{}  default: deny\n", rule("allow", "{methods: [GET]}"));
    assert_eq!(show(&rules(&allow), &tcp), "deny - 403");
    assert_eq!(show(&rules(&rule("deny", "{principals: ['*']}")), &tcp), "allow -");
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for (when, why) in [
        ("{methods: []}", "leave it out"),
        ("{methods: [get]}", "capitals"),
        ("{path_prefixes: [admin]}", "begins with /"),
        ("{hosts: ['a*']}", "*.NAME"),
        ("{principals: [cluster.local/ns/x]}", "SPIFFE ID"),
        ("{principals: ['spiffe://prod*']}", "trust domain"),
        ("{headers: [{name: x}]}", "one of"),
        ("{headers: [{name: x, exact: a, present: true}]}", "one of"),
        ("{headers: [{name: 'x y', present: true}]}", "header name"),
    ] {
        let text = refused(&rule("deny", when));
        assert!(text.starts_with("r.yaml:5:") && text.contains(why), "{when}: {text}");
    }
    assert!(refused("authorization: {rules: [{name: a, action: allow, status: 200}]}").contains("only a deny rule"));
    assert!(refused("authorization: {rules: [{name: a, action: deny, status: 200}]}").contains("400 to 599"));
    assert!(
        refused("authorization: {rules: [{name: a, action: deny}, {name: a, action: allow}]}").contains("second rule")
    );
}

#[test]
fn limits_hold_at_their_edges() {
    let rules = |count: usize| {
        let rules: Vec<String> = (0..count).map(|n| format!("{{name: r{n}, action: allow}}")).collect();
        format!("authorization: {{rules: [{}]}}", rules.join(", "))
    };
    assert!(Rules::parse(Path::new("r"), &rules(super::RULES_MAX)).is_ok());
    assert!(refused(&rules(super::RULES_MAX + 1)).contains("more than 1000 rules"));
    let methods = |count: usize| rule("deny", &format!("{{methods: [{}]}}", vec!["GET"; count].join(", ")));
    assert!(Rules::parse(Path::new("r"), &methods(super::LIST_MAX)).is_ok());
    assert!(refused(&methods(super::LIST_MAX + 1)).contains("256"));
    let body =
        |bytes: usize| format!("authorization: {{rules: [{{name: a, action: deny, body: {}}}]}}", "x".repeat(bytes));
    assert!(Rules::parse(Path::new("r"), &body(super::BODY_BYTES_MAX)).is_ok());
    assert!(refused(&body(super::BODY_BYTES_MAX + 1)).contains("8192"));
}

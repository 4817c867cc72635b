//! Requests to the demo's documents, and agreement with `authz eval`.

use std::path::Path;

use clap::Parser;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::follow::follow;
use super::question::{Asked, Question};
use super::report::Request;
use super::world::World;
use super::*;
use crate::args::{Cli, Command, ExplainMeshArgs};
use crate::exit::Exit;
use crate::verbs::filters::authz::Evaluator;

fn args(words: &[&str], config: &Path) -> ExplainMeshArgs {
    let config = config.display().to_string();
    let all = ["kasbah", "explain"].iter().chain(words).copied().chain(["--config", &config]);
    match Cli::try_parse_from(all).unwrap().command {
        Command::Explain(args) => *args,
        other => panic!("{other:?}"),
    }
}

fn asked(args: &ExplainMeshArgs) -> Asked {
    match Question::parse(args) {
        Ok(Question::Request(asked)) => *asked,
        _ => panic!("no request: {:?}", args.what),
    }
}

fn explained(words: &[&str], config: &Path) -> Request {
    let args = args(words, config);
    follow(&World::gather(&args).unwrap(), &args, &asked(&args)).unwrap()
}

/// The demo's documents with addresses of its own.
fn demo() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in DEMO {
        let filled = VALUES.iter().fold((*text).to_owned(), |text, (from, to)| text.replace(from, to));
        std::fs::write(folder.path().join(name), filled).unwrap();
    }
    folder
}

/// Answer, code, and the name and file of what decided.
fn told(report: &Request) -> (&str, Option<u16>, &str, String) {
    let decided = report.decided_by.as_ref().map(|decided| {
        let document = decided.document.as_ref().map(|document| {
            let file = document.file.rsplit('/').next().unwrap_or_default();
            format!("{file}:{} {}", document.line, document.kind)
        });
        format!("{} {}", decided.name, document.unwrap_or_default())
    });
    (report.answer, report.status, report.reason.as_deref().unwrap_or("-"), decided.unwrap_or_default())
}

#[test]
fn every_decision_of_the_demo_is_told_with_what_decided() {
    let folder = demo();
    let rule = |line: u32| format!("security.yaml:{line} AuthorizationPolicy");
    let line_of = |file: &str, text: &str| {
        let all = std::fs::read_to_string(folder.path().join(file)).unwrap();
        u32::try_from(all.lines().position(|line| line.contains(text)).unwrap()).unwrap() + 1
    };
    let (first, second) = (line_of("security.yaml", "- to:"), line_of("security.yaml", "requestPrincipals") - 1);
    let testers = r#"{"groups": ["testers"]}"#;
    let users = r#"{"groups": ["users"]}"#;
    let helloworld = "http://helloworld.default.svc.cluster.local:9095/";
    let other = "spiffe://cluster.local/ns/default/sa/other";
    for (words, answer, status, reason, by) in [
        (&["GET", "http://localhost/helloworld"][..], "allow", None, "-", "default/helloworld rule 0"),
        (&["http://localhost/helloworld/a?b"], "allow", None, "-", "default/helloworld rule 0"),
        (&["http://localhost/test"], "deny", Some(401), "JWT_MISSING", "AuthorizationPolicy"),
        (&["http://localhost/test", "--token", "bad"], "deny", Some(401), "JWT_MALFORMED", "RequestAuthentication"),
        (&["http://localhost/test", "--claims", users], "deny", Some(403), "RBAC_DENIED", "AuthorizationPolicy"),
        (&["http://localhost/test", "--claims", testers], "allow", None, "-", "default/test rule 0"),
        (&["http://localhost/nowhere"], "deny", Some(403), "RBAC_DENIED", "AuthorizationPolicy"),
        (&["http://localhost/%2e%2e/x"], "deny", Some(400), "PATH_NOT_CANONICAL", ""),
        (&["tcp://127.0.0.1:9096"], "allow", None, "-", "default/helloworld rule 0"),
        (&[helloworld, "--from", "test"], "allow", None, "-", "default/helloworld rule 0"),
        (&["http://elsewhere.example.com/", "--from", "test"], "deny", Some(502), "HOST_NOT_IN_MESH", "mesh.yaml"),
        (&["http://external.example.com:9095/", "--from", "test"], "allow", None, "-", "istio-system/egress rule 0"),
        (
            &["http://external.example.com:9095/", "--from", "helloworld"],
            "deny",
            Some(403),
            "RBAC_DENIED",
            "egress.yaml",
        ),
        (&["GET", "/", "--to", "helloworld"], "deny", None, "PLAINTEXT_REFUSED", "PeerAuthentication"),
        (&["GET", "/", "--to", "helloworld", "--peer", other], "deny", Some(403), "RBAC_DENIED", "security.yaml"),
    ] {
        let report = explained(words, folder.path());
        let told = told(&report);
        assert_eq!((told.0, told.1, told.2), (answer, status, reason), "{words:?}: {report:#?}");
        assert!(told.3.contains(by), "{words:?}: decided by {}", told.3);
        assert_eq!(report.is_allowed(), answer == "allow");
    }
    let steps = |words: &[&str]| explained(words, folder.path()).hops.remove(0).steps;
    let by_rule: Vec<(String, String)> = steps(&["http://localhost/test", "--claims", testers])
        .into_iter()
        .filter(|step| step.step == "policy" && step.name.starts_with("istio-system/ingress"))
        .map(|step| (step.outcome.to_owned(), step.document.unwrap().text()))
        .collect();
    let text = |at: usize| by_rule[at].1.rsplit('/').nth(1).unwrap_or_default().to_owned();
    assert_eq!(by_rule.len(), 3, "{by_rule:?}");
    assert!(text(0).contains(&rule(first)) && by_rule[0].0 == "no match", "{by_rule:?}");
    assert!(text(1).contains(&rule(second)) && by_rule[1].0 == "allow", "{by_rule:?}");
}

#[test]
fn a_request_is_followed_from_proxy_to_proxy() {
    let folder = demo();
    let report = explained(&["http://localhost/test", "--claims", r#"{"groups": ["testers"]}"#], folder.path());
    let hops: Vec<&str> = report.hops.iter().map(|hop| hop.proxy.as_str()).collect();
    assert_eq!(hops, ["istio-system/istio-ingressgateway", "default/test"]);
    let tls = report.hops[1].steps.iter().find(|step| step.step == "tls").unwrap();
    assert!(tls.why.contains("istio-ingressgateway") && tls.why.contains("STRICT by the mesh's policy"), "{tls:?}");
    assert_eq!(tls.document.as_ref().unwrap().kind, "PeerAuthentication");
    let route = report.hops[0].steps.iter().rfind(|step| step.step == "route").unwrap();
    assert!(route.document.as_ref().unwrap().text().contains("VirtualService istio-system/ingress"), "{route:?}");
    assert!(report.assumed.iter().any(|one| one.contains("no document names its service account")), "{report:#?}");
    let egress = explained(&["http://external.example.com:9095/", "--from", "test"], folder.path());
    let hops: Vec<&str> = egress.hops.iter().map(|hop| hop.proxy.as_str()).collect();
    assert_eq!(hops, ["default/test", "istio-system/istio-egressgateway"]);
    let asked = explained(&["http://localhost/helloworld", "--header", "x-demo-deny: true"], folder.path());
    assert!(asked.assumed.iter().any(|one| one.contains("ext_authz")), "{:?}", asked.assumed);
}

#[test]
fn what_is_printed_names_the_decision_and_its_line() {
    let folder = demo();
    let report = explained(&["http://localhost/test"], folder.path());
    let text = print::request(&report);
    assert!(text.starts_with("GET http://localhost/test: DENY 401 JWT_MISSING\n  decided at istio-system/"), "{text}");
    assert!(text.contains("security.yaml:") && text.contains("policy") && text.contains("DENY"), "{text}");
    let value = serde_json::to_value(&report).unwrap();
    assert!(value["hops"][0]["steps"].as_array().unwrap().iter().any(|step| step["decides"] == true), "{value:#}");
}

#[test]
fn what_holds_for_a_workload_is_told() {
    let folder = demo();
    let args = args(&["helloworld"], folder.path());
    let world = World::gather(&args).unwrap();
    for name in ["helloworld", "default/helloworld", "helloworld-1", "spiffe://cluster.local/ns/default/sa/helloworld"]
    {
        assert_eq!(workload::report(&world, name).unwrap().workload, "default/helloworld", "{name}");
    }
    let report = workload::report(&world, "helloworld").unwrap();
    let ports: Vec<(u16, &str, &str)> = report.ports.iter().map(|one| (one.port, one.protocol, one.mtls)).collect();
    assert_eq!(ports, [(9095, "http", "STRICT"), (9096, "tcp", "STRICT")]);
    assert!(
        report.routes.iter().any(|route| route.proxy.contains("ingress") && route.route == "helloworld"),
        "{report:#?}"
    );
    assert!(report.routes.iter().any(|route| route.route == "tcp"), "{report:#?}");
    let may = |id: &str| report.callers.iter().find(|one| one.spiffe_id.ends_with(id)).map(|one| one.may_call);
    assert_eq!((may("sa/test"), may("sa/istio-egressgateway")), (Some("yes"), Some("no")));
    assert_eq!(report.policies.len(), 1);
    let gateway = workload::report(&world, "ingress").unwrap();
    assert_eq!((gateway.kind, gateway.jwt.len(), gateway.policies.len()), ("gateway", 1, 2));
    assert!(print::workload(&gateway).contains("CUSTOM") && print::workload(&report).contains("WHO MAY CALL"));
}

#[test]
fn questions_that_make_no_sense_are_usage_errors() {
    let folder = demo();
    for words in [
        &["ftp://a/b"][..],
        &["/path"],
        &["G ET", "http://localhost/"],
        &["http://localhost/", "--header", "nocolon"],
        &["http://localhost/", "--claims", "[]"],
        &["http://localhost/", "--peer", "somebody"],
        &["http://user@localhost/"],
    ] {
        let failure = Question::parse(&args(words, folder.path())).err().unwrap();
        assert_eq!(failure.exit, Exit::Usage, "{words:?}");
    }
    for words in [
        &["http://localhost/", "--to", "nobody"][..],
        &["http://localhost/", "--gateway", "nobody"],
        &["GET", "/", "--to", "test", "--port", "1"],
    ] {
        let args = args(words, folder.path());
        let failure = follow(&World::gather(&args).unwrap(), &args, &asked(&args)).err().unwrap();
        assert!(failure.exit == Exit::Usage && failure.to_string().contains("mend"), "{words:?}: {failure}");
    }
    std::fs::write(folder.path().join("bad.yaml"), "kind: AuthorizationPolicy\n").unwrap();
    assert_eq!(World::gather(&args(&["test"], folder.path())).err().unwrap().exit, Exit::Data);
    assert_eq!(World::gather(&args(&["test"], Path::new("/nowhere"))).err().unwrap().exit, Exit::Unavailable);
}

/// Istio's own policies: what decides here decides in `authz eval`, which Envoy's answers are compared with.
#[test]
fn explain_and_authz_eval_agree() {
    let Some(vectors) = crate::verbs::filters::authz::tests::vectors() else { return };
    let mut evaluator = Evaluator::default();
    let (mut compared, mut wrong) = (0, Vec::new());
    for case in vectors["cases"].as_array().unwrap() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("policies.yaml"), case["policies_yaml"].as_str().unwrap()).unwrap();
        std::fs::write(folder.path().join("workload.yaml"), workload_of(&vectors["workload"], case)).unwrap();
        let domain = case["trust_domain"].as_str().unwrap();
        let args = args(&["GET", "/", "--to", "asked", "--trust-domain", domain], folder.path());
        let world = World::gather(&args).unwrap();
        for request in case["requests"].as_array().unwrap() {
            let (host, path) = (request["host"].as_str().unwrap(), request["path"].as_str().unwrap());
            // What the listener refuses or reads in another way is asked of no policy in that form.
            if path.contains("//") || routing::request::Host::parse(host).is_err() {
                continue;
            }
            let question = json!({
                "policies_yaml": case["policies_yaml"],
                "workload": vectors["workload"],
                "trust_domain": domain,
                "trust_domain_aliases": case["trust_domain_aliases"],
                "request": request,
            });
            let said = evaluator.answer(question.to_string().as_bytes());
            let report = follow(
                &world,
                &args,
                &Asked {
                    method: request["method"].as_str().unwrap().parse().unwrap(),
                    authority: host.to_owned(),
                    port: Some(PORT),
                    path: path.to_owned(),
                    peer: request["peer"].as_str().filter(|peer| !peer.is_empty()).map(str::to_owned),
                    ..asked(&args)
                },
            );
            let own = in_words_of_eval(&report.unwrap());
            compared += 1;
            if own != said {
                wrong.push(format!("{}: {request}: {own}, not {said}", case["case"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {compared} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(compared > 800, "{compared}");
}

/// The workload of the vectors behind a service with one HTTP port.
fn workload_of(workload: &Value, case: &Value) -> String {
    let (namespace, labels) = (&workload["namespace"], &workload["labels"]);
    let aliases = &case["trust_domain_aliases"];
    [
        json!({"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": "asked", "namespace": namespace},
            "spec": {"hosts": ["asked.example"], "location": "MESH_INTERNAL", "resolution": "STATIC",
                "ports": [{"number": PORT, "name": "http", "protocol": "HTTP"}], "workloadSelector": {"labels": labels}}}),
        json!({"apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry", "metadata": {"name": "asked", "namespace": namespace},
            "spec": {"address": "127.0.0.9", "labels": labels, "serviceAccount": "asked"}}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": "istio-system"},
            "data": {"mesh": format!("trustDomainAliases: {aliases}\n")}}),
    ]
    .map(|document| document.to_string())
    .join("\n---\n")
}

/// `allow NS/POLICY/RULE`.
fn in_words_of_eval(report: &Request) -> String {
    let name = report.decided_by.as_ref().map_or("-", |decided| decided.name.as_str());
    let rule = name.split_once(" rule ").map(|(policy, rule)| format!("{policy}/{rule}"));
    format!("{} {}", report.answer, rule.unwrap_or_else(|| "-".to_owned()))
}

/// A port that no policy of the vectors names.
const PORT: u16 = 61_999;

const DEMO: &[(&str, &str)] = &[
    ("mesh.yaml", include_str!("../../../../deploy/demo/mesh.yaml")),
    ("services.yaml", include_str!("../../../../deploy/demo/services.yaml")),
    ("ingress.yaml", include_str!("../../../../deploy/demo/ingress.yaml")),
    ("routes.yaml", include_str!("../../../../deploy/demo/routes.yaml")),
    ("security.yaml", include_str!("../../../../deploy/demo/security.yaml")),
    ("egress.yaml", include_str!("../../../../deploy/demo/egress.yaml")),
    ("limits.yaml", include_str!("../../../../deploy/demo/limits.yaml")),
];
const VALUES: &[(&str, &str)] = &[
    ("${HELLOWORLD_ADDRESS}", "127.9.0.2"),
    ("${TEST_ADDRESS}", "127.9.0.3"),
    ("${EGRESS_ADDRESS}", "127.9.0.5"),
    ("${EXTERNAL_ADDRESS}", "127.9.0.4"),
    ("${POLICY_ADDRESS}", "127.0.0.1"),
    ("${POLICY_PORT}", "9191"),
    ("${INGRESS_CERT}", "/tmp/cert.pem"),
    ("${INGRESS_KEY}", "/tmp/key.pem"),
    (
        "${JWKS}",
        r#"{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"a","x":"qp0i3hGPJfic6Rtg5ykxQyl-Q4y98Ra1gzJeKxMwOfE","y":"gfRjCCupfAQTsdtjOhQ6lvCRWR9kJ_XCvsat1N4dgGQ"}]}"#,
    ),
];

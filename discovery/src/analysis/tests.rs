//! What analysis says of small sets of our own, of Istio's, and of broken ones.

mod cases;
mod corpus;
mod identity_cases;
mod odd;

use super::*;

/// The set in one text, analysed by some analyzers, or by all.
pub(crate) fn analysis(text: &str, analyzers: &[&str]) -> Analysis {
    let mut set = Set::default();
    set.read_text(&Path::new("a.yaml").into(), text, false);
    let analyzers: Vec<String> = analyzers.iter().map(|name| (*name).to_owned()).collect();
    let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(NOW);
    examine(set, &Options { now, mesh: None, analyzers: &analyzers })
}

/// What the analyzers say, as `LINE CODE (Kind ns/name) text`.
fn said(text: &str, analyzers: &[&str]) -> Vec<String> {
    let messages = analysis(text, analyzers).messages;
    messages.iter().map(|one| format!("{} {} ({}) {}", one.line, one.code, one.resource, one.text)).collect()
}

/// Checks what one analyzer says.
#[track_caller]
fn check(analyzer: &str, text: &str, expected: &[&str]) {
    assert!(ANALYZERS.iter().any(|known| known.name == analyzer), "{analyzer}");
    assert_eq!(said(text, &[analyzer]), expected, "\n{text}");
}

/// A document of a kind; the group is that of the kind.
pub(crate) fn of(kind: &str, name: &str, spec: &str) -> String {
    let version = match kind {
        "Pod" | "Service" | "Namespace" | "Secret" | "ConfigMap" | "Node" | "ServiceAccount" => "v1",
        "Deployment" => "apps/v1",
        "Telemetry" => "telemetry.istio.io/v1",
        "PeerAuthentication" | "RequestAuthentication" | "AuthorizationPolicy" => "security.istio.io/v1",
        "HTTPRoute" => "gateway.networking.k8s.io/v1",
        _ => "networking.istio.io/v1",
    };
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    format!(
        "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

/// A pod with a proxy.
fn pod(name: &str, labels: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {labels}}}\nspec: {{serviceAccountName: {name}, containers: [{{name: istio-proxy, image: proxy}}]}}\n---\n"
    )
}

/// 2026-01-01.
const NOW: u64 = 1_767_225_600;

#[test]
fn every_analyzer_tells_known_codes() {
    for analyzer in ANALYZERS {
        for code in analyzer.codes {
            assert!(codes().any(|known| known.code == *code), "{} {code}", analyzer.name);
        }
    }
    let told = |code: &Code| code.code == "IST0001" || ANALYZERS.iter().any(|one| one.codes.contains(&code.code));
    let untold: Vec<&str> = codes().filter(|code| !told(code)).map(|code| code.code).collect();
    assert_eq!(untold, [""; 0]);
}

#[test]
fn documents_suppress_codes_by_annotation() {
    let with = |codes: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations: {{galley.istio.io/analyze-suppress: '{codes}'}}\nspec: {{securityContext: {{runAsUser: 1337}}}}\n"
        )
    };
    let analyzer = ["deployment.ApplicationUIDAnalyzer"];
    assert_eq!(said(&with("IST0107"), &analyzer).len(), 1);
    for codes in ["IST0144", "IST0107, IST0144", "*"] {
        assert_eq!(said(&with(codes), &analyzer).len(), 0, "{codes}");
    }
}

#[test]
fn callers_suppress_codes_for_documents() {
    let text = of("Pod", "a", "{securityContext: {runAsUser: 1337}}");
    let message = analysis(&text, &["deployment.ApplicationUIDAnalyzer"]).messages.remove(0);
    for (written, expected) in [
        ("IST0144=Pod default/a", true),
        ("IST0144=Pod a", true),
        ("IST0144=Pod *", true),
        ("IST0144=Pod a.default", true),
        ("IST*=Pod d*/a", true),
        ("IST0144", true),
        ("IST0144=Pod b", false),
        ("IST0145=Pod a", false),
    ] {
        assert_eq!(Suppression::parse(written).unwrap().is_for(&message), expected, "{written}");
    }
}

#[test]
fn a_message_says_all_that_is_promised() {
    let text = of("Pod", "a", "{securityContext: {runAsUser: 1337}}");
    let message = analysis(&text, &["deployment.ApplicationUIDAnalyzer"]).messages.remove(0);
    assert_eq!(
        message.to_string(),
        "a.yaml:4 Warning [IST0144] (Pod default/a) the pod runs as user 1337, which is the proxy's: its traffic passes by the proxy"
    );
    let json = message.to_json();
    let fields: Vec<&String> = json.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["code", "file", "fix", "level", "line", "message", "resource"]);
    assert_eq!((&json["level"], &json["line"]), (&"Warning".into(), &4.into()));
}

#[test]
fn an_analyzer_that_fails_is_named() {
    let mut report = Report::default();
    report.analyzer = "some.Analyzer";
    report.failed();
    let message = report.into_messages().remove(0);
    assert_eq!(
        (message.code, message.text.as_str()),
        ("IST0001", "the analyzer some.Analyzer failed and was left out")
    );
}

#[test]
fn the_demo_has_no_errors() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo");
    let options = Options { now: SystemTime::UNIX_EPOCH, mesh: None, analyzers: &[] };
    let analysis = analyze(&[demo], &options);
    let said: Vec<String> =
        analysis.messages.iter().filter(|one| one.code != "IST0106").map(ToString::to_string).collect();
    assert!(said.iter().all(|text| text.contains("IST0134")), "{said:#?}");
}

#[test]
fn the_page_names_our_codes() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/analyze.md");
    let page = std::fs::read_to_string(page).unwrap();
    for code in codes().filter(|code| code.code.starts_with("KSB")) {
        let row = format!("| `{}` {} | {} | {} |", code.code, code.name, code.level.name(), code.when);
        assert!(page.contains(&row), "docs/analyze.md: {row}");
    }
}

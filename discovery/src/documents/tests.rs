//! Every message that an operator can meet, as the sentence they read.

use super::*;

/// Parses `text` as `mesh.yaml` and compares what `kasbah validate` would print.
fn check(text: &str, expected: &[&str]) {
    let parsed = parse(Path::new("mesh.yaml"), text);
    let lines: Vec<String> = parsed.findings.iter().map(Finding::to_string).collect();
    assert_eq!(lines, expected, "\n{text}");
}

fn of(kind: &str, spec: &str) -> String {
    let group = if kind.contains("Auth") { "security" } else { "networking" };
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!("apiVersion: {group}.istio.io/v1\nkind: {kind}\nmetadata: {{name: x}}\nspec:\n{spec}")
}

#[test]
fn heads_are_checked() {
    check("a: [", &["mesh.yaml:1:4 -: YAML_INVALID: unclosed bracket '['"]);
    check("kind: Gateway", &["mesh.yaml:1:1 Gateway default/-: FIELD_MISSING: `apiVersion` is required"]);
    check(
        "apiVersion: networking.istio.io/v1\nkind: VirtalService\nmetadata: {name: a, namespace: b}\n",
        &[
            "mesh.yaml:2:7 VirtalService b/a: KIND_UNKNOWN: networking.istio.io has no kind `VirtalService`; is `VirtualService` meant?",
        ],
    );
    check(
        "apiVersion: networking.istio.io/v2\nkind: Gateway\nmetadata: {name: a}\n",
        &[
            "mesh.yaml:1:13 Gateway default/a: VERSION_UNKNOWN: Gateway is of `networking.istio.io/v1` or `networking.istio.io/v1beta1` or `networking.istio.io/v1alpha3`, not of `networking.istio.io/v2`",
        ],
    );
    check(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: Bad_Name}\nspec: {}",
        &[
            "mesh.yaml:3:18 PeerAuthentication default/Bad_Name: NAME_INVALID: `Bad_Name` is no name: only lower-case letters, digits, `-` and `.` are allowed",
        ],
    );
    check(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {replicas: 1}",
        &["mesh.yaml:1:1 Deployment default/a: KIND_SKIPPED: `Deployment` of `apps` is not read here"],
    );
    check(
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: a}\nspec: {}",
        &["mesh.yaml:1:1 Sidecar default/a: KIND_SKIPPED: Sidecar has no effect here yet"],
    );
    check(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, lables: {}}\nspec: {}",
        &["mesh.yaml:3:21 PeerAuthentication default/a: FIELD_UNKNOWN: unknown field `lables`; is `labels` meant?"],
    );
}

#[test]
fn schema_faults_point_at_the_field() {
    check(
        &of("VirtualService", "hosts: [a.b]\nhttp:\n- rout: []"),
        &[
            "mesh.yaml:7:5 VirtualService default/x: FIELD_UNKNOWN: spec.http[0]: unknown field `rout`; is `route` meant?",
        ],
    );
    check(
        &of("PeerAuthentication", "mtls:\n  mode: BLAH"),
        &[
            "mesh.yaml:6:11 PeerAuthentication default/x: VALUE_UNKNOWN: spec.mtls.mode: unknown value `BLAH`, expected UNSET, DISABLE, PERMISSIVE, STRICT",
        ],
    );
    check(
        &of("DestinationRule", "host: a.b\ntrafficPolicy:\n  connectionPool:\n    tcp: {connectTimeout: 5}"),
        &[
            "mesh.yaml:8:29 DestinationRule default/x: TYPE_WRONG: spec.trafficPolicy.connectionPool.tcp.connectTimeout: an integer found, a string (put it in quotes) expected",
        ],
    );
    check(
        &of("VirtualService", "hosts: [a.b]\nhttp:\n- timeout: soon\n  route: [{destination: {host: a.b}}]"),
        &[
            "mesh.yaml:7:14 VirtualService default/x: VALUE_INVALID: spec.http[0].timeout: `soon` is no duration; write it as `1h2m3s`, `500ms` or `1.5s`",
        ],
    );
}

#[test]
fn virtual_service_rules_hold() {
    check(
        &of(
            "VirtualService",
            "hosts: ['*', a.b, A.b]\nhttp:\n- match: [{uri: {regex: '['}}]\n  redirect: {redirectCode: 300}\n  route: [{destination: {host: a.b}, weight: -1}]",
        ),
        &[
            "mesh.yaml:5:11 VirtualService default/x: HOST_INVALID: spec.hosts[0]: `*` is not allowed in the mesh; name gateways or hosts",
            "mesh.yaml:5:16 VirtualService default/x: HOST_DUPLICATE: spec.hosts[1]: `a.b` and `*` overlap",
            "mesh.yaml:5:21 VirtualService default/x: HOST_DUPLICATE: spec.hosts[2]: `A.b` and `*` overlap",
            "mesh.yaml:7:5 VirtualService default/x: ONE_OF: spec.http[0]: exactly one of route, redirect, directResponse, delegate is needed; route and redirect given",
            "mesh.yaml:7:27 VirtualService default/x: REGEX_INVALID: spec.http[0].match[0].uri.regex: `[` is no regular expression: unclosed character class",
            "mesh.yaml:9:48 VirtualService default/x: OUT_OF_RANGE: spec.http[0].route[0].weight: weight -1 is negative",
            "mesh.yaml:8:5 VirtualService default/x: EMPTY: spec.http[0].redirect: a redirect must change `uri`, `authority`, `scheme`, `port` or `prefixRewrite`",
            "mesh.yaml:8:30 VirtualService default/x: OUT_OF_RANGE: spec.http[0].redirect.redirectCode: 300 is not one of 301, 302, 303, 307, 308",
        ],
    );
    check(
        &of(
            "VirtualService",
            "hosts: [a.b]\nhttp:\n- route: [{destination: {host: a.b}}, {destination: {host: c.d}}]\n  retries: {attempts: 0, retryOn: often}\n- fault: {abort: {grpcStatus: NOPE}}\n  route: [{destination: {host: a.b}}]",
        ),
        &[
            "mesh.yaml:7:5 VirtualService default/x: WEIGHTS_ZERO: spec.http[0].route: the weights of several destinations sum up to 0",
            "mesh.yaml:8:5 VirtualService default/x: CONFLICT: spec.http[0].retries: `attempts: 0` switches retries off; nothing else may be set",
            "mesh.yaml:8:37 VirtualService default/x: VALUE_UNKNOWN: spec.http[0].retries.retryOn: `often` is no retry condition",
            "mesh.yaml:9:33 VirtualService default/x: VALUE_UNKNOWN: spec.http[1].fault.abort.grpcStatus: `NOPE` is no gRPC status",
            "mesh.yaml:9:5 VirtualService default/x: ROUTE_UNREACHABLE: spec.http[1]: never reached: http[0] matches every request",
        ],
    );
}

#[test]
fn gateway_and_service_rules_hold() {
    check(
        &of(
            "Gateway",
            "servers:\n- port: {number: 0, name: a, protocol: HTTPS}\n  hosts: ['*']\n- port: {number: 80, name: a, protocol: HTTP}\n  hosts: ['*']\n  tls: {mode: SIMPLE}",
        ),
        &[
            "mesh.yaml:6:20 Gateway default/x: PORT_INVALID: spec.servers[0].port.number: port 0 is not between 1 and 65535",
            "mesh.yaml:6:5 Gateway default/x: FIELD_MISSING: spec.servers[0]: HTTPS needs a `tls` block",
            "mesh.yaml:10:5 Gateway default/x: CONFLICT: spec.servers[1].tls: a HTTP port takes no TLS settings but `httpsRedirect`",
            "mesh.yaml:8:30 Gateway default/x: DUPLICATE_NAME: spec.servers[1].port.name: port name `a` is used twice",
        ],
    );
    check(
        &of(
            "ServiceEntry",
            "hosts: ['*']\nports: [{number: 1, name: a, protocol: NOPE}]\nresolution: STATIC\nendpoints: [{address: a.b, ports: {b: 2}}]",
        ),
        &[
            "mesh.yaml:5:11 ServiceEntry default/x: HOST_INVALID: spec.hosts[0]: `*` cannot be a service",
            "mesh.yaml:6:42 ServiceEntry default/x: VALUE_UNKNOWN: spec.ports[0].protocol: `NOPE` is no protocol; use HTTP, HTTPS, HTTP2, GRPC, TCP or TLS",
            "mesh.yaml:8:30 ServiceEntry default/x: PORT_INVALID: spec.endpoints[0].ports: the service has no port `b`",
            "mesh.yaml:8:25 ServiceEntry default/x: HOST_INVALID: spec.endpoints[0].address: STATIC endpoints need IP addresses",
        ],
    );
}

#[test]
fn security_rules_hold() {
    check(
        &of("PeerAuthentication", "portLevelMtls: {'80': {mode: STRICT}, http: {mode: STRICT}, '0': {}}"),
        &[
            "mesh.yaml:5:3 PeerAuthentication default/x: FIELD_MISSING: spec.portLevelMtls: `portLevelMtls` needs a selector",
            "mesh.yaml:5:63 PeerAuthentication default/x: PORT_INVALID: spec.portLevelMtls.0: port 0 is not between 1 and 65535",
            "mesh.yaml:5:41 PeerAuthentication default/x: PORT_INVALID: spec.portLevelMtls.http: `http` is no port",
        ],
    );
    check(
        &of(
            "AuthorizationPolicy",
            "action: DENY\nprovider: {name: p}\nrules:\n- from: [{source: {}}]\n  to: [{operation: {ports: ['http'], paths: ['/{*}x']}}]\n  when: [{key: source.pricipal, values: [a]}]",
        ),
        &[
            "mesh.yaml:6:3 AuthorizationPolicy default/x: CONFLICT: spec.provider: `provider` is for CUSTOM only",
            "mesh.yaml:8:13 AuthorizationPolicy default/x: EMPTY: spec.rules[0].from[0].source: at least one field is needed",
            "mesh.yaml:9:23 AuthorizationPolicy default/x: PORT_INVALID: spec.rules[0].to[0].operation.ports: `http` is no port",
            "mesh.yaml:9:40 AuthorizationPolicy default/x: TEMPLATE_INVALID: spec.rules[0].to[0].operation.paths: `/{*}x`: `{*}` and `{**}` must be whole segments",
            "mesh.yaml:10:18 AuthorizationPolicy default/x: ATTRIBUTE_UNKNOWN: spec.rules[0].when[0].key: unknown attribute `source.pricipal`; is `source.principal` meant?",
        ],
    );
    check(
        &of("RequestAuthentication", "jwtRules: [{jwks: '{}', jwksUri: 'file:///x'}]"),
        &[
            "mesh.yaml:5:14 RequestAuthentication default/x: ONE_OF: spec.jwtRules[0]: `jwks` and `jwksUri` exclude each other",
            "mesh.yaml:5:36 RequestAuthentication default/x: VALUE_INVALID: spec.jwtRules[0].jwksUri: an http or https URL is needed",
            "mesh.yaml:5:21 RequestAuthentication default/x: JWKS_INVALID: spec.jwtRules[0].jwks: no key set: `keys` is missing",
        ],
    );
}

#[test]
fn mesh_settings_inside_a_block_are_located_in_the_file() {
    check(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |-\n    rootNamespace: istio-system\n    outboundTrafficPolicy:\n      mode: NOWHERE\n",
        &[
            "mesh.yaml:8:13 ConfigMap istio-system/istio: VALUE_UNKNOWN: data.mesh: outboundTrafficPolicy.mode: unknown value `NOWHERE`, expected REGISTRY_ONLY, ALLOW_ANY",
        ],
    );
    check(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: other}\ndata: {a: b}",
        &["mesh.yaml:1:1 ConfigMap default/other: KIND_SKIPPED: only the ConfigMap `istio` with `data.mesh` is read"],
    );
}

#[test]
fn a_refused_document_leaves_its_neighbors_alone() {
    let text =
        format!("{}---\n{}", of("PeerAuthentication", "mtls: {mode: X}"), of("WorkloadEntry", "address: 1.2.3.4"));
    let parsed = parse(Path::new("mesh.yaml"), &text);
    assert_eq!(parsed.refused, ["PeerAuthentication default/x"]);
    assert_eq!(parsed.documents.len(), 1);
    assert_eq!(parsed.documents[0].resource(), "WorkloadEntry default/x");
}

#[test]
fn folders_are_read_and_twins_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("a.yaml", &of("WorkloadEntry", "address: 1.2.3.4"));
    write("b.yml", &of("WorkloadEntry", "address: 1.2.3.5"));
    write("ignored.txt", "a: [");
    write(".hidden.yaml", "a: [");
    let findings = validate(&[folder.path().to_owned()]);
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!((findings[0].reason, findings[0].severity), ("DOCUMENT_DUPLICATE", Severity::Warning));
    let missing = validate(&[folder.path().join("none")]);
    assert_eq!(missing[0].reason, "FILE_UNREADABLE");
}

/// Istio's own validation samples: those it accepts we accept, those it refuses we refuse.
#[test]
fn istios_validation_samples_get_istios_verdict() {
    let Some(corpora) = crate::testing::corpora() else { return };
    for folder in ["istio/validation-dataset", "istio/samples"] {
        // The samples hold chart templates and other YAML that no mesh reads; these have no head.
        let is_ours = |finding: &&Finding| finding.is_error() && !finding.resource.starts_with('-');
        let refused: Vec<String> =
            validate(&[corpora.join(folder)]).iter().filter(is_ours).map(Finding::to_string).collect();
        assert_eq!(refused, Vec::<String>::new(), "{folder}");
    }
    let folder = corpora.join("istio/validation-crds");
    for file in files_of(&[folder], &mut Vec::new()) {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&file).unwrap();
        for document in text.split("\n---\n") {
            let wanted = !name.contains("invalid");
            let document: String =
                document.lines().filter(|line| !line.starts_with("_err:")).map(|line| format!("{line}\n")).collect();
            let parsed = parse(&file, &document);
            if parsed.findings.iter().any(|finding| finding.reason == "KIND_SKIPPED") {
                continue;
            }
            assert_eq!(parsed.refused.is_empty(), wanted, "{name}\n{document}\n{:?}", parsed.findings);
        }
    }
}

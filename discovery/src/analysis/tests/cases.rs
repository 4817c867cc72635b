//! Istio's analyzers on sets of our own.

use super::*;

#[test]
fn gateways_need_proxies_and_ports() {
    let gateway = |selector: &str, port: u32| {
        of(
            "Gateway",
            "g",
            &format!(
                "{{selector: {selector}, servers: [{{port: {{number: {port}, name: a, protocol: HTTP}}, hosts: ['*']}}]}}"
            ),
        )
    };
    let ports = "gateway.IngressGatewayPortAnalyzer";
    check(ports, &gateway("{istio: ingressgateway}", 80), &[]);
    check(
        ports,
        &gateway("{istio: ingressgateway}", 81),
        &["4 IST0162 (Gateway default/g) no Service leads to port 81 of the workloads with istio=ingressgateway"],
    );
    check(ports, &gateway("{app: x}", 80), &["4 IST0101 (Gateway default/g) no workload has the labels app=x"]);
    let outside = of("WorkloadEntry", "w", "{address: 10.0.0.1, labels: {app: x}}");
    check(ports, &(gateway("{app: x}", 9000) + &outside), &[]);
}

#[test]
fn gateways_of_the_same_proxies_conflict() {
    let gateway = |name: &str, selector: &str, host: &str| {
        of(
            "Gateway",
            name,
            &format!(
                "{{selector: {selector}, servers: [{{port: {{number: 80, name: a, protocol: HTTP}}, hosts: [{host}]}}]}}"
            ),
        )
    };
    let conflicts = "gateway.ConflictingGatewayAnalyzer";
    let both = gateway("a", "{app: x}", "h.com") + &gateway("b", "{app: x}", "h.com");
    check(
        conflicts,
        &both,
        &[
            "4 IST0145 (Gateway default/a) port 80 is claimed for h.com by default/b, too",
            "9 IST0145 (Gateway default/b) port 80 is claimed for h.com by default/a, too",
        ],
    );
    check(conflicts, &(gateway("a", "{app: x}", "h.com") + &gateway("b", "{app: x}", "i.com")), &[]);
    let subset = gateway("a", "{app: x}", "h.com") + &gateway("b", "{app: x, tier: y}", "h.com");
    check(conflicts, &subset, &[]);
    assert_eq!(said(&(subset + &pod("p", "{app: x, tier: y}")), &[conflicts]).len(), 2);
}

#[test]
fn destinations_have_to_exist() {
    let route = |destination: &str| {
        of("VirtualService", "v", &format!("{{hosts: [a], http: [{{route: [{{destination: {destination}}}]}}]}}"))
    };
    let service = of("Service", "a", "{ports: [{port: 80}, {port: 81}]}");
    let hosts = "virtualservice.DestinationHostAnalyzer";
    for (destination, expected) in [
        ("{host: a, port: {number: 80}}", None),
        ("{host: b}", Some("4 IST0101 (VirtualService default/v) nobody serves the host b of a destination")),
        ("{host: a, port: {number: 90}}", Some("4 IST0101 (VirtualService default/v) a has no port 90; it has 80, 81")),
        (
            "{host: a}",
            Some(
                "4 IST0112 (VirtualService default/v) the destination a has several ports (80, 81), and none is named",
            ),
        ),
    ] {
        check(hosts, &(route(destination) + &service), expected.as_slice());
    }
    let entry = of("ServiceEntry", "other/e", "{hosts: ['*.x.com'], ports: [{number: 80}], exportTo: [.]}");
    check(
        hosts,
        &(route("{host: y.x.com}") + &entry),
        &["4 IST0101 (VirtualService default/v) nobody serves the host y.x.com of a destination"],
    );
    check(hosts, &(route("{host: y.x.com}") + &entry.replace("other", "default")), &[]);
    let subset = route("{host: a, subset: v1}") + &of("DestinationRule", "d", "{host: a, subsets: [{name: v2}]}");
    let expected = "4 IST0101 (VirtualService default/v) no DestinationRule of a has the subset `v1`";
    check("virtualservice.DestinationRuleAnalyzer", &subset, &[expected]);
    check("virtualservice.DestinationRuleAnalyzer", &subset.replace("name: v2", "name: v1"), &[]);
}

#[test]
fn rules_behind_others_are_named() {
    let service = |rules: &str| of("VirtualService", "v", &format!("{{hosts: [a], http: [{rules}]}}"));
    let routes = "virtualservice.UnreachableRuleAnalyzer";
    check(
        routes,
        &service("{name: all}, {name: late, match: [{uri: {prefix: /a}}]}, {}"),
        &[
            "4 IST0130 (VirtualService default/v) http[1] `late` never runs: http[0] `all` takes everything",
            "4 IST0130 (VirtualService default/v) http[2] never runs: http[0] `all` takes everything",
        ],
    );
    check(
        routes,
        &service("{match: [{name: x, uri: {exact: /a}}]}, {match: [{uri: {exact: /a}}]}"),
        &[
            "4 IST0130 (VirtualService default/v) http[1] never runs: all of its matches stand before it",
            "4 IST0131 (VirtualService default/v) match 0 of http[1] stands in http[0] already",
        ],
    );
    check(
        routes,
        &service("{match: [{uri: {prefix: /a}}]}, {match: [{uri: {prefix: /a/b}}, {uri: {prefix: /c}}]}"),
        &[
            "4 IST0131 (VirtualService default/v) match 0 of http[1] (/a/b) never decides: match 0 of http[0] (/a) takes its requests",
        ],
    );
    for rules in [
        "{match: [{uri: {prefix: /a/b}}]}, {match: [{uri: {prefix: /a}}]}",
        "{match: [{uri: {prefix: /a}, headers: {x: {exact: y}}}]}, {match: [{uri: {prefix: /a/b}}]}",
        "{match: [{uri: {prefix: /a}, method: {exact: GET}}]}, {match: [{uri: {prefix: /a/b}}]}",
        "{match: [{uri: {prefix: /a}, gateways: [g]}]}, {match: [{uri: {prefix: /a/b}}]}",
        "{match: [{uri: {prefix: /a}}]}, {}",
    ] {
        check(routes, &service(rules), &[]);
    }
}

#[test]
fn policies_have_to_select_somebody() {
    let policy = |name: &str, spec: &str| of("AuthorizationPolicy", name, spec);
    let authz = "authz.AuthorizationPoliciesAnalyzer";
    let web = pod("shop/web", "{app: web}");
    let by = |labels: &str| format!("{{selector: {{matchLabels: {labels}}}, rules: [{{}}]}}");
    check(authz, &(policy("shop/p", &by("{app: web}")) + &web), &[]);
    check(
        authz,
        &(policy("shop/p", &by("{app: wep}")) + &web),
        &[
            "4 IST0127 (AuthorizationPolicy shop/p) no workload of the mesh has the labels app=wep, so nobody is protected",
        ],
    );
    check(
        authz,
        &(policy("empty/p", "{rules: [{}]}") + &web),
        &["3 IST0127 (AuthorizationPolicy empty/p) there is no workload of the mesh in empty, so nobody is protected"],
    );
    check(authz, &(policy("istio-system/p", &by("{app: web}")) + &web), &[]);
    check(authz, &policy("shop/p", &by("{app: web}")), &[]);
    let from = policy("shop/p", "{rules: [{from: [{source: {namespaces: [shop, sh*, other]}}]}]}");
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n";
    check(authz, &(from + &web + namespace), &["4 IST0101 (AuthorizationPolicy shop/p) there is no namespace other"]);
}

#[test]
fn a_workload_has_one_sidecar() {
    let sidecar =
        |name: &str, labels: &str| of("Sidecar", name, &format!("{{workloadSelector: {{labels: {labels}}}}}"));
    let web = pod("web", "{app: web, tier: front}");
    let selectors = "sidecar.SelectorAnalyzer";
    check(
        selectors,
        &(sidecar("a", "{app: web}") + &sidecar("b", "{tier: front}") + &sidecar("c", "{app: none}") + &web),
        &[
            "3 IST0110 (Sidecar default/a) Pod default/web is selected by default/b, too",
            "8 IST0110 (Sidecar default/b) Pod default/web is selected by default/a, too",
            "14 IST0101 (Sidecar default/c) no workload of default has the labels app=none",
        ],
    );
    let defaults = of("Sidecar", "a", "{}") + &of("Sidecar", "b", "{}") + &of("Sidecar", "other/c", "{}");
    check(
        selectors,
        &defaults,
        &[
            "3 IST0111 (Sidecar default/a) default/b has no selector either, and default can have one such document",
            "8 IST0111 (Sidecar default/b) default/a has no selector either, and default can have one such document",
        ],
    );
}

#[test]
fn hosts_inside_the_mesh_have_one_owner() {
    let service = |name: &str, more: &str| of("VirtualService", name, &format!("{{hosts: [a.com], {more}}}"));
    let conflicts = "virtualservice.ConflictingMeshGatewayHostsAnalyzer";
    let expected = "the host a.com is claimed inside the mesh by one/v, two/v";
    check(
        conflicts,
        &(service("one/v", "http: []") + &service("two/v", "gateways: [mesh]")),
        &[
            &format!("3 IST0109 (VirtualService one/v) {expected}"),
            &format!("8 IST0109 (VirtualService two/v) {expected}"),
        ],
    );
    check(conflicts, &(service("one/v", "exportTo: [.]") + &service("two/v", "exportTo: [.]")), &[]);
    check(conflicts, &(service("one/v", "gateways: [g]") + &service("two/v", "http: []")), &[]);
}

#[test]
fn entries_agree_on_the_protocol_of_a_port() {
    let entry = |name: &str, protocol: &str, export: &str| {
        of(
            "ServiceEntry",
            name,
            &format!("{{hosts: [a.com], exportTo: [{export}], ports: [{{number: 80, protocol: {protocol}}}]}}"),
        )
    };
    let protocols = "serviceentry.ConflictingServiceEntryProtocolAnalyzer";
    let text = "one/e, two/e give port 80 of a.com the protocols HTTP, TCP";
    check(
        protocols,
        &(entry("one/e", "TCP", "'*'") + &entry("two/e", "http", "'*'")),
        &[&format!("3 IST0177 (ServiceEntry one/e) {text}"), &format!("8 IST0177 (ServiceEntry two/e) {text}")],
    );
    check(protocols, &(entry("one/e", "TCP", ".") + &entry("two/e", "HTTP", ".")), &[]);
    check(protocols, &(entry("one/e", "HTTP", "'*'") + &entry("two/e", "http", "'*'")), &[]);
}

#[test]
fn subsets_have_workloads() {
    let rule =
        of("DestinationRule", "d", "{host: a, subsets: [{name: v1, labels: {v: '1'}}, {name: v2, labels: {v: '2'}}]}");
    let service = of("Service", "a", "{ports: [{port: 80}]}");
    let subsets = "destinationrule.PodNotSelectedAnalyzer";
    check(subsets, &rule, &["4 IST0174 (DestinationRule default/d) nobody serves the host a"]);
    let known = rule + &service + &pod("p", "{v: '1'}");
    check(subsets, &known, &["4 IST0173 (DestinationRule default/d) the subset `v2` (v=2) has no workload"]);
}

#[test]
fn secrets_of_gateways_are_opened() {
    let gateway = of(
        "Gateway",
        "g",
        "{selector: {istio: ingressgateway}, servers: [{port: {number: 443}, hosts: [a.com], tls: {mode: SIMPLE, credentialName: c}}]}",
    );
    let secret = |name: &str, data: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: istio-system}}\nstringData: {data}\n---\n"
        )
    };
    let secrets = "gateway.SecretAnalyzer";
    check(secrets, &gateway, &[]);
    check(
        secrets,
        &(gateway.clone() + &secret("d", "{}")),
        &[
            "4 IST0101 (Gateway default/g) there is no secret istio-system/c, which has to be beside the gateway's workload",
        ],
    );
    check(
        secrets,
        &(gateway.clone() + &secret("c", "{tls.key: x}")),
        &["4 IST0161 (Gateway default/g) the secret istio-system/c: it has no certificate (tls.crt)"],
    );
    let broken = said(&(gateway + &secret("c", "{tls.key: x, tls.crt: bad}")), &[secrets]);
    assert!(broken[0].contains("IST0161") && broken[0].contains("cannot be read"), "{broken:?}");
}

#[test]
fn pods_are_looked_at_for_their_proxies() {
    let namespace = |name: &str, labels: &str| {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {labels}}}\n---\n")
    };
    let injection = "injection.Analyzer";
    check(injection, &namespace("a", "{}"), &["3 IST0102 (Namespace a) its pods get no proxies"]);
    check(injection, &namespace("a", "{istio-injection: disabled}"), &[]);
    check(
        injection,
        &namespace("a", "{istio-injection: enabled, istio.io/rev: x}"),
        &["3 IST0123 (Namespace a) several labels say how pods join the mesh: istio-injection, istio.io/rev"],
    );
    let bare = namespace("a", "{istio-injection: enabled}") + &of("Pod", "a/p", "{containers: [{name: c}]}");
    check(injection, &bare, &["7 IST0103 (Pod a/p) the pod has no proxy, though pods of a get one"]);
    check(injection, &bare.replace("{containers", "{hostNetwork: true, containers"), &[]);
}

#[test]
fn old_definitions_and_documents_of_one_name_are_told() {
    let definition = |version: &str| {
        format!(
            "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata:\n  name: tlsroutes.gateway.networking.k8s.io\n  annotations: {{gateway.networking.k8s.io/bundle-version: {version}}}\n---\n"
        )
    };
    let versions = "k8sgateway.CRDVersionAnalyzer";
    let title = "CustomResourceDefinition tlsroutes.gateway.networking.k8s.io";
    let expected = format!("5 IST0176 ({title}) v1.4.1 is below v1.5.0: documents of this kind are not read");
    check(versions, &definition("v1.4.1"), &[&expected]);
    check(versions, &definition("v1.5.0-rc.1"), &[]);
    let twice = of("Pod", "a", "{}") + &of("Service", "a", "{}") + &of("Pod", "a", "{}");
    let expected = "13 IST0133 (Pod default/a) DOCUMENT_DUPLICATE: already defined at a.yaml:1";
    check("schema.ValidationAnalyzer", &twice, &[expected]);
}

#[test]
fn rules_for_patterns_of_hosts_are_for_somebody() {
    let rule = of("DestinationRule", "d", "{host: '*.default.svc.cluster.local'}");
    let subsets = "destinationrule.PodNotSelectedAnalyzer";
    check(subsets, &(rule.clone() + &of("Service", "a", "{ports: [{port: 80}]}")), &[]);
    let unknown = "4 IST0174 (DestinationRule default/d) nobody serves the host *.default.svc.cluster.local";
    check(subsets, &rule, &[unknown]);
}

#[test]
fn kubernetes_own_namespaces_are_left_alone() {
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: kube-system}\n";
    check("injection.Analyzer", namespace, &[]);
    check("service.PortNameAnalyzer", &of("Service", "kube-system/a", "{ports: [{port: 80}]}"), &[]);
    let ours = "4 IST0118 (Service default/a) port 80 has no name, which says no protocol";
    check("service.PortNameAnalyzer", &of("Service", "a", "{ports: [{port: 80}]}"), &[ours]);
}

#[test]
fn certificates_of_gateways_are_valid_for_long_and_for_their_hosts() {
    let gateway = of(
        "Gateway",
        "g",
        "{selector: {istio: ingressgateway}, servers: [{port: {number: 443}, hosts: [a.com, shop/x.b.com, c.com], tls: {credentialName: c}}]}",
    );
    let indented = |pem: &str| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
    let key = indented("-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n");
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: c, namespace: istio-system}}\nstringData:\n  tls.key: |\n{key}  tls.crt: |\n{}",
        indented(CERTIFICATE)
    );
    let at = |days: u64| {
        let mut set = Set::default();
        set.read_text(&Path::new("a.yaml").into(), &format!("{gateway}{secret}"), false);
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(BEGINS + days * 86_400);
        let analyzers = ["gateway.SecretAnalyzer".to_owned()];
        let messages = examine(set, &Options { now, mesh: None, analyzers: &analyzers }).messages;
        messages.iter().map(|one| format!("{} {}", one.code, one.text)).collect::<Vec<_>>()
    };
    let hosts = "KSB0112 the certificate of c is not for c.com";
    assert_eq!(at(1), [hosts]);
    assert_eq!(at(95), ["KSB0112 the certificate of c ends in 5 days", hosts]);
    assert_eq!(at(101), ["IST0161 the secret istio-system/c: its certificate has expired"]);
    assert_eq!(at(0).len(), 1);
    assert_eq!(said(&format!("{gateway}{secret}"), &["gateway.SecretAnalyzer"]).len(), 1, "not yet valid");
}

/// When the certificate begins to be valid, for 100 days.
const BEGINS: u64 = 1_795_740_240;
const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBXjCCAQSgAwIBAgIUcP30xhNWc1OfisNZeICBnSXwYAYwCgYIKoZIzj0EAwIw
EDEOMAwGA1UEAwwFYS5jb20wHhcNMjYxMTI3MDA0NDAwWhcNMjcwMzA3MDA0NDAw
WjAQMQ4wDAYDVQQDDAVhLmNvbTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABBK0
wZV2MAbaP0kwQLFX8IWzc/Fx3sAvzbBMmESDktwY/yIHIHj19Lf1ZEd7cwHDgNVU
z2fxcxwuDM+ykyK7cbajPDA6MBkGA1UdEQQSMBCCBWEuY29tggcqLmIuY29tMB0G
A1UdDgQWBBRRobWGo+f3FI3w7x1fDvWYRKmNZDAKBggqhkjOPQQDAgNIADBFAiEA
oDH0O4qLmwZgCDadnqwjMeO+1Pt8uyFRbu3MDBUIcX4CIChT1rf8nhxNy2CgFspE
ufVDVMxRw8SHOnLbw1h2VjIz
-----END CERTIFICATE-----
";

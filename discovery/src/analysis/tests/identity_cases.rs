//! Our own analyzers, about identities.

use super::*;

/// A set in which every analyzer of ours has something to look at.
pub(super) const EVERYTHING: &str = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: all, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {'8080': {mode: DISABLE}}}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: web, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, jwtRules: [{issuer: https://i, jwksUri: http://10.0.0.1/keys}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  action: DENY
  rules:
  - from: [{source: {principals: ['spiffe://cluster.local/ns/shop/sa/web'], remoteIpBlocks: [10.0.0.0/8]}}]
    when: [{key: 'request.auth.claims[iss]', values: [https://j]}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web, namespace: shop}
spec:
  hosts: [web.shop.svc.cluster.local]
  location: MESH_INTERNAL
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  workloadSelector: {labels: {app: web}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web, namespace: shop}
spec: {address: 10.0.0.2, labels: {app: web}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec: {host: web.shop.svc.cluster.local, trafficPolicy: {tls: {mode: DISABLE}, portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}, annotations: {traffic.sidecar.istio.io/excludeInboundPorts: '5432'}}
spec: {hostNetwork: true, containers: [{name: istio-proxy, image: proxy, ports: [{containerPort: 5432}]}]}
";

fn peers(name: &str, spec: &str) -> String {
    of("PeerAuthentication", name, spec)
}

fn policy(name: &str, spec: &str) -> String {
    of("AuthorizationPolicy", name, spec)
}

const MTLS: &str = "kasbah.MutualTlsAnalyzer";
const PRINCIPALS: &str = "kasbah.PrincipalAnalyzer";
const TOKENS: &str = "kasbah.TokenAnalyzer";
const PROTECTION: &str = "kasbah.ProtectionAnalyzer";

#[test]
fn clients_speak_what_servers_accept() {
    let service = of("Service", "web", "{selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}");
    let base = service + &pod("web", "{app: web}");
    let rule = |tls: &str| of("DestinationRule", "d", &format!("{{host: web, trafficPolicy: {tls}}}"));
    let strict = peers("istio-system/all", "{mtls: {mode: STRICT}}");
    let expected = |mode: &str, accepts: &str| {
        format!(
            "14 KSB0101 (DestinationRule default/d) clients of web.default.svc.cluster.local speak {mode}, and default/web accepts {accepts} only"
        )
    };
    for mode in ["DISABLE", "SIMPLE"] {
        let text = format!("{base}{}{strict}", rule(&format!("{{tls: {{mode: {mode}}}}}")));
        check(MTLS, &text, &[&expected(mode, "STRICT")]);
    }
    check(MTLS, &format!("{base}{}{strict}", rule("{tls: {mode: ISTIO_MUTUAL}}")), &[]);
    check(MTLS, &format!("{base}{}", rule("{tls: {mode: DISABLE}}")), &[]);
    let off = peers("default", "{mtls: {mode: DISABLE}}");
    check(
        MTLS,
        &format!("{base}{}{strict}{off}", rule("{tls: {mode: ISTIO_MUTUAL}}")),
        &[&expected("ISTIO_MUTUAL", "DISABLE")],
    );
    let open_port = peers("web", "{selector: {matchLabels: {app: web}}, portLevelMtls: {'8080': {mode: PERMISSIVE}}}");
    let at_port = rule("{portLevelSettings: [{port: {number: 80}, tls: {mode: DISABLE}}]}");
    check(MTLS, &format!("{base}{at_port}{strict}"), &[&expected("DISABLE", "STRICT")]);
    check(MTLS, &format!("{base}{at_port}{strict}{open_port}"), &[]);
}

#[test]
fn one_policy_of_peers_holds() {
    let two = peers("a", "{mtls: {mode: STRICT}}") + &peers("b", "{}") + &peers("other/c", "{}");
    let text = "the namespace default has several PeerAuthentications (default/a, default/b); only the oldest holds";
    check(
        MTLS,
        &two,
        &[
            &format!("3 KSB0102 (PeerAuthentication default/a) {text}"),
            &format!("8 KSB0102 (PeerAuthentication default/b) {text}"),
        ],
    );
    let own = |name: &str| peers(name, "{selector: {matchLabels: {app: web}}}");
    assert_eq!(said(&(own("a") + &own("b") + &pod("web", "{app: web}")), &[MTLS]).len(), 2);
    check(MTLS, &(own("a") + &own("b")), &[]);
    let nobody = "4 IST0127 (PeerAuthentication default/a) no workload of the mesh has the labels app=web, so nobody is protected";
    check(MTLS, &(own("a") + &pod("db", "{app: db}")), &[nobody]);
}

#[test]
fn modes_are_of_the_workloads_own_ports() {
    let service = of("Service", "web", "{selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}");
    let at = |port: &str| {
        peers(
            "p",
            &format!("{{selector: {{matchLabels: {{app: web}}}}, portLevelMtls: {{'{port}': {{mode: DISABLE}}}}}}"),
        )
    };
    let base = service + &pod("web", "{app: web}");
    check(MTLS, &(at("8080") + &base), &[]);
    check(
        MTLS,
        &(at("80") + &base),
        &["4 KSB0103 (PeerAuthentication default/p) no selected workload has port 80; they have 8080"],
    );
    check(MTLS, &at("80"), &[]);
}

#[test]
fn principals_are_written_as_they_are_compared() {
    let strict = peers("istio-system/all", "{mtls: {mode: STRICT}}");
    let base = strict + &pod("web", "{app: web}");
    let by = |principal: &str| {
        policy("p", &format!("{{rules: [{{from: [{{source: {{principals: ['{principal}']}}}}]}}]}}")) + &base
    };
    for (principal, expected) in [
        ("cluster.local/ns/default/sa/web", None),
        ("*/ns/default/sa/nobody", None),
        ("cluster.local/ns/unknown/sa/nobody", None),
        ("cluster.local/ns/istio-system/sa/istio-ingressgateway", None),
        (
            "spiffe://cluster.local/ns/default/sa/web",
            Some(
                "4 KSB0105 (AuthorizationPolicy default/p) `spiffe://cluster.local/ns/default/sa/web` is written with its scheme and never matches",
            ),
        ),
        (
            "td2/ns/default/sa/web",
            Some(
                "4 KSB0106 (AuthorizationPolicy default/p) `td2/ns/default/sa/web` is of the trust domain td2, which is not known here",
            ),
        ),
        (
            "cluster.local/ns/default/sa/wep",
            Some(
                "4 KSB0107 (AuthorizationPolicy default/p) no workload of default runs as the service account wep of `cluster.local/ns/default/sa/wep`",
            ),
        ),
    ] {
        check(PRINCIPALS, &by(principal), expected.as_slice());
    }
    check(PRINCIPALS, &(by("td2/ns/default/sa/web") + "trustDomainAliases: [td2]\n"), &[]);
}

#[test]
fn identities_are_proven_where_policies_ask_for_them() {
    let deny = policy("p", "{action: DENY, rules: [{from: [{source: {notNamespaces: [default]}}]}]}");
    let web = pod("web", "{app: web}");
    let tail = "it asks who the peer is, and default/web is";
    check(
        PRINCIPALS,
        &format!("{deny}{web}"),
        &[&format!("4 KSB0104 (AuthorizationPolicy default/p) {tail} PERMISSIVE: plain text escapes it")],
    );
    let off = peers("default", "{mtls: {mode: DISABLE}}");
    check(
        PRINCIPALS,
        &format!("{deny}{web}{off}"),
        &[&format!("4 KSB0104 (AuthorizationPolicy default/p) {tail} DISABLE: nobody proves who they are")],
    );
    check(PRINCIPALS, &format!("{deny}{web}{}", peers("default", "{mtls: {mode: STRICT}}")), &[]);
    check(PRINCIPALS, &format!("{}{web}", policy("p", "{rules: [{to: [{operation: {methods: [GET]}}]}]}")), &[]);
}

#[test]
fn tokens_are_demanded_and_verified() {
    let rule =
        |more: &str| of("RequestAuthentication", "r", &format!("{{jwtRules: [{{issuer: 'https://i', {more}}}]}}"));
    let by = |source: &str| policy("p", &format!("{{rules: [{{from: [{{source: {source}}}]}}]}}"));
    let plain = rule("jwks: '{}'");
    check(
        TOKENS,
        &plain,
        &["4 KSB0108 (RequestAuthentication default/r) no policy demands a token here: requests without one pass"],
    );
    check(TOKENS, &(plain.clone() + &by("{requestPrincipals: ['*']}")), &[]);
    check(
        TOKENS,
        &(plain.clone() + &by("{notRequestPrincipals: ['*']}").replace("{rules", "{action: DENY, rules")),
        &[],
    );
    check(
        TOKENS,
        &by("{requestPrincipals: ['*']}"),
        &["4 KSB0109 (AuthorizationPolicy default/p) it asks for a token, and none is verified here: it never holds"],
    );
    check(
        TOKENS,
        &(plain + &by("{requestPrincipals: ['https://I/*', 'https://i/*']}")),
        &[
            "9 KSB0110 (AuthorizationPolicy default/p) `https://I/*` is of no issuer that is trusted here: https://i (a trailing `/` or a capital letter makes the difference)",
        ],
    );
    for (uri, why) in [("http://k.com/", "not over TLS"), ("https://127.0.0.1/", "from a private address")] {
        let text = rule(&format!("jwksUri: '{uri}'")) + &by("{requestPrincipals: ['*']}");
        check(
            TOKENS,
            &text,
            &[&format!("4 KSB0111 (RequestAuthentication default/r) the keys of https://i come {why}: {uri}")],
        );
    }
}

#[test]
fn gaps_in_protection_are_named() {
    check(
        PROTECTION,
        EVERYTHING,
        &[
            "23 KSB0117 (AuthorizationPolicy shop/web) it goes by X-Forwarded-For, and no trusted proxy is declared",
            "33 KSB0113 (ServiceEntry shop/web) shop/web say no serviceAccount, and there are no subjectAltNames",
            "47 KSB0116 (Pod shop/db) traffic.sidecar.istio.io/excludeInboundPorts leaves `5432` outside of the proxy, though mTLS is demanded",
            "48 KSB0116 (Pod shop/db) it uses the host's network, where no proxy captures its traffic",
        ],
    );
    let shadow = policy("istio-system/none", "{action: DENY, rules: [{}]}")
        + &policy("shop/some", "{rules: [{to: [{operation: {ports: ['80']}}]}]}");
    check(
        PROTECTION,
        &shadow,
        &["8 KSB0115 (AuthorizationPolicy shop/some) istio-system/none denies everything before it"],
    );
    let entry = of("WorkloadEntry", "w", "{address: 10.0.0.1, labels: {app: w}, serviceAccount: w}")
        + &of(
            "ServiceEntry",
            "w",
            "{hosts: [w.default.svc.cluster.local], location: MESH_INTERNAL, resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], workloadSelector: {labels: {app: w}}}",
        );
    let asked =
        policy("p", "{action: CUSTOM, provider: {name: other}, rules: [{}]}") + "extensionProviders: [{name: mine}]\n";
    let expected = "4 IST0101 (AuthorizationPolicy default/p) the mesh configuration has no extensionProvider `other`";
    check(PROTECTION, &asked, &[expected]);
    check(PROTECTION, &asked.replace("mine", "other"), &[]);
    let paths = policy("p", "{rules: [{to: [{operation: {notPaths: [/admin*]}}]}]}")
        + "pathNormalization: {normalization: NONE}\n";
    let expected = "4 KSB0119 (AuthorizationPolicy default/p) it goes by paths, and the mesh does not normalize them";
    check(PROTECTION, &paths, &[expected]);
    check(PROTECTION, &paths.replace("NONE", "BASE"), &[]);
    let never = entry + &policy("p", "{rules: [{to: [{operation: {methods: [GET], notMethods: [GET]}}]}]}");
    let found = said(&never, &[PROTECTION]);
    assert!(
        found.len() == 1 && found[0].contains("KSB0118 (AuthorizationPolicy default/p) it never matches: "),
        "{found:?}"
    );
    let nothing = policy("istio-system/nothing", "{}");
    check(
        PROTECTION,
        &nothing,
        &[
            "3 KSB0114 (AuthorizationPolicy istio-system/nothing) it denies every request of the mesh that no other policy allows",
        ],
    );
    check(PROTECTION, &policy("shop/nothing", "{}"), &[]);
}

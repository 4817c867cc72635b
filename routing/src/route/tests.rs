//! Tests of `route`.

use std::slice;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::google::protobuf::{BoolValue, Duration as DurationPb, UInt32Value};
use pb::route_match::PathSpecifier;
use proptest::prelude::*;

use super::*;
use crate::request::sample::Sample;

fn prefix(path: &str) -> PathSpecifier {
    PathSpecifier::Prefix(path.into())
}

fn exact(path: &str) -> PathSpecifier {
    PathSpecifier::Path(path.into())
}

fn matching(path: PathSpecifier) -> pb::RouteMatch {
    pb::RouteMatch { path_specifier: Some(path), ..Default::default() }
}

fn to(cluster: &str) -> pb::RouteAction {
    pb::RouteAction {
        cluster_specifier: Some(pb::route_action::ClusterSpecifier::Cluster(cluster.into())),
        ..Default::default()
    }
}

fn route(path: PathSpecifier, action: pb::RouteAction) -> pb::Route {
    let name = action.cluster_specifier.as_ref().map_or(String::new(), |specifier| match specifier {
        pb::route_action::ClusterSpecifier::Cluster(name) => name.clone(),
        _ => String::new(),
    });
    pb::Route {
        name,
        r#match: Some(matching(path)),
        action: Some(pb::route::Action::Route(action)),
        ..Default::default()
    }
}

fn redirecting(path: PathSpecifier, redirect: pb::RedirectAction) -> pb::Route {
    pb::Route {
        r#match: Some(matching(path)),
        action: Some(pb::route::Action::Redirect(redirect)),
        ..Default::default()
    }
}

fn host(domains: &[&str], routes: Vec<pb::Route>) -> pb::VirtualHost {
    pb::VirtualHost {
        name: domains.first().copied().unwrap_or_default().into(),
        domains: domains.iter().map(|&domain| domain.into()).collect(),
        routes,
        ..Default::default()
    }
}

fn try_table(virtual_hosts: Vec<pb::VirtualHost>) -> Result<RouteTable, ConfigError> {
    RouteTable::compile(&pb::RouteConfiguration { name: "t".into(), virtual_hosts, ..Default::default() })
}

fn table(virtual_hosts: Vec<pb::VirtualHost>) -> RouteTable {
    try_table(virtual_hosts).unwrap()
}

fn one(routes: Vec<pb::Route>) -> RouteTable {
    table(vec![host(&["*"], routes)])
}

fn picked(table: &RouteTable, sample: &Sample) -> Result<String, NoRoute> {
    table.pick(&sample.request(), 0).map(|selection| selection.route.name.to_string())
}

fn forward(table: &RouteTable) -> &Forward {
    table.hosts[0].routes[0].action.as_forward().unwrap()
}

fn regex(pattern: &str, substitution: &str) -> matcher::RegexMatchAndSubstitute {
    matcher::RegexMatchAndSubstitute {
        pattern: Some(matcher::RegexMatcher { regex: pattern.into(), ..Default::default() }),
        substitution: substitution.into(),
    }
}

#[test]
fn the_most_specific_domain_is_responsible() {
    let named = |domains: &[&str]| host(domains, vec![route(prefix("/"), to(domains[0]))]);
    let table = table(vec![
        named(&["*"]),
        named(&["a.test", "a.test:81"]),
        named(&["*.test"]),
        named(&["*.b.test"]),
        named(&["*-x.b.test"]),
        named(&["c.*"]),
        named(&["c.d.*"]),
        named(&["[::1]:80"]),
    ]);
    for (name, expected) in [
        ("a.test", "a.test"),
        ("A.TEST.", "a.test"),
        ("a.test:80", "a.test"),
        ("a.test:81", "a.test"),
        ("a.test:82", "*"),
        ("x.test", "*.test"),
        ("y.b.test", "*.b.test"),
        ("b.test", "*.test"),
        ("y-x.b.test", "*-x.b.test"),
        ("c.org", "c.*"),
        ("c.d.org", "c.d.*"),
        ("test", "*"),
        ("[::1]:80", "[::1]:80"),
        ("c.d.test", "*.test"),
    ] {
        assert_eq!(picked(&table, &Sample::get("/").host(name)).unwrap(), expected, "{name}");
    }
}

#[test]
fn ports_can_be_left_out_of_account() {
    let hosts = vec![host(&["a.test"], vec![route(prefix("/"), to("c"))])];
    let config =
        pb::RouteConfiguration { virtual_hosts: hosts, ignore_port_in_host_matching: true, ..Default::default() };
    let ignoring = RouteTable::compile(&config).unwrap();
    assert!(picked(&ignoring, &Sample::get("/").host("a.test:1234")).is_ok());
    let minding =
        RouteTable::compile(&pb::RouteConfiguration { ignore_port_in_host_matching: false, ..config }).unwrap();
    assert_eq!(picked(&minding, &Sample::get("/").host("a.test:1234")), Err(NoRoute::Host));
}

#[test]
fn the_first_route_that_matches_wins() {
    let template = core::TypedExtensionConfig {
        name: "t".into(),
        typed_config: Some(envoy_types::util::pack_any(
            envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig {
                path_template: "/t/*/x".into(),
            },
        )),
    };
    let table = one(vec![
        route(exact("/exact"), to("exact")),
        route(PathSpecifier::PathSeparatedPrefix("/sep".into()), to("separated")),
        route(
            PathSpecifier::SafeRegex(matcher::RegexMatcher { regex: "/r[0-9]+".into(), ..Default::default() }),
            to("regex"),
        ),
        route(PathSpecifier::PathMatchPolicy(template), to("template")),
        route(prefix("/pre"), to("prefix")),
        route(prefix("/"), to("rest")),
        route(exact("/never"), to("never")),
    ]);
    for (path, expected) in [
        ("/exact", "exact"),
        ("/exact?q=/x", "exact"),
        ("/exact/", "rest"),
        ("/sep", "separated"),
        ("/sep/x", "separated"),
        ("/separate", "rest"),
        ("/r12", "regex"),
        ("/r12x", "rest"),
        ("/t/1/x", "template"),
        ("/prefixed", "prefix"),
        ("/x/../exact", "exact"),
        ("//exact", "exact"),
        ("/never", "rest"),
    ] {
        assert_eq!(picked(&table, &Sample::get(path)).unwrap(), expected, "{path}");
    }
}

#[test]
fn everything_that_a_match_names_must_be_true() {
    let header = pb::HeaderMatcher {
        name: "x-v".into(),
        header_match_specifier: Some(pb::header_matcher::HeaderMatchSpecifier::StringMatch(matcher::StringMatcher {
            match_pattern: Some(matcher::string_matcher::MatchPattern::Exact("2".into())),
            ignore_case: false,
        })),
        ..Default::default()
    };
    let mut value = route(exact("/A"), to("c"));
    value.r#match = Some(pb::RouteMatch {
        headers: vec![header],
        query_parameters: vec![pb::QueryParameterMatcher { name: "q".into(), query_parameter_match_specifier: None }],
        case_sensitive: Some(BoolValue { value: false }),
        grpc: Some(pb::route_match::GrpcRouteMatchOptions {}),
        ..matching(exact("/A"))
    });
    let table = one(vec![value]);
    let full = |path| Sample::get(path).header("x-v", "2").header("content-type", "application/grpc+proto");
    assert!(picked(&table, &full("/a?q=1")).is_ok());
    for sample in [
        full("/a"),
        full("/b?q=1"),
        Sample::get("/a?q=1").header("content-type", "application/grpc"),
        Sample::get("/a?q=1").header("x-v", "2"),
        Sample::get("/a?q=1").header("x-v", "2").header("content-type", "application/grpc-web"),
    ] {
        assert_eq!(picked(&table, &sample), Err(NoRoute::Path), "{:?}", sample.headers);
    }
}

#[test]
fn claims_can_choose_a_route() {
    let segment = |key: &str| matcher::metadata_matcher::PathSegment {
        segment: Some(matcher::metadata_matcher::path_segment::Segment::Key(key.into())),
    };
    let mut value = route(prefix("/"), to("beta"));
    let text = matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::Exact("beta".into())),
        ignore_case: false,
    };
    value.r#match = Some(pb::RouteMatch {
        dynamic_metadata: vec![matcher::MetadataMatcher {
            filter: crate::request::JWT_FILTER.into(),
            path: vec![segment("payload"), segment("ring")],
            value: Some(matcher::ValueMatcher {
                match_pattern: Some(matcher::value_matcher::MatchPattern::StringMatch(text)),
            }),
            invert: false,
        }],
        ..matching(prefix("/"))
    });
    let table = one(vec![value, route(prefix("/"), to("rest"))]);
    assert_eq!(picked(&table, &Sample::get("/").claims(serde_json::json!({"ring": "beta"}))).unwrap(), "beta");
    assert_eq!(picked(&table, &Sample::get("/")).unwrap(), "rest");
    assert_eq!(picked(&table, &Sample::get("/").header("ring", "beta")).unwrap(), "rest");
}

#[test]
fn weights_share_requests_out() {
    let weight = |name: &str, weight| pb::weighted_cluster::ClusterWeight {
        name: name.into(),
        weight: Some(UInt32Value { value: weight }),
        ..Default::default()
    };
    let split = |clusters| pb::RouteAction {
        cluster_specifier: Some(pb::route_action::ClusterSpecifier::WeightedClusters(pb::WeightedCluster {
            clusters,
            ..Default::default()
        })),
        ..Default::default()
    };
    let table = one(vec![route(prefix("/"), split(vec![weight("a", 90), weight("b", 10), weight("c", 0)]))]);
    let sample = Sample::get("/");
    let request = sample.request();
    let selection = table.pick(&request, 0).unwrap();
    let names: Vec<String> =
        (0..10_000).map(|dice| selection.cluster(&request, mix(dice)).unwrap().name.into_owned()).collect();
    let share = |name: &str| names.iter().filter(|picked| *picked == name).count();
    assert!((8800..9200).contains(&share("a")) && share("c") == 0, "{}", share("a"));
    assert!(try_table(vec![host(&["*"], vec![route(prefix("/"), split(vec![weight("a", 0)]))])]).is_err());
}

#[test]
fn paths_are_rewritten_and_stay_canonical() {
    let rewritten = |path: PathSpecifier, action: pb::RouteAction, asked: &str| {
        let table = one(vec![route(path, action)]);
        let sample = Sample::get(asked);
        let request = sample.request();
        let selection = table.pick(&request, 0).unwrap();
        let rewritten = selection.forward().unwrap().rewrite_path(&request, selection.route.matches());
        rewritten.map(|path| path.map(|path| path.as_str().to_owned()))
    };
    let by_prefix = |with: &str| pb::RouteAction { prefix_rewrite: with.into(), ..to("c") };
    let by_regex = |pattern, with| pb::RouteAction { regex_rewrite: Some(regex(pattern, with)), ..to("c") };
    let some = |text: &str| Ok(Some(text.to_owned()));
    assert_eq!(rewritten(prefix("/"), to("c"), "/a"), Ok(None));
    assert_eq!(rewritten(prefix("/a"), by_prefix("/b"), "/a/x?q=1"), some("/b/x?q=1"));
    assert_eq!(rewritten(prefix("/a"), by_prefix("/"), "/a/x"), some("/x"));
    assert_eq!(rewritten(exact("/a"), by_prefix("/b"), "/a?q"), some("/b?q"));
    assert_eq!(rewritten(prefix("/"), by_regex(r"^/v1/(\w+)", r"/\1/v1"), "/v1/users/1"), some("/users/v1/1"));
    assert_eq!(rewritten(prefix("/"), by_regex("^/", ""), "/x"), some("/x"));
    assert!(rewritten(prefix("/"), by_regex("x", "../.."), "/x").is_err());
}

#[test]
fn hosts_are_rewritten() {
    use pb::route_action::HostRewriteSpecifier as Host;
    let rewritten = |specifier| {
        let table = one(vec![route(prefix("/"), pb::RouteAction { host_rewrite_specifier: specifier, ..to("c") })]);
        let sample = Sample::get("/x").header("x-host", "h.test");
        match forward(&table).rewrite_host(&sample.request()) {
            HostRewrite::Keep => "keep".to_owned(),
            HostRewrite::EndpointName => "endpoint".to_owned(),
            HostRewrite::To(host) => host.into_owned(),
        }
    };
    assert_eq!(rewritten(None), "keep");
    assert_eq!(rewritten(Some(Host::HostRewriteLiteral("b.test".into()))), "b.test");
    assert_eq!(rewritten(Some(Host::AutoHostRewrite(BoolValue { value: true }))), "endpoint");
    assert_eq!(rewritten(Some(Host::HostRewriteHeader("x-host".into()))), "h.test");
    assert_eq!(rewritten(Some(Host::HostRewritePathRegex(regex("^/(.+)$", r"\1.test")))), "x.test");
}

#[test]
fn redirects_say_exactly_where_to() {
    use pb::redirect_action::{PathRewriteSpecifier as Path, SchemeRewriteSpecifier as Scheme};
    let location = |change: &dyn Fn(&mut pb::RedirectAction), asked: &str, host: &str| {
        let mut redirect = pb::RedirectAction::default();
        change(&mut redirect);
        let table = one(vec![redirecting(prefix("/a"), redirect)]);
        let sample = Sample::get(asked).host(host);
        let request = sample.request();
        let selection = table.pick(&request, 0).unwrap();
        let Action::Redirect(redirect) = &selection.route.action else { panic!() };
        redirect.location(&request, selection.route.matches())
    };
    let https = |redirect: &mut pb::RedirectAction| {
        redirect.scheme_rewrite_specifier = Some(Scheme::HttpsRedirect(true));
    };
    assert_eq!(location(&https, "/a?q=1", "x.test"), "https://x.test/a?q=1");
    assert_eq!(location(&https, "/a", "x.test:80"), "https://x.test/a");
    assert_eq!(location(&https, "/a", "x.test:8080"), "https://x.test:8080/a");
    let elsewhere = |redirect: &mut pb::RedirectAction| {
        redirect.host_redirect = "y.test".into();
        redirect.port_redirect = 8443;
        redirect.path_rewrite_specifier = Some(Path::PathRedirect("/b?z".into()));
    };
    assert_eq!(location(&elsewhere, "/a?q=1", "x.test:81"), "http://y.test:8443/b?z");
    let by_prefix = |redirect: &mut pb::RedirectAction| {
        redirect.path_rewrite_specifier = Some(Path::PrefixRewrite("/b".into()));
        redirect.strip_query = true;
    };
    assert_eq!(location(&by_prefix, "/a/x?q=1", "x.test"), "http://x.test/b/x");
}

#[test]
fn time_limits_and_the_clients_own() {
    let secs = |seconds| Some(DurationPb { seconds, nanos: 0 });
    let timeout = |action: pb::RouteAction, sample: &Sample| {
        forward(&one(vec![route(prefix("/"), action)])).timeout_for(&sample.request())
    };
    let plain = Sample::get("/");
    let grpc = Sample::get("/").header("content-type", "application/grpc").header("grpc-timeout", "2S");
    assert_eq!(timeout(to("c"), &plain), Some(Duration::from_secs(15)));
    assert_eq!(timeout(pb::RouteAction { timeout: secs(0), ..to("c") }, &plain), None);
    assert_eq!(timeout(pb::RouteAction { timeout: secs(3), ..to("c") }, &grpc), Some(Duration::from_secs(3)));
    let following = |max| {
        let stream = pb::route_action::MaxStreamDuration { grpc_timeout_header_max: secs(max), ..Default::default() };
        pb::RouteAction { max_stream_duration: Some(stream), timeout: secs(0), ..to("c") }
    };
    assert_eq!(timeout(following(0), &grpc), Some(Duration::from_secs(2)));
    assert_eq!(timeout(following(1), &grpc), Some(Duration::from_secs(1)));
}

#[test]
fn equal_requests_have_equal_hashes() {
    use pb::route_action::{HashPolicy, hash_policy};
    let by = |specifier| HashPolicy { terminal: false, policy_specifier: Some(specifier) };
    let header = by(hash_policy::PolicySpecifier::Header(hash_policy::Header {
        header_name: "x-user".into(),
        regex_rewrite: None,
    }));
    let cookie = by(hash_policy::PolicySpecifier::Cookie(hash_policy::Cookie {
        name: "sticky".into(),
        ttl: Some(DurationPb { seconds: 60, nanos: 0 }),
        path: "/".into(),
        attributes: Vec::new(),
    }));
    let key = |policies: &[HashPolicy], sample: &Sample| {
        let table = one(vec![route(prefix("/"), pb::RouteAction { hash_policy: policies.to_vec(), ..to("c") })]);
        forward(&table).hash_key(&sample.request(), 1)
    };
    let user = |name| Sample::get("/").header("x-user", name);
    assert_eq!(key(slice::from_ref(&header), &user("a")), key(slice::from_ref(&header), &user("a")));
    assert_ne!(key(slice::from_ref(&header), &user("a")), key(slice::from_ref(&header), &user("b")));
    assert_eq!(key(&[header], &Sample::get("/")), HashKey::default());

    let given = key(slice::from_ref(&cookie), &Sample::get("/"));
    let line = given.set_cookie.unwrap();
    assert!(line.starts_with("sticky=\"") && line.ends_with("\"; Max-Age=60; Path=/; HttpOnly"), "{line}");
    let back = Sample::get("/").header("cookie", line.split(';').next().unwrap());
    assert_eq!(key(&[cookie], &back).hash, given.hash);
}

#[test]
fn descriptors_are_made_of_what_a_request_has() {
    use pb::rate_limit::{Action as Part, action};
    let part = |specifier| Part { action_specifier: Some(specifier) };
    let generic = part(action::ActionSpecifier::GenericKey(action::GenericKey {
        descriptor_value: "all".into(),
        ..Default::default()
    }));
    let header = part(action::ActionSpecifier::RequestHeaders(action::RequestHeaders {
        header_name: "x-user".into(),
        descriptor_key: "user".into(),
        skip_if_absent: false,
    }));
    let address = part(action::ActionSpecifier::RemoteAddress(action::RemoteAddress {}));
    let cluster = part(action::ActionSpecifier::DestinationCluster(action::DestinationCluster {}));
    let rule = |actions: &[&Part]| {
        let value = pb::RateLimit { actions: actions.iter().map(|&part| part.clone()).collect(), ..Default::default() };
        RateLimitRule::compile(&value).unwrap()
    };
    let entries = |rule: &RateLimitRule, sample: &Sample| {
        rule.descriptor(&sample.request(), "dest", "own").map(|descriptor| {
            descriptor.entries.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
        })
    };
    let user = Sample::get("/").header("x-user", "u");
    let all = rule(&[&generic, &header, &address, &cluster]);
    assert_eq!(
        entries(&all, &user).as_deref(),
        Some("generic_key=all,user=u,remote_address=10.0.0.1,destination_cluster=dest")
    );
    assert_eq!(entries(&all, &Sample::get("/")), None);
    assert!(RateLimitRule::compile(&pb::RateLimit::default()).is_err());
}

#[test]
fn edits_and_settings_come_from_the_most_specific_level() {
    let set = |value: &str| core::HeaderValueOption {
        header: Some(core::HeaderValue { key: "x".into(), value: value.into(), raw_value: Vec::new() }),
        append_action: core::header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd as i32,
        ..Default::default()
    };
    let mut inner = route(prefix("/"), to("c"));
    inner.request_headers_to_add = vec![set("route")];
    let mut outer = host(&["*"], vec![inner]);
    outer.request_headers_to_add = vec![set("host")];
    let mut config = pb::RouteConfiguration { virtual_hosts: vec![outer], ..Default::default() };
    let value = |config: &pb::RouteConfiguration| {
        let table = RouteTable::compile(config).unwrap();
        let sample = Sample::get("/");
        let selection = table.pick(&sample.request(), 0).unwrap();
        let mut prepared = PreparedEdits::default();
        for edits in selection.request_edits(None) {
            edits.prepare(&crate::format::LogContext::default(), &mut prepared);
        }
        let mut headers = http::HeaderMap::new();
        prepared.apply(&mut headers);
        headers["x"].to_str().unwrap().to_owned()
    };
    assert_eq!(value(&config), "host");
    config.most_specific_header_mutations_wins = true;
    assert_eq!(value(&config), "route");
}

#[test]
fn a_host_for_tls_only_refuses_plain_requests() {
    let mut strict = host(&["*"], vec![route(prefix("/"), to("c"))]);
    strict.require_tls = pb::virtual_host::TlsRequirementType::All as i32;
    let table = table(vec![strict]);
    assert_eq!(picked(&table, &Sample::get("/")), Err(NoRoute::TlsRequired));
    let mut encrypted = Sample::get("/");
    encrypted.scheme = Scheme::Https;
    assert!(picked(&table, &encrypted).is_ok());
}

#[test]
fn the_field_that_is_wrong_is_named() {
    let field = |hosts| try_table(hosts).unwrap_err().to_string();
    let bad_regex = PathSpecifier::SafeRegex(matcher::RegexMatcher { regex: "(".into(), ..Default::default() });
    let text = field(vec![host(&["*"], vec![route(prefix("/"), to("ok")), route(bad_regex, to("bad"))])]);
    assert!(
        text.starts_with("RouteConfiguration t: virtual_hosts[0].routes[1].(route bad).match.safe_regex.regex: "),
        "{text}"
    );
    assert!(field(vec![host(&["a", "A"], vec![])]).contains("`A` is already taken"));
    assert!(field(vec![host(&["a*b"], vec![])]).contains("is not a domain"));
    let both = pb::RouteAction { prefix_rewrite: "/".into(), regex_rewrite: Some(regex("a", "b")), ..to("c") };
    assert!(field(vec![host(&["*"], vec![route(prefix("/"), both)])]).contains("regex_rewrite"));
}

/// The rule of domains in ten lines, without any index.
fn reference<'d>(domains: &[&'d str], name: &str) -> Option<&'d str> {
    let score = |domain: &str| match (domain.strip_prefix('*'), domain.strip_suffix('*')) {
        _ if domain == name => Some((3, 0)),
        (Some(""), _) => Some((0, 0)),
        (Some(suffix), _) if name.len() > suffix.len() && name.ends_with(suffix) => Some((2, suffix.len())),
        (None, Some(prefix)) if name.len() > prefix.len() && name.starts_with(prefix) => Some((1, prefix.len())),
        _ => None,
    };
    domains.iter().filter_map(|domain| Some((score(domain)?, *domain))).max().map(|(_, domain)| domain)
}

proptest! {
    #[test]
    fn the_index_of_domains_answers_as_the_plain_rule(
        domains in prop::collection::btree_set("(\\*|\\*[.-]?)?[ab](\\.[ab]){0,2}|[ab](\\.[ab])?\\.\\*|\\*", 1..6),
        name in "[ab](\\.[ab]){0,3}",
    ) {
        let domains: Vec<&str> = domains.iter().map(String::as_str).collect();
        let hosts = domains.iter().map(|domain| host(&[domain], vec![route(prefix("/"), to(domain))])).collect();
        if let Ok(table) = try_table(hosts) {
            let found = picked(&table, &Sample::get("/").host(&name)).ok();
            prop_assert_eq!(found.as_deref(), reference(&domains, &name));
        }
    }
}

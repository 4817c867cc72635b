//! Rules of traffic policies and TLS settings, which several kinds carry.

use crate::documents::Review;
use crate::documents::shapes::{
    ClientTls, ClientTlsMode, ConnectionPool, ConsistentHash, H2Upgrade, LoadBalancer, LocalityBalancer,
    OutlierDetection, ServerTls, ServerTlsMode, TlsVersion, TrafficPolicy,
};

use super::text::check_port;

pub(super) fn check_policy(policy: &TrafficPolicy, at: &str, review: &mut Review<'_>) {
    if *policy == TrafficPolicy::default() {
        review.error(at, "EMPTY", "a traffic policy must say something");
    }
    if policy.tunnel.is_some() && policy.proxy_protocol.is_some() {
        review.error(at, "ONE_OF", "`tunnel` and `proxyProtocol` exclude each other");
    }
    let budget = policy.retry_budget.as_ref().and_then(|budget| budget.percent);
    if budget.is_some_and(|percent| !(0.0..=100.0).contains(&percent)) {
        review.error(format!("{at}.retryBudget.percent"), "OUT_OF_RANGE", "not between 0 and 100");
    }
    check_blocks(
        at,
        policy.load_balancer.as_ref(),
        policy.connection_pool.as_ref(),
        policy.outlier_detection.as_ref(),
        policy.tls.as_ref(),
        review,
    );
    for (index, settings) in policy.port_level_settings.iter().enumerate() {
        let at = format!("{at}.portLevelSettings[{index}]");
        match &settings.port {
            Some(port) => check_port(port.number, &format!("{at}.port.number"), review),
            None => review.error(&at, "FIELD_MISSING", "`port.number` is required"),
        }
        if policy.port_level_settings[..index].iter().any(|earlier| earlier.port == settings.port) {
            review.error(&at, "DUPLICATE_NAME", "settings for this port are given twice");
        }
        check_blocks(
            &at,
            settings.load_balancer.as_ref(),
            settings.connection_pool.as_ref(),
            settings.outlier_detection.as_ref(),
            settings.tls.as_ref(),
            review,
        );
    }
}

fn check_blocks(
    at: &str,
    balancer: Option<&LoadBalancer>,
    pool: Option<&ConnectionPool>,
    outlier: Option<&OutlierDetection>,
    tls: Option<&ClientTls>,
    review: &mut Review<'_>,
) {
    if let Some(balancer) = balancer {
        check_balancer(balancer, &format!("{at}.loadBalancer"), review);
    }
    if let Some(pool) = pool {
        check_pool(pool, &format!("{at}.connectionPool"), review);
    }
    if let Some(outlier) = outlier {
        check_outlier(outlier, &format!("{at}.outlierDetection"), review);
    }
    if let Some(tls) = tls {
        check_client_tls(tls, &format!("{at}.tls"), review);
    }
}

fn check_balancer(balancer: &LoadBalancer, at: &str, review: &mut Review<'_>) {
    if balancer.simple.is_some() && balancer.consistent_hash.is_some() {
        review.error(at, "ONE_OF", "`simple` and `consistentHash` exclude each other");
    }
    if balancer.locality_lb_setting.is_some() && balancer.zone_aware_lb_setting.is_some() {
        review.error(at, "ONE_OF", "`localityLbSetting` and `zoneAwareLbSetting` exclude each other");
    }
    if let Some(hash) = &balancer.consistent_hash {
        check_hash(hash, &format!("{at}.consistentHash"), review);
    }
    if let Some(setting) = &balancer.locality_lb_setting {
        check_locality(setting, &format!("{at}.localityLbSetting"), review);
    }
    if let Some(warmup) = &balancer.warmup {
        if warmup.minimum_percent.is_some_and(|percent| !(0.0..=100.0).contains(&percent)) {
            review.error(format!("{at}.warmup.minimumPercent"), "OUT_OF_RANGE", "not between 0 and 100");
        }
        if warmup.aggression.is_some_and(|aggression| aggression < 1.0) {
            review.error(format!("{at}.warmup.aggression"), "OUT_OF_RANGE", "less than 1");
        }
    }
}

fn check_hash(hash: &ConsistentHash, at: &str, review: &mut Review<'_>) {
    let keys = [
        hash.http_header_name.is_some(),
        hash.http_cookie.is_some(),
        hash.use_source_ip.is_some(),
        hash.http_query_parameter_name.is_some(),
    ];
    if keys.iter().filter(|given| **given).count() != 1 {
        let text = "exactly one of httpHeaderName, httpCookie, useSourceIp, httpQueryParameterName is needed";
        review.error(at, "ONE_OF", text);
    }
    if hash.http_cookie.as_ref().is_some_and(|cookie| cookie.name.is_empty()) {
        review.error(format!("{at}.httpCookie"), "FIELD_MISSING", "`name` is required");
    }
    if hash.ring_hash.is_some() && hash.maglev.is_some() {
        review.error(at, "ONE_OF", "`ringHash` and `maglev` exclude each other");
    }
    if let Some(maglev) = &hash.maglev {
        let size = maglev.table_size;
        if size != 0 && (size >= MAGLEV_TABLE_SIZE_MAX || !is_prime(size)) {
            let text = format!("{size} is no prime below {MAGLEV_TABLE_SIZE_MAX}");
            review.error(format!("{at}.maglev.tableSize"), "OUT_OF_RANGE", text);
        }
    }
}

fn is_prime(number: u64) -> bool {
    number > 1 && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

fn check_locality(setting: &LocalityBalancer, at: &str, review: &mut Review<'_>) {
    let ways = [!setting.distribute.is_empty(), !setting.failover.is_empty(), !setting.failover_priority.is_empty()];
    if ways[0] && (ways[1] || ways[2]) {
        review.error(at, "ONE_OF", "`distribute` excludes `failover` and `failoverPriority`");
    }
    for (index, entry) in setting.distribute.iter().enumerate() {
        let sum: u64 = entry.to.values().map(|share| u64::from(*share)).sum();
        if sum != 100 {
            review.error(
                format!("{at}.distribute[{index}].to"),
                "OUT_OF_RANGE",
                format!("the shares sum up to {sum}, not 100"),
            );
        }
    }
    for (index, entry) in setting.failover.iter().enumerate() {
        if entry.from == entry.to {
            review.error(format!("{at}.failover[{index}]"), "CONFLICT", "`from` and `to` are equal");
        }
    }
}

fn check_pool(pool: &ConnectionPool, at: &str, review: &mut Review<'_>) {
    if pool.tcp.is_none() && pool.http.is_none() {
        review.error(at, "EMPTY", "`tcp` or `http` is needed");
    }
    let mut numbers = Vec::new();
    if let Some(tcp) = &pool.tcp {
        numbers.push(("tcp.maxConnections", tcp.max_connections));
        if tcp.connect_timeout.is_some_and(|timeout| timeout.0.as_millis() == 0) {
            review.error(format!("{at}.tcp.connectTimeout"), "OUT_OF_RANGE", "at least 1ms is needed");
        }
    }
    if let Some(http) = &pool.http {
        numbers.push(("http.http1MaxPendingRequests", http.http1_max_pending_requests));
        numbers.push(("http.http2MaxRequests", http.http2_max_requests));
        numbers.push(("http.maxRequestsPerConnection", http.max_requests_per_connection));
        numbers.push(("http.maxRetries", http.max_retries));
        numbers.push(("http.maxConcurrentStreams", http.max_concurrent_streams));
        if http.h2_upgrade_policy == H2Upgrade::Upgrade && http.use_client_protocol {
            review.error(
                format!("{at}.http"),
                "CONFLICT",
                "`h2UpgradePolicy: UPGRADE` and `useClientProtocol` exclude each other",
            );
        }
        if http.http2_keep_alive.as_ref().is_some_and(|alive| alive.interval.is_none() || alive.timeout.is_none()) {
            review.error(
                format!("{at}.http.http2KeepAlive"),
                "FIELD_MISSING",
                "`interval` and `timeout` are both required",
            );
        }
    }
    for (field, number) in numbers {
        if number < 0 {
            review.error(format!("{at}.{field}"), "OUT_OF_RANGE", format!("{number} is negative"));
        }
    }
}

fn check_outlier(outlier: &OutlierDetection, at: &str, review: &mut Review<'_>) {
    let percents =
        [("maxEjectionPercent", outlier.max_ejection_percent), ("minHealthPercent", outlier.min_health_percent)];
    for (field, percent) in percents {
        if !(0..=100).contains(&percent) {
            review.error(format!("{at}.{field}"), "OUT_OF_RANGE", format!("{percent} is not between 0 and 100"));
        }
    }
    let spans = [("interval", outlier.interval), ("baseEjectionTime", outlier.base_ejection_time)];
    for (field, span) in spans {
        if span.is_some_and(|span| span.0.as_millis() == 0) {
            review.error(format!("{at}.{field}"), "OUT_OF_RANGE", "at least 1ms is needed");
        }
    }
    if outlier.consecutive_errors != 0 {
        review.warn(
            format!("{at}.consecutiveErrors"),
            "NO_EFFECT",
            "deprecated; use `consecutive5xxErrors` or `consecutiveGatewayErrors`",
        );
    }
}

fn check_client_tls(tls: &ClientTls, at: &str, review: &mut Review<'_>) {
    let files = [&tls.client_certificate, &tls.private_key, &tls.ca_certificates];
    let any_file = files.iter().any(|file| !file.is_empty());
    match tls.mode {
        ClientTlsMode::IstioMutual if any_file => {
            review.error(at, "CONFLICT", "ISTIO_MUTUAL uses the workload's own identity; no files may be given");
        }
        ClientTlsMode::Simple | ClientTlsMode::Mutual if !tls.credential_name.is_empty() && any_file => {
            review.error(at, "ONE_OF", "`credentialName` and files exclude each other");
        }
        ClientTlsMode::Mutual if tls.credential_name.is_empty() => {
            for (field, file) in [("clientCertificate", &tls.client_certificate), ("privateKey", &tls.private_key)] {
                if file.is_empty() {
                    review.error(at, "FIELD_MISSING", format!("MUTUAL needs `{field}`"));
                }
            }
        }
        _ => {}
    }
    let verifies = matches!(tls.mode, ClientTlsMode::Simple | ClientTlsMode::Mutual);
    if verifies && tls.ca_certificates.is_empty() && tls.credential_name.is_empty() {
        review.warn(at, "TLS_UNVERIFIED", "without `caCertificates` the system's roots are trusted");
    }
    if !tls.sni.is_empty() && tls.mode == ClientTlsMode::Disable {
        review.warn(format!("{at}.sni"), "NO_EFFECT", "`sni` has no effect with mode DISABLE");
    }
}

pub(super) fn check_server_tls(tls: &ServerTls, at: &str, review: &mut Review<'_>) {
    let sources = [
        !tls.server_certificate.is_empty() || !tls.private_key.is_empty(),
        !tls.credential_name.is_empty(),
        !tls.credential_names.is_empty(),
        !tls.tls_certificates.is_empty(),
    ];
    let sources = sources.iter().filter(|given| **given).count();
    let terminates = matches!(tls.mode, ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual);
    if terminates {
        if sources != 1 {
            let text = "exactly one certificate source is needed: serverCertificate and privateKey, credentialName, credentialNames or tlsCertificates";
            review.error(at, "ONE_OF", text);
        }
        check_certificates(tls, at, review);
    } else if sources > 0 || !tls.ca_certificates.is_empty() {
        review.error(at, "CONFLICT", "this TLS mode takes no certificates");
    }
    if !tls.ca_crl.is_empty() && (tls.mode == ServerTlsMode::Simple || !tls.credential_name.is_empty()) {
        review.error(format!("{at}.caCrl"), "CONFLICT", "`caCrl` works with client certificates from files only");
    }
    let old = |version: TlsVersion| matches!(version, TlsVersion::V1_0 | TlsVersion::V1_1);
    if old(tls.min_protocol_version) || old(tls.max_protocol_version) {
        review.warn(at, "TLS_OLD", "versions below TLS 1.2 are not secure; 1.2 is the lowest that is served");
    }
    let (min, max) = (tls.min_protocol_version, tls.max_protocol_version);
    if min != TlsVersion::Auto && max != TlsVersion::Auto && min > max {
        review.error(at, "CONFLICT", "`minProtocolVersion` is above `maxProtocolVersion`");
    }
    for (index, suite) in tls.cipher_suites.iter().enumerate() {
        if tls.cipher_suites[..index].contains(suite) {
            review.warn(format!("{at}.cipherSuites"), "DUPLICATE_NAME", format!("`{suite}` is listed twice"));
        }
    }
}

fn check_certificates(tls: &ServerTls, at: &str, review: &mut Review<'_>) {
    if tls.server_certificate.is_empty() != tls.private_key.is_empty() {
        review.error(at, "FIELD_MISSING", "`serverCertificate` and `privateKey` belong together");
    }
    for (field, count) in
        [("credentialNames", tls.credential_names.len()), ("tlsCertificates", tls.tls_certificates.len())]
    {
        if count > CERTIFICATES_MAX {
            review.error(format!("{at}.{field}"), "OUT_OF_RANGE", format!("at most {CERTIFICATES_MAX} certificates"));
        }
    }
    for (index, pair) in tls.tls_certificates.iter().enumerate() {
        if pair.server_certificate.is_empty() || pair.private_key.is_empty() {
            review.error(
                format!("{at}.tlsCertificates[{index}]"),
                "FIELD_MISSING",
                "`serverCertificate` and `privateKey` belong together",
            );
        }
    }
    let asks = matches!(tls.mode, ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual);
    let named = !tls.credential_name.is_empty() || !tls.credential_names.is_empty();
    if asks && !named && tls.ca_certificates.is_empty() {
        review.error(at, "FIELD_MISSING", "`caCertificates` is needed to verify client certificates");
    }
}

const MAGLEV_TABLE_SIZE_MAX: u64 = 5_000_011;
const CERTIFICATES_MAX: usize = 2;

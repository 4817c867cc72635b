//! Metrics in, edges out.

use super::*;

fn line(reporter: &str, source: &str, security: &str, code: &str, value: &str) -> String {
    format!(
        "istio_requests_total{{reporter=\"{reporter}\",source_principal=\"{source}\",destination_principal=\"spiffe://td/b\",\
         destination_service=\"b.svc\",request_protocol=\"http\",response_code=\"{code}\",connection_security_policy=\"{security}\"}} {value}"
    )
}

fn edges_of(lines: &[String]) -> Vec<Edge> {
    edges(&samples(&lines.join("\n")))
}

#[test]
fn what_both_ends_count_is_one_edge_and_the_destination_knows_better() {
    let edges = edges_of(&[
        line("source", "spiffe://td/a", "unknown", "200", "7"),
        line("destination", "spiffe://td/a", "mutual_tls", "200", "5"),
        line("destination", "spiffe://td/a", "mutual_tls", "403", "2"),
        line("destination", "spiffe://td/a", "mutual_tls", "503", "1"),
    ]);
    let [edge] = &edges[..] else { panic!("{edges:?}") };
    assert_eq!((edge.requests, edge.denied, edge.failed), (8, 2, 1));
    assert_eq!((edge.security.as_str(), edge.reporter.as_str()), ("mutual_tls", "destination"));
}

#[test]
fn a_destination_that_does_not_know_the_service_still_tells_whether_it_was_mtls() {
    let nameless = line("destination", "spiffe://td/a", "none", "200", "7").replace("b.svc", "unknown");
    let edges = edges_of(&[line("source", "spiffe://td/a", "mutual_tls", "200", "7"), nameless.clone()]);
    let [edge] = &edges[..] else { panic!("{edges:?}") };
    assert_eq!((edge.requests, edge.service.as_str(), edge.security.as_str()), (7, "b.svc", "none"));
    assert_eq!(edges_of(&[nameless])[0].service, "unknown");
}

#[test]
fn what_only_the_source_counts_is_shown_too() {
    let edges = edges_of(&[line("source", "spiffe://td/a", "unknown", "0", "3")]);
    assert_eq!((edges[0].requests, edges[0].failed, edges[0].reporter.as_str()), (3, 3, "source"));
}

#[test]
fn one_plain_request_opens_an_edge_and_the_busiest_is_first() {
    let edges = edges_of(&[
        line("destination", "spiffe://td/a", "mutual_tls", "200", "9"),
        line("destination", "spiffe://td/a", "none", "200", "1"),
        line("destination", "spiffe://td/c", "mutual_tls", "200", "99"),
    ]);
    assert_eq!(edges.iter().map(|edge| edge.security.as_str()).collect::<Vec<_>>(), ["mutual_tls", "none"]);
}

#[test]
fn connections_are_counted_apart_from_requests() {
    let tcp = line("destination", "spiffe://td/a", "mutual_tls", "0", "4").replace(REQUESTS, CONNECTIONS);
    let edges = edges_of(&[tcp]);
    assert_eq!((edges[0].requests, edges[0].failed, edges[0].connections), (0, 0, 4));
}

#[test]
fn labels_are_read_with_their_escapes_and_broken_lines_passed_over() {
    let page = "istio_requests_total{a=\"x\\\"y\\\\z\\n,}\",b=\"\"} 5 1700000000\nother{a=\"b\"} 1\n# TYPE istio_requests counter";
    let samples = samples(page);
    assert_eq!(samples.len(), 1);
    assert_eq!((samples[0].label("a"), samples[0].label("b"), samples[0].count()), ("x\"y\\z\n,}", "", 5));
    let broken =
        ["istio_requests_total", "istio_requests_total{", "istio_requests_total{a=\"", "istio_requests_total{a=\"\\"];
    for broken in
        broken.iter().chain(&["istio_requests_total{} x", "istio_requests_total{} ", "istio_requests_total{a}1"])
    {
        assert!(super::samples(broken).is_empty(), "{broken}");
    }
    assert_eq!(super::samples("istio_requests_total{} -1")[0].count(), 0);
    assert_eq!(super::samples("istio_requests_total{} NaN")[0].count(), 0);
}

//! Tests of `pick`.

use super::*;

fn names(list: &[&str]) -> Vec<Box<str>> {
    list.iter().map(|&name| name.into()).collect()
}

fn cidrs(list: &[&str]) -> Vec<Cidr> {
    let parse = |text: &&str| {
        let (ip, len) = text.split_once('/').unwrap();
        let value = envoy_types::pb::envoy::config::core::v3::CidrRange {
            address_prefix: ip.into(),
            prefix_len: Some(envoy_types::pb::google::protobuf::UInt32Value { value: len.parse().unwrap() }),
        };
        Cidr::compile(&value).unwrap()
    };
    list.iter().map(parse).collect()
}

fn facts<'a>(destination: &str, source: &str, sni: Option<&'a str>, alpn: &'a [&'a str]) -> ConnectionFacts<'a> {
    let source = source.parse().unwrap();
    ConnectionFacts {
        destination: destination.parse().unwrap(),
        source,
        direct_source: source,
        sni,
        alpn,
        transport: if sni.is_some() { "tls" } else { "raw_buffer" },
    }
}

fn tls(server_names: &[&str]) -> ChainMatch {
    ChainMatch { server_names: names(server_names), transport: "tls".into(), ..Default::default() }
}

#[test]
fn the_most_specific_server_name_wins() {
    let chains = [tls(&[]), tls(&["*.test"]), tls(&["*.a.test"]), tls(&["x.a.test"])];
    for (sni, expected) in [
        ("x.a.test", 3),
        ("X.A.Test", 3),
        ("y.a.test", 2),
        ("a.test", 1),
        ("x.y.test", 1),
        ("test", 0),
        ("other", 0),
        (".a.test", 1),
    ] {
        let facts = facts("1.1.1.1:443", "2.2.2.2:1", Some(sni), &[]);
        assert_eq!(pick(&chains, &facts), Some(expected), "{sni}");
    }
}

#[test]
fn the_destination_goes_before_everything_else() {
    let by_port = ChainMatch { destination_port: Some(80), ..Default::default() };
    let by_address = ChainMatch { destination: cidrs(&["10.0.0.0/8"]), ..Default::default() };
    let narrower = ChainMatch { destination: cidrs(&["10.1.0.0/16"]), ..Default::default() };
    let chains = [by_port, by_address, narrower];
    for (destination, expected) in
        [("10.1.1.1:80", Some(0)), ("10.1.1.1:81", Some(2)), ("10.2.1.1:81", Some(1)), ("11.0.0.1:81", None)]
    {
        assert_eq!(pick(&chains, &facts(destination, "2.2.2.2:1", None, &[])), expected, "{destination}");
    }
}

#[test]
fn a_chain_that_lost_a_step_never_comes_back() {
    // Port 80 narrows to the first chain, whose transport does not fit; the second would fit but is out.
    let strict = ChainMatch { destination_port: Some(80), transport: "tls".into(), ..Default::default() };
    let open = ChainMatch { transport: "raw_buffer".into(), ..Default::default() };
    let chains = [strict, open];

    assert_eq!(pick(&chains, &facts("1.1.1.1:80", "2.2.2.2:1", None, &[])), None);
    assert_eq!(pick(&chains, &facts("1.1.1.1:81", "2.2.2.2:1", None, &[])), Some(1));
}

#[test]
fn the_clients_order_decides_between_protocols() {
    let speaks = |list: &[&str]| ChainMatch { application_protocols: names(list), ..Default::default() };
    let chains = [speaks(&["http/1.1"]), speaks(&["h2"]), speaks(&[])];
    for (offer, expected) in
        [(&["h2", "http/1.1"][..], 1), (&["http/1.1", "h2"], 0), (&["istio", "h2"], 1), (&["other"], 2), (&[], 2)]
    {
        assert_eq!(pick(&chains, &facts("1.1.1.1:80", "2.2.2.2:1", Some("x"), offer)), Some(expected), "{offer:?}");
    }
}

#[test]
fn sources_are_told_apart_last() {
    let local = ChainMatch { source_type: SourceType::Local, ..Default::default() };
    let external = ChainMatch { source_type: SourceType::External, ..Default::default() };
    let known = ChainMatch { source: cidrs(&["9.9.0.0/16"]), ..Default::default() };
    let from_port = ChainMatch { source: cidrs(&["9.9.0.0/16"]), source_ports: vec![7], ..Default::default() };

    let chains = [local, external];
    assert_eq!(pick(&chains, &facts("1.1.1.1:80", "127.0.0.1:5", None, &[])), Some(0));
    assert_eq!(pick(&chains, &facts("1.1.1.1:80", "1.1.1.1:5", None, &[])), Some(0));
    assert_eq!(pick(&chains, &facts("1.1.1.1:80", "9.9.1.1:5", None, &[])), Some(1));

    let chains = [known, from_port];
    assert_eq!(pick(&chains, &facts("1.1.1.1:80", "9.9.1.1:5", None, &[])), Some(0));
    assert_eq!(pick(&chains, &facts("1.1.1.1:80", "9.9.1.1:7", None, &[])), Some(1));
    assert_eq!(pick(&chains, &facts("1.1.1.1:80", "8.8.1.1:7", None, &[])), None);
}

#[test]
fn strange_server_names_are_refused() {
    for name in ["*", "a.*.test", "*a.test", "*.", ""] {
        assert!(server_name(name).is_err(), "{name}");
    }
}

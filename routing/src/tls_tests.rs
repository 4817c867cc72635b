//! Tests of `tls`.

use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::util::pack_any;

use super::*;

fn socket(context: impl Name) -> TransportSocket {
    TransportSocket {
        name: "tls".into(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(pack_any(context))),
    }
}

fn sds(name: &str) -> pb::SdsSecretConfig {
    pb::SdsSecretConfig { name: name.into(), sds_config: None }
}

fn san(kind: SanType, text: &str) -> pb::SubjectAltNameMatcher {
    let exact = matcher::string_matcher::MatchPattern::Exact(text.into());
    pb::SubjectAltNameMatcher {
        san_type: kind as i32,
        matcher: Some(matcher::StringMatcher { match_pattern: Some(exact), ignore_case: false }),
        oid: String::new(),
    }
}

fn mesh_context() -> pb::CommonTlsContext {
    pb::CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![sds("default")],
        alpn_protocols: vec!["h2".into()],
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(
            pb::common_tls_context::CombinedCertificateValidationContext {
                default_validation_context: Some(pb::CertificateValidationContext {
                    match_typed_subject_alt_names: vec![
                        san(SanType::Uri, "spiffe://td/a"),
                        san(SanType::Uri, "spiffe://td/b"),
                    ],
                    ..Default::default()
                }),
                validation_context_sds_secret_config: Some(sds("ROOTCA")),
                ..Default::default()
            },
        )),
        ..Default::default()
    }
}

#[test]
fn a_mesh_context_names_its_secrets_and_peers() {
    let context = pb::UpstreamTlsContext {
        common_tls_context: Some(mesh_context()),
        sni: "outbound_.80_._.a".into(),
        ..Default::default()
    };
    let tls = UpstreamTls::compile(Some(&socket(context))).unwrap().unwrap();

    assert_eq!(tls.common.certificates, [CertificateRef::Sds { name: "default".into() }]);
    assert_eq!(tls.common.validation.roots, RootsRef::Sds { name: "ROOTCA".into() });
    assert_eq!(tls.common.validation.exact_uris().unwrap(), ["spiffe://td/a", "spiffe://td/b"]);
    assert!(tls.common.validation.allows(&["spiffe://td/b"], &[]));
    assert!(!tls.common.validation.allows(&["spiffe://td/c"], &["spiffe://td/b"]));
    assert_eq!(tls.sni.as_deref(), Some("outbound_.80_._.a"));
}

#[test]
fn files_and_inline_keys_are_told_apart_and_keys_stay_hidden() {
    let source = |specifier| Some(DataSource { watched_directory: None, specifier: Some(specifier) });
    let file = |path: &str| source(data_source::Specifier::Filename(path.into()));
    let text = |text: &str| source(data_source::Specifier::InlineString(text.into()));
    let compile = |certificate_chain, private_key| {
        certificate(&pb::TlsCertificate { certificate_chain, private_key, ..Default::default() })
    };

    assert_eq!(
        compile(file("/c"), file("/k")).unwrap(),
        CertificateRef::Files { chain: "/c".into(), key: "/k".into() }
    );
    let inline = compile(text("CERT"), text("SECRET")).unwrap();
    assert!(!format!("{inline:?}").contains("SECRET") && !format!("{inline:?}").contains("83, 69"));
    assert!(compile(file("/c"), text("SECRET")).is_err());
    assert!(compile(None, file("/k")).is_err());
}

#[test]
fn a_server_without_a_certificate_is_refused() {
    assert!(DownstreamTls::compile(Some(&socket(pb::DownstreamTlsContext::default()))).is_err());
    assert!(DownstreamTls::compile(None).unwrap().is_none());
    assert!(DownstreamTls::compile(Some(&socket(RawBuffer::default()))).unwrap().is_none());
}

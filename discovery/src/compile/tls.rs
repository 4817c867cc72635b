//! TLS contexts: mesh identity from SDS, files, and the gRPC library's certificate providers.
//!
//! Between workloads of the mesh there is TLS 1.3 and nothing older.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher;
use pb::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
use pb::tls_parameters::TlsProtocol;

use super::canonical::pack;
use super::names::{SDS_CLUSTER, SECRET_OWN, SECRET_ROOTS};
use super::pb as short;
use crate::documents::shapes::{ClientTls, ClientTlsMode, ServerTls, ServerTlsMode, TlsVersion};

/// Towards a workload of the mesh: own SVID, roots and expected SPIFFE IDs.
pub(super) fn mesh_upstream(sni: &str, sans: &[String]) -> core::TransportSocket {
    let common = pb::CommonTlsContext { tls_params: Some(mesh_params()), ..mesh_common(uri_sans(sans)) };
    upstream(&pb::UpstreamTlsContext { common_tls_context: Some(common), sni: sni.to_owned(), ..Default::default() })
}

/// The same for a gRPC library, whose certificates come from its bootstrap's provider `default`.
pub(super) fn provider_upstream(sni: &str, sans: &[String]) -> core::TransportSocket {
    let provider =
        pb::CertificateProviderPluginInstance { instance_name: SECRET_OWN.to_owned(), certificate_name: String::new() };
    #[allow(deprecated, reason = "gRPC libraries read this field")]
    let validation = pb::CertificateValidationContext {
        ca_certificate_provider_instance: Some(provider.clone()),
        match_subject_alt_names: sans.iter().map(|san| short::exact(san)).collect(),
        ..Default::default()
    };
    let combined =
        CombinedCertificateValidationContext { default_validation_context: Some(validation), ..Default::default() };
    let common = pb::CommonTlsContext {
        tls_certificate_provider_instance: Some(provider),
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(combined)),
        ..Default::default()
    };
    upstream(&pb::UpstreamTlsContext { common_tls_context: Some(common), sni: sni.to_owned(), ..Default::default() })
}

/// As a destination rule wants it; `None` for plain text. `default_sni` and `sans` are the mesh's own.
pub(super) fn rule_upstream(tls: &ClientTls, default_sni: &str, sans: &[String]) -> Option<core::TransportSocket> {
    let sans = if tls.subject_alt_names.is_empty() { sans } else { &tls.subject_alt_names };
    match tls.mode {
        ClientTlsMode::Disable => None,
        ClientTlsMode::IstioMutual => {
            Some(mesh_upstream(if tls.sni.is_empty() { default_sni } else { &tls.sni }, sans))
        }
        ClientTlsMode::Simple | ClientTlsMode::Mutual => {
            let context = pb::UpstreamTlsContext {
                common_tls_context: Some(outside_common(tls)),
                sni: tls.sni.clone(),
                // Without a name of its own the request's host is asked for.
                auto_host_sni: tls.sni.is_empty(),
                auto_sni_san_validation: tls.sni.is_empty() && tls.subject_alt_names.is_empty() && verifies(tls),
                ..Default::default()
            };
            Some(upstream(&context))
        }
    }
}

fn verifies(tls: &ClientTls) -> bool {
    !tls.insecure_skip_verify.unwrap_or(false)
}

fn outside_common(tls: &ClientTls) -> pb::CommonTlsContext {
    let mut common = pb::CommonTlsContext {
        tls_params: Some(params(TlsVersion::V1_2, TlsVersion::V1_3, &[])),
        ..Default::default()
    };
    let mut validation = pb::CertificateValidationContext {
        match_typed_subject_alt_names: any_sans(&tls.subject_alt_names),
        crl: (!tls.ca_crl.is_empty()).then(|| short::file_source(&tls.ca_crl)),
        ..Default::default()
    };
    if tls.credential_name.is_empty() {
        if tls.mode == ClientTlsMode::Mutual {
            common.tls_certificates.push(certificate(&tls.client_certificate, &tls.private_key));
        }
        if !verifies(tls) {
            validation.trust_chain_verification =
                pb::certificate_validation_context::TrustChainVerification::AcceptUntrusted as i32;
        } else {
            // Envoy verifies nothing without a file: the system's roots have to be named.
            let roots = if tls.ca_certificates.is_empty() { SYSTEM_ROOTS } else { &tls.ca_certificates };
            validation.trusted_ca = Some(short::file_source(roots));
        }
        common.validation_context_type = Some(ValidationContextType::ValidationContext(validation));
    } else {
        if tls.mode == ClientTlsMode::Mutual {
            common.tls_certificate_sds_secret_configs.push(secret(&credential(&tls.credential_name)));
        }
        common.validation_context_type = Some(combined(validation, &credential_roots(&tls.credential_name)));
    }
    common
}

/// An inbound port of the mesh: the client must show an SVID.
pub(super) fn mesh_downstream(alpn: &[&str]) -> core::TransportSocket {
    let common = pb::CommonTlsContext {
        tls_params: Some(mesh_params()),
        alpn_protocols: alpn.iter().map(|&name| name.to_owned()).collect(),
        ..mesh_common(Vec::new())
    };
    downstream(&pb::DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: short::flag(true),
        ..Default::default()
    })
}

/// A gateway's server; `None` when the gateway does not end TLS there.
pub(super) fn gateway_downstream(tls: &ServerTls, alpn: &[&str]) -> Option<core::TransportSocket> {
    let (required, asked) = match tls.mode {
        ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough => return None,
        ServerTlsMode::IstioMutual => {
            let mut common = pb::CommonTlsContext {
                tls_params: Some(mesh_params()),
                ..mesh_common(any_sans(&tls.subject_alt_names))
            };
            common.alpn_protocols = alpn.iter().map(|&name| name.to_owned()).collect();
            let context = pb::DownstreamTlsContext {
                common_tls_context: Some(common),
                require_client_certificate: short::flag(true),
                ..Default::default()
            };
            return Some(downstream(&context));
        }
        ServerTlsMode::Simple => (false, false),
        ServerTlsMode::Mutual => (true, true),
        ServerTlsMode::OptionalMutual => (false, true),
    };
    let mut common = pb::CommonTlsContext {
        tls_params: Some(params(tls.min_protocol_version, tls.max_protocol_version, &tls.cipher_suites)),
        alpn_protocols: alpn.iter().map(|&name| name.to_owned()).collect(),
        ..Default::default()
    };
    server_certificates(tls, &mut common);
    if asked {
        common.validation_context_type = Some(client_validation(tls));
    }
    Some(downstream(&pb::DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: short::flag(required),
        ..Default::default()
    }))
}

fn server_certificates(tls: &ServerTls, common: &mut pb::CommonTlsContext) {
    if !tls.credential_name.is_empty() {
        common.tls_certificate_sds_secret_configs.push(secret(&credential(&tls.credential_name)));
    }
    for name in &tls.credential_names {
        common.tls_certificate_sds_secret_configs.push(secret(&credential(name)));
    }
    if !tls.server_certificate.is_empty() {
        common.tls_certificates.push(certificate(&tls.server_certificate, &tls.private_key));
    }
    for pair in &tls.tls_certificates {
        common.tls_certificates.push(certificate(&pair.server_certificate, &pair.private_key));
    }
}

fn client_validation(tls: &ServerTls) -> ValidationContextType {
    let mut validation = pb::CertificateValidationContext {
        match_typed_subject_alt_names: any_sans(&tls.subject_alt_names),
        verify_certificate_spki: tls.verify_certificate_spki.clone(),
        verify_certificate_hash: tls.verify_certificate_hash.clone(),
        crl: (!tls.ca_crl.is_empty()).then(|| short::file_source(&tls.ca_crl)),
        ..Default::default()
    };
    if tls.insecure_skip_verify.unwrap_or(false) {
        validation.trust_chain_verification =
            pb::certificate_validation_context::TrustChainVerification::AcceptUntrusted as i32;
    }
    if tls.credential_name.is_empty() {
        validation.trusted_ca = Some(short::file_source(&tls.ca_certificates));
        ValidationContextType::ValidationContext(validation)
    } else {
        combined(validation, &credential_roots(&tls.credential_name))
    }
}

/// Istio's names of credentials in SDS.
fn credential(name: &str) -> String {
    format!("kubernetes://{name}")
}

fn credential_roots(name: &str) -> String {
    format!("kubernetes://{name}-cacert")
}

fn mesh_common(sans: Vec<pb::SubjectAltNameMatcher>) -> pb::CommonTlsContext {
    let validation = pb::CertificateValidationContext { match_typed_subject_alt_names: sans, ..Default::default() };
    pb::CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![secret(SECRET_OWN)],
        validation_context_type: Some(combined(validation, SECRET_ROOTS)),
        ..Default::default()
    }
}

fn combined(validation: pb::CertificateValidationContext, roots: &str) -> ValidationContextType {
    ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
        default_validation_context: Some(validation),
        validation_context_sds_secret_config: Some(secret(roots)),
        ..Default::default()
    })
}

fn secret(name: &str) -> pb::SdsSecretConfig {
    let api = core::ApiConfigSource {
        api_type: core::api_config_source::ApiType::Grpc as i32,
        transport_api_version: core::ApiVersion::V3 as i32,
        grpc_services: vec![short::grpc_service(SDS_CLUSTER.to_owned(), "", None)],
        set_node_on_first_message_only: true,
        ..Default::default()
    };
    let source = core::ConfigSource {
        resource_api_version: core::ApiVersion::V3 as i32,
        // A proxy whose agent is late waits for its identity instead of serving without it.
        initial_fetch_timeout: Some(short::seconds(0)),
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::ApiConfigSource(api)),
        ..Default::default()
    };
    pb::SdsSecretConfig { name: name.to_owned(), sds_config: Some(source) }
}

fn uri_sans(sans: &[String]) -> Vec<pb::SubjectAltNameMatcher> {
    sans.iter().map(|san| san_matcher(pb::subject_alt_name_matcher::SanType::Uri, short::exact(san))).collect()
}

/// Names that operators list: a URI if it looks like one, else a DNS name.
fn any_sans(sans: &[String]) -> Vec<pb::SubjectAltNameMatcher> {
    use pb::subject_alt_name_matcher::SanType;
    let kind = |san: &str| if san.contains("://") { SanType::Uri } else { SanType::Dns };
    sans.iter().map(|san| san_matcher(kind(san), short::exact(san))).collect()
}

fn san_matcher(kind: pb::subject_alt_name_matcher::SanType, matcher: StringMatcher) -> pb::SubjectAltNameMatcher {
    pb::SubjectAltNameMatcher { san_type: kind as i32, matcher: Some(matcher), ..Default::default() }
}

fn certificate(chain: &str, key: &str) -> pb::TlsCertificate {
    pb::TlsCertificate {
        certificate_chain: Some(short::file_source(chain)),
        private_key: Some(short::file_source(key)),
        ..Default::default()
    }
}

fn mesh_params() -> pb::TlsParameters {
    params(TlsVersion::V1_3, TlsVersion::V1_3, &[])
}

fn params(min: TlsVersion, max: TlsVersion, suites: &[String]) -> pb::TlsParameters {
    let of = |version: TlsVersion, default: TlsProtocol| match version {
        TlsVersion::Auto => default,
        TlsVersion::V1_3 => TlsProtocol::TlSv13,
        // Older versions are not served, whatever the document says.
        TlsVersion::V1_0 | TlsVersion::V1_1 | TlsVersion::V1_2 => TlsProtocol::TlSv12,
    };
    pb::TlsParameters {
        tls_minimum_protocol_version: of(min, TlsProtocol::TlSv12) as i32,
        tls_maximum_protocol_version: of(max, TlsProtocol::TlSv13) as i32,
        cipher_suites: suites.iter().filter(|suite| CIPHER_SUITES.contains(&suite.as_str())).cloned().collect(),
        ..Default::default()
    }
}

fn upstream(context: &pb::UpstreamTlsContext) -> core::TransportSocket {
    socket(pack(context))
}

fn downstream(context: &pb::DownstreamTlsContext) -> core::TransportSocket {
    socket(pack(context))
}

fn socket(context: envoy_types::pb::google::protobuf::Any) -> core::TransportSocket {
    core::TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(context)),
    }
}

/// Where Debian, Alpine and their like keep the roots that the machine trusts.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Suites of TLS 1.2 that a document may choose from; others would make a proxy refuse the whole listener.
const CIPHER_SUITES: &[&str] = &[
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
];

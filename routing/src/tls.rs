//! What TLS to speak on a connection: certificates by reference, whom to trust, which names to accept.
//!
//! Secrets are named here, not held: the proxy fetches and renews them. A key written into the configuration itself
//! is kept out of every `Debug` output.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{DataSource, TransportSocket, data_source, transport_socket};
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use pb::{common_tls_context::ValidationContextType, subject_alt_name_matcher::SanType, tls_parameters::TlsProtocol};
use prost::Name;

use crate::config::{At, ConfigError, decode, each, flag, is_type, not_supported, required, type_name};
use crate::matcher::StringMatcher;

/// TLS towards those who connect to us.
#[derive(Clone, Debug)]
pub struct DownstreamTls {
    /// What both directions have in common.
    pub common: TlsCommon,
    /// Whether a client without a certificate is refused.
    pub require_client_certificate: bool,
    /// Whether a client that names no server is refused.
    pub require_sni: bool,
}

/// TLS towards an upstream.
#[derive(Clone, Debug)]
pub struct UpstreamTls {
    /// What both directions have in common.
    pub common: TlsCommon,
    /// The server name to ask for.
    pub sni: Option<Arc<str>>,
    /// Whether the request's host is the server name to ask for.
    pub auto_sni: bool,
    /// Whether the server's certificate must bear the name that was asked for.
    pub auto_san: bool,
}

/// The part of a TLS context that does not depend on the direction.
#[derive(Clone, Debug)]
pub struct TlsCommon {
    /// What we show; empty if nothing.
    pub certificates: Vec<CertificateRef>,
    /// Whom we trust.
    pub validation: Validation,
    /// Protocols to offer or accept, most wanted first.
    pub alpn: Vec<Vec<u8>>,
    /// The lowest version; none means the proxy's default.
    pub min_version: Option<TlsVersion>,
    /// The highest version; none means the proxy's default.
    pub max_version: Option<TlsVersion>,
    /// Suites for TLS 1.2, by their OpenSSL names; empty means the proxy's default.
    pub cipher_suites: Vec<String>,
}

/// A TLS version that we speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// Where a certificate and its key come from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CertificateRef {
    /// From the secret discovery service.
    Sds {
        /// The secret's name.
        name: Arc<str>,
    },
    /// From PEM files, to be read again when they change.
    Files {
        /// The certificate chain.
        chain: PathBuf,
        /// The private key.
        key: PathBuf,
    },
    /// From the configuration itself.
    Inline {
        /// The certificate chain in PEM.
        chain: Arc<[u8]>,
        /// The private key in PEM.
        key: InlineKey,
    },
}

/// A private key that was written into the configuration.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct InlineKey(Arc<[u8]>);

impl InlineKey {
    /// The key in PEM.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for InlineKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InlineKey(…)")
    }
}

/// Whom to trust on the other side.
#[derive(Clone, Debug, Default)]
pub struct Validation {
    /// The roots.
    pub roots: RootsRef,
    /// Names of which the certificate must bear one; empty means that any name will do.
    pub sans: Vec<SanMatcher>,
    /// Whether a certificate that does not verify is accepted, as some gateways want.
    pub accept_untrusted: bool,
    /// SHA-256 digests of public keys, in base64, one of which the certificate must have; empty means any.
    pub spki_pins: Vec<String>,
    /// SHA-256 digests of certificates, in hexadecimal, one of which it must have; empty means any.
    pub hash_pins: Vec<String>,
    /// A revocation list of its own.
    pub crl: Option<PathBuf>,
}

/// Where trusted roots come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum RootsRef {
    /// Nothing was said: the other side is not verified.
    #[default]
    Unset,
    /// From the secret discovery service.
    Sds {
        /// The secret's name.
        name: Arc<str>,
    },
    /// From a PEM file, to be read again when it changes.
    File(PathBuf),
    /// From the configuration itself, in PEM.
    Inline(Arc<[u8]>),
    /// The machine's own roots.
    System,
}

/// A test of one kind of name in a certificate.
#[derive(Clone, Debug)]
pub struct SanMatcher {
    kind: SanKind,
    test: StringMatcher,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SanKind {
    Any,
    Uri,
    Dns,
}

impl Validation {
    /// Whether a certificate with these names may stand on the other side.
    pub fn allows(&self, uris: &[&str], dns_names: &[&str]) -> bool {
        let any = |names: &[&str], test: &StringMatcher| names.iter().any(|name| test.matches(name.as_bytes()));
        self.sans.is_empty()
            || self.sans.iter().any(|san| {
                (san.kind != SanKind::Dns && any(uris, &san.test))
                    || (san.kind != SanKind::Uri && any(dns_names, &san.test))
            })
    }

    /// The URIs of which one is expected, if that is all that the names say.
    pub fn exact_uris(&self) -> Option<Vec<&str>> {
        match self.sans.is_empty() {
            true => None,
            false => self.sans.iter().map(SanMatcher::as_uri).collect(),
        }
    }

    fn compile(value: &pb::CertificateValidationContext) -> Result<Self, ConfigError> {
        let roots = match (&value.trusted_ca, &value.system_root_certs) {
            (Some(source), _) => roots(source).at("trusted_ca")?,
            (None, Some(_)) => RootsRef::System,
            (None, None) => RootsRef::Unset,
        };
        if value.custom_validator_config.is_some() {
            return not_supported("a custom validator").at("custom_validator_config");
        }
        let mut sans =
            each("match_typed_subject_alt_names", &value.match_typed_subject_alt_names, SanMatcher::compile)?;
        sans.extend(each("match_subject_alt_names", &value.match_subject_alt_names, |test| {
            Ok(SanMatcher { kind: SanKind::Any, test: StringMatcher::compile(test)? })
        })?);
        use pb::certificate_validation_context::TrustChainVerification::AcceptUntrusted;
        Ok(Self {
            roots,
            sans,
            accept_untrusted: value.trust_chain_verification == AcceptUntrusted as i32,
            spki_pins: value.verify_certificate_spki.clone(),
            hash_pins: value.verify_certificate_hash.clone(),
            crl: value.crl.as_ref().map(|source| file(source).at("crl")).transpose()?,
        })
    }
}

impl SanMatcher {
    fn compile(value: &pb::SubjectAltNameMatcher) -> Result<Self, ConfigError> {
        let kind = match SanType::try_from(value.san_type) {
            Ok(SanType::Uri) => SanKind::Uri,
            Ok(SanType::Dns) => SanKind::Dns,
            _ => return not_supported("any name but URI and DNS").at("san_type"),
        };
        Ok(Self { kind, test: required(value.matcher.as_ref()).and_then(StringMatcher::compile).at("matcher")? })
    }

    fn as_uri(&self) -> Option<&str> {
        match self.kind {
            SanKind::Dns => None,
            SanKind::Uri | SanKind::Any => self.test.as_exact().filter(|text| text.contains("://")),
        }
    }
}

impl TlsCommon {
    fn compile(value: Option<&pb::CommonTlsContext>) -> Result<Self, ConfigError> {
        let empty = pb::CommonTlsContext::default();
        let value = value.unwrap_or(&empty);
        let mut certificates = each("tls_certificates", &value.tls_certificates, certificate)?;
        certificates.extend(
            value
                .tls_certificate_sds_secret_configs
                .iter()
                .map(|secret| CertificateRef::Sds { name: secret.name.as_str().into() }),
        );
        if value.tls_certificate_provider_instance.is_some() || value.custom_tls_certificate_selector.is_some() {
            return not_supported("a certificate provider");
        }
        let params = value.tls_params.clone().unwrap_or_default();
        Ok(Self {
            certificates,
            validation: validation(value.validation_context_type.as_ref())?,
            alpn: value.alpn_protocols.iter().map(|protocol| protocol.clone().into_bytes()).collect(),
            min_version: version(params.tls_minimum_protocol_version).at("tls_params")?,
            max_version: version(params.tls_maximum_protocol_version).at("tls_params")?,
            cipher_suites: params.cipher_suites,
        })
    }
}

impl DownstreamTls {
    /// Compiles the transport socket of a filter chain; a raw one has no TLS.
    pub(crate) fn compile(socket: Option<&TransportSocket>) -> Result<Option<Arc<Self>>, ConfigError> {
        let Some(value) = context::<pb::DownstreamTlsContext>(socket)? else { return Ok(None) };
        let common = TlsCommon::compile(value.common_tls_context.as_ref()).at("common_tls_context")?;
        if common.certificates.is_empty() {
            return Err(ConfigError::new("names no certificate").under("common_tls_context"));
        }
        Ok(Some(Arc::new(Self {
            common,
            require_client_certificate: flag(value.require_client_certificate.as_ref(), false),
            require_sni: flag(value.require_sni.as_ref(), false),
        })))
    }
}

impl UpstreamTls {
    /// Compiles the transport socket of a cluster; a raw one has no TLS.
    pub(crate) fn compile(socket: Option<&TransportSocket>) -> Result<Option<Arc<Self>>, ConfigError> {
        let Some(value) = context::<pb::UpstreamTlsContext>(socket)? else { return Ok(None) };
        Ok(Some(Arc::new(Self {
            common: TlsCommon::compile(value.common_tls_context.as_ref()).at("common_tls_context")?,
            sni: Some(value.sni.as_str()).filter(|sni| !sni.is_empty()).map(Into::into),
            auto_sni: value.auto_host_sni,
            auto_san: value.auto_sni_san_validation,
        })))
    }
}

fn context<T: prost::Message + Name + Default>(socket: Option<&TransportSocket>) -> Result<Option<T>, ConfigError> {
    let Some(socket) = socket else { return Ok(None) };
    match socket.config_type.as_ref() {
        None if socket.name == "envoy.transport_sockets.raw_buffer" => Ok(None),
        None => Err(ConfigError::new("is required").under("typed_config")),
        Some(transport_socket::ConfigType::TypedConfig(any)) if is_type::<RawBuffer>(any) => Ok(None),
        Some(transport_socket::ConfigType::TypedConfig(any)) if is_type::<T>(any) => {
            decode(any).at("typed_config").map(Some)
        }
        Some(transport_socket::ConfigType::TypedConfig(any)) => {
            not_supported(&format!("the transport socket {}", type_name(any)))
        }
    }
}

fn validation(value: Option<&ValidationContextType>) -> Result<Validation, ConfigError> {
    use ValidationContextType as Type;
    match value {
        None => Ok(Validation::default()),
        Some(Type::ValidationContext(context)) => Validation::compile(context).at("validation_context"),
        Some(Type::ValidationContextSdsSecretConfig(secret)) => {
            Ok(Validation { roots: RootsRef::Sds { name: secret.name.as_str().into() }, ..Validation::default() })
        }
        Some(Type::CombinedValidationContext(both)) => combined(both).at("combined_validation_context"),
        Some(_) => not_supported("a certificate provider"),
    }
}

fn combined(value: &pb::common_tls_context::CombinedCertificateValidationContext) -> Result<Validation, ConfigError> {
    let mut validation = match &value.default_validation_context {
        Some(context) => Validation::compile(context).at("default_validation_context")?,
        None => Validation::default(),
    };
    let secret = required(value.validation_context_sds_secret_config.as_ref());
    validation.roots = RootsRef::Sds { name: secret.at("validation_context_sds_secret_config")?.name.as_str().into() };
    Ok(validation)
}

fn certificate(value: &pb::TlsCertificate) -> Result<CertificateRef, ConfigError> {
    let chain = required(value.certificate_chain.as_ref()).at("certificate_chain")?;
    let key = required(value.private_key.as_ref()).at("private_key")?;
    if value.password.is_some() || value.private_key_provider.is_some() {
        return not_supported("an encrypted or provided key");
    }
    if matches!(chain.specifier, Some(data_source::Specifier::Filename(_))) {
        return Ok(CertificateRef::Files {
            chain: file(chain).at("certificate_chain")?,
            key: file(key).at("private_key")?,
        });
    }
    Ok(CertificateRef::Inline {
        chain: inline(chain).at("certificate_chain")?,
        key: InlineKey(inline(key).at("private_key")?),
    })
}

fn roots(source: &DataSource) -> Result<RootsRef, ConfigError> {
    match source.specifier {
        Some(data_source::Specifier::Filename(_)) => Ok(RootsRef::File(file(source)?)),
        _ => Ok(RootsRef::Inline(inline(source)?)),
    }
}

fn file(source: &DataSource) -> Result<PathBuf, ConfigError> {
    match &source.specifier {
        Some(data_source::Specifier::Filename(path)) if !path.is_empty() => Ok(path.into()),
        _ => Err(ConfigError::new("must name a file")),
    }
}

fn inline(source: &DataSource) -> Result<Arc<[u8]>, ConfigError> {
    match &source.specifier {
        Some(data_source::Specifier::InlineBytes(bytes)) => Ok(bytes.as_slice().into()),
        Some(data_source::Specifier::InlineString(text)) => Ok(text.as_bytes().into()),
        _ => Err(ConfigError::new("must be written inline or name a file")),
    }
}

fn version(value: i32) -> Result<Option<TlsVersion>, ConfigError> {
    match TlsProtocol::try_from(value) {
        Ok(TlsProtocol::TlsAuto) => Ok(None),
        // Older versions are a floor that we stay above anyway.
        Ok(TlsProtocol::TlSv10 | TlsProtocol::TlSv11 | TlsProtocol::TlSv12) => Ok(Some(TlsVersion::V1_2)),
        Ok(TlsProtocol::TlSv13) => Ok(Some(TlsVersion::V1_3)),
        Err(_) => Err(ConfigError::new("unknown TLS version")),
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;

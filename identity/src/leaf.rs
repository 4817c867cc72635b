//! The rules of the X.509-SVID standard for one certificate, before any path is built.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, KeyUsage, ParsedExtension};
use x509_parser::oid_registry::OID_X509_EXT_BASIC_CONSTRAINTS;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::{AttributeTypeAndValue, RelativeDistinguishedName, X509Name};

use crate::spiffe_id::{SpiffeId, SpiffeIdError};
use crate::{digest, time_from_secs};

/// A leaf that obeys the rules. That anybody trusts it is another question.
#[derive(Debug, Clone)]
pub(crate) struct Leaf {
    pub(crate) id: SpiffeId,
    pub(crate) serial: String,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    pub(crate) public_key_spki: Vec<u8>,
    pub(crate) dns_names: Vec<String>,
    pub(crate) subject: String,
}

/// Decodes a leaf: exactly one URI SAN, which is a SPIFFE ID with a path; not a CA; key usage for signatures only; both
/// TLS usages if any extended usage is given.
pub(crate) fn decode_leaf(der: &CertificateDer<'_>) -> Result<Leaf, LeafError> {
    let certificate = decode(der)?;
    let names = names(&certificate)?;
    let id = names.id()?;
    if is_ca(&certificate)? {
        return Err(LeafError::Authority);
    }
    check_leaf_key_usage(key_usage(&certificate)?)?;
    check_extended_key_usage(&certificate)?;
    let (not_before, not_after) = validity(&certificate);
    Ok(Leaf {
        id,
        serial: digest::serial_hex(certificate.raw_serial()),
        not_before,
        not_after,
        public_key_spki: certificate.public_key().raw.to_vec(),
        dns_names: names.dns_names,
        subject: distinguished_name(certificate.subject()),
    })
}

/// Checks that a certificate may sign others: a CA by its basic constraints, with the key usage for it, and a trust domain's
/// own ID if any.
pub(crate) fn check_signing_certificate(der: &CertificateDer<'_>) -> Result<(), LeafError> {
    let certificate = decode(der)?;
    if !is_ca(&certificate)? {
        return Err(LeafError::NotAuthority);
    }
    let uris = names(&certificate)?.uris;
    let names_workload = |uri: &String| SpiffeId::parse(uri).is_ok_and(|id| !id.path().is_empty());
    if uris.iter().any(names_workload) {
        return Err(LeafError::AuthorityIdWithPath);
    }
    match key_usage(&certificate)? {
        Some(usage) if usage.key_cert_sign() => Ok(()),
        Some(_) | None => Err(LeafError::KeyUsage("a signing certificate needs keyCertSign")),
    }
}

pub(crate) fn decode<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, LeafError> {
    if der.len() > CERTIFICATE_BYTES_MAX {
        return Err(LeafError::TooLong);
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) | Err(_) => Err(LeafError::Malformed),
    }
}

pub(crate) fn validity(certificate: &X509Certificate<'_>) -> (SystemTime, SystemTime) {
    let validity = certificate.validity();
    (time_from_secs(validity.not_before.timestamp()), time_from_secs(validity.not_after.timestamp()))
}

/// A distinguished name as RFC 4514 writes it: last part first, commas between.
pub(crate) fn distinguished_name(name: &X509Name<'_>) -> String {
    let parts: Vec<String> = name.iter_rdn().map(relative_name).collect();
    parts.into_iter().rev().collect::<Vec<_>>().join(",")
}

fn relative_name(part: &RelativeDistinguishedName<'_>) -> String {
    let attributes: Vec<String> = part.iter().map(attribute).collect();
    attributes.join("+")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    let kind = match oid.as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        other => other,
    };
    match attribute.as_str() {
        Ok(value) => format!("{kind}={}", escape(value)),
        Err(_) => format!("{kind}=#{}", digest::hex(attribute.as_slice())),
    }
}

/// Escapes what has a meaning in RFC 4514, and writes control characters as hexadecimal pairs.
fn escape(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (at, c) in value.chars().enumerate() {
        let edge_space = c == ' ' && (at == 0 || at == last);
        match c {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' | '=' => text.extend(['\\', c]),
            '#' if at == 0 => text.push_str("\\#"),
            ' ' if edge_space => text.push_str("\\ "),
            c if c.is_control() => text.push_str(&format!("\\{:02x}", u32::from(c))),
            c => text.push(c),
        }
    }
    text
}

/// The names of a certificate.
pub(crate) struct Names {
    pub(crate) uris: Vec<String>,
    pub(crate) dns_names: Vec<String>,
}

impl Names {
    fn id(&self) -> Result<SpiffeId, LeafError> {
        let uri = match self.uris.as_slice() {
            [] => return Err(LeafError::NoSpiffeId),
            [uri] => uri,
            _ => return Err(LeafError::ManyUris(self.uris.len())),
        };
        if !uri.starts_with("spiffe://") {
            return Err(LeafError::NoSpiffeId);
        }
        let id = SpiffeId::parse(uri).map_err(LeafError::Id)?;
        if id.path().is_empty() { Err(LeafError::IdWithoutPath) } else { Ok(id) }
    }
}

pub(crate) fn names(certificate: &X509Certificate<'_>) -> Result<Names, LeafError> {
    let mut names = Names { uris: Vec::new(), dns_names: Vec::new() };
    let extension = certificate.subject_alternative_name().map_err(|_| LeafError::Malformed)?;
    for name in extension.iter().flat_map(|extension| &extension.value.general_names) {
        match name {
            GeneralName::URI(uri) => names.uris.push((*uri).to_owned()),
            GeneralName::DNSName(name) => names.dns_names.push((*name).to_owned()),
            GeneralName::Invalid(..) => return Err(LeafError::Malformed), // It could be a second URI.
            _ => {}
        }
    }
    Ok(names)
}

/// Whether the basic constraints say CA. An extension that does not parse is refused rather than overlooked.
pub(crate) fn is_ca(certificate: &X509Certificate<'_>) -> Result<bool, LeafError> {
    let extension =
        certificate.get_extension_unique(&OID_X509_EXT_BASIC_CONSTRAINTS).map_err(|_| LeafError::Malformed)?;
    match extension.map(|extension| extension.parsed_extension()) {
        None => Ok(false),
        Some(ParsedExtension::BasicConstraints(constraints)) => Ok(constraints.ca),
        Some(_) => Err(LeafError::Malformed),
    }
}

fn key_usage<'a>(certificate: &'a X509Certificate<'_>) -> Result<Option<&'a KeyUsage>, LeafError> {
    let extension = certificate.key_usage().map_err(|_| LeafError::Malformed)?;
    Ok(extension.map(|extension| extension.value))
}

fn check_leaf_key_usage(usage: Option<&KeyUsage>) -> Result<(), LeafError> {
    let usage = usage.ok_or(LeafError::KeyUsage("a leaf needs the key usage extension"))?;
    if usage.key_cert_sign() || usage.crl_sign() {
        return Err(LeafError::KeyUsage("a leaf must not have keyCertSign or cRLSign"));
    }
    if usage.digital_signature() { Ok(()) } else { Err(LeafError::KeyUsage("a leaf needs digitalSignature")) }
}

fn check_extended_key_usage(certificate: &X509Certificate<'_>) -> Result<(), LeafError> {
    match certificate.extended_key_usage().map_err(|_| LeafError::Malformed)? {
        Some(usage) if !(usage.value.server_auth && usage.value.client_auth) => {
            Err(LeafError::KeyUsage("the extended key usage must hold both serverAuth and clientAuth"))
        }
        Some(_) | None => Ok(()),
    }
}

/// Why a certificate is no X.509-SVID, or no signing certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeafError {
    /// Longer than any certificate we read.
    #[error("the certificate is longer than {CERTIFICATE_BYTES_MAX} bytes")]
    TooLong,
    /// Not a well-formed certificate, or an extension is malformed or given twice.
    #[error("the certificate is malformed")]
    Malformed,
    /// There is no URI SAN, or it is not of the scheme `spiffe`.
    #[error("the certificate carries no SPIFFE ID")]
    NoSpiffeId,
    /// There is more than one URI SAN.
    #[error("the certificate carries {0} URI names; an SVID has exactly one")]
    ManyUris(usize),
    /// The URI SAN is not a valid SPIFFE ID.
    #[error("the certificate's SPIFFE ID is malformed")]
    Id(#[source] SpiffeIdError),
    /// The ID has no path, as only a trust domain's own has.
    #[error("the certificate's SPIFFE ID has no path, so it names a trust domain and no workload")]
    IdWithoutPath,
    /// A CA certificate was presented as a leaf.
    #[error("the certificate is a CA's and cannot identify a workload")]
    Authority,
    /// A CA certificate names a workload.
    #[error("the CA certificate's SPIFFE ID has a path, as only a workload's may")]
    AuthorityIdWithPath,
    /// A certificate that is not a CA's stands where one must.
    #[error("the certificate is not a CA's and cannot sign others")]
    NotAuthority,
    /// The key usage is missing or wrong.
    #[error("{0}")]
    KeyUsage(&'static str),
}

impl LeafError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoSpiffeId => "TLS_PEER_NO_SPIFFE_ID",
            _ => "TLS_PEER_NOT_SVID",
        }
    }
}

/// The longest certificate read.
pub(crate) const CERTIFICATE_BYTES_MAX: usize = 16 * 1024;

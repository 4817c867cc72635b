//! From profiles to certificate contents.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CrlDistributionPoint, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyIdMethod, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, DnsName};
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;

use super::{AuthorityError, CaProfile, LeafProfile, NAMES_MAX};
use crate::digest;
use crate::leaf::{self, LeafError};
use crate::secs_of;
use crate::signed;
use crate::spiffe_id::TrustDomain;

/// From when until when, in whole seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Validity {
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl Validity {
    /// `ttl` from now, backdated, and held within the issuer's own validity.
    pub(super) fn new(
        ttl: Duration,
        backdate: Duration,
        now: SystemTime,
        issuer: Option<(SystemTime, SystemTime)>,
    ) -> Result<Self, AuthorityError> {
        let now = secs_of(now);
        let (from, until) = issuer.map_or((0, u64::MAX), |(from, until)| (secs_of(from), secs_of(until)));
        let not_before = now.saturating_sub(backdate.as_secs()).max(from);
        let not_after = now.saturating_add(ttl.as_secs()).min(until);
        if not_after <= now || now < from {
            return Err(AuthorityError::NotValidNow);
        }
        Ok(Self { not_before: date(not_before)?, not_after: date(not_after)? })
    }
}

pub(super) fn date(secs: u64) -> Result<OffsetDateTime, AuthorityError> {
    let secs = i64::try_from(secs).map_err(|_| AuthorityError::Time)?;
    OffsetDateTime::from_unix_timestamp(secs).map_err(|_| AuthorityError::Time)
}

pub(super) fn leaf_params(profile: &LeafProfile, validity: Validity) -> Result<CertificateParams, AuthorityError> {
    if profile.id.path().is_empty() {
        return Err(AuthorityError::IdWithoutPath(profile.id.clone()));
    }
    let mut params = common(validity, profile.serial)?;
    params.subject_alt_names.push(uri(profile.id.as_str())?);
    add_names(&mut params, &profile.dns_names, &profile.ip_addresses)?;
    if let Some(name) = profile.dns_names.first().filter(|name| name.len() <= COMMON_NAME_BYTES_MAX) {
        params.distinguished_name.push(DnType::CommonName, name.as_str());
    }
    let point = |url: &String| CrlDistributionPoint { uris: vec![url.clone()] };
    params.crl_distribution_points.extend(profile.crl_url.iter().map(point));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature]; // All that TLS 1.3 needs, whatever the kind of key.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

pub(super) fn ca_params(
    trust_domain: &TrustDomain,
    public_key_spki: &[u8],
    profile: &CaProfile,
    validity: Validity,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = common(validity, profile.serial)?;
    params.subject_alt_names.push(uri(trust_domain.id().as_str())?);
    params.distinguished_name = ca_name(trust_domain, public_key_spki);
    params.is_ca = IsCa::Ca(match profile.path_len {
        Some(len) => BasicConstraints::Constrained(len),
        None => BasicConstraints::Unconstrained,
    });
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// What a request for a CA certificate of ours asks for; names as [`ca_params`] gives them.
pub(crate) fn csr_params(
    trust_domain: &TrustDomain,
    public_key_spki: &[u8],
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = ca_name(trust_domain, public_key_spki);
    params.subject_alt_names.push(uri(trust_domain.id().as_str())?);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// The name must differ between authorities, or path builders try the wrong key first.
fn ca_name(trust_domain: &TrustDomain, public_key_spki: &[u8]) -> DistinguishedName {
    let key_hash = digest::hex(&digest::sha256(public_key_spki)[..8]);
    let organization: String = trust_domain.as_str().chars().take(COMMON_NAME_BYTES_MAX).collect();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, organization);
    name.push(DnType::CommonName, format!("Kasbah authority {key_hash}"));
    name
}

/// What every certificate has: times, serial number, empty subject, authority key identifier.
pub(super) fn common(validity: Validity, serial: [u8; 16]) -> Result<CertificateParams, AuthorityError> {
    if serial == [0; 16] {
        return Err(AuthorityError::Serial);
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = validity.not_before;
    params.not_after = validity.not_after;
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Names the certified key by the SHA-256 of its bits, cut to 160 bits (RFC 7093, method 1).
pub(super) fn name_key(params: &mut CertificateParams, public_key_spki: &[u8]) {
    let bits = signed::key_parts(public_key_spki).map_or(public_key_spki, |(_, bits)| bits);
    params.key_identifier_method = KeyIdMethod::PreSpecified(digest::sha256(bits)[..20].to_vec());
}

pub(super) fn add_names(
    params: &mut CertificateParams,
    dns_names: &[String],
    ip_addresses: &[std::net::IpAddr],
) -> Result<(), AuthorityError> {
    if dns_names.len() > NAMES_MAX || ip_addresses.len() > NAMES_MAX {
        return Err(AuthorityError::DnsName(dns_names.last().cloned().unwrap_or_default()));
    }
    for name in dns_names {
        params.subject_alt_names.push(dns_name(name)?);
    }
    params.subject_alt_names.extend(ip_addresses.iter().copied().map(SanType::IpAddress));
    Ok(())
}

fn dns_name(name: &str) -> Result<SanType, AuthorityError> {
    let refused = || AuthorityError::DnsName(name.chars().take(256).collect());
    let without_wildcard = name.strip_prefix("*.").unwrap_or(name);
    DnsName::try_from(without_wildcard).map_err(|_| refused())?;
    name.try_into().map(SanType::DnsName).map_err(|_| refused())
}

fn uri(uri: &str) -> Result<SanType, AuthorityError> {
    uri.try_into().map(SanType::URI).map_err(AuthorityError::Build)
}

/// What we need to know of a CA's own certificate.
pub(super) struct CaFacts {
    pub(super) public_key_spki: Vec<u8>,
    pub(super) subject_der: Vec<u8>,
    pub(super) subject_key_id: String,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    pub(super) is_root: bool,
    pub(super) path_len: Option<u8>,
}

impl CaFacts {
    pub(super) fn decode(der: &CertificateDer<'_>, trust_domain: &TrustDomain) -> Result<Self, AuthorityError> {
        let certificate = leaf::decode(der).map_err(AuthorityError::Certificate)?;
        let names = leaf::names(&certificate).map_err(AuthorityError::Certificate)?;
        let own_id = trust_domain.id();
        if let Some(other) = names.uris.iter().find(|uri| uri.starts_with("spiffe://") && **uri != *own_id.as_str()) {
            return Err(AuthorityError::CertificateId(other.clone()));
        }
        if certificate.subject().iter_rdn().next().is_none() {
            return Err(AuthorityError::SubjectEncoding);
        }
        let subject_key_id = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(digest::hex(id.0)),
            _ => None,
        });
        let (not_before, not_after) = leaf::validity(&certificate);
        Ok(Self {
            public_key_spki: certificate.public_key().raw.to_vec(),
            subject_der: certificate.subject().as_raw().to_vec(),
            subject_key_id: subject_key_id.ok_or(AuthorityError::NoSubjectKeyId)?,
            not_before,
            not_after,
            is_root: is_self_issued(der),
            path_len: path_len(&certificate)?,
        })
    }
}

fn path_len(certificate: &X509Certificate<'_>) -> Result<Option<u8>, AuthorityError> {
    let constraints = certificate.basic_constraints().map_err(|_| AuthorityError::Certificate(LeafError::Malformed))?;
    let len = constraints.and_then(|constraints| constraints.value.path_len_constraint);
    Ok(len.map(|len| u8::try_from(len).unwrap_or(u8::MAX)))
}

/// Whether subject and issuer are the same name, as in a root.
pub(super) fn is_self_issued(der: &CertificateDer<'_>) -> bool {
    leaf::decode(der).is_ok_and(|certificate| certificate.subject().as_raw() == certificate.issuer().as_raw())
}

/// The longest organization and common name by X.520.
pub(super) const COMMON_NAME_BYTES_MAX: usize = 64;

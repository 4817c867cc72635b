//! What a certificate must look like, whoever signed it: RFC 5280 section 4, and on request the rules of web PKI and of
//! X.509-SVIDs.
//!
//! One list of [`Defect`]s serves everybody. Each defect has a [`Grade`]: path validation refuses what would be unsafe,
//! `cert verify` what RFC 5280 and the web's baseline forbid as well, `cert lint` names everything. The checks look at the
//! very bytes (`der`), because the lenient reading of one parser and the strict one of another is how forgeries pass.

mod contents;
mod defect;
mod extensions;
mod fields;
mod keys;
mod names;
pub(crate) mod shape;
mod svid;

use rustls_pki_types::CertificateDer;

use crate::leaf::CERTIFICATE_BYTES_MAX;
use crate::pem::{self, PemError};
pub(crate) use contents::{AuthorityKeyId, KeyUsage, authority_key_id, key_usage, subject_key_id};
pub use defect::{Defect, Grade};
pub(crate) use fields::unix_secs;
use shape::Shape;

/// Where in a chain a certificate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It names somebody and signs no certificate.
    Leaf,
    /// It signs others and is signed by another.
    Intermediate,
    /// It is trusted for itself.
    Root,
}

/// Everything that is wrong with a certificate by RFC 5280 and the web's baseline, in the order of the checks.
pub fn defects(der: &CertificateDer<'_>, role: Role) -> Vec<Defect> {
    collect(der, role, |_, _| {})
}

/// As [`defects`], and by the X.509-SVID standard.
pub fn svid_defects(der: &CertificateDer<'_>, role: Role) -> Vec<Defect> {
    collect(der, role, |shape, findings| svid::check(shape, role, findings))
}

/// The rules to lint by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// RFC 5280 and the X.509-SVID standard.
    Svid,
    /// RFC 5280 alone.
    Rfc5280,
}

/// Everything that is wrong with a certificate, or a chain that begins with its leaf, in a PEM text. A first certificate
/// that is an authority's is judged as such; all further ones have to be.
pub fn lint(text: &[u8], profile: Profile) -> Result<Vec<Defect>, PemError> {
    let certificates = pem::decode_certificates(text)?;
    let mut findings = Findings::default();
    for (at, certificate) in certificates.iter().enumerate() {
        let role = match claimed_role(certificate) {
            Role::Leaf if at > 0 => Role::Intermediate,
            role => role,
        };
        let defects = match profile {
            Profile::Svid => svid_defects(certificate, role),
            Profile::Rfc5280 => defects(certificate, role),
        };
        let of_profile = defects.into_iter().filter(|defect| defect.grade() != Grade::Web);
        of_profile.for_each(|defect| findings.add(defect));
    }
    Ok(findings.0)
}

/// The role that a certificate claims: an authority says so in its basic constraints.
pub fn claimed_role(der: &CertificateDer<'_>) -> Role {
    let Ok(shape) = Shape::decode(der) else { return Role::Leaf };
    let constraints = shape.extension(shape::oid::BASIC_CONSTRAINTS);
    let is_authority = constraints.is_some_and(|extension| {
        contents::basic_constraints(extension.value).is_ok_and(|constraints| constraints.is_authority)
    });
    match (is_authority, shape.is_self_issued()) {
        (false, _) => Role::Leaf,
        (true, false) => Role::Intermediate,
        (true, true) => Role::Root,
    }
}

fn collect(der: &CertificateDer<'_>, role: Role, more: impl FnOnce(&Shape<'_>, &mut Findings)) -> Vec<Defect> {
    if der.len() > CERTIFICATE_BYTES_MAX {
        return vec![Defect::TooLong];
    }
    let Ok(shape) = Shape::decode(der) else { return vec![Defect::Malformed] };
    let mut findings = Findings::default();
    fields::check(&shape, role, &mut findings);
    keys::check(&shape, &mut findings);
    extensions::check(&shape, role, &mut findings);
    names::check(&shape, role, &mut findings);
    more(&shape, &mut findings);
    findings.0
}

/// Defects found so far, each once.
#[derive(Debug, Default)]
struct Findings(Vec<Defect>);

impl Findings {
    fn add(&mut self, defect: Defect) {
        if !self.0.contains(&defect) {
            self.0.push(defect);
        }
    }

    fn add_if(&mut self, wrong: bool, defect: Defect) {
        if wrong {
            self.add(defect);
        }
    }
}

#[cfg(test)]
mod tests;

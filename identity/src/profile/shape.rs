//! The fields of a certificate as they are written (RFC 5280, section 4.1), for checks that need to see the bytes.

use crate::der::{self, Element, NotDer, Reader};
use crate::signed::Signed;

/// A certificate, taken apart but not judged.
#[derive(Debug)]
pub(crate) struct Shape<'a> {
    /// `None` where the default, version 1, was left out.
    pub(crate) version: Option<&'a [u8]>,
    pub(crate) serial: &'a [u8],
    pub(crate) inner_algorithm: &'a [u8],
    pub(crate) issuer: &'a [u8],
    pub(crate) not_before: Element<'a>,
    pub(crate) not_after: Element<'a>,
    pub(crate) subject: &'a [u8],
    /// SubjectPublicKeyInfo, whole.
    pub(crate) spki: &'a [u8],
    pub(crate) has_unique_ids: bool,
    pub(crate) extensions: Vec<Extension<'a>>,
    /// The certificate's body, its algorithm and its signature.
    pub(crate) signed: Signed<'a>,
}

/// One extension.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extension<'a> {
    /// The content of the object identifier.
    pub(crate) oid: &'a [u8],
    pub(crate) critical: bool,
    pub(crate) value: &'a [u8],
}

impl<'a> Shape<'a> {
    pub(crate) fn decode(der: &'a [u8]) -> Result<Self, NotDer> {
        let mut certificate = Reader::whole(der, der::SEQUENCE)?;
        let body = certificate.take(der::SEQUENCE)?;
        let algorithm = certificate.take(der::SEQUENCE)?.content;
        let signature = der::bits(certificate.take(der::BIT_STRING)?.content)?;
        certificate.finish()?;

        let mut tbs = body.reader();
        let version = tbs.take_optional(der::context_constructed(0))?;
        let version = version.map(|version| Reader::new(version.content).take(der::INTEGER)).transpose()?;
        let serial = tbs.take(der::INTEGER)?.content;
        let inner_algorithm = tbs.take(der::SEQUENCE)?.content;
        let issuer = tbs.take(der::SEQUENCE)?.content;
        let mut validity = tbs.take(der::SEQUENCE)?.reader();
        let (not_before, not_after) = (validity.next()?, validity.next()?);
        validity.finish()?;
        let subject = tbs.take(der::SEQUENCE)?.content;
        let spki = tbs.take(der::SEQUENCE)?.raw;
        let issuer_id = tbs.take_optional(der::context(1))?;
        let subject_id = tbs.take_optional(der::context(2))?;
        let extensions = match tbs.take_optional(der::context_constructed(3))? {
            Some(wrapped) => extensions(Reader::whole(wrapped.content, der::SEQUENCE)?)?,
            None => Vec::new(),
        };
        tbs.finish()?;
        Ok(Self {
            version: version.map(|version| version.content),
            serial,
            inner_algorithm,
            issuer,
            not_before,
            not_after,
            subject,
            spki,
            has_unique_ids: issuer_id.is_some() || subject_id.is_some(),
            extensions,
            signed: Signed { message: body.raw, algorithm, signature },
        })
    }

    /// The extension of the given kind; the first, should there be several.
    pub(crate) fn extension(&self, oid: &[u8]) -> Option<&Extension<'a>> {
        self.extensions.iter().find(|extension| extension.oid == oid)
    }

    /// Whether subject and issuer are the same name.
    pub(crate) fn is_self_issued(&self) -> bool {
        self.subject == self.issuer
    }

    /// Whether its own key has signed it, whatever the names.
    pub(crate) fn is_self_signed(&self) -> bool {
        self.signed.is_by(self.spki)
    }
}

/// SEQUENCE SIZE (1..MAX) OF Extension, as certificates, revocation lists and their entries have it.
pub(crate) fn extensions(list: Reader<'_>) -> Result<Vec<Extension<'_>>, NotDer> {
    let elements = list.all()?;
    if elements.is_empty() || elements.len() > EXTENSIONS_MAX {
        return Err(NotDer);
    }
    elements.into_iter().map(extension).collect()
}

fn extension(element: Element<'_>) -> Result<Extension<'_>, NotDer> {
    let mut reader = Reader::whole(element.raw, der::SEQUENCE)?;
    let oid = reader.take(der::OID)?.content;
    let critical = reader.take_flag()?;
    let value = reader.take(der::OCTET_STRING)?.content;
    reader.finish()?;
    Ok(Extension { oid, critical, value })
}

/// The most extensions read.
pub(crate) const EXTENSIONS_MAX: usize = 64;

/// Object identifiers of extensions.
pub(crate) mod oid {
    pub(crate) const SUBJECT_KEY_ID: &[u8] = &[0x55, 0x1d, 14];
    pub(crate) const KEY_USAGE: &[u8] = &[0x55, 0x1d, 15];
    pub(crate) const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 17];
    pub(crate) const ISSUER_ALT_NAME: &[u8] = &[0x55, 0x1d, 18];
    pub(crate) const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 19];
    pub(crate) const CRL_NUMBER: &[u8] = &[0x55, 0x1d, 20];
    pub(crate) const REASON_CODE: &[u8] = &[0x55, 0x1d, 21];
    pub(crate) const ISSUING_DISTRIBUTION_POINT: &[u8] = &[0x55, 0x1d, 28];
    pub(crate) const NAME_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 30];
    pub(crate) const CRL_DISTRIBUTION_POINTS: &[u8] = &[0x55, 0x1d, 31];
    pub(crate) const CERTIFICATE_POLICIES: &[u8] = &[0x55, 0x1d, 32];
    pub(crate) const POLICY_MAPPINGS: &[u8] = &[0x55, 0x1d, 33];
    pub(crate) const AUTHORITY_KEY_ID: &[u8] = &[0x55, 0x1d, 35];
    pub(crate) const POLICY_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 36];
    pub(crate) const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 37];
    pub(crate) const FRESHEST_CRL: &[u8] = &[0x55, 0x1d, 46];
    pub(crate) const INHIBIT_ANY_POLICY: &[u8] = &[0x55, 0x1d, 54];
    pub(crate) const AUTHORITY_INFO_ACCESS: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 1, 1];
    pub(crate) const SUBJECT_INFO_ACCESS: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 1, 11];
}

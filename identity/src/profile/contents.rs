//! What the extensions hold (RFC 5280, section 4.2), decoded strictly.

use super::shape;
use crate::der::{self, Element, NotDer, Reader};

pub(super) struct BasicConstraints {
    pub(super) is_authority: bool,
    pub(super) has_path_length: bool,
}

pub(super) fn basic_constraints(value: &[u8]) -> Result<BasicConstraints, NotDer> {
    let mut reader = Reader::whole(value, der::SEQUENCE)?;
    let is_authority = reader.take_flag()?;
    let path_length = reader.take_optional(der::INTEGER)?;
    reader.finish()?;
    match path_length.map(|element| element.content) {
        Some(number) if !der::is_integer(number) || number[0] & 0x80 != 0 => Err(NotDer),
        number => Ok(BasicConstraints { is_authority, has_path_length: number.is_some() }),
    }
}

/// The bits of a key usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyUsage(u8, u8);

impl KeyUsage {
    pub(crate) fn is_empty(self) -> bool {
        self == Self(0, 0)
    }

    pub(crate) fn has_digital_signature(self) -> bool {
        self.0 & 0x80 != 0
    }

    pub(crate) fn has_cert_sign(self) -> bool {
        self.0 & 0x04 != 0
    }

    pub(crate) fn has_crl_sign(self) -> bool {
        self.0 & 0x02 != 0
    }
}

pub(crate) fn key_usage(value: &[u8]) -> Result<KeyUsage, NotDer> {
    let mut reader = Reader::new(value);
    let bits = der::bits(reader.take(der::BIT_STRING)?.content)?;
    reader.finish()?;
    match *bits {
        [] => Ok(KeyUsage(0, 0)),
        [first] => Ok(KeyUsage(first, 0)),
        [first, second] => Ok(KeyUsage(first, second)),
        _ => Err(NotDer),
    }
}

/// The object identifiers of an extended key usage; there must be one at least.
pub(super) fn extended_key_usage(value: &[u8]) -> Result<Vec<&[u8]>, NotDer> {
    let purposes = Reader::whole(value, der::SEQUENCE)?.all()?;
    let known = purposes.iter().all(|purpose| purpose.tag == der::OID && !purpose.content.is_empty());
    if !known || purposes.is_empty() {
        return Err(NotDer);
    }
    Ok(purposes.into_iter().map(|purpose| purpose.content).collect())
}

pub(crate) struct AuthorityKeyId<'a> {
    pub(crate) key_id: Option<&'a [u8]>,
    pub(super) has_issuer_or_serial: bool,
}

pub(crate) fn authority_key_id(value: &[u8]) -> Result<AuthorityKeyId<'_>, NotDer> {
    let mut reader = Reader::whole(value, der::SEQUENCE)?;
    let key_id = reader.take_optional(der::context(0))?;
    let issuer = reader.take_optional(der::context_constructed(1))?;
    let serial = reader.take_optional(der::context(2))?;
    reader.finish()?;
    if let Some(issuer) = issuer {
        general_names(issuer.reader())?;
    }
    Ok(AuthorityKeyId {
        key_id: key_id.map(|id| id.content),
        has_issuer_or_serial: issuer.is_some() || serial.is_some(),
    })
}

pub(crate) fn subject_key_id(value: &[u8]) -> Result<&[u8], NotDer> {
    let mut reader = Reader::new(value);
    let id = reader.take(der::OCTET_STRING)?.content;
    reader.finish()?;
    if id.is_empty() { Err(NotDer) } else { Ok(id) }
}

/// The names of a subjectAltName or issuerAltName.
pub(super) fn alt_names(value: &[u8]) -> Result<Vec<Element<'_>>, NotDer> {
    general_names(Reader::whole(value, der::SEQUENCE)?)
}

fn general_names(list: Reader<'_>) -> Result<Vec<Element<'_>>, NotDer> {
    let names = list.all()?;
    if names.iter().all(is_general_name) { Ok(names) } else { Err(NotDer) }
}

/// Whether the tag is that of a GeneralName: `[0]`, `[3]`, `[4]`, `[5]` hold others, the rest up to `[8]` do not.
fn is_general_name(name: &Element<'_>) -> bool {
    matches!(name.tag, 0xa0 | EMAIL_TAG..=DNS_TAG | 0xa3..=0xa5 | 0x86..=0x88)
}

/// The subtrees of name constraints.
pub(super) struct NameConstraints<'a> {
    pub(super) subtrees: Vec<Subtree<'a>>,
    /// A list is there but empty, or there is no list at all.
    pub(super) has_empty_list: bool,
}

pub(super) struct Subtree<'a> {
    pub(super) base: Element<'a>,
    /// Minimum or maximum is written, which the profile forbids.
    pub(super) has_distance: bool,
}

pub(super) fn name_constraints(value: &[u8]) -> Result<NameConstraints<'_>, NotDer> {
    let mut reader = Reader::whole(value, der::SEQUENCE)?;
    let permitted = reader.take_optional(der::context_constructed(0))?;
    let excluded = reader.take_optional(der::context_constructed(1))?;
    reader.finish()?;
    let lists: Vec<Element<'_>> = permitted.into_iter().chain(excluded).collect();
    let has_empty_list = lists.is_empty() || lists.iter().any(|list| list.content.is_empty());
    let mut subtrees = Vec::new();
    for list in lists {
        for element in list.reader().all()? {
            let mut reader = Reader::whole(element.raw, der::SEQUENCE)?;
            let base = reader.next()?;
            if !is_general_name(&base) {
                return Err(NotDer);
            }
            subtrees.push(Subtree { base, has_distance: !reader.at_end() });
        }
    }
    Ok(NameConstraints { subtrees, has_empty_list })
}

/// Policy constraints must say something.
pub(super) fn policy_constraints(value: &[u8]) -> Result<(), NotDer> {
    let mut reader = Reader::whole(value, der::SEQUENCE)?;
    let explicit = reader.take_optional(der::context(0))?;
    let mapping = reader.take_optional(der::context(1))?;
    reader.finish()?;
    let numbers: Vec<Element<'_>> = explicit.into_iter().chain(mapping).collect();
    let well_formed = numbers.iter().all(|number| der::is_integer(number.content) && number.content[0] & 0x80 == 0);
    if well_formed && !numbers.is_empty() { Ok(()) } else { Err(NotDer) }
}

/// SEQUENCE SIZE (1..MAX) OF SEQUENCE { OID, … }: policies and their mappings.
pub(super) fn policies(value: &[u8]) -> Result<(), NotDer> {
    let items = Reader::whole(value, der::SEQUENCE)?.all()?;
    for item in &items {
        Reader::whole(item.raw, der::SEQUENCE)?.take(der::OID)?;
    }
    if items.is_empty() { Err(NotDer) } else { Ok(()) }
}

/// AuthorityInfoAccess and SubjectInfoAccess: one description at least, each a method and a place.
pub(super) fn info_access(value: &[u8]) -> Result<(), NotDer> {
    let descriptions = Reader::whole(value, der::SEQUENCE)?.all()?;
    for description in &descriptions {
        let mut reader = Reader::whole(description.raw, der::SEQUENCE)?;
        reader.take(der::OID)?;
        let place = reader.next()?;
        reader.finish()?;
        if !is_general_name(&place) {
            return Err(NotDer);
        }
    }
    if descriptions.is_empty() { Err(NotDer) } else { Ok(()) }
}

/// CRL distribution points: one at least, each with a name or an issuer.
pub(super) fn distribution_points(value: &[u8]) -> Result<(), NotDer> {
    let points = Reader::whole(value, der::SEQUENCE)?.all()?;
    for point in &points {
        let mut reader = Reader::whole(point.raw, der::SEQUENCE)?;
        let name = reader.take_optional(der::context_constructed(0))?;
        reader.take_optional(der::context(1))?;
        let issuer = reader.take_optional(der::context_constructed(2))?;
        reader.finish()?;
        if name.is_none() && issuer.is_none() {
            return Err(NotDer);
        }
    }
    if points.is_empty() { Err(NotDer) } else { Ok(()) }
}

pub(super) fn inhibit_any_policy(value: &[u8]) -> Result<(), NotDer> {
    let mut reader = Reader::new(value);
    let number = reader.take(der::INTEGER)?.content;
    reader.finish()?;
    if der::is_integer(number) && number[0] & 0x80 == 0 { Ok(()) } else { Err(NotDer) }
}

/// Whether the content of an extension of a kind we know is what that kind holds. Other kinds may hold anything.
pub(super) fn is_well_formed(extension: &shape::Extension<'_>) -> bool {
    use shape::oid;
    let value = extension.value;
    let checked = match extension.oid {
        oid::SUBJECT_KEY_ID => subject_key_id(value).map(drop),
        oid::KEY_USAGE => key_usage(value).map(drop),
        oid::SUBJECT_ALT_NAME | oid::ISSUER_ALT_NAME => alt_names(value).map(drop),
        oid::BASIC_CONSTRAINTS => basic_constraints(value).map(drop),
        oid::NAME_CONSTRAINTS => name_constraints(value).map(drop),
        oid::CRL_DISTRIBUTION_POINTS | oid::FRESHEST_CRL => distribution_points(value),
        oid::CERTIFICATE_POLICIES | oid::POLICY_MAPPINGS => policies(value).map(drop),
        oid::AUTHORITY_KEY_ID => authority_key_id(value).map(drop),
        oid::POLICY_CONSTRAINTS => policy_constraints(value),
        oid::EXTENDED_KEY_USAGE => extended_key_usage(value).map(drop),
        oid::INHIBIT_ANY_POLICY => inhibit_any_policy(value),
        oid::AUTHORITY_INFO_ACCESS | oid::SUBJECT_INFO_ACCESS => info_access(value),
        _ => Ok(()),
    };
    checked.is_ok()
}

/// Tags of GeneralName.
pub(super) const EMAIL_TAG: u8 = 0x81;
pub(super) const DNS_TAG: u8 = 0x82;
pub(super) const DIRECTORY_TAG: u8 = 0xa4;
pub(super) const URI_TAG: u8 = 0x86;
pub(super) const IP_TAG: u8 = 0x87;

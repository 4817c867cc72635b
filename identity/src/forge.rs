//! Certificates with whatever mistake a test wants, written byte by byte and signed for real.

use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};
use rustls_pki_types::CertificateDer;

use crate::der;
pub(crate) use crate::der::{sequence, tlv};
use crate::profile::shape::oid;

/// A key with a name, able to sign.
pub(crate) struct Signer {
    pub(crate) key: KeyPair,
    pub(crate) name: Vec<u8>,
}

impl Signer {
    pub(crate) fn new(name: &str) -> Self {
        Self { key: KeyPair::generate().unwrap(), name: common_name(name) }
    }

    pub(crate) fn spki(&self) -> Vec<u8> {
        self.key.subject_public_key_info()
    }

    /// SEQUENCE { body, algorithm, signature }.
    pub(crate) fn sign(&self, body: &[u8], algorithm: &[u8]) -> Vec<u8> {
        let signature = bit_string(&self.key.sign(body).unwrap());
        sequence(&[body, algorithm, &signature])
    }
}

/// The parts of a certificate, each as it will be written.
#[derive(Clone)]
pub(crate) struct Blueprint {
    pub(crate) version: Vec<u8>,
    pub(crate) serial: Vec<u8>,
    pub(crate) inner_algorithm: Vec<u8>,
    pub(crate) outer_algorithm: Vec<u8>,
    pub(crate) issuer: Option<Vec<u8>>,
    pub(crate) not_before: Vec<u8>,
    pub(crate) not_after: Vec<u8>,
    pub(crate) subject: Vec<u8>,
    pub(crate) spki: Vec<u8>,
    pub(crate) unique_ids: Vec<u8>,
    /// Each as its kind, its mark, its content.
    pub(crate) extensions: Vec<(Vec<u8>, bool, Vec<u8>)>,
}

impl Blueprint {
    /// A leaf without a fault, for `https://…` and SPIFFE alike.
    pub(crate) fn leaf(spki: &[u8]) -> Self {
        let mut leaf = Self::bare(spki);
        leaf.set(oid::BASIC_CONSTRAINTS, true, sequence(&[]));
        leaf.set(oid::KEY_USAGE, true, key_usage(0x80));
        leaf.set(oid::EXTENDED_KEY_USAGE, false, sequence(&[&purpose(1), &purpose(2)]));
        leaf.set(oid::SUBJECT_ALT_NAME, true, sequence(&[&uri("spiffe://td/ns/shop/sa/cart")]));
        leaf
    }

    /// An authority without a fault.
    pub(crate) fn authority(signer: &Signer) -> Self {
        let mut authority = Self::bare(&signer.spki());
        authority.subject = signer.name.clone();
        authority.set(oid::BASIC_CONSTRAINTS, true, sequence(&[&tlv(der::BOOLEAN, &[0xff])]));
        authority.set(oid::KEY_USAGE, true, key_usage(0x06));
        authority
    }

    fn bare(spki: &[u8]) -> Self {
        let mut bare = Self {
            version: tlv(0xa0, &tlv(der::INTEGER, &[2])),
            serial: tlv(der::INTEGER, &[0x41, 0x42]),
            inner_algorithm: ECDSA_SHA256.to_vec(),
            outer_algorithm: ECDSA_SHA256.to_vec(),
            issuer: None,
            not_before: tlv(der::UTC_TIME, b"270115080000Z"), // 1_800_000_000 seconds since 1970.
            not_after: tlv(der::UTC_TIME, b"270116080000Z"),
            subject: sequence(&[]),
            spki: spki.to_vec(),
            unique_ids: Vec::new(),
            extensions: Vec::new(),
        };
        bare.set(oid::SUBJECT_KEY_ID, false, tlv(der::OCTET_STRING, &key_id(spki)));
        bare
    }

    /// Puts an extension in the place of the one of its kind.
    pub(crate) fn set(&mut self, oid: &[u8], critical: bool, content: Vec<u8>) {
        match self.extensions.iter_mut().find(|extension| extension.0 == oid) {
            Some(extension) => *extension = (oid.to_vec(), critical, content),
            None => self.extensions.push((oid.to_vec(), critical, content)),
        }
    }

    pub(crate) fn remove(&mut self, oid: &[u8]) {
        self.extensions.retain(|extension| extension.0 != oid);
    }

    /// The certificate, signed; the issuer's key identifier is filled in unless it is there.
    pub(crate) fn sign(mut self, issuer: &Signer) -> CertificateDer<'static> {
        if !self.extensions.iter().any(|extension| extension.0 == oid::AUTHORITY_KEY_ID) {
            self.set(oid::AUTHORITY_KEY_ID, false, sequence(&[&tlv(0x80, &key_id(&issuer.spki()))]));
        }
        self.sign_as_it_is(issuer)
    }

    pub(crate) fn sign_as_it_is(self, issuer: &Signer) -> CertificateDer<'static> {
        let validity = sequence(&[&self.not_before, &self.not_after]);
        let extensions: Vec<Vec<u8>> =
            self.extensions.iter().map(|(oid, critical, content)| extension(oid, *critical, content)).collect();
        let extensions = if extensions.is_empty() { Vec::new() } else { tlv(0xa3, &sequence_of(&extensions)) };
        let issuer_name = self.issuer.as_ref().unwrap_or(&issuer.name);
        let body = sequence(&[
            &self.version,
            &self.serial,
            &self.inner_algorithm,
            issuer_name,
            &validity,
            &self.subject,
            &self.spki,
            &self.unique_ids,
            &extensions,
        ]);
        issuer.sign(&body, &self.outer_algorithm).into()
    }
}

pub(crate) fn extension(oid: &[u8], critical: bool, content: &[u8]) -> Vec<u8> {
    let mark = if critical { tlv(der::BOOLEAN, &[0xff]) } else { Vec::new() };
    sequence(&[&tlv(der::OID, oid), &mark, &tlv(der::OCTET_STRING, content)])
}

pub(crate) fn common_name(name: &str) -> Vec<u8> {
    let attribute = sequence(&[&tlv(der::OID, &[0x55, 4, 3]), &tlv(0x0c, name.as_bytes())]);
    sequence(&[&tlv(der::SET, &attribute)])
}

pub(crate) fn uri(text: &str) -> Vec<u8> {
    tlv(0x86, text.as_bytes())
}

pub(crate) fn dns(name: &str) -> Vec<u8> {
    tlv(0x82, name.as_bytes())
}

/// A key usage of the first eight bits.
pub(crate) fn key_usage(bits: u8) -> Vec<u8> {
    let unused = if bits == 0 { 0 } else { bits.trailing_zeros() as u8 };
    let content = if bits == 0 { vec![0] } else { vec![unused, bits] };
    tlv(der::BIT_STRING, &content)
}

/// A purpose of extended key usage: 1 is serverAuth, 2 is clientAuth.
pub(crate) fn purpose(last: u8) -> Vec<u8> {
    tlv(der::OID, &[0x2b, 6, 1, 5, 5, 7, 3, last])
}

pub(crate) fn key_id(spki: &[u8]) -> Vec<u8> {
    crate::digest::sha256(spki)[..20].to_vec()
}

fn bit_string(bytes: &[u8]) -> Vec<u8> {
    tlv(der::BIT_STRING, &[&[0], bytes].concat())
}

pub(crate) fn sequence_of(parts: &[Vec<u8>]) -> Vec<u8> {
    tlv(der::SEQUENCE, &parts.concat())
}

/// The AlgorithmIdentifier of ECDSA with SHA-256.
pub(crate) const ECDSA_SHA256: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];

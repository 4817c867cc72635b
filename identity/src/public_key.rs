//! Public keys: P-256, P-384, P-521, RSA and Ed25519, read from and written as SubjectPublicKeyInfo (RFC 5280, RFC 5480,
//! RFC 8410).

use std::fmt;

use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_PKCS1_RSAENCRYPTION,
    OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey as ParsedKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::der::tlv;

/// A public key. That a point lies on its curve is checked where the key is first used to verify.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PublicKey {
    /// A point on a NIST curve, uncompressed (`04 ‖ x ‖ y`).
    Ec {
        /// The curve.
        curve: Curve,
        /// The point.
        point: Vec<u8>,
    },
    /// An RSA key; both numbers big-endian without leading zeros.
    Rsa {
        /// The modulus `n`.
        modulus: Vec<u8>,
        /// The public exponent `e`.
        exponent: Vec<u8>,
    },
    /// An Ed25519 key.
    Ed25519 {
        /// The 32 bytes of the encoded point.
        point: [u8; 32],
    },
}

/// The NIST curves we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    /// How many bytes a coordinate has.
    pub fn coordinate_len(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    fn oid_der(self) -> &'static [u8] {
        match self {
            Self::P256 => &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
            Self::P384 => &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22],
            Self::P521 => &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23],
        }
    }
}

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo.
    pub fn from_spki_der(der: &[u8]) -> Result<Self, PublicKeyError> {
        if der.len() > SPKI_BYTES_MAX {
            return Err(PublicKeyError::TooLong);
        }
        let (rest, spki) = SubjectPublicKeyInfo::from_der(der).map_err(|_| PublicKeyError::Malformed)?;
        if !rest.is_empty() {
            return Err(PublicKeyError::Malformed);
        }
        Self::from_spki(&spki)
    }

    pub(crate) fn from_spki(spki: &SubjectPublicKeyInfo<'_>) -> Result<Self, PublicKeyError> {
        let algorithm = &spki.algorithm.algorithm;
        if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
            Self::from_ec_spki(spki)
        } else if *algorithm == OID_PKCS1_RSAENCRYPTION {
            match spki.parsed() {
                Ok(ParsedKey::RSA(key)) => Self::rsa(key.modulus, key.exponent),
                _ => Err(PublicKeyError::Malformed),
            }
        } else if *algorithm == OID_SIG_ED25519 {
            Self::ed25519(&spki.subject_public_key.data)
        } else {
            Err(PublicKeyError::Unsupported)
        }
    }

    fn from_ec_spki(spki: &SubjectPublicKeyInfo<'_>) -> Result<Self, PublicKeyError> {
        let parameters = spki.algorithm.parameters.as_ref().ok_or(PublicKeyError::Malformed)?;
        let curve_oid = parameters.as_oid().map_err(|_| PublicKeyError::Unsupported)?;
        let curve = if curve_oid == OID_EC_P256 {
            Curve::P256
        } else if curve_oid == OID_NIST_EC_P384 {
            Curve::P384
        } else if curve_oid == OID_NIST_EC_P521 {
            Curve::P521
        } else {
            return Err(PublicKeyError::Unsupported);
        };
        Self::ec(curve, &spki.subject_public_key.data)
    }

    /// A key from an uncompressed point.
    pub fn ec(curve: Curve, point: &[u8]) -> Result<Self, PublicKeyError> {
        if point.len() != 1 + 2 * curve.coordinate_len() || point[0] != 4 {
            return Err(PublicKeyError::Malformed);
        }
        Ok(Self::Ec { curve, point: point.to_vec() })
    }

    /// A key from its two numbers. Keys below 2048 or above 8192 bits are refused, and so are even or tiny exponents.
    pub fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<Self, PublicKeyError> {
        let (modulus, exponent) = (without_leading_zeros(modulus), without_leading_zeros(exponent));
        let bits = modulus.len() * 8 - modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
        if !(RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) {
            return Err(PublicKeyError::RsaSize(bits));
        }
        let odd = exponent.last().is_some_and(|byte| byte & 1 == 1);
        if !odd || exponent == [1] || exponent.len() > RSA_EXPONENT_BYTES_MAX {
            return Err(PublicKeyError::RsaExponent);
        }
        if is_roca(modulus) {
            return Err(PublicKeyError::RsaWeak);
        }
        Ok(Self::Rsa { modulus: modulus.to_vec(), exponent: exponent.to_vec() })
    }

    /// A key from its 32 bytes. Points of small order are refused: one signature would fit many messages.
    pub fn ed25519(point: &[u8]) -> Result<Self, PublicKeyError> {
        let point: [u8; 32] = point.try_into().map_err(|_| PublicKeyError::Malformed)?;
        let mut y = point;
        y[31] &= 0x7f; // The top bit is the sign of x.
        if is_beyond_field(&y) || ED25519_SMALL_ORDER.contains(&y) {
            return Err(PublicKeyError::Ed25519Weak);
        }
        Ok(Self::Ed25519 { point })
    }

    /// Writes a SubjectPublicKeyInfo.
    pub fn spki_der(&self) -> Vec<u8> {
        let (algorithm, key) = match self {
            Self::Ec { curve, point } => ([OID_EC_DER, curve.oid_der()].concat(), point.clone()),
            Self::Rsa { modulus, exponent } => {
                let numbers = [unsigned(modulus), unsigned(exponent)].concat();
                ([OID_RSA_DER, NULL_DER].concat(), tlv(TAG_SEQUENCE, &numbers))
            }
            Self::Ed25519 { point } => (OID_ED25519_DER.to_vec(), point.to_vec()),
        };
        let bits = [&[0_u8][..], &key].concat(); // No unused bits in the last byte.
        tlv(TAG_SEQUENCE, &[tlv(TAG_SEQUENCE, &algorithm), tlv(TAG_BIT_STRING, &bits)].concat())
    }

    /// What kind of key it is, for people.
    pub fn kind(&self) -> String {
        match self {
            Self::Ec { curve: Curve::P256, .. } => "ECDSA P-256".to_owned(),
            Self::Ec { curve: Curve::P384, .. } => "ECDSA P-384".to_owned(),
            Self::Ec { curve: Curve::P521, .. } => "ECDSA P-521".to_owned(),
            Self::Rsa { modulus, .. } => format!("RSA {}", modulus.len() * 8),
            Self::Ed25519 { .. } => "Ed25519".to_owned(),
        }
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.kind())
    }
}

fn without_leading_zeros(number: &[u8]) -> &[u8] {
    let first = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    &number[first..]
}

/// Whether a modulus has the shape of CVE-2017-15361 (ROCA): its remainder by each small prime is a power of 65537. A
/// sound key has that shape with a chance of less than one in ten million.
fn is_roca(modulus: &[u8]) -> bool {
    ROCA_PRIMES.iter().all(|prime| {
        let remainder = modulus.iter().fold(0, |remainder, byte| (remainder * 256 + u32::from(*byte)) % prime);
        let mut power = 1;
        (0..*prime).any(|_| {
            power = power * 65537 % prime;
            power == remainder
        })
    })
}

/// Whether a coordinate is 2^255 - 19 or more, a second way to write a small number (RFC 8032, 5.1.3).
fn is_beyond_field(y: &[u8; 32]) -> bool {
    y[31] == 0x7f && y[0] >= 0xed && y[1..31].iter().all(|byte| *byte == 0xff)
}

/// A DER INTEGER that is not negative.
fn unsigned(number: &[u8]) -> Vec<u8> {
    if number.first().is_none_or(|byte| byte & 0x80 != 0) {
        tlv(TAG_INTEGER, &[&[0], number].concat())
    } else {
        tlv(TAG_INTEGER, number)
    }
}

/// Why bytes are no public key that we accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublicKeyError {
    /// Not a well-formed key.
    #[error("the public key is malformed")]
    Malformed,
    /// Longer than any key we accept.
    #[error("the public key is longer than {SPKI_BYTES_MAX} bytes")]
    TooLong,
    /// A kind of key that we do not accept.
    #[error("the kind of key is not supported; supported are P-256, P-384, P-521, RSA and Ed25519")]
    Unsupported,
    /// An RSA key that is too short or too long.
    #[error("an RSA key has {RSA_BITS_MIN} to {RSA_BITS_MAX} bits, this one has {0}")]
    RsaSize(usize),
    /// An RSA exponent that is even, one or huge.
    #[error("the RSA exponent is unsafe")]
    RsaExponent,
    /// An RSA key made by a faulty generator, so that its factors can be found.
    #[error("the RSA key comes from a faulty generator (CVE-2017-15361)")]
    RsaWeak,
    /// An Ed25519 point of small order, or written in more than one way.
    #[error("the Ed25519 point is of small order or not in its one form")]
    Ed25519Weak,
}

impl PublicKeyError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        "PUBLIC_KEY_REFUSED"
    }
}

/// The shortest RSA key accepted.
pub const RSA_BITS_MIN: usize = 2048;

/// The longest RSA key accepted; longer ones cost too much to verify.
pub const RSA_BITS_MAX: usize = 8192;

const ROCA_PRIMES: [u32; 38] = [
    3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109,
    113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
];
/// The y of every point whose order divides 8: the neutral element, and those of order 2, 4 and 8.
const ED25519_SMALL_ORDER: [[u8; 32]; 5] = [
    [0; 32],
    [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5, 0xdf,
        0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20,
        0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
    ],
    [
        0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
    ],
];
const RSA_EXPONENT_BYTES_MAX: usize = 8;
const SPKI_BYTES_MAX: usize = 2048;
const TAG_INTEGER: u8 = 0x02;
const TAG_BIT_STRING: u8 = 0x03;
const TAG_SEQUENCE: u8 = 0x30;
const NULL_DER: &[u8] = &[0x05, 0x00];
const OID_EC_DER: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const OID_RSA_DER: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const OID_ED25519_DER: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x70];

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::PublicKeyData as _;

    #[test]
    fn reads_and_writes_the_same_bytes_for_every_kind() {
        let kinds = [
            (&rcgen::PKCS_ECDSA_P256_SHA256, "ECDSA P-256"),
            (&rcgen::PKCS_ECDSA_P384_SHA384, "ECDSA P-384"),
            #[cfg(feature = "aws-lc-rs")]
            (&rcgen::PKCS_ECDSA_P521_SHA512, "ECDSA P-521"),
            (&rcgen::PKCS_ED25519, "Ed25519"),
            #[cfg(feature = "aws-lc-rs")]
            (&rcgen::PKCS_RSA_SHA256, "RSA 2048"),
        ];
        for (algorithm, kind) in kinds {
            let spki = rcgen::KeyPair::generate_for(algorithm).unwrap().subject_public_key_info();
            let key = PublicKey::from_spki_der(&spki).unwrap();
            assert_eq!((key.spki_der(), key.kind().as_str()), (spki, kind));
        }
    }

    #[test]
    fn weak_rsa_keys_are_refused() {
        assert_eq!(PublicKey::rsa(&[0x80; 128], &[1, 0, 1]), Err(PublicKeyError::RsaSize(1024)));
        assert_eq!(PublicKey::rsa(&[0x7f; 256], &[1, 0, 1]), Err(PublicKeyError::RsaSize(2047)));
        assert_eq!(PublicKey::rsa(&[0x80; 256], &[1]), Err(PublicKeyError::RsaExponent));
        assert_eq!(PublicKey::rsa(&[0x80; 256], &[4]), Err(PublicKeyError::RsaExponent));
        assert_eq!(PublicKey::rsa(&[], &[]), Err(PublicKeyError::RsaSize(0)));
        assert!(PublicKey::rsa(&[0x80; 256], &[0, 1, 0, 1]).is_ok());
    }

    #[test]
    fn ed25519_points_of_small_order_are_refused_in_every_form() {
        for y in ED25519_SMALL_ORDER {
            for sign in [0, 0x80] {
                let mut point = y;
                point[31] |= sign;
                assert_eq!(PublicKey::ed25519(&point), Err(PublicKeyError::Ed25519Weak));
            }
        }
        let mut beyond = [0xff; 32];
        beyond[31] = 0x7f;
        for low in 0xed..=0xff {
            beyond[0] = low;
            assert_eq!(PublicKey::ed25519(&beyond), Err(PublicKeyError::Ed25519Weak));
        }
    }

    #[test]
    fn broken_bytes_are_refused() {
        let spki = rcgen::KeyPair::generate().unwrap().subject_public_key_info();
        for end in 0..spki.len() {
            assert!(PublicKey::from_spki_der(&spki[..end]).is_err());
        }
        assert!(PublicKey::from_spki_der(&[spki, vec![0]].concat()).is_err());
        assert!(PublicKey::ec(Curve::P256, &[4; 64]).is_err());
    }
}

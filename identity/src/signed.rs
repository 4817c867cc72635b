//! Signatures of signed structures that no path builder looks at, such as revocation lists.

use webpki::ALL_VERIFICATION_ALGS;

use crate::der::{self, Reader};

/// What is signed, how, and the signature.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signed<'a> {
    /// The signed bytes, tag and length included.
    pub(crate) message: &'a [u8],
    /// The content of the AlgorithmIdentifier.
    pub(crate) algorithm: &'a [u8],
    pub(crate) signature: &'a [u8],
}

impl Signed<'_> {
    /// Whether the key (SubjectPublicKeyInfo, whole) has made the signature. The algorithm is bound to the key's kind.
    pub(crate) fn is_by(&self, spki: &[u8]) -> bool {
        let Some((key_algorithm, key)) = key_parts(spki) else { return false };
        ALL_VERIFICATION_ALGS.iter().any(|algorithm| {
            algorithm.signature_alg_id().as_ref() == self.algorithm
                && algorithm.public_key_alg_id().as_ref() == key_algorithm
                && algorithm.verify_signature(key, self.message, self.signature).is_ok()
        })
    }
}

/// The algorithm's content and the key's bits.
pub(crate) fn key_parts(spki: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut reader = Reader::whole(spki, der::SEQUENCE).ok()?;
    let algorithm = reader.take(der::SEQUENCE).ok()?.content;
    let key = der::bits(reader.take(der::BIT_STRING).ok()?.content).ok()?;
    reader.finish().ok()?;
    Some((algorithm, key))
}

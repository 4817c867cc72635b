//! Hashes, randomness and comparison without timing: the few primitives other parts need, so that no other crate has to
//! reach for a cryptography library.

use crate::crypto::{self, digest};

/// SHA-256 of the given bytes.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    to_array(digest::digest(&digest::SHA256, bytes))
}

/// SHA-1 in hex, for names that other software gives to certificates. Nothing may be proven by it.
pub(crate) fn sha1_hex_for_names(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref())
}

/// SHA-1, for names that a protocol gives to keys and issuers. Nothing may be proven by it.
pub(crate) fn sha1_for_names(bytes: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref().to_vec()
}

/// SHA-256 of bytes that arrive in pieces.
pub struct Sha256(digest::Context);

impl Sha256 {
    /// Starts an empty hash.
    pub fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all bytes added.
    pub fn finish(self) -> [u8; 32] {
        to_array(self.0.finish())
    }
}

impl Default for Sha256 {
    fn default() -> Self {
        Self::new()
    }
}

fn to_array(digest: digest::Digest) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

/// Random bytes from the operating system's generator.
///
/// # Panics
/// When the generator fails: there is nothing safe to do without it.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    crypto::fill_random(&mut bytes);
    bytes
}

/// A random positive serial number of 16 bytes (126 random bits), as certificates want it.
pub fn random_serial() -> [u8; 16] {
    let mut serial = random::<16>();
    serial[0] = (serial[0] & 0x7f) | 0x01; // Positive, and of the same length always.
    serial
}

/// Whether two byte strings are equal, in a time that does not depend on where they differ.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    crypto::equal(a, b)
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]])
        .map(char::from)
        .collect()
}

/// A serial number as people write it: hexadecimal without leading zero bytes.
pub fn serial_hex(serial: &[u8]) -> String {
    let first = serial.iter().position(|byte| *byte != 0).unwrap_or(serial.len());
    hex(&serial[first..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_in_pieces_as_in_one() {
        let mut pieces = Sha256::new();
        pieces.update(b"ab");
        pieces.update(b"c");
        assert_eq!(pieces.finish(), sha256(b"abc"));
        assert_eq!(hex(&sha256(b"abc"))[..16], *"ba7816bf8f01cfea");
    }

    #[test]
    fn serials_are_positive_and_differ() {
        let serials: std::collections::BTreeSet<_> = (0..1000).map(|_| random_serial()).collect();
        assert_eq!(serials.len(), 1000);
        assert!(serials.iter().all(|serial| serial[0] & 0x80 == 0 && serial[0] != 0));
    }

    #[test]
    fn serial_text_has_no_leading_zeros() {
        assert_eq!(serial_hex(&[0, 0x81, 0]), "8100");
    }
}

//! Random names.

use identity::digest::{hex, random, sha256};

/// A random UUID (version 4).
pub(crate) fn uuid() -> String {
    let mut raw = random::<16>();
    raw[6] = raw[6] & 0x0f | 0x40;
    raw[8] = raw[8] & 0x3f | 0x80;
    let hex = hex(&raw);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// SHA-256 in hex.
pub(crate) fn sha256_hex(data: &[u8]) -> String {
    hex(&sha256(data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_version_4_and_differ() {
        let (one, two) = (uuid(), uuid());
        assert_eq!((one.len(), &one[14..15], one.matches('-').count()), (36, "4", 4));
        assert_ne!(one, two);
    }
}

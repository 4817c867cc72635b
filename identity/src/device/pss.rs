//! RSASSA-PSS with SHA-256 and MGF1 (RFC 8017, 8.1.2 and 9.1.2), for salts of any length.
//!
//! The cryptography library takes only salts as long as the hash, while the node attestation that SPIRE defined signs with
//! the longest salt that fits. Verifying works on public numbers only, so nothing here has to run in constant time.

use num_bigint::BigUint;

use crate::digest::{self, Sha256};

/// Whether `signature` is the key's over `message`. Both numbers are big-endian without leading zeros, and of a size that
/// was checked where the key was read.
pub(super) fn verifies(modulus: &[u8], exponent: &[u8], message: &[u8], signature: &[u8]) -> bool {
    if signature.len() != modulus.len() {
        return false;
    }
    let (n, s) = (BigUint::from_bytes_be(modulus), BigUint::from_bytes_be(signature));
    if s >= n {
        return false;
    }
    let Some(encoded_bits) = n.bits().checked_sub(1).and_then(|bits| usize::try_from(bits).ok()) else { return false };
    let recovered = s.modpow(&BigUint::from_bytes_be(exponent), &n).to_bytes_be();
    let encoded_len = encoded_bits.div_ceil(8);
    let Some(padding) = encoded_len.checked_sub(recovered.len()) else { return false };
    let encoded = [vec![0; padding], recovered].concat();
    is_encoding_of(&encoded, encoded_bits, message)
}

fn is_encoding_of(encoded: &[u8], encoded_bits: usize, message: &[u8]) -> bool {
    let Some((0xbc, rest)) = encoded.split_last() else { return false };
    let Some(block_len) = rest.len().checked_sub(HASH_LEN).filter(|len| *len > 0) else { return false };
    let (masked, hash) = rest.split_at(block_len);
    // The bits that the modulus is too short for.
    let kept = 0xff_u8 >> (encoded.len() * 8 - encoded_bits);
    if masked[0] & !kept != 0 {
        return false;
    }
    let mut block: Vec<u8> = masked.iter().zip(mask(hash, block_len)).map(|(byte, mask)| byte ^ mask).collect();
    block[0] &= kept;
    let Some(one) = block.iter().position(|byte| *byte != 0).filter(|at| block[*at] == 1) else { return false };
    let mut check = Sha256::new();
    check.update(&[0; 8]);
    check.update(&digest::sha256(message));
    check.update(&block[one + 1..]);
    digest::equal(&check.finish(), hash)
}

/// MGF1.
fn mask(seed: &[u8], len: usize) -> Vec<u8> {
    let blocks = u32::try_from(len.div_ceil(HASH_LEN)).unwrap_or(0); // A block is far below 4 GiB.
    let mut mask: Vec<u8> = (0..blocks).flat_map(|n| digest::sha256(&[seed, &n.to_be_bytes()].concat())).collect();
    mask.truncate(len);
    mask
}

const HASH_LEN: usize = 32;

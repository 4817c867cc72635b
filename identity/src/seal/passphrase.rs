//! Sealing keys out of passphrases, by scrypt (RFC 7914). The parameters and the salt are no secret and are stored.

use std::fmt;
use std::str::FromStr;

use zeroize::Zeroizing;

use super::{SealError, SealKey};
use crate::digest;

/// How a passphrase becomes a key. Written as `scrypt:LOG_N:R:P:SALT`, the salt in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretching {
    log_n: u8,
    r: u32,
    p: u32,
    salt: [u8; SALT_LEN],
}

impl Stretching {
    /// New parameters with a random salt: 128 MiB of memory, some tenths of a second.
    pub fn generate() -> Self {
        Self { log_n: LOG_N, r: R, p: P, salt: digest::random() }
    }

    /// The key that the passphrase becomes. White space around it does not count.
    ///
    /// # Errors
    /// When the passphrase is too short.
    pub fn key(&self, passphrase: &[u8]) -> Result<SealKey, SealError> {
        let passphrase = passphrase.trim_ascii();
        if !(PASSPHRASE_BYTES_MIN..=PASSPHRASE_BYTES_MAX).contains(&passphrase.len()) {
            return Err(SealError::Passphrase);
        }
        let params = scrypt::Params::new(self.log_n, self.r, self.p).map_err(|_| SealError::Malformed)?;
        let mut bytes = Zeroizing::new([0; 32]);
        scrypt::scrypt(passphrase, &self.salt, &params, bytes.as_mut()).map_err(|_| SealError::Cipher)?;
        Ok(SealKey::from_bytes(*bytes))
    }
}

impl fmt::Display for Stretching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{NAME}:{}:{}:{}:{}", self.log_n, self.r, self.p, digest::hex(&self.salt))
    }
}

impl FromStr for Stretching {
    type Err = SealError;

    fn from_str(text: &str) -> Result<Self, SealError> {
        let parts: Vec<&str> = text.split(':').collect();
        let [NAME, log_n, r, p, salt] = parts[..] else { return Err(SealError::Malformed) };
        let number = |text: &str| text.parse::<u32>().map_err(|_| SealError::Malformed);
        let (log_n, r, p) = (number(log_n)?, number(r)?, number(p)?);
        if !(LOG_N_MIN..=LOG_N_MAX).contains(&log_n) || r != R || p != P {
            return Err(SealError::Malformed);
        }
        Ok(Self { log_n: log_n as u8, r, p, salt: unhex(salt).ok_or(SealError::Malformed)? })
    }
}

fn unhex(text: &str) -> Option<[u8; SALT_LEN]> {
    let mut bytes = [0; SALT_LEN];
    if text.len() != 2 * SALT_LEN || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

const NAME: &str = "scrypt";
const LOG_N: u8 = 17;
/// What a stored text may ask for: 16 MiB to 1 GiB.
const LOG_N_MIN: u32 = 14;
const LOG_N_MAX: u32 = 20;
const R: u32 = 8;
const P: u32 = 1;
const SALT_LEN: usize = 16;
/// The shortest passphrase.
pub const PASSPHRASE_BYTES_MIN: usize = 12;
/// The longest passphrase.
pub const PASSPHRASE_BYTES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_passphrase_and_salt_make_the_same_key() {
        let stretching = Stretching { log_n: 14, ..Stretching::generate() };
        let key = stretching.key(b"correct horse battery").unwrap();
        let again: Stretching = stretching.to_string().parse().unwrap();
        assert_eq!(again, stretching);
        assert_eq!(again.key(b"correct horse battery\n").unwrap().expose_bytes(), key.expose_bytes());
        assert_ne!(again.key(b"correct horse batterz").unwrap().expose_bytes(), key.expose_bytes());
        let other = Stretching { log_n: 14, ..Stretching::generate() };
        assert_ne!(other.key(b"correct horse battery").unwrap().expose_bytes(), key.expose_bytes());
    }

    /// RFC 7914, section 12, has `p = 16` and `p = 1`; the last vector with `r = 8, p = 1` and a shorter output.
    #[test]
    fn the_function_is_scrypt() {
        let mut out = [0; 64];
        let params = scrypt::Params::new(14, 8, 1).unwrap();
        scrypt::scrypt(b"pleaseletmein", b"SodiumChloride", &params, &mut out).unwrap();
        assert!(digest::hex(&out).starts_with("7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"));
    }

    #[test]
    fn passphrases_and_parameters_have_limits() {
        let stretching = Stretching { log_n: 14, ..Stretching::generate() };
        for (len, good) in [(11, false), (12, true), (PASSPHRASE_BYTES_MAX, true), (PASSPHRASE_BYTES_MAX + 1, false)] {
            assert_eq!(stretching.key(&vec![b'x'; len]).is_ok(), good, "{len}");
        }
        assert!(stretching.key(&[b' '; 40]).is_err());
        let salt = "00".repeat(SALT_LEN);
        for (text, good) in [
            (format!("scrypt:17:8:1:{salt}"), true),
            (format!("scrypt:13:8:1:{salt}"), false),
            (format!("scrypt:21:8:1:{salt}"), false),
            (format!("scrypt:17:9:1:{salt}"), false),
            (format!("scrypt:17:8:2:{salt}"), false),
            (format!("argon:17:8:1:{salt}"), false),
            (format!("scrypt:17:8:1:{salt}00"), false),
            (format!("scrypt:17:8:1:{}zz", &salt[2..]), false),
            (String::new(), false),
        ] {
            assert_eq!(text.parse::<Stretching>().is_ok(), good, "{text}");
        }
    }
}

//! An X.509-SVID as a PKCS#12 file (RFC 7292), for programs that read no PEM, such as those on the JVM: AES-256-CBC under
//! PBKDF2 with HMAC-SHA-256, and an HMAC-SHA-256 over all.

use p12_keystore::{Certificate, KeyStore, KeyStoreEntry, PrivateKey, PrivateKeyChain};

use crate::bundle::TrustBundle;
use crate::svid::X509Svid;

/// Why no file can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Pkcs12Error {
    /// Key or certificate does not fit into the format.
    #[error("the SVID cannot be written as PKCS#12: {0}")]
    Content(String),
}

impl Pkcs12Error {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        "PKCS12_NOT_WRITTEN"
    }
}

/// The SVID with its chain under the alias `svid`, and the roots of `bundle` as trusted certificates `root-0`, `root-1` and so
/// on, all under `password`.
pub fn encode(svid: &X509Svid, bundle: &TrustBundle, password: &str) -> Result<Vec<u8>, Pkcs12Error> {
    let key = PrivateKey::from_der(svid.key().pkcs8_der()).map_err(content)?;
    let chain = svid.chain().map(|der| Certificate::from_der(der)).collect::<Result<Vec<_>, _>>();
    let chain = PrivateKeyChain::new(svid.fingerprint_sha256().to_vec(), key, chain.map_err(content)?);
    let mut store = KeyStore::new();
    store.add_entry("svid", KeyStoreEntry::PrivateKeyChain(chain));
    for (at, root) in bundle.x509_authorities.iter().enumerate() {
        let root = Certificate::from_der(root).map_err(content)?;
        store.add_entry(&format!("root-{at}"), KeyStoreEntry::Certificate(root));
    }
    store.writer(password).write().map_err(content)
}

fn content(error: p12_keystore::error::Error) -> Pkcs12Error {
    Pkcs12Error::Content(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use p12_keystore::Pkcs12ImportPolicy;

    use super::*;
    use crate::authority::{LeafProfile, X509Authority};
    use crate::{SpiffeId, TrustDomain};

    #[test]
    fn what_is_written_opens_with_its_password_alone() {
        let (domain, now) = (TrustDomain::parse("example.org").unwrap(), SystemTime::now());
        let root = X509Authority::generate_root(&domain, Duration::from_secs(3600), now).unwrap();
        let key = crate::PrivateKey::generate_p256().unwrap();
        let profile = LeafProfile::new(SpiffeId::parse("spiffe://example.org/a").unwrap(), Duration::from_secs(60));
        let chain = root.sign_svid(&key.public_key_spki(), &profile, now).unwrap();
        let svid = X509Svid::from_parts(chain, key).unwrap();
        let bundle = TrustBundle::from_x509_authorities(domain, [root.certificate().clone()]).unwrap();
        let file = encode(&svid, &bundle, "pass").unwrap();
        let key = svid.key().pkcs8_der();
        assert!(!file.windows(key.len()).any(|window| window == key), "the key is encrypted");
        assert!(KeyStore::from_pkcs12(&file, "wrong", Pkcs12ImportPolicy::Relaxed).is_err());
        let store = KeyStore::from_pkcs12(&file, "pass", Pkcs12ImportPolicy::Relaxed).unwrap();
        let (_, chain) = store.private_key_chain().unwrap();
        assert_eq!(chain.key().as_der(), key);
        assert_eq!(chain.certs()[0].as_der(), &svid.leaf_der()[..]);
        let trusted = store.entries().filter(|(_, entry)| matches!(entry, KeyStoreEntry::Certificate(_))).count();
        assert_eq!(trusted, 1);
    }
}

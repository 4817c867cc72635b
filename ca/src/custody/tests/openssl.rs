//! OpenSSL as the other party: an offline root, a maker of keys, a second verifier.

use std::path::{Path, PathBuf};
use std::process::Command;

use identity::CertificateDer;

/// A folder with keys and certificates that OpenSSL made.
pub(crate) struct OpenSsl {
    dir: tempfile::TempDir,
}

impl OpenSsl {
    /// None where there is no OpenSSL, which CI does not accept.
    pub(crate) fn find() -> Option<Self> {
        if Command::new("openssl").arg("version").output().is_ok_and(|out| out.status.success()) {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("config"), CONFIG).unwrap();
            return Some(Self { dir });
        }
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI runs every test: openssl is missing");
        println!("skipped: openssl is missing");
        None
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// Runs a command, its words divided by spaces.
    pub(crate) fn run(&self, command: &str) {
        let out = Command::new("openssl").args(command.split(' ')).current_dir(self.dir.path()).output().unwrap();
        assert!(out.status.success(), "openssl {command}: {}", String::from_utf8_lossy(&out.stderr));
    }

    /// A key of a kind: `rsa:BITS`, `P-256`, `P-384` or `ed25519`.
    pub(crate) fn key(&self, name: &str, kind: &str) {
        match kind.split_once(':') {
            Some((_, bits)) => self.run(&format!("genrsa -out {name}.key {bits}")),
            None if kind == "ed25519" => self.run(&format!("genpkey -algorithm ed25519 -out {name}.key")),
            None => self.run(&format!("ecparam -name {kind} -genkey -noout -out {name}.key")),
        }
    }

    /// A self-signed certificate with the extensions of a section of [`CONFIG`].
    pub(crate) fn root(&self, name: &str, kind: &str, extensions: &str, days: u32) {
        self.key(name, kind);
        self.run(&format!(
            "req -x509 -new -key {name}.key -out {name}.pem -days {days} -config config -extensions {extensions} -sha256"
        ));
    }

    /// Signs `NAME.csr` as `NAME.pem`.
    pub(crate) fn sign(&self, name: &str, issuer: &str, extensions: &str, days: u32) {
        self.run(&format!(
            "x509 -req -in {name}.csr -CA {issuer}.pem -CAkey {issuer}.key -CAcreateserial -out {name}.pem -days {days} \
             -extfile config -extensions {extensions} -sha256"
        ));
    }

    /// A key and a certificate below another.
    pub(crate) fn intermediate(&self, name: &str, kind: &str, issuer: &str) {
        self.key(name, kind);
        self.run(&format!("req -new -key {name}.key -out {name}.csr -config config -subj /O=Example/CN={name}"));
        self.sign(name, issuer, "intermediate", 60);
    }

    /// Verifies a leaf as a server's, by the strict rules of RFC 5280.
    pub(crate) fn verify_strict(&self, roots: &str, chain: &[CertificateDer<'_>]) {
        let pem = |certificates: &[CertificateDer<'_>]| -> String {
            certificates.iter().map(identity::pem::certificate).collect()
        };
        self.write("roots.pem", roots.as_bytes());
        self.write("leaf.pem", pem(&chain[..1]).as_bytes());
        self.write("between.pem", pem(&chain[1..]).as_bytes());
        self.run("verify -x509_strict -purpose sslserver -CAfile roots.pem -untrusted between.pem leaf.pem");
    }
}

/// A file of a folder, for settings.
pub(crate) fn file(dir: &OpenSsl, name: &str) -> PathBuf {
    Path::new(&dir.path(name)).to_owned()
}

const CONFIG: &str = "\
[req]
distinguished_name = name
prompt = no
[name]
O = Example
CN = Offline CA
[root]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[foreign]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
subjectAltName = URI:spiffe://elsewhere.test
[leaf]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
subjectKeyIdentifier = hash
[intermediate]
basicConstraints = critical,CA:TRUE,pathlen:0
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = URI:spiffe://example.org
";

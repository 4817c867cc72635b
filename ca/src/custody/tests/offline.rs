//! An offline root, played by OpenSSL: the authority makes the key and asks; it never sees the root's key.

use std::sync::Arc;
use std::time::Duration;

use identity::csr::Csr;
use identity::import::Offer;
use proto::kasbah::ca::v1::{AdoptResponse, GetCustodyRequest, InstallCertificateRequest, MakeCsrRequest};
use runtime::logs::LogControl;
use tonic::Status;

use super::openssl::OpenSsl;
use super::{WAIT, active_root, custody, issues, rotate, start};
use crate::testing::database::{on_each_database, setting_in};
use crate::testing::running::{Running, reason, settings, until};
use crate::{offline_csr, offline_install};

/// The CSR of a running authority, as `NAME.csr`.
async fn csr(ca: &Running, openssl: &OpenSsl, name: &str, another: bool) -> Vec<u8> {
    let der = custody(ca).await.make_csr(MakeCsrRequest { another }).await.unwrap().into_inner().csr;
    openssl.write(&format!("{name}.csr"), identity::pem::encode("CERTIFICATE REQUEST", &der).as_bytes());
    der
}

async fn install(ca: &Running, openssl: &OpenSsl, name: &str, root: &[u8]) -> Result<AdoptResponse, Status> {
    let certificate = openssl.read(&format!("{name}.pem"));
    let request = InstallCertificateRequest { certificate, chain: Vec::new(), root: root.to_vec() };
    custody(ca).await.install_certificate(request).await.map(tonic::Response::into_inner)
}

async fn an_offline_root_takes_over_and_its_intermediate_is_renewed_by_hand() {
    let Some(openssl) = OpenSsl::find() else { return };
    openssl.root("root", "P-384", "root", 365);
    let ca = start(|_| ()).await;
    let first = csr(&ca, &openssl, "one", false).await;
    assert_eq!(Csr::decode_der(&first).unwrap().uris(), ["spiffe://example.org"]);
    let again = csr(&ca, &openssl, "one", false).await;
    let key_of = |der: &[u8]| Csr::decode_der(der).unwrap().public_key_spki().to_vec();
    assert_eq!(key_of(&again), key_of(&first), "the same key until its certificate comes");
    let ca = ca.restart().await;
    assert_eq!(key_of(&csr(&ca, &openssl, "one", false).await), key_of(&first), "also after a restart");
    openssl.sign("one", "root", "intermediate", 60);
    let adopted = install(&ca, &openssl, "one", &openssl.read("root.pem")).await.unwrap();
    assert!(!adopted.signs);
    rotate(&ca).await;
    assert_eq!(active_root(&ca), adopted.root_id);
    issues(&ca).await;
    csr(&ca, &openssl, "two", false).await;
    openssl.sign("two", "root", "intermediate", 60);
    let adopted = install(&ca, &openssl, "two", b"").await.unwrap();
    assert!(adopted.signs, "below the root that signs it takes over at once");
    assert_eq!(ca.certifier.authorities.current().x509_id, adopted.authority_id);
    let ca = ca.restart().await;
    issues(&ca).await;
}

async fn without_the_key_of_the_root_no_root_is_made_and_nothing_is_renewed() {
    let Some(openssl) = OpenSsl::find() else { return };
    openssl.root("root", "P-256", "root", 365);
    let ca = start(|_| ()).await;
    csr(&ca, &openssl, "one", false).await;
    openssl.sign("one", "root", "intermediate", 60);
    install(&ca, &openssl, "one", &openssl.read("root.pem")).await.unwrap();
    rotate(&ca).await;
    let mut rotation = proto::kasbah::ca::v1::rotation_client::RotationClient::new(ca.local().await);
    let asked = proto::kasbah::ca::v1::StartRequest::default();
    assert_eq!(reason(rotation.start(asked).await), "AUTHORITY_STATE");
    let before = ca.certifier.authorities.current();
    for days in [31, 55, 59] {
        let then = runtime::clock::now() + Duration::from_secs(days * 86_400);
        ca.certifier.authorities.keep_fresh(&ca.certifier.store, then).await.unwrap();
    }
    let after = ca.certifier.authorities.current();
    assert_eq!((&after.x509_id, &after.bundle.x509_authorities), (&before.x509_id, &before.bundle.x509_authorities));
}

async fn a_certificate_of_another_key_is_not_installed() {
    let Some(openssl) = OpenSsl::find() else { return };
    openssl.root("root", "P-256", "root", 365);
    openssl.intermediate("stranger", "P-256", "root");
    let ca = start(|_| ()).await;
    let root = openssl.read("root.pem");
    assert_eq!(reason(install(&ca, &openssl, "stranger", &root).await), "IMPORT_NO_REQUEST");
    csr(&ca, &openssl, "one", false).await;
    assert_eq!(reason(install(&ca, &openssl, "stranger", &root).await), "IMPORT_NO_REQUEST");
    openssl.sign("one", "root", "intermediate", 60);
    csr(&ca, &openssl, "other", true).await;
    assert_eq!(reason(install(&ca, &openssl, "one", &root).await), "IMPORT_NO_REQUEST", "its key was replaced");
}

async fn a_database_begins_with_a_csr_and_never_has_a_root_key() {
    let Some(openssl) = OpenSsl::find() else { return };
    openssl.root("root", "P-256", "root", 365);
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let mut settings = settings(dir.path());
    settings.database = setting_in(dir.path()).await;
    settings.custody.offline_root = true;
    let refused = settings.clone().build(LogControl::detached(), Default::default()).await.unwrap_err();
    assert_eq!(refused.reason(), "AUTHORITY_NOT_INSTALLED");
    openssl.write("one.csr", offline_csr(&settings, false).await.unwrap().as_bytes());
    let refused = settings.clone().build(LogControl::detached(), Default::default()).await.unwrap_err();
    assert_eq!(refused.reason(), "AUTHORITY_NOT_INSTALLED");
    openssl.sign("one", "root", "intermediate", 60);
    let (certificate, root) = (openssl.read("one.pem"), openssl.read("root.pem"));
    let offer = Offer { certificate: &certificate, chain: &[], root: &root };
    offline_install(&settings, offer).await.unwrap();
    let refused = offline_csr(&settings, false).await.unwrap_err();
    assert_eq!(refused.reason(), "AUTHORITY_STATE", "from now on by the running authority");
    let ca = Running::start_in(dir, settings).await;
    issues(&ca).await;
    assert_eq!(ca.certifier.authorities.current().bundle.x509_authorities.len(), 1);
}

#[tokio::test]
async fn a_renewal_that_is_due_is_told_in_status_readiness_and_metrics() {
    let Some(openssl) = OpenSsl::find() else { return };
    openssl.root("root", "P-256", "root", 365);
    // The intermediate is new, and a lead of nearly all its life makes its renewal due at once.
    let ca = start(|custody| custody.renewal_lead = 0.9999999).await;
    let text = async |path: &str| {
        let (_, body) = runtime::ask::get(ca.addresses.admin.unwrap(), path).await.unwrap();
        String::from_utf8(body.to_vec()).unwrap()
    };
    assert!(text("/status").await.contains("\"authority_renewal\":\"AUTOMATIC\""));
    csr(&ca, &openssl, "one", false).await;
    openssl.sign("one", "root", "intermediate", 60);
    install(&ca, &openssl, "one", &openssl.read("root.pem")).await.unwrap();
    rotate(&ca).await;
    until("readiness says so", WAIT, async || text("/healthz/ready").await.contains("INTERMEDIATE_RENEWAL_DUE")).await;
    assert!(text("/healthz/ready").await.starts_with("ready\n"), "it is a note, the authority works");
    assert!(text("/status").await.contains("\"authority_renewal\":\"INTERMEDIATE_RENEWAL_DUE\""));
    assert!(text("/metrics").await.contains("ca_intermediate_renewal_due 1"));
    let found = custody(&ca).await.get_custody(GetCustodyRequest {}).await.unwrap().into_inner();
    assert!(found.remedy.contains("kasbah ca csr"));
}

on_each_database! {
    an_offline_root_takes_over_and_its_intermediate_is_renewed_by_hand,
    without_the_key_of_the_root_no_root_is_made_and_nothing_is_renewed,
    a_certificate_of_another_key_is_not_installed,
    a_database_begins_with_a_csr_and_never_has_a_root_key,
}

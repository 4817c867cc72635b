//! Authorities that OpenSSL made, at the first start and in a running authority; and those that are refused.

use identity::key::PrivateKey;
use proto::kasbah::ca::v1::{AdoptResponse, GetCustodyRequest, ImportAuthorityRequest};
use tonic::Status;

use super::openssl::{OpenSsl, file};
use super::{active_root, custody, issues, rotate, start};
use crate::custody::ImportFiles;
use crate::testing::database::on_each_database;
use crate::testing::running::{Running, reason};

async fn import(ca: &Running, openssl: &OpenSsl, name: &str, others: &[&str]) -> Result<AdoptResponse, Status> {
    let key = PrivateKey::from_pem(&openssl.read(&format!("{name}.key")), None).unwrap();
    let rest: Vec<u8> = others.iter().flat_map(|other| openssl.read(&format!("{other}.pem"))).collect();
    let request = ImportAuthorityRequest {
        certificate: openssl.read(&format!("{name}.pem")),
        chain: rest,
        root: Vec::new(),
        private_key: key.pkcs8_der().to_vec(),
    };
    custody(ca).await.import_authority(request).await.map(tonic::Response::into_inner)
}

async fn roots_of_every_kind_are_imported_and_the_rotation_moves_over_to_them() {
    let Some(openssl) = OpenSsl::find() else { return };
    let mut ca = start(|_| ()).await;
    for kind in ["rsa:2048", "P-256", "P-384", "ed25519"] {
        let name = kind.replace(':', "");
        openssl.root(&name, kind, "root", 60);
        let before = active_root(&ca);
        let adopted = import(&ca, &openssl, &name, &[]).await.unwrap();
        assert!(!adopted.signs, "nodes must know it first");
        assert_eq!((active_root(&ca), adopted.authority_id.as_str()), (before, adopted.root_id.as_str()));
        rotate(&ca).await;
        assert_eq!(active_root(&ca), adopted.root_id, "{kind}");
        issues(&ca).await;
        ca = ca.restart().await;
        issues(&ca).await;
    }
    rotate(&ca).await; // The root's key is here: the next one is made as ever.
    issues(&ca).await;
}

async fn intermediates_of_every_kind_are_imported_below_an_offline_root() {
    let Some(openssl) = OpenSsl::find() else { return };
    openssl.root("root", "P-384", "root", 90);
    let ca = start(|_| ()).await;
    for (count, kind) in ["rsa:3072", "P-256", "P-384", "ed25519"].into_iter().enumerate() {
        let name = kind.replace(':', "");
        openssl.intermediate(&name, kind, "root");
        let adopted = import(&ca, &openssl, &name, &["root"]).await.unwrap();
        assert_eq!(adopted.signs, count > 0, "the root is new once; then intermediates take over at once");
        if count == 0 {
            rotate(&ca).await;
        }
        assert_eq!(ca.certifier.authorities.current().x509_id, adopted.authority_id, "{kind}");
        issues(&ca).await;
    }
    let ca = ca.restart().await;
    issues(&ca).await;
    let found = custody(&ca).await.get_custody(GetCustodyRequest {}).await.unwrap().into_inner();
    let root = found.authorities.iter().find(|one| one.kind == "root" && one.state == "active").unwrap();
    assert_eq!(root.place, "offline", "its key was never here");
}

async fn a_database_begins_with_an_imported_intermediate() {
    let Some(openssl) = OpenSsl::find() else { return };
    openssl.root("root", "rsa:2048", "root", 90);
    openssl.intermediate("ca", "P-256", "root");
    openssl.run("pkcs8 -topk8 -in ca.key -v2 aes-256-cbc -passout pass:correct-horse -out ca.enc");
    openssl.write("passphrase", b"correct-horse\n");
    let files = ImportFiles {
        certificate: file(&openssl, "ca.pem"),
        key: file(&openssl, "ca.enc"),
        passphrase_file: Some(file(&openssl, "passphrase")),
        chain: None,
        root: Some(file(&openssl, "root.pem")),
    };
    let ca = start(|custody| custody.import = Some(files)).await;
    let bundle = &ca.certifier.authorities.current().bundle;
    assert_eq!(bundle.to_pem().trim(), text_of(&openssl, "root.pem").trim(), "no root of our own");
    issues(&ca).await;
    let ca = ca.restart().await;
    issues(&ca).await;
}

fn text_of(openssl: &OpenSsl, name: &str) -> String {
    identity::pem::certificates(&identity::pem::decode_certificates(&openssl.read(name)).unwrap())
}

async fn a_database_begins_with_an_imported_root() {
    let Some(openssl) = OpenSsl::find() else { return };
    openssl.root("root", "P-384", "root", 90);
    let (certificate, key) = (file(&openssl, "root.pem"), file(&openssl, "root.key"));
    let files = ImportFiles { certificate, key, passphrase_file: None, chain: None, root: None };
    let ca = start(|custody| custody.import = Some(files)).await;
    issues(&ca).await;
    rotate(&ca).await;
    issues(&ca).await;
}

async fn what_is_not_fit_is_refused_with_its_own_code_and_changes_nothing() {
    let Some(openssl) = OpenSsl::find() else { return };
    let ca = start(|_| ()).await;
    let revision = ca.certifier.store.authorities_revision().await.unwrap();
    openssl.root("good", "P-256", "root", 60);
    let check = async |name: &str, others: &[&str], code: &str| {
        assert_eq!(reason(import(&ca, &openssl, name, others).await), code, "{name}");
    };
    openssl.root("leaf", "P-256", "leaf", 60);
    check("leaf", &[], "IMPORT_NOT_A_CA").await;
    openssl.root("foreign", "P-256", "foreign", 60);
    check("foreign", &[], "IMPORT_FOREIGN_TRUST_DOMAIN").await;
    openssl.root("short", "P-256", "root", 1);
    check("short", &[], "IMPORT_LIFE_TOO_SHORT").await;
    openssl.key("wrong", "P-256");
    openssl.write("wrong.pem", &openssl.read("good.pem"));
    check("wrong", &[], "IMPORT_KEY_MISMATCH").await;
    openssl.write("garbage.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    openssl.key("garbage", "P-256");
    check("garbage", &[], "IMPORT_UNREADABLE").await;
    openssl.intermediate("orphan", "P-256", "good");
    check("orphan", &[], "IMPORT_CHAIN_INCOMPLETE").await;
    openssl.run("x509 -in good.pem -signkey good.key -days 60 -sha1 -extfile config -extensions root -out sha1.pem");
    openssl.write("sha1.key", &openssl.read("good.key"));
    check("sha1", &[], "IMPORT_SIGNATURE_REFUSED").await;
    openssl.root("weak", "rsa:1024", "root", 60);
    openssl.write("weak.key", &openssl.read("good.key"));
    check("weak", &[], "IMPORT_KEY_REFUSED").await;
    assert_eq!(ca.certifier.store.authorities_revision().await.unwrap(), revision);
    issues(&ca).await;
}

async fn a_private_key_is_taken_at_the_local_socket_only_and_appears_nowhere() {
    let ca = start(|_| ()).await;
    ca.entry_with("/admin", "/spire/server", |entry| entry.admin = true).await.unwrap();
    let admin = ca.mint("/admin").await;
    let request = ImportAuthorityRequest { private_key: b"secret".to_vec(), ..ImportAuthorityRequest::default() };
    assert!(!format!("{request:?}").contains("115, 101"), "not in Debug");
    let mut client = proto::kasbah::ca::v1::custody_client::CustodyClient::new(ca.network(Some(&admin)));
    assert_eq!(reason(client.import_authority(request).await), "CALLER_NOT_LOCAL");
}

async fn an_import_and_its_audit_record_are_one() {
    let Some(openssl) = OpenSsl::find() else { return };
    let ca = start(|_| ()).await;
    openssl.root("root", "P-256", "root", 60);
    import(&ca, &openssl, "root", &[]).await.unwrap();
    let mut audit = proto::kasbah::ca::v1::audit_client::AuditClient::new(ca.local().await);
    let asked = proto::kasbah::ca::v1::ListRecordsRequest { action: "authority".into(), ..Default::default() };
    let records = audit.list_records(asked).await.unwrap().into_inner().records;
    assert_eq!(records.iter().map(|it| it.action.as_str()).collect::<Vec<_>>(), ["authority.import"]);
}

on_each_database! {
    roots_of_every_kind_are_imported_and_the_rotation_moves_over_to_them,
    intermediates_of_every_kind_are_imported_below_an_offline_root,
    a_database_begins_with_an_imported_intermediate,
    a_database_begins_with_an_imported_root,
    what_is_not_fit_is_refused_with_its_own_code_and_changes_nothing,
    a_private_key_is_taken_at_the_local_socket_only_and_appears_nowhere,
    an_import_and_its_audit_record_are_one,
}

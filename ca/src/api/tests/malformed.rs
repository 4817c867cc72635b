//! A hundred requests that make no sense: each is refused with a code of its own kind, and nothing is stored.

use identity::csr::Csr;
use proto::spire::api::server::entry::v1::BatchCreateEntryRequest;
use proto::spire::api::server::svid::v1::{MintX509svidRequest, batch_new_x509svid_response};

use super::*;
use crate::testing::running::join_request;

/// CSRs that are cut short, have a bit changed, claim other lengths, or are something else altogether.
fn csrs() -> Vec<Vec<u8>> {
    let good = PrivateKey::generate_p256().unwrap().csr_der(Some(&id("/web"))).unwrap();
    assert!(Csr::decode_der(&good).is_ok());
    let cut = (0..20).map(|step| good[..good.len() * step / 20].to_vec());
    let changed = (0..30).map(|step| {
        let mut csr = good.clone();
        let at = csr.len() * step / 30;
        csr[at] ^= 0x55;
        csr
    });
    let longer = [vec![good.clone(), vec![0]], vec![good.clone(), good.clone()], vec![good.clone(), vec![0xff; 4096]]];
    let other =
        [b"-----BEGIN CERTIFICATE REQUEST-----".to_vec(), vec![0x30, 0x84, 0xff, 0xff, 0xff, 0xff], vec![0; 17_000]];
    cut.chain(changed).chain(longer.into_iter().map(|parts| parts.concat())).chain(other).collect()
}

fn entries() -> Vec<types::Entry> {
    let good = || entry_message("/ns/default/sa/web", "/node/local");
    let mut bad = Vec::new();
    let mut change = |edit: &dyn Fn(&mut types::Entry)| {
        let mut entry = good();
        edit(&mut entry);
        bad.push(entry);
    };
    for path in ["", "/", "no-slash", "/a//b", "/a/../b", "/a/./b", "/a b", "/a\u{0}b", "/ü", "/a/"] {
        change(&|entry| entry.spiffe_id = Some(types::Spiffeid { path: path.into(), ..id_message("/x") }));
        change(&|entry| entry.parent_id = Some(types::Spiffeid { path: path.into(), ..id_message("/x") }));
    }
    for domain in ["", "UPPER", "other.example", "a b"] {
        change(&|entry| entry.spiffe_id = Some(types::Spiffeid { trust_domain: domain.into(), path: "/x".into() }));
    }
    change(&|entry| entry.spiffe_id = None);
    change(&|entry| entry.parent_id = None);
    change(&|entry| entry.selectors.clear());
    change(&|entry| entry.selectors[0].r#type = String::new());
    change(&|entry| entry.selectors[0].value = String::new());
    change(&|entry| entry.selectors[0].r#type = "unix:uid".into());
    change(&|entry| entry.x509_svid_ttl = -1);
    change(&|entry| entry.jwt_svid_ttl = -1);
    change(&|entry| entry.dns_names = vec!["not a name".into()]);
    change(&|entry| entry.federates_with = vec!["not a domain!".into()]);
    bad
}

async fn a_hundred_malformed_requests_have_codes_and_store_nothing() {
    let ca = Running::start().await;
    let node = ca.node(Some("/node/local")).await;
    let entry = ca.entry("/web", "/node/local").await;
    let before = (ca.certifier.store.issued_count().await.unwrap(), ca.certifier.store.registry().entry_count());
    let (csrs, entries, mut refused) = (csrs(), entries(), 0);
    let mut svids = SvidClient::new(ca.network(Some(&node)));
    for csr in &csrs {
        let params = vec![NewX509svidParams { entry_id: entry.clone(), csr: csr.clone() }];
        let answer = svids.batch_new_x509svid(BatchNewX509svidRequest { params }).await.unwrap().into_inner();
        let batch_new_x509svid_response::Result { status, svid } = answer.results.into_iter().next().unwrap();
        assert_eq!((status.unwrap().code, svid), (Code::InvalidArgument as i32, None), "{csr:?}");
        refused += 1;
    }
    let mut administrator = SvidClient::new(ca.local().await);
    for csr in csrs.iter().step_by(4) {
        let code = reason(administrator.mint_x509svid(MintX509svidRequest { csr: csr.clone(), ttl: 0 }).await);
        assert!(code.starts_with("CSR_"), "{code}: {csr:?}");
        refused += 1;
    }
    let mut registrar = EntryClient::new(ca.local().await);
    for entry in entries {
        let request = BatchCreateEntryRequest { entries: vec![entry.clone()], output_mask: None };
        let answer = registrar.batch_create_entry(request).await.unwrap().into_inner();
        let status = answer.results[0].status.clone().unwrap();
        assert_eq!(status.code, Code::InvalidArgument as i32, "{entry:?}: {status:?}");
        assert!(!status.message.is_empty());
        refused += 1;
    }
    for token in ["", " ", "unknown", "../../etc/passwd", "\u{0}", &"x".repeat(100_000)] {
        let csr = PrivateKey::generate_p256().unwrap().csr_der(None).unwrap();
        let request = tokio_stream::once(join_request(token, csr));
        let code = reason(AgentClient::new(ca.network(None)).attest_agent(request).await);
        assert!(code.starts_with("JOIN_TOKEN_") || code.starts_with("ATTESTATION_"), "{code}: {token:?}");
        refused += 1;
    }
    assert!(refused >= 100, "only {refused}");
    let after = (ca.certifier.store.issued_count().await.unwrap(), ca.certifier.store.registry().entry_count());
    assert_eq!(after, before);
}

crate::testing::database::on_each_database! {
    a_hundred_malformed_requests_have_codes_and_store_nothing,
}

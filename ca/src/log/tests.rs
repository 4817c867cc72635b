//! What the log proves about what was issued.

use std::time::Duration;

use identity::transparency::{LogPublicKey, leaf_hash, verify_consistency, verify_inclusion};
use proto::kasbah::ca::v1::get_inclusion_proof_request::Leaf;
use proto::kasbah::ca::v1::log_client::LogClient;
use proto::kasbah::ca::v1::{self as wire, GetConsistencyProofRequest, GetEntriesRequest, GetInclusionProofRequest};
use tonic::transport::Channel;

use super::*;
use crate::store::{Issuance, IssuanceKind};
use crate::testing::running::Running;

fn row(ca: &Running, serial: &str) -> Issuance {
    Issuance {
        serial: serial.into(),
        kind: IssuanceKind::X509,
        spiffe_id: "spiffe://example.org/web".into(),
        entry_id: "e".into(),
        caller: "local".into(),
        authority_id: ca.certifier.authorities.current().x509_id.clone(),
        fingerprint: "f".into(),
        issued_at: 100,
        not_after: 200,
        log_index: -1,
    }
}

fn hash(bytes: &[u8]) -> Hash {
    bytes.try_into().expect("32 bytes")
}

/// What anybody learns who trusts nothing but the log's key.
fn checked(head: &wire::SignedTreeHead) -> TreeHead {
    let public = LogPublicKey::from_spki_der(&head.public_key).unwrap();
    let signed = SignedTreeHead {
        head: TreeHead { size: head.tree_size, root: hash(&head.root_hash), timestamp_ms: head.timestamp_ms },
        log_id: hash(&head.log_id),
        signature: head.signature.clone(),
    };
    public.verify(&signed).unwrap();
    signed.head
}

async fn head(client: &mut LogClient<Channel>) -> wire::SignedTreeHead {
    client.get_signed_tree_head(wire::GetSignedTreeHeadRequest {}).await.unwrap().into_inner()
}

async fn prove(client: &mut LogClient<Channel>, leaf: Leaf) -> wire::InclusionProof {
    client.get_inclusion_proof(GetInclusionProofRequest { leaf: Some(leaf) }).await.unwrap().into_inner()
}

fn check_inclusion(proof: &wire::InclusionProof) -> TreeHead {
    let head = checked(proof.head.as_ref().unwrap());
    let entry = proof.entry.as_ref().unwrap();
    let hashes: Vec<Hash> = proof.hashes.iter().map(|bytes| hash(bytes)).collect();
    verify_inclusion(&hash(&entry.leaf_hash), entry.index, head.size, &hashes, &head.root).unwrap();
    head
}

#[tokio::test]
async fn what_was_issued_is_in_the_log_and_says_what_was_issued() {
    let ca = Running::start().await;
    let svid = ca.mint("/ops").await;
    let mut client = LogClient::new(ca.local().await);
    let proof = prove(&mut client, Leaf::Serial(svid.serial().to_owned())).await;
    check_inclusion(&proof);
    let entry = proof.entry.unwrap();
    let record = entry.record.unwrap();
    assert_eq!((record.serial.as_str(), record.spiffe_id.as_str()), (svid.serial(), "spiffe://example.org/ops"));
    assert_eq!(record.fingerprint, crate::random::sha256_hex(svid.leaf_der()));
    let kept = ca.certifier.store.issued_one(svid.serial()).await.unwrap().unwrap();
    assert_eq!(hash(&entry.leaf_hash), kept.leaf().hash());
    assert_eq!(hash(&entry.leaf_hash), leaf_hash(&kept.leaf().encode()));
    let unknown = client.get_inclusion_proof(GetInclusionProofRequest { leaf: Some(Leaf::Serial("00".into())) });
    assert_eq!(runtime::refusal::reason_of(&unknown.await.unwrap_err()).unwrap(), "ISSUANCE_UNKNOWN");
    let outside = client.get_inclusion_proof(GetInclusionProofRequest { leaf: Some(Leaf::Index(99)) });
    assert_eq!(runtime::refusal::reason_of(&outside.await.unwrap_err()).unwrap(), "LOG_LEAF_UNKNOWN");
}

/// Batches of many sizes across several blocks of stored subtrees, with a restart in between.
#[tokio::test]
async fn the_log_grows_in_any_batches_and_proves_it() {
    let ca = Running::start().await;
    let mut heads = Vec::new();
    let mut serial = 0;
    let sizes = [1, 2, 3, 250, 300, 1, 700, 5];
    for size in sizes {
        let rows = (0..size).map(|n| row(&ca, &format!("a{}", serial + n))).collect();
        serial += size;
        ca.certifier.store.record(rows).await.unwrap();
        heads.push(checked(&head(&mut LogClient::new(ca.local().await)).await));
    }
    let ca = ca.restart().await;
    ca.certifier.store.record((0..300).map(|n| row(&ca, &format!("b{n}"))).collect()).await.unwrap();
    let mut client = LogClient::new(ca.local().await);
    for old in &heads {
        let request = GetConsistencyProofRequest { old_size: old.size };
        let proof = client.get_consistency_proof(request).await.unwrap().into_inner();
        let new = checked(&proof.head.unwrap());
        let hashes: Vec<Hash> = proof.hashes.iter().map(|bytes| hash(bytes)).collect();
        verify_consistency(old.size, &old.root, new.size, &new.root, &hashes).unwrap();
    }
    let size = heads.last().unwrap().size;
    for index in (0..size).step_by(97).chain([0, 254, 255, 256, 257, size - 1]) {
        check_inclusion(&prove(&mut client, Leaf::Index(index)).await);
    }
    let too_old = client.get_consistency_proof(GetConsistencyProofRequest { old_size: 1 << 40 }).await;
    assert_eq!(runtime::refusal::reason_of(&too_old.unwrap_err()).unwrap(), "LOG_HISTORY_CHANGED");
}

#[tokio::test]
async fn all_entries_together_have_the_signed_root_even_when_records_are_forgotten() {
    let ca = Running::start().await;
    ca.certifier.store.record((0..2_345).map(|n| row(&ca, &format!("a{n}"))).collect()).await.unwrap();
    ca.certifier.store.forget_issued_before(201).await.unwrap();
    ca.certifier.store.record((0..10).map(|n| row(&ca, &format!("b{n}"))).collect()).await.unwrap();
    let mut client = LogClient::new(ca.local().await);
    let head = checked(&head(&mut client).await);
    let (mut frontier, mut with_record) = (identity::transparency::Frontier::new(), 0);
    while frontier.size() < head.size {
        let request = GetEntriesRequest { first: frontier.size(), limit: 777 };
        for entry in client.get_entries(request).await.unwrap().into_inner().entries {
            assert_eq!(entry.index, frontier.size());
            with_record += usize::from(entry.record.is_some());
            frontier.append(hash(&entry.leaf_hash), |_, _| ());
        }
    }
    assert_eq!(frontier.root(), head.root);
    assert_eq!(with_record, 11, "ten, and the server's own SVID");
    assert!(
        client
            .get_entries(GetEntriesRequest { first: head.size, limit: 0 })
            .await
            .unwrap()
            .into_inner()
            .entries
            .is_empty()
    );
}

/// A failed transaction leaves no hole and no leaf: the next one goes on where the log really ends.
#[tokio::test]
async fn a_failed_write_leaves_the_log_as_it_was() {
    let ca = Running::start().await;
    ca.certifier.store.record(vec![row(&ca, "a1"), row(&ca, "a2")]).await.unwrap();
    let before = ca.certifier.store.log_frontier().await.unwrap();
    assert!(ca.certifier.store.record(vec![row(&ca, "a3"), row(&ca, "a1")]).await.is_err(), "a serial twice");
    assert_eq!(ca.certifier.store.log_frontier().await.unwrap(), before);
    ca.certifier.store.record(vec![row(&ca, "a4")]).await.unwrap();
    let mut client = LogClient::new(ca.local().await);
    assert_eq!(check_inclusion(&prove(&mut client, Leaf::Serial("a4".into())).await).size, before.size() + 1);
}

#[tokio::test]
async fn a_changed_record_is_told() {
    let ca = Running::start().await;
    ca.certifier.store.record(vec![row(&ca, "a1")]).await.unwrap();
    let forge = ca.certifier.store.write(|conn| {
        Box::pin(async move {
            sqlx::query("UPDATE issuance SET spiffe_id = 'spiffe://example.org/other'").execute(conn).await?;
            Ok(crate::store::Done::quiet(()))
        })
    });
    forge.await.unwrap();
    let mut client = LogClient::new(ca.local().await);
    let asked = client.get_inclusion_proof(GetInclusionProofRequest { leaf: Some(Leaf::Serial("a1".into())) }).await;
    assert_eq!(runtime::refusal::reason_of(&asked.unwrap_err()).unwrap(), "LOG_LEAVES_CHANGED");
}

#[tokio::test]
async fn heads_are_open_to_the_trust_domain_and_entries_to_administrators() {
    let ca = Running::start().await;
    let somebody = ca.mint("/somebody").await;
    let mut member = LogClient::new(ca.network(Some(&somebody)));
    checked(&head(&mut member).await);
    let refused = member.get_entries(GetEntriesRequest { first: 0, limit: 1 }).await.unwrap_err();
    assert_eq!(runtime::refusal::reason_of(&refused).unwrap(), "CALLER_NOT_ADMIN");
    let refused =
        member.get_inclusion_proof(GetInclusionProofRequest { leaf: Some(Leaf::Index(0)) }).await.unwrap_err();
    assert_eq!(runtime::refusal::reason_of(&refused).unwrap(), "CALLER_NOT_ADMIN");
    let mut nobody = LogClient::new(ca.network(None));
    let refused = nobody.get_signed_tree_head(wire::GetSignedTreeHeadRequest {}).await.unwrap_err();
    assert_eq!(runtime::refusal::reason_of(&refused).unwrap(), "CLIENT_CERTIFICATE_MISSING");
}

#[tokio::test]
async fn the_key_of_the_log_stays_and_is_sealed() {
    let ca = Running::start().await;
    let id = ca.certifier.log.key.public().id();
    let pkcs8 = STANDARD.encode(ca.certifier.log.key.pkcs8_der());
    let ca = ca.restart().await;
    assert_eq!(ca.certifier.log.key.public().id(), id);
    let (_, sealed) = ca.certifier.store.log_key().await.unwrap().unwrap();
    assert!(!sealed.contains(&pkcs8[60..80]));
    let other = SealKey::generate();
    assert!(TransparencyLog::load(&ca.certifier.store, &other, 1).await.is_err());
}

/// The price of a proof does not grow with the log: hashes of 100,000 leaves, read in a fraction of what it takes to read all.
#[tokio::test]
async fn proofs_in_a_large_log_read_little() {
    let ca = Running::start().await;
    for batch in 0..50 {
        let rows = (0..2_000).map(|n| row(&ca, &format!("{batch}-{n}"))).collect();
        ca.certifier.store.record(rows).await.unwrap();
    }
    let begun = std::time::Instant::now();
    for index in (0..100_000).step_by(997) {
        let size = ca.certifier.store.log_frontier().await.unwrap().size();
        ca.certifier.log.inclusion(&ca.certifier.store, index, size).await.unwrap();
    }
    let each = begun.elapsed() / 101;
    assert!(each < Duration::from_millis(100), "{each:?} for a proof");
}

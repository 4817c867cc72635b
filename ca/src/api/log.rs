//! The transparency log for those who check it.

use identity::transparency::{Hash, SignedTreeHead};
use proto::kasbah::ca::v1::{self as wire, get_inclusion_proof_request::Leaf, log_server};
use tonic::{Request, Response, Status};

use super::Api;
use crate::log::LogEntry;
use crate::refusal::Refusal;
use crate::store::Recorded;

#[tonic::async_trait]
impl log_server::Log for Api {
    async fn get_signed_tree_head(
        &self,
        request: Request<wire::GetSignedTreeHeadRequest>,
    ) -> Result<Response<wire::SignedTreeHead>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.member(&caller)?;
            let head = self.certifier.log.head(&self.certifier).await?;
            Ok(self.head_message(head))
        };
        self.answer("GetSignedTreeHead", &caller, work).await
    }

    async fn get_entries(
        &self,
        request: Request<wire::GetEntriesRequest>,
    ) -> Result<Response<wire::GetEntriesResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            let wire::GetEntriesRequest { first, limit } = request.into_inner();
            let entries = self.certifier.log.entries(&self.certifier.store, first, limit).await?;
            Ok(wire::GetEntriesResponse { entries: entries.into_iter().map(entry_message).collect() })
        };
        self.answer("GetEntries", &caller, work).await
    }

    async fn get_inclusion_proof(
        &self,
        request: Request<wire::GetInclusionProofRequest>,
    ) -> Result<Response<wire::InclusionProof>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            let (log, store) = (&self.certifier.log, &self.certifier.store);
            let entry = match request.into_inner().leaf {
                Some(Leaf::Serial(serial)) => log.entry_of(store, &serial).await?,
                Some(Leaf::Index(index)) => log.entry_at(store, index).await?,
                None => return Err(Refusal::Filter("leaf")),
            };
            let head = log.head(&self.certifier).await?;
            let hashes = log.inclusion(store, entry.index, head.head.size).await?;
            let (entry, head) = (Some(entry_message(entry)), Some(self.head_message(head)));
            Ok(wire::InclusionProof { entry, hashes: hash_messages(&hashes), head })
        };
        self.answer("GetInclusionProof", &caller, work).await
    }

    async fn get_consistency_proof(
        &self,
        request: Request<wire::GetConsistencyProofRequest>,
    ) -> Result<Response<wire::ConsistencyProof>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.member(&caller)?;
            let old_size = request.into_inner().old_size;
            let head = self.certifier.log.head(&self.certifier).await?;
            let hashes = self.certifier.log.consistency(&self.certifier.store, old_size, head.head.size).await?;
            let head = Some(self.head_message(head));
            Ok(wire::ConsistencyProof { old_size, hashes: hash_messages(&hashes), head })
        };
        self.answer("GetConsistencyProof", &caller, work).await
    }
}

impl Api {
    fn head_message(&self, signed: SignedTreeHead) -> wire::SignedTreeHead {
        wire::SignedTreeHead {
            tree_size: signed.head.size,
            root_hash: signed.head.root.to_vec(),
            timestamp_ms: signed.head.timestamp_ms,
            log_id: signed.log_id.to_vec(),
            signature: signed.signature,
            public_key: self.certifier.log.key.public().spki_der().to_vec(),
            trust_domain: self.certifier.trust_domain.to_string(),
        }
    }
}

fn entry_message(entry: LogEntry) -> wire::LogEntry {
    wire::LogEntry {
        index: entry.index,
        leaf_hash: entry.hash.to_vec(),
        record: entry.record.map(|Recorded { issuance, kind }| wire::IssuanceRecord {
            kind,
            serial: issuance.serial,
            spiffe_id: issuance.spiffe_id,
            entry_id: issuance.entry_id,
            caller: issuance.caller,
            authority_id: issuance.authority_id,
            fingerprint: issuance.fingerprint,
            issued_at: issuance.issued_at,
            not_after: issuance.not_after,
        }),
    }
}

fn hash_messages(hashes: &[Hash]) -> Vec<Vec<u8>> {
    hashes.iter().map(|hash| hash.to_vec()).collect()
}

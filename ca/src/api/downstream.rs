//! Servers below this one: they get an intermediate, and publish the keys of their tokens here.
//!
//! Who may is a holder of an SVID whose entry is marked `downstream`.

use std::sync::Arc;
use std::time::Duration;

use identity::csr::Csr;
use proto::spire::api::server::bundle::v1::{PublishJwtAuthorityResponse, PublishWitAuthorityResponse};
use proto::spire::api::server::svid::v1::{NewDownstreamX509caRequest, NewDownstreamX509caResponse};
use proto::spire::api::types;

use super::{Api, Caller, Who, bundle};
use crate::audit::Act;
use crate::authorities::PublishedKey;
use crate::certifier::secs;
use crate::entry::Entry;
use crate::issue::downstream::DownstreamOrder;
use crate::refusal::Refusal;
use crate::store::AuthorityKind;

impl Api {
    /// The entry that makes the caller a server below this one.
    pub(super) fn downstream(&self, caller: &Caller) -> Result<Arc<Entry>, Refusal> {
        let peer = match &caller.who {
            Who::Peer(peer) => peer,
            Who::Local | Who::User { .. } => return Err(Refusal::CallerNotDownstream),
            Who::Unknown => return Err(Refusal::CallerUnknown),
        };
        let now = self.certifier.now();
        if peer.not_after() <= now {
            return Err(Refusal::CallerUnknown);
        }
        let entry = self.certifier.store.registry().downstream(peer.spiffe_id(), secs(now));
        entry.ok_or(Refusal::CallerNotDownstream)
    }

    pub(super) async fn new_downstream(
        &self,
        caller: &Caller,
        request: NewDownstreamX509caRequest,
    ) -> Result<NewDownstreamX509caResponse, Refusal> {
        let entry = self.downstream(caller)?;
        let csr = Csr::decode_der(&request.csr).map_err(Refusal::Csr)?;
        let preferred = u64::try_from(request.preferred_ttl).map_err(|_| Refusal::Ttl)?;
        let order = DownstreamOrder {
            ttl: (preferred > 0).then(|| Duration::from_secs(preferred)),
            entry_id: entry.id.clone(),
            caller: caller.name(),
        };
        let chain = self.certifier.issue_downstream(&order, &csr).await?;
        let bundle = self.certifier.authorities.current().bundle.clone();
        Ok(NewDownstreamX509caResponse {
            ca_cert_chain: chain.iter().map(|certificate| certificate.to_vec()).collect(),
            x509_authorities: bundle.x509_authorities.iter().map(|root| root.to_vec()).collect(),
        })
    }

    pub(super) async fn publish_jwt(
        &self,
        caller: &Caller,
        key: Option<types::JwtKey>,
    ) -> Result<PublishJwtAuthorityResponse, Refusal> {
        self.downstream(caller)?;
        let key = key.ok_or(Refusal::Bundle("key is missing"))?;
        let key = PublishedKey { id: key.key_id, spki: key.public_key, expires_at: key.expires_at };
        self.publish_key(caller, AuthorityKind::Jwt, key).await?;
        let bundle = bundle::bundle_message(&self.certifier.authorities.current().bundle, None);
        Ok(PublishJwtAuthorityResponse { jwt_authorities: bundle.jwt_authorities })
    }

    pub(super) async fn publish_wit(
        &self,
        caller: &Caller,
        key: Option<types::WitKey>,
    ) -> Result<PublishWitAuthorityResponse, Refusal> {
        self.downstream(caller)?;
        let key = key.ok_or(Refusal::Bundle("key is missing"))?;
        let key = PublishedKey { id: key.key_id, spki: key.public_key, expires_at: key.expires_at };
        self.publish_key(caller, AuthorityKind::Wit, key).await?;
        let bundle = bundle::bundle_message(&self.certifier.authorities.current().bundle, None);
        Ok(PublishWitAuthorityResponse { wit_authorities: bundle.wit_authorities })
    }

    async fn publish_key(&self, caller: &Caller, kind: AuthorityKind, key: PublishedKey) -> Result<(), Refusal> {
        let certifier = &self.certifier;
        let store = certifier.acting(caller, Act::new("bundle.publish", &key.id).detail(kind.as_str()));
        Ok(certifier.authorities.publish_key(&store, kind, key, certifier.now()).await?)
    }
}

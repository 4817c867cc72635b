//! Trust bundles: our own for everybody, foreign ones for administrators.

use identity::bundle::{JwtAuthority, TrustBundle};
use identity::spiffe_id::TrustDomain;
use proto::spire::api::server::bundle::v1::{
    AppendBundleRequest, BatchCreateFederatedBundleRequest, BatchCreateFederatedBundleResponse,
    BatchDeleteFederatedBundleRequest, BatchDeleteFederatedBundleResponse, BatchSetFederatedBundleRequest,
    BatchSetFederatedBundleResponse, BatchUpdateFederatedBundleRequest, BatchUpdateFederatedBundleResponse,
    CountBundlesRequest, CountBundlesResponse, GetBundleRequest, GetFederatedBundleRequest,
    ListFederatedBundlesRequest, ListFederatedBundlesResponse, PublishJwtAuthorityRequest, PublishJwtAuthorityResponse,
    PublishWitAuthorityRequest, PublishWitAuthorityResponse, batch_create_federated_bundle_response,
    batch_delete_federated_bundle_request, batch_delete_federated_bundle_response, batch_set_federated_bundle_response,
    batch_update_federated_bundle_response, bundle_server,
};
use proto::spire::api::types;
use runtime::clock::from_unix_secs;
use tonic::{Request, Response, Status};

use super::{Api, BATCH_ITEMS_MAX, Caller, Who, page};
use crate::audit::Act;
use crate::certifier::{Certifier, secs};
use crate::refusal::Refusal;

#[tonic::async_trait]
impl bundle_server::Bundle for Api {
    async fn count_bundles(
        &self,
        request: Request<CountBundlesRequest>,
    ) -> Result<Response<CountBundlesResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            let foreign = self.certifier.store.registry().all_federated().count();
            Ok(CountBundlesResponse { count: i32::try_from(foreign + 1).unwrap_or(i32::MAX) })
        };
        self.answer("CountBundles", &caller, work).await
    }

    /// Open to everyone: the bundle is public.
    async fn get_bundle(&self, request: Request<GetBundleRequest>) -> Result<Response<types::Bundle>, Status> {
        let caller = self.caller(request.extensions());
        let mask = request.into_inner().output_mask;
        let work = async {
            let signing = self.certifier.authorities.current();
            if let Who::Peer(peer) = &caller.who {
                self.certifier.contacts.sent(peer.spiffe_id(), signing.bundle.sequence);
            }
            Ok(bundle_message(&signing.bundle, mask.as_ref()))
        };
        self.answer("GetBundle", &caller, work).await
    }

    /// Authorities of our own trust domain that sign elsewhere.
    async fn append_bundle(&self, request: Request<AppendBundleRequest>) -> Result<Response<types::Bundle>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            append(&self.certifier, &caller, request.into_inner()).await
        };
        self.answer("AppendBundle", &caller, work).await
    }

    async fn publish_jwt_authority(
        &self,
        request: Request<PublishJwtAuthorityRequest>,
    ) -> Result<Response<PublishJwtAuthorityResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = self.publish_jwt(&caller, request.into_inner().jwt_authority);
        self.answer("PublishJWTAuthority", &caller, work).await
    }

    async fn publish_wit_authority(
        &self,
        request: Request<PublishWitAuthorityRequest>,
    ) -> Result<Response<PublishWitAuthorityResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = self.publish_wit(&caller, request.into_inner().wit_authority);
        self.answer("PublishWITAuthority", &caller, work).await
    }

    async fn list_federated_bundles(
        &self,
        request: Request<ListFederatedBundlesRequest>,
    ) -> Result<Response<ListFederatedBundlesResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            let ListFederatedBundlesRequest { output_mask, page_size, page_token } = request.into_inner();
            let registry = self.certifier.store.registry();
            let found = registry.all_federated().filter(|bundle| bundle.trust_domain.as_str() > page_token.as_str());
            let (found, next_page_token) = page(found, page_size, |bundle| bundle.trust_domain.to_string());
            let bundles = found.into_iter().map(|bundle| bundle_message(bundle, output_mask.as_ref())).collect();
            Ok(ListFederatedBundlesResponse { bundles, next_page_token })
        };
        self.answer("ListFederatedBundles", &caller, work).await
    }

    async fn get_federated_bundle(
        &self,
        request: Request<GetFederatedBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            // An agent carries the bundles of its entries to its workloads; an administrator sees all.
            if self.agent(&caller).await.is_err() {
                self.admin(&caller)?;
            }
            let GetFederatedBundleRequest { trust_domain, output_mask } = request.into_inner();
            let domain = domain_of(&trust_domain)?;
            let bundle = self.certifier.store.registry().federated(&domain).ok_or(Refusal::BundleUnknown)?;
            Ok(bundle_message(&bundle, output_mask.as_ref()))
        };
        self.answer("GetFederatedBundle", &caller, work).await
    }

    async fn batch_create_federated_bundle(
        &self,
        request: Request<BatchCreateFederatedBundleRequest>,
    ) -> Result<Response<BatchCreateFederatedBundleResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            let BatchCreateFederatedBundleRequest { bundle, output_mask } = request.into_inner();
            let mut results = Vec::new();
            for (status, bundle) in
                set_all(&self.certifier, &caller, bundle, Presence::Absent, output_mask.as_ref()).await?
            {
                results.push(batch_create_federated_bundle_response::Result { status, bundle });
            }
            Ok(BatchCreateFederatedBundleResponse { results })
        };
        self.answer("BatchCreateFederatedBundle", &caller, work).await
    }

    async fn batch_update_federated_bundle(
        &self,
        request: Request<BatchUpdateFederatedBundleRequest>,
    ) -> Result<Response<BatchUpdateFederatedBundleResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            let BatchUpdateFederatedBundleRequest { bundle, input_mask, output_mask } = request.into_inner();
            if input_mask.is_some() {
                return Err(Refusal::Filter("input_mask"));
            }
            let mut results = Vec::new();
            for (status, bundle) in
                set_all(&self.certifier, &caller, bundle, Presence::Present, output_mask.as_ref()).await?
            {
                results.push(batch_update_federated_bundle_response::Result { status, bundle });
            }
            Ok(BatchUpdateFederatedBundleResponse { results })
        };
        self.answer("BatchUpdateFederatedBundle", &caller, work).await
    }

    async fn batch_set_federated_bundle(
        &self,
        request: Request<BatchSetFederatedBundleRequest>,
    ) -> Result<Response<BatchSetFederatedBundleResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            let BatchSetFederatedBundleRequest { bundle, output_mask } = request.into_inner();
            let mut results = Vec::new();
            for (status, bundle) in
                set_all(&self.certifier, &caller, bundle, Presence::Any, output_mask.as_ref()).await?
            {
                results.push(batch_set_federated_bundle_response::Result { status, bundle });
            }
            Ok(BatchSetFederatedBundleResponse { results })
        };
        self.answer("BatchSetFederatedBundle", &caller, work).await
    }

    async fn batch_delete_federated_bundle(
        &self,
        request: Request<BatchDeleteFederatedBundleRequest>,
    ) -> Result<Response<BatchDeleteFederatedBundleResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            let message = request.into_inner();
            let mode = message.mode();
            if message.trust_domains.len() > BATCH_ITEMS_MAX {
                return Err(Refusal::TooMany(BATCH_ITEMS_MAX));
            }
            let mut results = Vec::new();
            for trust_domain in message.trust_domains {
                let deleted = delete(&self.certifier, &caller, &trust_domain, mode).await;
                note(&self.certifier, &caller, "bundle.delete", &trust_domain, deleted.as_ref().err());
                let status = Some(item_status(deleted));
                results.push(batch_delete_federated_bundle_response::Result { status, trust_domain });
            }
            Ok(BatchDeleteFederatedBundleResponse { results })
        };
        self.answer("BatchDeleteFederatedBundle", &caller, work).await
    }
}

/// What must hold of a foreign bundle before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Absent,
    Present,
    Any,
}

type Outcome = (Option<types::Status>, Option<types::Bundle>);

async fn set_all(
    certifier: &Certifier,
    caller: &Caller,
    bundles: Vec<types::Bundle>,
    presence: Presence,
    mask: Option<&types::BundleMask>,
) -> Result<Vec<Outcome>, Refusal> {
    if bundles.len() > BATCH_ITEMS_MAX {
        return Err(Refusal::TooMany(BATCH_ITEMS_MAX));
    }
    let mut outcomes = Vec::with_capacity(bundles.len());
    for message in bundles {
        let name = message.trust_domain.clone();
        let written = set(certifier, caller, message, presence).await;
        note(certifier, caller, "bundle.set", &name, written.as_ref().err());
        let bundle = written.as_ref().ok().map(|bundle| bundle_message(bundle, mask));
        outcomes.push((Some(item_status(written.map(drop))), bundle));
    }
    Ok(outcomes)
}

fn note(certifier: &Certifier, caller: &Caller, action: &'static str, target: &str, refusal: Option<&Refusal>) {
    if let Some(refusal) = refusal {
        certifier.note_refusal(caller, action, target, refusal.reason());
    }
}

async fn set(
    certifier: &Certifier,
    caller: &Caller,
    message: types::Bundle,
    presence: Presence,
) -> Result<TrustBundle, Refusal> {
    let bundle = bundle_of(message)?;
    if bundle.trust_domain == certifier.trust_domain {
        return Err(Refusal::Bundle("is our own, which cannot be set"));
    }
    let known = certifier.store.registry().federated(&bundle.trust_domain).is_some();
    match presence {
        Presence::Absent if known => return Err(Refusal::BundleExists),
        Presence::Present if !known => return Err(Refusal::BundleUnknown),
        _ => (),
    }
    let keys = format!("{} roots, {} JWT keys", bundle.x509_authorities.len(), bundle.jwt_authorities.len());
    let store = certifier.acting(caller, Act::new("bundle.set", &bundle.trust_domain).detail(keys));
    store.set_federated(bundle.clone(), certifier.now_secs()).await?;
    Ok(bundle)
}

async fn append(
    certifier: &Certifier,
    caller: &Caller,
    request: AppendBundleRequest,
) -> Result<types::Bundle, Refusal> {
    let AppendBundleRequest { x509_authorities, jwt_authorities, wit_authorities, output_mask } = request;
    let authorities = &certifier.authorities;
    if authorities.upstream().is_some() {
        let text = "the bundle is that of the authority above; have it trust the root, and this server follows";
        return Err(Refusal::NotNow(text.into()));
    }
    let trust_domain = certifier.trust_domain.to_string();
    let message =
        types::Bundle { trust_domain, x509_authorities, jwt_authorities, wit_authorities, ..types::Bundle::default() };
    let bundle = bundle_of(message)?;
    let (roots, jwt, wit) = (&bundle.x509_authorities, &bundle.jwt_authorities, &bundle.wit_authorities);
    let found = format!("{} roots, {} JWT keys, {} WIT keys", roots.len(), jwt.len(), wit.len());
    let store = certifier.acting(caller, Act::new("bundle.append", &certifier.trust_domain).detail(found));
    authorities.append(&store, &bundle, certifier.now()).await?;
    Ok(bundle_message(&authorities.current().bundle, output_mask.as_ref()))
}

async fn delete(
    certifier: &Certifier,
    caller: &Caller,
    name: &str,
    mode: batch_delete_federated_bundle_request::Mode,
) -> Result<(), Refusal> {
    use batch_delete_federated_bundle_request::Mode;
    let domain = domain_of(name)?;
    if certifier.store.registry().federated(&domain).is_none() {
        return Err(Refusal::BundleUnknown);
    }
    let federating: Vec<String> = {
        let registry = certifier.store.registry();
        let with = registry.entries_after("").filter(|entry| entry.federates_with.contains(&domain));
        with.map(|entry| entry.id.clone()).collect()
    };
    if mode == Mode::Restrict && !federating.is_empty() {
        return Err(Refusal::BundleInUse);
    }
    for id in federating {
        if mode == Mode::Delete {
            let act = Act::new("entry.delete", &id).detail(format_args!("with the bundle of {domain}"));
            certifier.acting(caller, act).delete_entry(&id).await?;
        } else {
            let gone = domain.clone();
            let act = Act::new("entry.update", &id).detail(format_args!("no longer federates with {domain}"));
            let store = certifier.acting(caller, act);
            let dissociate = store.update_entry(&id, move |entry| {
                entry.federates_with.remove(&gone);
            });
            dissociate.await?;
        }
    }
    let store = certifier.acting(caller, Act::new("bundle.delete", &domain));
    if store.delete_federated(&domain).await? { Ok(()) } else { Err(Refusal::BundleUnknown) }
}

pub(super) fn item_status(outcome: Result<(), Refusal>) -> types::Status {
    match outcome {
        Ok(()) => types::Status { code: 0, message: "OK".into() },
        Err(refusal) => refusal.item_status(),
    }
}

pub(super) fn domain_of(name: &str) -> Result<TrustDomain, Refusal> {
    let name = name.strip_prefix("spiffe://").unwrap_or(name);
    TrustDomain::parse(name).map_err(|source| Refusal::Id { field: "trust_domain", source })
}

pub(super) fn bundle_of(message: types::Bundle) -> Result<TrustBundle, Refusal> {
    let mut bundle = TrustBundle::new(domain_of(&message.trust_domain)?);
    for certificate in message.x509_authorities {
        let added = bundle.add_x509_authority(certificate.asn1.into());
        added.map_err(|_| Refusal::Bundle("holds a root that is not readable, or too many"))?;
    }
    for key in message.jwt_authorities {
        let expires_at = (key.expires_at > 0).then(|| from_unix_secs(key.expires_at));
        let key = JwtAuthority::from_spki_der(&key.key_id, &key.public_key, expires_at);
        let key = key.map_err(|_| Refusal::Bundle("holds a JWT key that is not accepted"))?;
        if key.key_id.is_empty() || bundle.jwt_authorities.iter().any(|known| known.key_id == key.key_id) {
            return Err(Refusal::Bundle("holds a JWT key without an ID, or an ID twice"));
        }
        bundle.jwt_authorities.push(key);
    }
    for key in message.wit_authorities {
        let expires_at = (key.expires_at > 0).then(|| from_unix_secs(key.expires_at));
        let key = JwtAuthority::from_spki_der(&key.key_id, &key.public_key, expires_at);
        let key = key.map_err(|_| Refusal::Bundle("holds a WIT key that is not accepted"))?;
        let mut known = bundle.jwt_authorities.iter().chain(&bundle.wit_authorities);
        if key.key_id.is_empty() || known.any(|known| known.key_id == key.key_id) {
            return Err(Refusal::Bundle("holds a WIT key without an ID, or an ID twice"));
        }
        bundle.wit_authorities.push(key);
    }
    let hint = u64::try_from(message.refresh_hint).ok().filter(|hint| *hint > 0);
    bundle.refresh_hint = hint.map(std::time::Duration::from_secs);
    bundle.sequence = message.sequence_number;
    Ok(bundle)
}

/// The bundle as a message, with those fields that `mask` names (all without one). The trust domain always stands.
pub(super) fn bundle_message(bundle: &TrustBundle, mask: Option<&types::BundleMask>) -> types::Bundle {
    let wants = |field: fn(&types::BundleMask) -> bool| mask.is_none_or(field);
    let x509 = bundle.x509_authorities.iter().filter(|_| wants(|mask| mask.x509_authorities));
    let jwt = bundle.jwt_authorities.iter().filter(|_| wants(|mask| mask.jwt_authorities));
    let wit = bundle.wit_authorities.iter().filter(|_| wants(|mask| mask.wit_authorities));
    let hint = bundle.refresh_hint.filter(|_| wants(|mask| mask.refresh_hint));
    types::Bundle {
        trust_domain: bundle.trust_domain.to_string(),
        x509_authorities: x509
            .map(|root| types::X509Certificate { asn1: root.to_vec(), tainted: bundle.is_x509_tainted(root) })
            .collect(),
        jwt_authorities: jwt
            .map(|key| types::JwtKey {
                public_key: key.spki_der(),
                key_id: key.key_id.clone(),
                expires_at: key.expires_at.map_or(0, secs),
                tainted: bundle.is_key_tainted(&key.key_id),
            })
            .collect(),
        refresh_hint: hint.map_or(0, |hint| i64::try_from(hint.as_secs()).unwrap_or(i64::MAX)),
        sequence_number: if wants(|mask| mask.sequence_number) { bundle.sequence } else { 0 },
        wit_authorities: wit
            .map(|key| types::WitKey {
                public_key: key.spki_der(),
                key_id: key.key_id.clone(),
                expires_at: key.expires_at.map_or(0, secs),
                tainted: bundle.is_key_tainted(&key.key_id),
            })
            .collect(),
    }
}

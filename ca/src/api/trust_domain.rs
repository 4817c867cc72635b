//! Federation relationships: where foreign bundles come from. The state of the fetching is Kasbah's own service beside it.

use identity::bundle::TrustBundle;
use identity::spiffe_id::TrustDomain;
use proto::kasbah::ca::v1::{FederationState, ListStatesRequest, ListStatesResponse, federation_server};
use proto::spire::api::server::trustdomain::v1::{
    BatchCreateFederationRelationshipRequest, BatchCreateFederationRelationshipResponse,
    BatchDeleteFederationRelationshipRequest, BatchDeleteFederationRelationshipResponse,
    BatchUpdateFederationRelationshipRequest, BatchUpdateFederationRelationshipResponse,
    GetFederationRelationshipRequest, ListFederationRelationshipsRequest, ListFederationRelationshipsResponse,
    RefreshBundleRequest, batch_create_federation_relationship_response as created,
    batch_delete_federation_relationship_response as deleted, batch_update_federation_relationship_response as updated,
    trust_domain_server,
};
use proto::spire::api::types;
use proto::spire::api::types::federation_relationship::BundleEndpointProfile;
use tonic::{Request, Response, Status};

use super::bundle::{bundle_message, bundle_of, domain_of, item_status};
use super::{Api, BATCH_ITEMS_MAX, Caller, page};
use crate::audit::Act;
use crate::certifier::Certifier;
use crate::federation::{self, EndpointUrl, Profile, Relationship};
use crate::refusal::Refusal;
use crate::registry::Registry;
use crate::store::Related;

#[tonic::async_trait]
impl trust_domain_server::TrustDomain for Api {
    async fn list_federation_relationships(
        &self,
        request: Request<ListFederationRelationshipsRequest>,
    ) -> Result<Response<ListFederationRelationshipsResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            let ListFederationRelationshipsRequest { output_mask, page_size, page_token } = request.into_inner();
            let registry = self.certifier.store.registry();
            let found = registry.relationships().filter(|one| one.trust_domain.as_str() > page_token.as_str());
            let (found, next_page_token) = page(found, page_size, |one| one.trust_domain.to_string());
            let federation_relationships =
                found.into_iter().map(|one| message(one, &registry, output_mask.as_ref())).collect();
            Ok(ListFederationRelationshipsResponse { federation_relationships, next_page_token })
        };
        self.answer("ListFederationRelationships", &caller, work).await
    }

    async fn get_federation_relationship(
        &self,
        request: Request<GetFederationRelationshipRequest>,
    ) -> Result<Response<types::FederationRelationship>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            let GetFederationRelationshipRequest { trust_domain, output_mask } = request.into_inner();
            let registry = self.certifier.store.registry();
            let found = registry.relationship(&domain_of(&trust_domain)?).ok_or(Refusal::RelationshipUnknown)?;
            Ok(message(&found, &registry, output_mask.as_ref()))
        };
        self.answer("GetFederationRelationship", &caller, work).await
    }

    async fn batch_create_federation_relationship(
        &self,
        request: Request<BatchCreateFederationRelationshipRequest>,
    ) -> Result<Response<BatchCreateFederationRelationshipResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            let BatchCreateFederationRelationshipRequest { federation_relationships, output_mask } =
                request.into_inner();
            check_batch(federation_relationships.len())?;
            let mut results = Vec::with_capacity(federation_relationships.len());
            for wanted in federation_relationships {
                let outcome = create(&self.certifier, &caller, &wanted).await;
                let (status, federation_relationship) =
                    self.outcome(&caller, "federation.create", &wanted.trust_domain, outcome, output_mask.as_ref());
                results.push(created::Result { status, federation_relationship });
            }
            Ok(BatchCreateFederationRelationshipResponse { results })
        };
        self.answer("BatchCreateFederationRelationship", &caller, work).await
    }

    async fn batch_update_federation_relationship(
        &self,
        request: Request<BatchUpdateFederationRelationshipRequest>,
    ) -> Result<Response<BatchUpdateFederationRelationshipResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            let BatchUpdateFederationRelationshipRequest { federation_relationships, input_mask, output_mask } =
                request.into_inner();
            check_batch(federation_relationships.len())?;
            let mask = input_mask.unwrap_or(WHOLE);
            let mut results = Vec::with_capacity(federation_relationships.len());
            for wanted in federation_relationships {
                let outcome = update(&self.certifier, &caller, &wanted, mask).await;
                let (status, federation_relationship) =
                    self.outcome(&caller, "federation.update", &wanted.trust_domain, outcome, output_mask.as_ref());
                results.push(updated::Result { status, federation_relationship });
            }
            Ok(BatchUpdateFederationRelationshipResponse { results })
        };
        self.answer("BatchUpdateFederationRelationship", &caller, work).await
    }

    async fn batch_delete_federation_relationship(
        &self,
        request: Request<BatchDeleteFederationRelationshipRequest>,
    ) -> Result<Response<BatchDeleteFederationRelationshipResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            let trust_domains = request.into_inner().trust_domains;
            check_batch(trust_domains.len())?;
            let mut results = Vec::with_capacity(trust_domains.len());
            for trust_domain in trust_domains {
                let outcome = delete(&self.certifier, &caller, &trust_domain).await;
                if let Err(refusal) = &outcome {
                    self.certifier.note_refusal(&caller, "federation.delete", &trust_domain, refusal.reason());
                }
                results.push(deleted::Result { status: Some(item_status(outcome)), trust_domain });
            }
            Ok(BatchDeleteFederationRelationshipResponse { results })
        };
        self.answer("BatchDeleteFederationRelationship", &caller, work).await
    }

    async fn refresh_bundle(&self, request: Request<RefreshBundleRequest>) -> Result<Response<()>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            let domain = domain_of(&request.into_inner().trust_domain)?;
            federation::refresh(&self.certifier, &caller, &domain).await
        };
        self.answer("RefreshBundle", &caller, work).await
    }
}

#[tonic::async_trait]
impl federation_server::Federation for Api {
    async fn list_states(&self, request: Request<ListStatesRequest>) -> Result<Response<ListStatesResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            let wanted = request.into_inner().trust_domain;
            let registry = self.certifier.store.registry();
            let found = registry.relationships().filter(|one| wanted.is_empty() || one.trust_domain.as_str() == wanted);
            Ok(ListStatesResponse { states: found.map(|one| state(one, &registry)).collect() })
        };
        self.answer("ListFederationStates", &caller, work).await
    }
}

impl Api {
    /// One item of a batch answer; a refusal is noted for the audit trail.
    fn outcome(
        &self,
        caller: &Caller,
        action: &'static str,
        target: &str,
        outcome: Result<Related, Refusal>,
        mask: Option<&types::FederationRelationshipMask>,
    ) -> (Option<types::Status>, Option<types::FederationRelationship>) {
        let refusal = match outcome {
            Ok(Related::Done(relationship)) => {
                tracing::info!(
                    trust_domain = target,
                    action,
                    caller = caller.name(),
                    "federation relationship written"
                );
                let message = message(&relationship, &self.certifier.store.registry(), mask);
                return (Some(item_status(Ok(()))), Some(message));
            }
            Ok(Related::Exists) => Refusal::RelationshipExists,
            Ok(Related::Unknown) => Refusal::RelationshipUnknown,
            Ok(Related::TooMany) => Refusal::RelationshipsFull,
            Err(refusal) => refusal,
        };
        self.certifier.note_refusal(caller, action, target, refusal.reason());
        (Some(refusal.item_status()), None)
    }
}

async fn create(
    certifier: &Certifier,
    caller: &Caller,
    wanted: &types::FederationRelationship,
) -> Result<Related, Refusal> {
    let domain = foreign(certifier, &wanted.trust_domain)?;
    let url = url_of(&wanted.bundle_endpoint_url)?;
    let profile = profile_of(wanted.bundle_endpoint_profile.as_ref())?;
    let bundle = bundle_for(&domain, wanted.trust_domain_bundle.as_ref())?;
    let relationship = Relationship::new(domain, url, profile, certifier.now_secs());
    let store = certifier.acting(caller, act("federation.create", &relationship, bundle.is_some()));
    Ok(store.create_relationship(relationship, bundle).await?)
}

async fn update(
    certifier: &Certifier,
    caller: &Caller,
    wanted: &types::FederationRelationship,
    mask: types::FederationRelationshipMask,
) -> Result<Related, Refusal> {
    let domain = foreign(certifier, &wanted.trust_domain)?;
    let url = mask.bundle_endpoint_url.then(|| url_of(&wanted.bundle_endpoint_url)).transpose()?;
    let profile =
        mask.bundle_endpoint_profile.then(|| profile_of(wanted.bundle_endpoint_profile.as_ref())).transpose()?;
    let bundle = wanted.trust_domain_bundle.as_ref().filter(|_| mask.trust_domain_bundle);
    let bundle = bundle_for(&domain, bundle)?;
    let known = certifier.store.registry().relationship(&domain).ok_or(Refusal::RelationshipUnknown)?;
    let change = move |relationship: &mut Relationship| {
        relationship.url = url.clone().unwrap_or_else(|| relationship.url.clone());
        relationship.profile = profile.clone().unwrap_or_else(|| relationship.profile.clone());
    };
    let mut shown = Relationship::clone(&known);
    change(&mut shown);
    let store = certifier.acting(caller, act("federation.update", &shown, bundle.is_some()));
    Ok(store.update_relationship(&domain, bundle, change).await?)
}

async fn delete(certifier: &Certifier, caller: &Caller, name: &str) -> Result<(), Refusal> {
    let domain = domain_of(name)?;
    let store = certifier.acting(caller, Act::new("federation.delete", &domain).detail("and its bundle"));
    if !store.delete_relationship(&domain).await? {
        return Err(Refusal::RelationshipUnknown);
    }
    tracing::warn!(trust_domain = %domain, caller = caller.name(), "federation relationship and its bundle deleted");
    Ok(())
}

fn act(action: &'static str, relationship: &Relationship, with_bundle: bool) -> Act {
    let Relationship { trust_domain, url, profile, .. } = relationship;
    let bundle = if with_bundle { ", with a bundle" } else { "" };
    let detail = format!("{url}, {} {}", profile.as_str(), profile.endpoint_id());
    Act::new(action, trust_domain).detail(format_args!("{}{bundle}", detail.trim_end()))
}

fn foreign(certifier: &Certifier, name: &str) -> Result<TrustDomain, Refusal> {
    let domain = domain_of(name)?;
    if domain == certifier.trust_domain {
        return Err(Refusal::Relationship { field: "trust_domain", problem: "is our own" });
    }
    Ok(domain)
}

fn url_of(text: &str) -> Result<EndpointUrl, Refusal> {
    EndpointUrl::parse(text).map_err(|problem| Refusal::Relationship { field: "bundle_endpoint_url", problem })
}

fn profile_of(profile: Option<&BundleEndpointProfile>) -> Result<Profile, Refusal> {
    let field = "bundle_endpoint_profile";
    match profile {
        None => Err(Refusal::Relationship { field, problem: "is missing" }),
        Some(BundleEndpointProfile::HttpsWeb(_)) => Ok(Profile::HttpsWeb),
        Some(BundleEndpointProfile::HttpsSpiffe(profile)) => {
            let field = "endpoint_spiffe_id";
            let id = identity::spiffe_id::SpiffeId::parse(&profile.endpoint_spiffe_id);
            let id = id.map_err(|source| Refusal::Id { field, source })?;
            if id.path().is_empty() {
                return Err(Refusal::IdRefused { field, problem: "has no path, as every SVID's ID has" });
            }
            Ok(Profile::HttpsSpiffe(id))
        }
    }
}

fn bundle_for(domain: &TrustDomain, message: Option<&types::Bundle>) -> Result<Option<TrustBundle>, Refusal> {
    let Some(message) = message else { return Ok(None) };
    let bundle = bundle_of(message.clone())?;
    if bundle.trust_domain != *domain {
        return Err(Refusal::Bundle("is of another trust domain than the relationship"));
    }
    Ok(Some(bundle))
}

fn check_batch(items: usize) -> Result<(), Refusal> {
    if items > BATCH_ITEMS_MAX { Err(Refusal::TooMany(BATCH_ITEMS_MAX)) } else { Ok(()) }
}

/// The relationship as a message, with those fields that `mask` names (all without one). The trust domain always stands.
fn message(
    relationship: &Relationship,
    registry: &Registry,
    mask: Option<&types::FederationRelationshipMask>,
) -> types::FederationRelationship {
    let mask = mask.copied().unwrap_or(WHOLE);
    let profile = match &relationship.profile {
        Profile::HttpsWeb => BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {}),
        Profile::HttpsSpiffe(id) => {
            BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile { endpoint_spiffe_id: id.to_string() })
        }
    };
    let bundle = registry.federated(&relationship.trust_domain).filter(|_| mask.trust_domain_bundle);
    types::FederationRelationship {
        trust_domain: relationship.trust_domain.to_string(),
        bundle_endpoint_url: if mask.bundle_endpoint_url { relationship.url.to_string() } else { String::new() },
        bundle_endpoint_profile: mask.bundle_endpoint_profile.then_some(profile),
        trust_domain_bundle: bundle.map(|bundle| bundle_message(&bundle, None)),
    }
}

fn state(relationship: &Relationship, registry: &Registry) -> FederationState {
    let (state, bundle) = (&relationship.state, registry.federated(&relationship.trust_domain));
    let roots = bundle.as_ref().map_or(0, |bundle| bundle.x509_authorities.len());
    FederationState {
        trust_domain: relationship.trust_domain.to_string(),
        succeeded_at: state.succeeded_at,
        tried_at: state.tried_at,
        next_at: state.next_at,
        failures: state.failures,
        reason: state.reason.clone(),
        problem: state.problem.clone(),
        bundle_sequence: bundle.map_or(0, |bundle| bundle.sequence),
        x509_authorities: u32::try_from(roots).unwrap_or(u32::MAX),
    }
}

const WHOLE: types::FederationRelationshipMask = types::FederationRelationshipMask {
    bundle_endpoint_url: true,
    bundle_endpoint_profile: true,
    trust_domain_bundle: true,
};

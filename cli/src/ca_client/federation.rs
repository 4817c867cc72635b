//! Foreign bundles and federation relationships.

use proto::kasbah::ca::v1::federation_client::FederationClient;
use proto::kasbah::ca::v1::{FederationState, ListStatesRequest};
use proto::spire::api::server::bundle::v1::batch_delete_federated_bundle_request::Mode;
use proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use proto::spire::api::server::bundle::v1::{
    AppendBundleRequest, BatchDeleteFederatedBundleRequest, BatchSetFederatedBundleRequest, GetFederatedBundleRequest,
    ListFederatedBundlesRequest,
};
use proto::spire::api::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use proto::spire::api::server::trustdomain::v1::{
    BatchCreateFederationRelationshipRequest, BatchDeleteFederationRelationshipRequest,
    BatchUpdateFederationRelationshipRequest, GetFederationRelationshipRequest, ListFederationRelationshipsRequest,
    RefreshBundleRequest,
};
use proto::spire::api::types::{Bundle, FederationRelationship, FederationRelationshipMask};

use super::{CaClient, item};
use crate::exit::Failure;

impl CaClient {
    /// Of one trust domain.
    pub(crate) async fn federated_bundle(&self, trust_domain: &str) -> Result<Bundle, Failure> {
        let request = GetFederatedBundleRequest { trust_domain: trust_domain.to_owned(), output_mask: None };
        Ok(self.bundles().get_federated_bundle(request).await?.into_inner())
    }

    /// All of them, page by page.
    pub(crate) async fn federated_bundles(&self) -> Result<Vec<Bundle>, Failure> {
        let (mut bundles, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListFederatedBundlesRequest { output_mask: None, page_size: PAGE_BUNDLES, page_token };
            let page = self.bundles().list_federated_bundles(request).await?.into_inner();
            bundles.extend(page.bundles);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(bundles);
            }
        }
    }

    /// Creates or replaces one.
    pub(crate) async fn set_federated_bundle(&self, bundle: Bundle) -> Result<Bundle, Failure> {
        let request = BatchSetFederatedBundleRequest { bundle: vec![bundle], output_mask: None };
        let answer = self.bundles().batch_set_federated_bundle(request).await?.into_inner();
        one(answer.results.into_iter().map(|result| (result.status, result.bundle)))
    }

    /// Adds authorities to the own bundle; answers it as it is then.
    pub(crate) async fn append_bundle(&self, bundle: Bundle) -> Result<Bundle, Failure> {
        let Bundle { x509_authorities, jwt_authorities, wit_authorities, .. } = bundle;
        let request = AppendBundleRequest { x509_authorities, jwt_authorities, wit_authorities, output_mask: None };
        Ok(self.bundles().append_bundle(request).await?.into_inner())
    }

    pub(crate) async fn delete_federated_bundle(&self, trust_domain: &str, mode: Mode) -> Result<(), Failure> {
        let request =
            BatchDeleteFederatedBundleRequest { trust_domains: vec![trust_domain.to_owned()], mode: mode.into() };
        let answer = self.bundles().batch_delete_federated_bundle(request).await?.into_inner();
        one(answer.results.into_iter().map(|result| (result.status, Some(()))))
    }

    pub(crate) async fn create_relationship(
        &self,
        relationship: FederationRelationship,
    ) -> Result<FederationRelationship, Failure> {
        let request = BatchCreateFederationRelationshipRequest {
            federation_relationships: vec![relationship],
            output_mask: None,
        };
        let answer = self.trust_domains().batch_create_federation_relationship(request).await?.into_inner();
        one(answer.results.into_iter().map(|result| (result.status, result.federation_relationship)))
    }

    /// Changes what `mask` names.
    pub(crate) async fn update_relationship(
        &self,
        relationship: FederationRelationship,
        mask: FederationRelationshipMask,
    ) -> Result<FederationRelationship, Failure> {
        let request = BatchUpdateFederationRelationshipRequest {
            federation_relationships: vec![relationship],
            input_mask: Some(mask),
            output_mask: None,
        };
        let answer = self.trust_domains().batch_update_federation_relationship(request).await?.into_inner();
        one(answer.results.into_iter().map(|result| (result.status, result.federation_relationship)))
    }

    pub(crate) async fn delete_relationship(&self, trust_domain: &str) -> Result<(), Failure> {
        let request = BatchDeleteFederationRelationshipRequest { trust_domains: vec![trust_domain.to_owned()] };
        let answer = self.trust_domains().batch_delete_federation_relationship(request).await?.into_inner();
        one(answer.results.into_iter().map(|result| (result.status, Some(()))))
    }

    pub(crate) async fn relationship(&self, trust_domain: &str) -> Result<FederationRelationship, Failure> {
        let request = GetFederationRelationshipRequest { trust_domain: trust_domain.to_owned(), output_mask: None };
        Ok(self.trust_domains().get_federation_relationship(request).await?.into_inner())
    }

    /// All of them, page by page.
    pub(crate) async fn relationships(&self) -> Result<Vec<FederationRelationship>, Failure> {
        let (mut relationships, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListFederationRelationshipsRequest { output_mask: None, page_size: PAGE_BUNDLES, page_token };
            let page = self.trust_domains().list_federation_relationships(request).await?.into_inner();
            relationships.extend(page.federation_relationships);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(relationships);
            }
        }
    }

    /// How the fetching goes, of one trust domain or (with an empty name) of all.
    pub(crate) async fn federation_states(&self, trust_domain: &str) -> Result<Vec<FederationState>, Failure> {
        let request = ListStatesRequest { trust_domain: trust_domain.to_owned() };
        Ok(FederationClient::new(self.channel()).list_states(request).await?.into_inner().states)
    }

    /// Fetches a bundle now.
    pub(crate) async fn refresh_bundle(&self, trust_domain: &str) -> Result<(), Failure> {
        let request = RefreshBundleRequest { trust_domain: trust_domain.to_owned() };
        self.trust_domains().refresh_bundle(request).await?;
        Ok(())
    }

    fn bundles(&self) -> BundleClient<tonic::transport::Channel> {
        BundleClient::new(self.channel()).max_decoding_message_size(PAGE_BYTES_MAX)
    }

    fn trust_domains(&self) -> TrustDomainClient<tonic::transport::Channel> {
        TrustDomainClient::new(self.channel()).max_decoding_message_size(PAGE_BYTES_MAX)
    }
}

fn one<T>(
    mut results: impl Iterator<Item = (Option<proto::spire::api::types::Status>, Option<T>)>,
) -> Result<T, Failure> {
    let (status, value) = results.next().ok_or_else(|| Failure::failed("the CA answered without a result"))?;
    item(status, value)
}

const PAGE_BUNDLES: i32 = 10;
/// A page of bundles of the largest size.
const PAGE_BYTES_MAX: usize = 48 << 20;

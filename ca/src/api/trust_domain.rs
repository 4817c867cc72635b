//! Federation relationships. None can be made yet, so the list is empty and always right.

use proto::spire::api::server::trustdomain::v1::{
    BatchCreateFederationRelationshipRequest, BatchCreateFederationRelationshipResponse,
    BatchDeleteFederationRelationshipRequest, BatchDeleteFederationRelationshipResponse,
    BatchUpdateFederationRelationshipRequest, BatchUpdateFederationRelationshipResponse,
    GetFederationRelationshipRequest, ListFederationRelationshipsRequest, ListFederationRelationshipsResponse,
    RefreshBundleRequest, trust_domain_server,
};
use proto::spire::api::types;
use tonic::{Request, Response, Status};

use super::Api;
use super::bundle::domain_of;
use crate::refusal::Refusal;

#[tonic::async_trait]
impl trust_domain_server::TrustDomain for Api {
    async fn list_federation_relationships(
        &self,
        request: Request<ListFederationRelationshipsRequest>,
    ) -> Result<Response<ListFederationRelationshipsResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            Ok(ListFederationRelationshipsResponse::default())
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
            domain_of(&request.into_inner().trust_domain)?;
            Err(Refusal::RelationshipUnknown)
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
            Err(Refusal::NotOffered("BatchCreateFederationRelationship"))
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
            Err(Refusal::NotOffered("BatchUpdateFederationRelationship"))
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
            Err(Refusal::NotOffered("BatchDeleteFederationRelationship"))
        };
        self.answer("BatchDeleteFederationRelationship", &caller, work).await
    }

    async fn refresh_bundle(&self, request: Request<RefreshBundleRequest>) -> Result<Response<()>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            domain_of(&request.into_inner().trust_domain)?;
            Err(Refusal::RelationshipUnknown)
        };
        self.answer("RefreshBundle", &caller, work).await
    }
}

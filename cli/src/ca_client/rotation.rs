//! Rotations: SPIRE's LocalAuthority for the steps, our own service for the whole.

use proto::kasbah::ca::v1::rotation_client::RotationClient;
use proto::kasbah::ca::v1::{
    AbortRequest, Kind, ReceiptRequest, ReceiptResponse, ResumeRequest, StartRequest, StatusRequest, StatusResponse,
    WaiveRequest,
};
use proto::spire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use proto::spire::api::server::localauthority::v1::{
    ActivateJwtAuthorityRequest, ActivateWitAuthorityRequest, ActivateX509AuthorityRequest, PrepareJwtAuthorityRequest,
    PrepareWitAuthorityRequest, PrepareX509AuthorityRequest, RevokeJwtAuthorityRequest, RevokeWitAuthorityRequest,
    RevokeX509AuthorityRequest, TaintJwtAuthorityRequest, TaintWitAuthorityRequest, TaintX509AuthorityRequest,
};
use tonic::transport::Channel;

use super::CaClient;
use crate::exit::Failure;

impl CaClient {
    fn rotations(&self) -> RotationClient<Channel> {
        RotationClient::new(self.channel.clone())
    }

    fn authorities(&self) -> LocalAuthorityClient<Channel> {
        LocalAuthorityClient::new(self.channel.clone())
    }

    pub(crate) async fn rotation(&self, kind: Kind) -> Result<StatusResponse, Failure> {
        Ok(self.rotations().status(StatusRequest { kind: kind.into() }).await?.into_inner())
    }

    pub(crate) async fn receipt(&self, request: ReceiptRequest) -> Result<ReceiptResponse, Failure> {
        Ok(self.rotations().receipt(request).await?.into_inner())
    }

    pub(crate) async fn start_rotation(&self, kind: Kind, compromised: bool) -> Result<StatusResponse, Failure> {
        Ok(self.rotations().start(StartRequest { kind: kind.into(), compromised }).await?.into_inner())
    }

    pub(crate) async fn resume_rotation(&self, kind: Kind) -> Result<StatusResponse, Failure> {
        Ok(self.rotations().resume(ResumeRequest { kind: kind.into() }).await?.into_inner())
    }

    pub(crate) async fn abort_rotation(&self, kind: Kind) -> Result<StatusResponse, Failure> {
        Ok(self.rotations().abort(AbortRequest { kind: kind.into() }).await?.into_inner())
    }

    pub(crate) async fn waive_node(&self, kind: Kind, id: &str) -> Result<StatusResponse, Failure> {
        let request = WaiveRequest { kind: kind.into(), node_id: id.to_owned() };
        Ok(self.rotations().waive(request).await?.into_inner())
    }

    pub(crate) async fn prepare_authority(&self, kind: Kind) -> Result<(), Failure> {
        match kind {
            Kind::X509 => drop(self.authorities().prepare_x509_authority(PrepareX509AuthorityRequest {}).await?),
            Kind::Jwt => drop(self.authorities().prepare_jwt_authority(PrepareJwtAuthorityRequest {}).await?),
            Kind::Wit => drop(self.authorities().prepare_wit_authority(PrepareWitAuthorityRequest {}).await?),
        }
        Ok(())
    }

    pub(crate) async fn activate_authority(&self, kind: Kind, authority_id: String) -> Result<(), Failure> {
        let mut client = self.authorities();
        match kind {
            Kind::X509 => drop(client.activate_x509_authority(ActivateX509AuthorityRequest { authority_id }).await?),
            Kind::Jwt => drop(client.activate_jwt_authority(ActivateJwtAuthorityRequest { authority_id }).await?),
            Kind::Wit => drop(client.activate_wit_authority(ActivateWitAuthorityRequest { authority_id }).await?),
        }
        Ok(())
    }

    pub(crate) async fn taint_authority(&self, kind: Kind, authority_id: String) -> Result<(), Failure> {
        let mut client = self.authorities();
        match kind {
            Kind::X509 => drop(client.taint_x509_authority(TaintX509AuthorityRequest { authority_id }).await?),
            Kind::Jwt => drop(client.taint_jwt_authority(TaintJwtAuthorityRequest { authority_id }).await?),
            Kind::Wit => drop(client.taint_wit_authority(TaintWitAuthorityRequest { authority_id }).await?),
        }
        Ok(())
    }

    pub(crate) async fn revoke_authority(&self, kind: Kind, authority_id: String) -> Result<(), Failure> {
        let mut client = self.authorities();
        match kind {
            Kind::X509 => drop(client.revoke_x509_authority(RevokeX509AuthorityRequest { authority_id }).await?),
            Kind::Jwt => drop(client.revoke_jwt_authority(RevokeJwtAuthorityRequest { authority_id }).await?),
            Kind::Wit => drop(client.revoke_wit_authority(RevokeWitAuthorityRequest { authority_id }).await?),
        }
        Ok(())
    }
}

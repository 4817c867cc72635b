//! The server's own authorities, as rotation tools see them. Reading their state works; the steps of a forced rotation
//! are refused with a clear word, because authorities replace themselves at half of their life.

use proto::spire::api::server::localauthority::v1::{
    ActivateJwtAuthorityRequest, ActivateJwtAuthorityResponse, ActivateWitAuthorityRequest,
    ActivateWitAuthorityResponse, ActivateX509AuthorityRequest, ActivateX509AuthorityResponse, AuthorityState,
    GetJwtAuthorityStateRequest, GetJwtAuthorityStateResponse, GetWitAuthorityStateRequest,
    GetWitAuthorityStateResponse, GetX509AuthorityStateRequest, GetX509AuthorityStateResponse,
    PrepareJwtAuthorityRequest, PrepareJwtAuthorityResponse, PrepareWitAuthorityRequest, PrepareWitAuthorityResponse,
    PrepareX509AuthorityRequest, PrepareX509AuthorityResponse, RevokeJwtAuthorityRequest, RevokeJwtAuthorityResponse,
    RevokeWitAuthorityRequest, RevokeWitAuthorityResponse, RevokeX509AuthorityRequest, RevokeX509AuthorityResponse,
    RevokeX509UpstreamAuthorityRequest, RevokeX509UpstreamAuthorityResponse, TaintJwtAuthorityRequest,
    TaintJwtAuthorityResponse, TaintWitAuthorityRequest, TaintWitAuthorityResponse, TaintX509AuthorityRequest,
    TaintX509AuthorityResponse, TaintX509UpstreamAuthorityRequest, TaintX509UpstreamAuthorityResponse,
    local_authority_server,
};
use tonic::{Request, Response, Status};

use super::{Api, Caller};
use crate::authorities::Facts;
use crate::refusal::Refusal;
use crate::store::{AuthorityKind, AuthorityState as Stage};

impl Api {
    fn state(&self, caller: &Caller, kind: AuthorityKind, stage: Stage) -> Result<Option<AuthorityState>, Refusal> {
        self.admin(caller)?;
        Ok(self.certifier.authorities.current().find(kind, stage).map(|facts| self.state_message(facts)))
    }

    fn state_message(&self, facts: &Facts) -> AuthorityState {
        let signing = self.certifier.authorities.current();
        // What signed the intermediates is our own root, not an upstream authority's; it is named all the same, because
        // it is what stands in the bundle.
        let root = signing.find(AuthorityKind::Root, Stage::Active).filter(|_| facts.kind == AuthorityKind::X509);
        AuthorityState {
            authority_id: facts.id.clone(),
            expires_at: facts.not_after,
            upstream_authority_subject_key_id: root.map(|root| root.id.clone()).unwrap_or_default(),
        }
    }
}

#[tonic::async_trait]
impl local_authority_server::LocalAuthority for Api {
    async fn get_jwt_authority_state(
        &self,
        request: Request<GetJwtAuthorityStateRequest>,
    ) -> Result<Response<GetJwtAuthorityStateResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let state = |stage| self.state(&caller, AuthorityKind::Jwt, stage);
            let (active, prepared, old) = (state(Stage::Active)?, state(Stage::Prepared)?, state(Stage::Old)?);
            Ok(GetJwtAuthorityStateResponse { active, prepared, old })
        };
        self.answer("GetJWTAuthorityState", &caller, work).await
    }

    async fn get_x509_authority_state(
        &self,
        request: Request<GetX509AuthorityStateRequest>,
    ) -> Result<Response<GetX509AuthorityStateResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let state = |stage| self.state(&caller, AuthorityKind::X509, stage);
            let (active, prepared, old) = (state(Stage::Active)?, state(Stage::Prepared)?, state(Stage::Old)?);
            Ok(GetX509AuthorityStateResponse { active, prepared, old })
        };
        self.answer("GetX509AuthorityState", &caller, work).await
    }

    async fn get_wit_authority_state(
        &self,
        request: Request<GetWitAuthorityStateRequest>,
    ) -> Result<Response<GetWitAuthorityStateResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            Err(Refusal::NotOffered("WIT authorities"))
        };
        self.answer("GetWITAuthorityState", &caller, work).await
    }

    async fn prepare_jwt_authority(
        &self,
        request: Request<PrepareJwtAuthorityRequest>,
    ) -> Result<Response<PrepareJwtAuthorityResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            Err(Refusal::NotNow(NO_FORCED_ROTATION))
        };
        self.answer("PrepareJWTAuthority", &caller, work).await
    }

    async fn activate_jwt_authority(
        &self,
        request: Request<ActivateJwtAuthorityRequest>,
    ) -> Result<Response<ActivateJwtAuthorityResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            Err(Refusal::NotNow(NO_FORCED_ROTATION))
        };
        self.answer("ActivateJWTAuthority", &caller, work).await
    }

    async fn taint_jwt_authority(
        &self,
        request: Request<TaintJwtAuthorityRequest>,
    ) -> Result<Response<TaintJwtAuthorityResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            Err(Refusal::NotNow(NO_FORCED_ROTATION))
        };
        self.answer("TaintJWTAuthority", &caller, work).await
    }

    async fn revoke_jwt_authority(
        &self,
        request: Request<RevokeJwtAuthorityRequest>,
    ) -> Result<Response<RevokeJwtAuthorityResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            Err(Refusal::NotNow(NO_FORCED_ROTATION))
        };
        self.answer("RevokeJWTAuthority", &caller, work).await
    }

    async fn prepare_x509_authority(
        &self,
        request: Request<PrepareX509AuthorityRequest>,
    ) -> Result<Response<PrepareX509AuthorityResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            Err(Refusal::NotNow(NO_FORCED_ROTATION))
        };
        self.answer("PrepareX509Authority", &caller, work).await
    }

    async fn activate_x509_authority(
        &self,
        request: Request<ActivateX509AuthorityRequest>,
    ) -> Result<Response<ActivateX509AuthorityResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            Err(Refusal::NotNow(NO_FORCED_ROTATION))
        };
        self.answer("ActivateX509Authority", &caller, work).await
    }

    async fn taint_x509_authority(
        &self,
        request: Request<TaintX509AuthorityRequest>,
    ) -> Result<Response<TaintX509AuthorityResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            Err(Refusal::NotNow(NO_FORCED_ROTATION))
        };
        self.answer("TaintX509Authority", &caller, work).await
    }

    async fn taint_x509_upstream_authority(
        &self,
        request: Request<TaintX509UpstreamAuthorityRequest>,
    ) -> Result<Response<TaintX509UpstreamAuthorityResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            Err(Refusal::NotNow(NO_UPSTREAM))
        };
        self.answer("TaintX509UpstreamAuthority", &caller, work).await
    }

    async fn revoke_x509_authority(
        &self,
        request: Request<RevokeX509AuthorityRequest>,
    ) -> Result<Response<RevokeX509AuthorityResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            Err(Refusal::NotNow(NO_FORCED_ROTATION))
        };
        self.answer("RevokeX509Authority", &caller, work).await
    }

    async fn revoke_x509_upstream_authority(
        &self,
        request: Request<RevokeX509UpstreamAuthorityRequest>,
    ) -> Result<Response<RevokeX509UpstreamAuthorityResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            Err(Refusal::NotNow(NO_UPSTREAM))
        };
        self.answer("RevokeX509UpstreamAuthority", &caller, work).await
    }

    async fn prepare_wit_authority(
        &self,
        request: Request<PrepareWitAuthorityRequest>,
    ) -> Result<Response<PrepareWitAuthorityResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            Err(Refusal::NotOffered("WIT authorities"))
        };
        self.answer("PrepareWITAuthority", &caller, work).await
    }

    async fn activate_wit_authority(
        &self,
        request: Request<ActivateWitAuthorityRequest>,
    ) -> Result<Response<ActivateWitAuthorityResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            Err(Refusal::NotOffered("WIT authorities"))
        };
        self.answer("ActivateWITAuthority", &caller, work).await
    }

    async fn taint_wit_authority(
        &self,
        request: Request<TaintWitAuthorityRequest>,
    ) -> Result<Response<TaintWitAuthorityResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            Err(Refusal::NotOffered("WIT authorities"))
        };
        self.answer("TaintWITAuthority", &caller, work).await
    }

    async fn revoke_wit_authority(
        &self,
        request: Request<RevokeWitAuthorityRequest>,
    ) -> Result<Response<RevokeWitAuthorityResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            Err(Refusal::NotOffered("WIT authorities"))
        };
        self.answer("RevokeWITAuthority", &caller, work).await
    }
}

const NO_FORCED_ROTATION: &str =
    "this server replaces its authorities by itself at half of their life; forced rotation is not offered";
const NO_UPSTREAM: &str = "this server has no upstream authority";

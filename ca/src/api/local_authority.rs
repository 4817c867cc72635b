//! The server's own authorities, as rotation tools of SPIRE see them: state, prepare, activate, taint, revoke.
//!
//! The X.509 authority is the root, which stands in the bundle; its id is the root's subject key identifier. Stricter than
//! SPIRE, a step is refused until every node has acknowledged what it needs (`ROTATION_NOT_ACKNOWLEDGED`), and any old
//! authority can be tainted and revoked, however many rotations ago it signed.

use futures_util::future::BoxFuture;
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
use crate::audit::Act;
use crate::authorities::Asked;
use crate::refusal::Refusal;
use crate::rotation::machine::{Line, Member, Mode, Step};
use crate::store::{AuthorityKind, AuthorityState as Stage};

impl Api {
    /// Active, prepared, and the newest old one.
    fn states(&self, kind: AuthorityKind) -> [Option<AuthorityState>; 3] {
        let signing = self.certifier.authorities.current();
        let line: &Line = signing.line(kind);
        let old = line.newest(Stage::Old).or_else(|| line.newest(Stage::Tainted));
        [line.newest(Stage::Active), line.newest(Stage::Prepared), old].map(|member| member.map(message))
    }

    async fn prepare(&self, caller: &Caller, kind: AuthorityKind) -> Result<Option<AuthorityState>, Refusal> {
        self.rotate(caller, kind, Asked::Prepare(Mode::Steps)).await?;
        let [_, prepared, _] = self.states(kind);
        Ok(prepared)
    }

    /// Takes a step with one authority and answers that.
    async fn change(
        &self,
        caller: &Caller,
        kind: AuthorityKind,
        step: fn(String) -> Step,
        id: String,
    ) -> Result<Option<AuthorityState>, Refusal> {
        let state = |api: &Self| api.certifier.authorities.current().line(kind).member(&id).map(message);
        let before = state(self);
        self.rotate(caller, kind, Asked::Step(step(id.clone()))).await?;
        Ok(state(self).or(before))
    }

    /// Takes a step of a rotation in the caller's name.
    pub(super) async fn rotate(&self, caller: &Caller, kind: AuthorityKind, asked: Asked) -> Result<(), Refusal> {
        tracing::warn!(caller = caller.name(), kind = kind.as_str(), ?asked, "rotation step asked for");
        let certifier = &self.certifier;
        let store = certifier.acting(caller, act(kind, &asked));
        Ok(certifier.authorities.step(&store, kind, &asked, certifier.now()).await?)
    }
}

/// The step for the audit trail.
fn act(kind: AuthorityKind, asked: &Asked) -> Act {
    let act = match asked {
        Asked::Prepare(_) => Act::new("rotation.prepare", kind.as_str()),
        Asked::Step(Step::Activate(id)) => Act::new("rotation.activate", id),
        Asked::Step(Step::Taint(id)) => Act::new("rotation.taint", id),
        Asked::Step(Step::Revoke(id)) => Act::new("rotation.revoke", id),
        Asked::Step(Step::Waive(node)) => Act::new("rotation.waive", kind.as_str()).of(node),
        Asked::Step(Step::Resume) => Act::new("rotation.resume", kind.as_str()),
        Asked::Step(Step::Abort) => Act::new("rotation.abort", kind.as_str()),
        Asked::Step(Step::Prepare(..) | Step::Forget(_)) => Act::new("rotation.change", kind.as_str()),
    };
    act.detail(kind.as_str())
}

fn message(member: &Member) -> AuthorityState {
    // There is no upstream authority: what is in the bundle is our own.
    let upstream_authority_subject_key_id = String::new();
    AuthorityState { authority_id: member.id.clone(), expires_at: member.not_after, upstream_authority_subject_key_id }
}

/// Methods for administrators: who calls is checked, what comes of it is logged and counted. Written as
/// `tonic::async_trait` would have it.
macro_rules! admin_methods {
    ($($method:ident($rpc:literal, $request:ident) -> $response:ident = |$api:ident, $caller:ident, $message:ident| $work:expr;)*) => {$(
        fn $method<'life0, 'async_trait>(
            &'life0 self,
            request: Request<$request>,
        ) -> BoxFuture<'async_trait, Result<Response<$response>, Status>>
        where
            'life0: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async move {
                let caller = self.caller(request.extensions());
                let work = async {
                    let ($api, $caller, $message) = (self, self.admin(&caller)?, request.into_inner());
                    $work
                };
                self.answer($rpc, &caller, work).await
            })
        }
    )*};
}

const X509: AuthorityKind = AuthorityKind::Root;
const JWT: AuthorityKind = AuthorityKind::Jwt;
const WIT: AuthorityKind = AuthorityKind::Wit;

impl local_authority_server::LocalAuthority for Api {
    admin_methods! {
        get_jwt_authority_state("GetJWTAuthorityState", GetJwtAuthorityStateRequest) -> GetJwtAuthorityStateResponse =
            |api, _caller, _asked| {
                let [active, prepared, old] = api.states(JWT);
                Ok(GetJwtAuthorityStateResponse { active, prepared, old })
            };
        get_x509_authority_state("GetX509AuthorityState", GetX509AuthorityStateRequest) -> GetX509AuthorityStateResponse =
            |api, _caller, _asked| {
                let [active, prepared, old] = api.states(X509);
                Ok(GetX509AuthorityStateResponse { active, prepared, old })
            };
        get_wit_authority_state("GetWITAuthorityState", GetWitAuthorityStateRequest) -> GetWitAuthorityStateResponse =
            |api, _caller, _asked| {
                let [active, prepared, old] = api.states(WIT);
                Ok(GetWitAuthorityStateResponse { active, prepared, old })
            };
        prepare_jwt_authority("PrepareJWTAuthority", PrepareJwtAuthorityRequest) -> PrepareJwtAuthorityResponse =
            |api, caller, _asked| {
                Ok(PrepareJwtAuthorityResponse { prepared_authority: api.prepare(caller, JWT).await? })
            };
        prepare_x509_authority("PrepareX509Authority", PrepareX509AuthorityRequest) -> PrepareX509AuthorityResponse =
            |api, caller, _asked| {
                Ok(PrepareX509AuthorityResponse { prepared_authority: api.prepare(caller, X509).await? })
            };
        prepare_wit_authority("PrepareWITAuthority", PrepareWitAuthorityRequest) -> PrepareWitAuthorityResponse =
            |api, caller, _asked| {
                Ok(PrepareWitAuthorityResponse { prepared_authority: api.prepare(caller, WIT).await? })
            };
        activate_jwt_authority("ActivateJWTAuthority", ActivateJwtAuthorityRequest) -> ActivateJwtAuthorityResponse =
            |api, caller, asked| {
                let activated_authority = api.change(caller, JWT, Step::Activate, asked.authority_id).await?;
                Ok(ActivateJwtAuthorityResponse { activated_authority })
            };
        activate_x509_authority("ActivateX509Authority", ActivateX509AuthorityRequest) -> ActivateX509AuthorityResponse =
            |api, caller, asked| {
                let activated_authority = api.change(caller, X509, Step::Activate, asked.authority_id).await?;
                Ok(ActivateX509AuthorityResponse { activated_authority })
            };
        activate_wit_authority("ActivateWITAuthority", ActivateWitAuthorityRequest) -> ActivateWitAuthorityResponse =
            |api, caller, asked| {
                let activated_authority = api.change(caller, WIT, Step::Activate, asked.authority_id).await?;
                Ok(ActivateWitAuthorityResponse { activated_authority })
            };
        taint_jwt_authority("TaintJWTAuthority", TaintJwtAuthorityRequest) -> TaintJwtAuthorityResponse =
            |api, caller, asked| {
                let tainted_authority = api.change(caller, JWT, Step::Taint, asked.authority_id).await?;
                Ok(TaintJwtAuthorityResponse { tainted_authority })
            };
        taint_x509_authority("TaintX509Authority", TaintX509AuthorityRequest) -> TaintX509AuthorityResponse =
            |api, caller, asked| {
                let tainted_authority = api.change(caller, X509, Step::Taint, asked.authority_id).await?;
                Ok(TaintX509AuthorityResponse { tainted_authority })
            };
        taint_wit_authority("TaintWITAuthority", TaintWitAuthorityRequest) -> TaintWitAuthorityResponse =
            |api, caller, asked| {
                let tainted_authority = api.change(caller, WIT, Step::Taint, asked.authority_id).await?;
                Ok(TaintWitAuthorityResponse { tainted_authority })
            };
        taint_x509_upstream_authority("TaintX509UpstreamAuthority", TaintX509UpstreamAuthorityRequest)
            -> TaintX509UpstreamAuthorityResponse = |_api, _caller, _asked| Err(no_upstream());
        revoke_jwt_authority("RevokeJWTAuthority", RevokeJwtAuthorityRequest) -> RevokeJwtAuthorityResponse =
            |api, caller, asked| {
                let revoked_authority = api.change(caller, JWT, Step::Revoke, asked.authority_id).await?;
                Ok(RevokeJwtAuthorityResponse { revoked_authority })
            };
        revoke_x509_authority("RevokeX509Authority", RevokeX509AuthorityRequest) -> RevokeX509AuthorityResponse =
            |api, caller, asked| {
                let revoked_authority = api.change(caller, X509, Step::Revoke, asked.authority_id).await?;
                Ok(RevokeX509AuthorityResponse { revoked_authority })
            };
        revoke_wit_authority("RevokeWITAuthority", RevokeWitAuthorityRequest) -> RevokeWitAuthorityResponse =
            |api, caller, asked| {
                let revoked_authority = api.change(caller, WIT, Step::Revoke, asked.authority_id).await?;
                Ok(RevokeWitAuthorityResponse { revoked_authority })
            };
        revoke_x509_upstream_authority("RevokeX509UpstreamAuthority", RevokeX509UpstreamAuthorityRequest)
            -> RevokeX509UpstreamAuthorityResponse = |_api, _caller, _asked| Err(no_upstream());
    }
}

fn no_upstream() -> Refusal {
    Refusal::NotNow("this server has no upstream authority".into())
}

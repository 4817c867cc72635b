//! Authorities from elsewhere: imports, CSRs for an offline root, and what is to be done about keys.

use identity::import::Offer;
use identity::key::PrivateKey;
use proto::kasbah::ca::v1::{
    AdoptResponse, GetCustodyRequest, GetCustodyResponse, ImportAuthorityRequest, InstallCertificateRequest,
    KeptAuthority, MakeCsrRequest, MakeCsrResponse, custody_server,
};
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use super::{Api, Caller, Origin};
use crate::audit::Act;
use crate::authorities::{Adopted, Adoption, AuthoritiesError, Facts};
use crate::refusal::Refusal;
use crate::rotation::machine::Mode;

#[tonic::async_trait]
impl custody_server::Custody for Api {
    async fn get_custody(&self, request: Request<GetCustodyRequest>) -> Result<Response<GetCustodyResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            Ok(self.kept())
        };
        self.answer("Custody.GetCustody", &caller, work).await
    }

    async fn import_authority(
        &self,
        request: Request<ImportAuthorityRequest>,
    ) -> Result<Response<AdoptResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            if self.origin != Origin::Local {
                return Err(Refusal::NotLocal);
            }
            self.import(&caller, request.into_inner()).await
        };
        self.answer("Custody.ImportAuthority", &caller, work).await
    }

    async fn make_csr(&self, request: Request<MakeCsrRequest>) -> Result<Response<MakeCsrResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            let store = self.certifier.acting(&caller, Act::new("authority.csr", "x509"));
            let another = request.get_ref().another;
            let csr = self.certifier.authorities.request(&store, another, self.certifier.now()).await?;
            Ok(MakeCsrResponse { csr })
        };
        self.answer("Custody.MakeCsr", &caller, work).await
    }

    async fn install_certificate(
        &self,
        request: Request<InstallCertificateRequest>,
    ) -> Result<Response<AdoptResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            self.install(&caller, request.into_inner()).await
        };
        self.answer("Custody.InstallCertificate", &caller, work).await
    }
}

impl Api {
    fn kept(&self) -> GetCustodyResponse {
        let renewal = self.certifier.renewal();
        GetCustodyResponse {
            keys: self.certifier.authorities.keys_in().as_str().into(),
            authorities: self.certifier.authorities.current().facts.iter().map(kept).collect(),
            renewal: renewal.as_str().into(),
            remedy: renewal.remedy().unwrap_or_default().into(),
        }
    }

    async fn import(&self, caller: &Caller, request: ImportAuthorityRequest) -> Result<AdoptResponse, Refusal> {
        let ImportAuthorityRequest { certificate, chain, root, private_key } = request;
        let private_key = Zeroizing::new(private_key);
        let (certifier, root) = (&self.certifier, self.root_or_known(root));
        let offer = Offer { certificate: &certificate, chain: &chain, root: &root };
        let candidate = certifier.authorities.candidate(offer, certifier.now())?;
        let key = PrivateKey::from_pkcs8_der(&private_key).map_err(AuthoritiesError::from)?;
        candidate.with_key(&certifier.trust_domain, key.clone()).map_err(AuthoritiesError::from)?;
        let adoption = Adoption { candidate, made: certifier.authorities.keep_key(key)?, request: None };
        self.adopt(caller, "authority.import", &adoption).await
    }

    async fn install(&self, caller: &Caller, request: InstallCertificateRequest) -> Result<AdoptResponse, Refusal> {
        let InstallCertificateRequest { certificate, chain, root } = request;
        let (certifier, root) = (&self.certifier, self.root_or_known(root));
        let offer = Offer { certificate: &certificate, chain: &chain, root: &root };
        let candidate = certifier.authorities.candidate(offer, certifier.now())?;
        let adoption = certifier.authorities.requested(&certifier.store, candidate).await?;
        self.adopt(caller, "authority.install", &adoption).await
    }

    async fn adopt(
        &self,
        caller: &Caller,
        action: &'static str,
        adoption: &Adoption,
    ) -> Result<AdoptResponse, Refusal> {
        let certifier = &self.certifier;
        let act = Act::new(action, adoption.candidate.kind.as_str());
        let store = certifier.acting(caller, act);
        let adopted = certifier.authorities.adopt(&store, adoption, Mode::Steps, certifier.now()).await?;
        let Adopted { id, root_id, signs } = adopted;
        Ok(AdoptResponse { authority_id: id, root_id, signs })
    }

    /// A root that the bundle has need not be given.
    fn root_or_known(&self, root: Vec<u8>) -> Vec<u8> {
        if root.is_empty() { self.certifier.authorities.current().bundle.to_pem().into_bytes() } else { root }
    }
}

fn kept(facts: &Facts) -> KeptAuthority {
    KeptAuthority {
        id: facts.id.clone(),
        kind: facts.kind.as_str().into(),
        state: if facts.requested { "requested" } else { facts.state.as_str() }.into(),
        place: facts.place.as_str().into(),
        not_before: facts.not_before,
        not_after: facts.not_after,
    }
}

//! Istio's CSR API: a certificate for the service account whose token the caller shows, or the next one for the holder of one
//! ([`renewal`]).
//!
//! The identity is the token's, or that of a workload on the caller's node ([`impersonation`]). The CSR gives a key and the
//! proof that the caller holds it; names in it do not count.

mod impersonation;
mod renewal;

use std::sync::Arc;
use std::time::Duration;

use identity::csr::Csr;
use identity::{VerifiedPeer, pem};
use proto::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use runtime::mtls::PeerIdentity;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::audit::Source;
use crate::certifier::Certifier;
use crate::issue::{IssuedX509, X509Order};
use crate::metrics::CsrCounts;
use crate::refusal::Refusal;
use crate::service_account::{ServiceAccount, ServiceAccounts, TokenError};
use crate::store::IssuanceKind;

pub use impersonation::IstioSettings;

/// The service.
#[derive(Debug)]
pub(crate) struct CsrService {
    certifier: Arc<Certifier>,
    accounts: ServiceAccounts,
    settings: IstioSettings,
}

impl CsrService {
    pub(crate) fn new(certifier: Arc<Certifier>, accounts: ServiceAccounts, settings: IstioSettings) -> Self {
        Self { certifier, accounts, settings }
    }

    pub(crate) fn routes(self) -> Routes {
        Routes::new(IstioCertificateServiceServer::new(self))
    }

    async fn create(&self, request: Request<IstioCertificateRequest>) -> Result<IstioCertificateResponse, Refusal> {
        let holder = request.extensions().get::<PeerIdentity>().and_then(|identity| identity.0.clone());
        if let Some(holder) = holder.filter(|_| request.metadata().get("authorization").is_none()) {
            return self.renew(&holder, request.into_inner()).await;
        }
        let account = self.caller(Source::of(request.extensions()), request.metadata())?;
        let message = request.into_inner();
        check_signer(&message)?;
        let (id, entry_id) = match impersonated(&message, &account)? {
            None => (account.id().clone(), String::new()),
            Some(wanted) => {
                let entry = self.settings.judge(&self.certifier, &account, wanted)?;
                (entry.spiffe_id.clone(), entry.id.clone())
            }
        };
        let ttl = self.ttl(message.validity_duration)?;
        let csr = Csr::decode_pem(message.csr.as_bytes()).map_err(Refusal::Csr)?;
        let order = X509Order {
            kind: IssuanceKind::Csr,
            id,
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
            ttl,
            entry_id,
            caller: account.subject().to_owned(),
        };
        let issued = self.certifier.issue_x509(order, &csr).await?;
        Ok(IstioCertificateResponse { cert_chain: self.cert_chain(&issued) })
    }

    async fn renew(
        &self,
        holder: &VerifiedPeer,
        message: IstioCertificateRequest,
    ) -> Result<IstioCertificateResponse, Refusal> {
        check_signer(&message)?;
        if !matches!(field(&message, "ImpersonatedIdentity").map(text_of), Some(Some("")) | None) {
            return Err(Refusal::Impersonation);
        }
        let csr = Csr::decode_pem(message.csr.as_bytes()).map_err(Refusal::Csr)?;
        let order = renewal::next(&self.certifier, holder, self.ttl(message.validity_duration)?).await?;
        let issued = self.certifier.issue_x509(order, &csr).await?;
        Ok(IstioCertificateResponse { cert_chain: self.cert_chain(&issued) })
    }

    fn caller(&self, source: Source, metadata: &MetadataMap) -> Result<ServiceAccount, Refusal> {
        self.certifier.stranger(source)?;
        self.certifier.may_try(source)?;
        let verified = bearer(metadata).and_then(|token| self.accounts.verify(token, self.certifier.now()));
        let account = verified.map_err(Refusal::Token).inspect_err(|refusal| {
            if refusal.disproves() {
                self.certifier.address_limits.refused(source);
            }
        })?;
        self.certifier.address_limits.proved(source);
        Ok(account)
    }

    /// Seconds; none asked for is the default, too much is cut to the maximum.
    fn ttl(&self, asked_secs: i64) -> Result<Duration, Refusal> {
        if asked_secs < 0 {
            return Err(Refusal::Ttl);
        }
        Ok(self.certifier.ttls.or_default(asked_secs, self.certifier.ttls.x509_svid))
    }

    /// The leaf, each intermediate, and all roots in the last element.
    fn cert_chain(&self, issued: &IssuedX509) -> Vec<String> {
        let mut chain: Vec<String> = issued.chain.iter().map(pem::certificate).collect();
        chain.push(self.certifier.authorities.current().bundle.to_pem());
        chain
    }

    fn note(&self, refusal: Option<&Refusal>) {
        let (counts, kind) = (&self.certifier.counts, IssuanceKind::Csr.as_str());
        counts.request("CreateCertificate", refusal.map_or("", Refusal::reason));
        let Some(refusal) = refusal else {
            CsrCounts::count(&counts.csr().successes);
            return;
        };
        counts.refused(kind, refusal.reason());
        match refusal {
            Refusal::Token(TokenError::Subject | TokenError::Contradiction) => {
                CsrCounts::count(&counts.csr().id_extraction_errors);
                CsrCounts::count(&counts.csr().authentication_failures);
            }
            Refusal::Token(_) | Refusal::Impersonation | Refusal::Renewal => {
                CsrCounts::count(&counts.csr().authentication_failures);
            }
            // Its own log line speaks for many.
            Refusal::AddressLimited { .. } => return,
            Refusal::Csr(_) => CsrCounts::count(&counts.csr().parsing_errors),
            _ => CsrCounts::count(&counts.csr().signing_errors),
        }
        // The text for the caller says nothing about why a token is refused; the log does.
        let cause = std::error::Error::source(refusal).map(ToString::to_string).unwrap_or_default();
        tracing::info!(rpc = "CreateCertificate", reason = refusal.reason(), error = %refusal, cause, "request refused");
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CsrService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        CsrCounts::count(&self.certifier.counts.csr().requests);
        let outcome = self.create(request).await;
        self.note(outcome.as_ref().err());
        Ok(Response::new(outcome?))
    }
}

/// The token of the one `authorization` header.
fn bearer(metadata: &MetadataMap) -> Result<&str, TokenError> {
    let mut values = metadata.get_all("authorization").iter();
    let value = values.next().ok_or(TokenError::Missing)?.to_str().map_err(|_| TokenError::Missing)?;
    if values.next().is_some() {
        return Err(TokenError::Twice);
    }
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
        _ => Err(TokenError::Missing),
    }
}

/// Whose certificate is wanted, when it is somebody else's.
fn impersonated<'a>(
    message: &'a IstioCertificateRequest,
    account: &ServiceAccount,
) -> Result<Option<&'a str>, Refusal> {
    match field(message, "ImpersonatedIdentity").map(text_of) {
        Some(Some("")) | None => Ok(None),
        Some(Some(id)) if id == account.id().as_str() => Ok(None),
        Some(Some(id)) => Ok(Some(id)),
        Some(None) => Err(Refusal::Impersonation),
    }
}

/// There is one signer.
fn check_signer(message: &IstioCertificateRequest) -> Result<(), Refusal> {
    match field(message, "CertSigner").map(text_of) {
        Some(Some("")) | None => Ok(()),
        Some(_) => Err(Refusal::CertSigner),
    }
}

fn field<'a>(message: &'a IstioCertificateRequest, name: &str) -> Option<&'a prost_types::value::Kind> {
    message.metadata.as_ref()?.fields.get(name)?.kind.as_ref()
}

/// `None` for what is neither text nor null.
fn text_of(kind: &prost_types::value::Kind) -> Option<&str> {
    match kind {
        prost_types::value::Kind::StringValue(text) => Some(text),
        prost_types::value::Kind::NullValue(_) => Some(""),
        _ => None,
    }
}

#[cfg(test)]
mod tests;

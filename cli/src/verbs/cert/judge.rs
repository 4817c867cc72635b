//! What certificates are judged by, and the verdict.

use std::sync::Arc;
use std::time::SystemTime;

use identity::bundle::{BundleSet, TrustBundle};
use identity::profile::{self, Role};
use identity::revocation::{Crl, RevocationIndex};
use identity::spiffe_id::TrustDomain;
use identity::summary::CertificateSummary;
use identity::verify::{self, PeerError};
use identity::{CertificateDer, unix_time};
use serde_json::Value;

use super::source;
use crate::args::TrustArgs;
use crate::exit::{Exit, Failure, chain};

/// Bundles to judge by, and what the mesh says about renewal.
pub(super) struct Trust {
    /// The text of a bundle whose trust domain only the certificate tells.
    given: Option<Vec<u8>>,
    bundles: BundleSet,
    lists: Vec<Crl>,
    /// Serial numbers, and when they are replaced.
    renewals: Vec<(String, String)>,
}

/// Whether a certificate holds.
pub(super) struct Verdict {
    /// `None` when it holds; otherwise a code and what it means.
    against: Option<(String, String)>,
    /// Codes of `kasbah cert lint`.
    pub(super) defects: Vec<&'static str>,
    identity: String,
}

impl Verdict {
    pub(super) fn code(&self) -> &str {
        self.against.as_ref().map_or("ok", |(code, _)| code)
    }

    pub(super) fn text(&self) -> String {
        match &self.against {
            Some((_, text)) => text.clone(),
            None => format!("proven to be {}", self.identity),
        }
    }

    pub(super) fn holds(&self) -> bool {
        self.against.is_none()
    }
}

impl Trust {
    pub(super) fn of(args: &TrustArgs) -> Result<Self, Failure> {
        let mut trust = Self { given: None, bundles: BundleSet::new([]), lists: Vec::new(), renewals: Vec::new() };
        if let Some(file) = &args.bundle {
            let unreadable = |error| Failure::new(Exit::Data, format!("{} cannot be read: {error}", file.display()));
            trust.given = Some(std::fs::read(file).map_err(unreadable)?);
            return Ok(trust);
        }
        let Some(endpoints) = source::endpoints(&args.dir)? else { return Ok(trust) };
        let text = |pointer: &str| endpoints.pointer(pointer).and_then(Value::as_str);
        let domain = text("/trust_domain").and_then(|name| TrustDomain::parse(name).ok());
        let pem = text("/ca/bundle_file").and_then(|file| std::fs::read(file).ok());
        if let (Some(domain), Some(pem)) = (domain, pem)
            && let Ok(bundle) = TrustBundle::from_pem(domain, &pem)
        {
            trust.bundles.insert(Arc::new(bundle));
        }
        trust.renewals = renewals(&endpoints);
        Ok(trust)
    }

    /// Revocation lists count, too; each must be signed by the issuer of what it is asked about.
    pub(super) fn with_lists(mut self, lists: Vec<Crl>) -> Self {
        self.lists = lists;
        self
    }

    /// When a certificate of the mesh will be replaced.
    pub(super) fn renewal_of(&self, serial: &str) -> Option<String> {
        let found = self.renewals.iter().find(|(known, _)| known == serial);
        found.map(|(_, at)| format!("by the node agent at {at}"))
    }

    /// Judges a chain, leaf first.
    pub(super) fn judge(&self, certificates: &[CertificateDer<'static>], now: SystemTime) -> Verdict {
        let leaf = certificates.first().and_then(|leaf| CertificateSummary::decode(leaf).ok());
        let id = leaf.as_ref().and_then(|leaf| leaf.spiffe_id.clone());
        let defects = match (certificates.first(), &id) {
            (Some(leaf), Some(_)) => {
                profile::svid_defects(leaf, Role::Leaf).iter().map(|defect| defect.code()).collect()
            }
            (Some(leaf), None) => profile::defects(leaf, Role::Leaf).iter().map(|defect| defect.code()).collect(),
            (None, _) => Vec::new(),
        };
        let identity = id.as_ref().map(ToString::to_string).unwrap_or_default();
        let verdict = |against| Verdict { against, defects, identity };
        let bundles = match id.map_or_else(|| Ok(self.bundles.clone()), |id| self.bundles_for(&id.trust_domain())) {
            Ok(bundles) => bundles,
            Err(against) => return verdict(Some(against)),
        };
        match verify::verify_peer(certificates, &bundles, unix_time(now)) {
            Ok(_) => verdict(None),
            Err(error @ PeerError::TrustDomainUnknown { .. }) => {
                let hint = format!("{}; give its bundle by --bundle FILE", chain(&error));
                verdict(Some((error.reason().to_owned(), hint)))
            }
            Err(error) => verdict(Some((error.reason().to_owned(), chain(&error)))),
        }
    }

    fn bundles_for(&self, domain: &TrustDomain) -> Result<BundleSet, (String, String)> {
        let mut bundles = match &self.given {
            None => self.bundles.clone(),
            Some(text) => {
                let json = text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
                let read = if json { TrustBundle::parse_spiffe_json } else { TrustBundle::from_pem };
                let bundle = read(domain.clone(), text);
                let bundle = bundle.map_err(|error| (error.reason().to_owned(), chain(&error)))?;
                BundleSet::new([Arc::new(bundle)])
            }
        };
        if !self.lists.is_empty() {
            let index = RevocationIndex::new(self.lists.iter().cloned());
            let index = index.map_err(|error| (error.reason().to_owned(), chain(&error)))?;
            bundles.set_revocations(domain.clone(), Arc::new(index));
        }
        Ok(bundles)
    }
}

/// What the agent of a mesh will replace, and when; nothing when it does not answer.
fn renewals(endpoints: &Value) -> Vec<(String, String)> {
    let admin = endpoints.pointer("/agent/admin").and_then(Value::as_str).and_then(|admin| admin.parse().ok());
    let Some(admin) = admin else { return Vec::new() };
    let asked = super::wait(async {
        runtime::ask::get(admin, "/certs").await.map_err(|error| Failure::failed(error.to_string()))
    });
    let Ok((_, body)) = asked else { return Vec::new() };
    let certs: Value = serde_json::from_slice(&body).unwrap_or_default();
    let svids = certs.pointer("/svids").and_then(Value::as_array).cloned().unwrap_or_default();
    let pair = |svid: &Value| Some((svid["serial"].as_str()?.to_owned(), svid["renew_at"].as_str()?.to_owned()));
    svids.iter().filter_map(pair).collect()
}

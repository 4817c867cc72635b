//! Secrets as Envoy wants them, made from the workload's SVIDs and bundles.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{DataSource, TypedExtensionConfig, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::spiffe_cert_validator_config as validator;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, SpiffeCertValidatorConfig, TlsCertificate,
};
use envoy_types::pb::google::protobuf::Any;
use identity::{SpiffeId, TrustBundle, TrustDomain, X509Svid};
use prost::{Message, Name};

use crate::caller::{Desk, svids};
use crate::entry::Entry;
use crate::state::Snapshot;

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// All the workload may have.
    Everything,
    /// Secrets by name.
    Named(BTreeSet<String>),
}

/// The secrets of now for a wish.
#[derive(Debug, Default)]
pub(super) struct Rendered {
    /// Encoded secrets by name.
    pub(super) secrets: BTreeMap<String, Any>,
    /// Names this workload has no right to.
    pub(super) unknown: Vec<String>,
    /// Names whose SVID is still to be issued: the answer waits for them.
    pub(super) pending: bool,
}

/// What this workload has, by the names that stand for it.
struct Holdings<'a> {
    own: &'a TrustDomain,
    identities: BTreeMap<&'a SpiffeId, Option<&'a Arc<X509Svid>>>,
    first: Option<&'a SpiffeId>,
    bundles: BTreeMap<&'a TrustDomain, &'a Arc<TrustBundle>>,
    /// The own trust domain's revocation lists in PEM; empty while nothing is revoked.
    crl: String,
    /// Whether one of the own roots has no list.
    gap: bool,
}

/// One name, looked up.
enum Found {
    Secret(Box<Type>),
    Pending,
    Unknown,
}

/// The secrets that `entries` entitle to, of those in `wish`.
pub(super) fn render(desk: &Desk, snapshot: &Snapshot, entries: &[Arc<Entry>], wish: &Wish) -> Rendered {
    let holdings = Holdings::new(desk, snapshot, entries);
    let names = match wish {
        Wish::Everything => holdings.names(),
        Wish::Named(names) => names.clone(),
    };
    let mut rendered = Rendered::default();
    for name in names {
        match holdings.find(&name) {
            Found::Secret(secret) => {
                rendered.secrets.insert(name.clone(), encode(name, *secret));
            }
            Found::Pending => rendered.pending = true,
            Found::Unknown => rendered.unknown.push(name),
        }
    }
    rendered
}

impl<'a> Holdings<'a> {
    fn new(desk: &'a Desk, snapshot: &'a Snapshot, entries: &'a [Arc<Entry>]) -> Self {
        let own = desk.state.trust_domain();
        // Several entries may give one ID; the first of them counts, as in the Workload API.
        let mut identities = BTreeMap::new();
        for (entry, held) in svids(desk, snapshot, entries) {
            identities.entry(&entry.spiffe_id).or_insert(Some(&held.svid));
        }
        for entry in entries {
            identities.entry(&entry.spiffe_id).or_insert(None);
        }
        let foreign = entries.iter().flat_map(|entry| &entry.federates_with);
        let trusted = std::iter::once(own).chain(foreign);
        let bundles = trusted.filter_map(|name| Some((name, snapshot.bundles.get(name)?))).collect();
        let revocations = &snapshot.revocations;
        let lists = revocations.lists().map(|list| identity::pem::encode("X509 CRL", list));
        let crl = if revocations.revokes_certificates() { lists.collect() } else { String::new() };
        let roots = snapshot.bundles.get(own).map(|bundle| bundle.x509_authorities.as_slice()).unwrap_or_default();
        let gap = !crl.is_empty() && !revocations.cover(roots);
        Self { own, identities, first: entries.first().map(|entry| &entry.spiffe_id), bundles, crl, gap }
    }

    fn names(&self) -> BTreeSet<String> {
        let fixed = [DEFAULT, ROOT, ALL].map(str::to_owned);
        let identities = self.identities.keys().map(ToString::to_string);
        let domains = self.bundles.keys().map(|name| name.id().to_string());
        fixed.into_iter().chain(identities).chain(domains).collect()
    }

    fn find(&self, name: &str) -> Found {
        match name {
            DEFAULT => self.certificate(self.first),
            ROOT => self.bundles.get(self.own).map_or(Found::Pending, |bundle| found(self.trusted_ca(bundle))),
            ALL => found(self.spiffe_validator(self.bundles.iter().map(|(name, bundle)| (*name, *bundle)))),
            _ => match SpiffeId::parse(name) {
                Ok(id) if id.path().is_empty() => self.domain(&id.trust_domain()),
                Ok(id) => self.certificate(Some(&id)),
                Err(_) => Found::Unknown,
            },
        }
    }

    fn certificate(&self, id: Option<&SpiffeId>) -> Found {
        match id.and_then(|id| self.identities.get(id)) {
            Some(Some(svid)) => found(tls_certificate(svid)),
            Some(None) => Found::Pending,
            None => Found::Unknown,
        }
    }

    fn domain(&self, name: &TrustDomain) -> Found {
        match self.bundles.get_key_value(name) {
            Some((name, bundle)) => found(self.spiffe_validator([(*name, *bundle)].into_iter())),
            None => Found::Unknown,
        }
    }

    /// Envoy wants a list of every authority of a path, or of the leaf's issuer alone: the latter where a root has none.
    fn trusted_ca(&self, bundle: &TrustBundle) -> Type {
        Type::ValidationContext(CertificateValidationContext {
            trusted_ca: Some(inline(bundle.to_pem().into_bytes())),
            crl: (!self.crl.is_empty()).then(|| inline(self.crl.as_bytes().to_vec())),
            only_verify_leaf_cert_crl: self.gap,
            ..CertificateValidationContext::default()
        })
    }

    /// Each trust domain's certificates are judged by its own roots alone, ours by the lists as well.
    fn spiffe_validator<'b>(&self, bundles: impl Iterator<Item = (&'b TrustDomain, &'b Arc<TrustBundle>)>) -> Type {
        let trust_domains = bundles.map(|(name, bundle)| {
            let lists = if name == self.own { self.crl.as_str() } else { "" };
            validator::TrustDomain {
                name: name.as_str().to_owned(),
                trust_bundle: Some(inline([bundle.to_pem().as_str(), lists].concat().into_bytes())),
                ..validator::TrustDomain::default()
            }
        });
        let trust_domains = trust_domains.collect();
        let config = SpiffeCertValidatorConfig { trust_domains, ..SpiffeCertValidatorConfig::default() };
        let typed_config = Any { type_url: SpiffeCertValidatorConfig::type_url(), value: config.encode_to_vec() };
        Type::ValidationContext(CertificateValidationContext {
            custom_validator_config: Some(TypedExtensionConfig {
                name: VALIDATOR.into(),
                typed_config: Some(typed_config),
            }),
            ..CertificateValidationContext::default()
        })
    }
}

fn found(secret: Type) -> Found {
    Found::Secret(Box::new(secret))
}

fn tls_certificate(svid: &X509Svid) -> Type {
    Type::TlsCertificate(TlsCertificate {
        certificate_chain: Some(inline(svid.chain_pem().into_bytes())),
        private_key: Some(inline(svid.key().pkcs8_pem().as_bytes().to_vec())),
        ..TlsCertificate::default()
    })
}

fn encode(name: String, secret: Type) -> Any {
    let secret = Secret { name, r#type: Some(secret) };
    Any { type_url: super::SECRET_TYPE_URL.into(), value: secret.encode_to_vec() }
}

fn inline(bytes: Vec<u8>) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(bytes)), ..DataSource::default() }
}

const DEFAULT: &str = "default";
const ROOT: &str = "ROOTCA";
const ALL: &str = "ALL";
const VALIDATOR: &str = "envoy.tls.cert_validator.spiffe";

//! What the operator decides about federation.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::acme::AcmeSettings;

/// The setting `federation`. Each part has a default.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FederationSettings {
    /// Roots (PEM) for endpoints of the profile `https_web`; the roots of Mozilla's programme when absent. Read anew at
    /// each fetch.
    #[serde(default)]
    pub web_roots_file: Option<PathBuf>,
    /// Networks in which bundle endpoints may be although they are not called by default: loopback, link-local.
    #[serde(default)]
    pub allowed_networks: Vec<IpNet>,
    /// Our own bundle endpoint with a certificate of the web (profile `https_web`), beside that of `bundle_endpoint`.
    #[serde(default)]
    pub web_endpoint: Option<WebEndpoint>,
    /// Serve all bundles we know as a bundle map at `/map` of the bundle endpoints.
    #[serde(default)]
    pub serve_map: bool,
}

/// A bundle endpoint of the profile `https_web`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebEndpoint {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its certificate chain (PEM), read again when it changes.
    #[serde(default)]
    pub cert_file: Option<PathBuf>,
    /// The key (PEM).
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// The certificate comes by ACME, in place of files.
    #[serde(default)]
    pub acme: Option<AcmeSettings>,
}

impl FederationSettings {
    /// What is wrong with it, if something is.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        let endpoint = self.web_endpoint.as_ref()?;
        match (&endpoint.cert_file, &endpoint.key_file, &endpoint.acme) {
            (Some(_), Some(_), None) => None,
            (None, None, Some(acme)) => acme.problem(),
            _ => Some("give either `cert_file` and `key_file`, or `acme`"),
        }
    }
}

//! What the operator decides about federation.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

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
    pub cert_file: PathBuf,
    /// The key (PEM).
    pub key_file: PathBuf,
}

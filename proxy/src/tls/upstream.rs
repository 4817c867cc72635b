//! TLS towards endpoints: mesh peers by SPIFFE ID, or web servers by name (TLS origination).

use std::sync::Arc;

use identity::summary::CertificateSummary;
use identity::tls::{ALPN_H2, ALPN_HTTP11, certified_key_from_pem, client_config, web};
use routing::tls::{CertificateRef, RootsRef, UpstreamTls, Validation};
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};

use super::own::OwnIdentity;
use super::{SetupError, files, peer_rule, roots_pem};
use crate::upstream::pool::Speak;

/// The client side of a cluster.
#[derive(Debug)]
pub(crate) struct ClientSide {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    negotiated: Arc<ClientConfig>,
    /// Peers are SPIFFE workloads, proven by our bundles.
    pub(crate) mesh: bool,
    pub(crate) auto_sni: bool,
    sni: Option<Arc<str>>,
    /// Names that the certificate of a web server must bear beside the one asked for.
    validation: Option<Validation>,
}

impl ClientSide {
    /// Sets it up. Secrets are read at each handshake, so rotation needs no new setup.
    pub(crate) fn build(tls: &UpstreamTls, auto_sni: bool, identity: &Arc<OwnIdentity>) -> Result<Self, SetupError> {
        let mesh = matches!(tls.common.validation.roots, RootsRef::Sds { .. });
        super::is_own(tls.common.certificates.first())?;
        let validation = (!mesh && !tls.common.validation.sans.is_empty()).then(|| tls.common.validation.clone());
        let make = |alpn: &[&[u8]]| make_config(tls, identity, mesh, alpn);
        let listed: Vec<&[u8]> = tls.common.alpn.iter().map(Vec::as_slice).collect();
        let without_h2: Vec<&[u8]> = listed.iter().copied().filter(|name| *name != ALPN_H2).collect();
        let with_h2 = if listed.contains(&ALPN_H2) { listed.clone() } else { vec![ALPN_H2] };
        Ok(Self {
            http1: make(if without_h2.is_empty() { &[ALPN_HTTP11] } else { &without_h2 })?,
            http2: make(&with_h2)?,
            negotiated: make(&[ALPN_H2, ALPN_HTTP11])?,
            mesh,
            auto_sni: auto_sni || tls.auto_sni,
            sni: tls.sni.clone(),
            validation,
        })
    }

    /// The configuration for what is to be spoken inside.
    pub(crate) fn config(&self, speak: Speak) -> Arc<ClientConfig> {
        match speak {
            Speak::Http1 => self.http1.clone(),
            Speak::Http2 => self.http2.clone(),
            Speak::Negotiated => self.negotiated.clone(),
        }
    }

    /// The name to ask for: the request's own, the configured one, or the address.
    pub(crate) fn server_name(&self, requested: Option<&str>, address: std::net::IpAddr) -> ServerName<'static> {
        let named = requested.filter(|_| self.auto_sni).or(self.sni.as_deref());
        let name = named.and_then(|name| ServerName::try_from(name.to_owned()).ok());
        name.unwrap_or_else(|| ServerName::IpAddress(address.into()))
    }

    /// Whether the names in a web server's certificate are admitted.
    pub(crate) fn admits(&self, chain: Option<&[CertificateDer<'_>]>) -> bool {
        let Some(validation) = &self.validation else { return true };
        let leaf = chain.and_then(<[_]>::first).and_then(|leaf| CertificateSummary::decode(leaf).ok());
        leaf.is_some_and(|leaf| validation.allows(&texts(&leaf.uris), &texts(&leaf.dns_names)))
    }
}

fn make_config(
    tls: &UpstreamTls,
    identity: &Arc<OwnIdentity>,
    mesh: bool,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, SetupError> {
    if tls.common.validation.accept_untrusted {
        return Err(SetupError::NotSupported("accepting any certificate"));
    }
    if mesh {
        return Ok(client_config(identity.clone(), peer_rule(&tls.common.validation), alpn)?);
    }
    let own = match tls.common.certificates.first() {
        None => None,
        Some(CertificateRef::Files { chain, key }) => {
            Some(certified_key_from_pem(&files::read(chain)?, &files::read(key)?)?)
        }
        Some(CertificateRef::Inline { chain, key }) => Some(certified_key_from_pem(chain, key.expose())?),
        Some(CertificateRef::Sds { .. }) => return Err(SetupError::NotSupported("an SVID towards web servers")),
    };
    Ok(web::client_config(&roots_pem(&tls.common)?, own, alpn)?)
}

fn texts(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

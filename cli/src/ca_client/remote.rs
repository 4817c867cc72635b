//! A CA on another machine: mTLS to its server API, as the holder of an SVID whom the CA's rights allow something.
//!
//! The CA is believed when it proves `spiffe://TRUST_DOMAIN/spire/server`, TRUST_DOMAIN being that of our own SVID.

use std::path::Path;
use std::sync::Arc;

use identity::bundle::{BundleSet, TrustBundle};
use identity::key::PrivateKey;
use identity::svid::X509Svid;
use identity::tls::{ALPN_H2, FixedSnapshot, PeerRule};
use runtime::mtls::{self, ConnectError};
use runtime::workload_api::{self, Endpoint};

use super::{CALL_WAIT_MAX, CaClient};
use crate::args::CaArg;
use crate::exit::{Exit, Failure, chain};
use crate::up::layout::Layout;

/// Connects to the CA at `server`.
pub(crate) async fn connect(server: &str, arg: &CaArg) -> Result<CaClient, Failure> {
    let source = identity_of(arg).await?;
    let me = source.svid.as_ref().map(|svid| svid.id().clone());
    let me = me.ok_or_else(|| Failure::new(Exit::Denied, "there is no SVID to show"))?;
    let id = me.trust_domain().with_path(ca::SERVER_PATH);
    let id = id.map_err(|error| Failure::failed(format!("the trust domain has no server ID: {error}")))?;
    let rule = PeerRule::exactly(id.clone());
    // Once by hand, for a clear word when it fails.
    if let Err(error) = mtls::connect(server, source.clone(), rule.clone(), &[ALPN_H2]).await {
        return Err(unconnected(server, me.as_str(), id.as_str(), &error));
    }
    let channel = mtls::channel_within(server, source, rule, CALL_WAIT_MAX);
    Ok(CaClient { channel })
}

fn unconnected(server: &str, me: &str, id: &str, error: &ConnectError) -> Failure {
    let text = format!("the CA at {server}: {}", chain(error));
    match error {
        ConnectError::Address { .. } => Failure::new(Exit::Usage, text).remedy("write --server HOST:PORT"),
        ConnectError::Tcp { .. } | ConnectError::Timeout { .. } => Failure::refused(Exit::Unavailable, error.reason(), text)
            .remedy("look at host and port (the CA's setting `grpc`), whether the CA runs, and what a firewall lets through"),
        _ => Failure::refused(Exit::Denied, error.reason(), text).remedy(format!(
            "you are {me}: see that your SVID has not expired, that --bundle is this trust domain's, and that the server is {id}"
        )),
    }
}

/// Who we are, and whom we trust.
async fn identity_of(arg: &CaArg) -> Result<FixedSnapshot, Failure> {
    let (svid, bundles) = match (&arg.cert, &arg.key) {
        (Some(cert), Some(key)) => (from_files(cert, key)?, None),
        _ => from_workload_api().await?,
    };
    let bundles = match (&arg.bundle, bundles) {
        (None, Some(bundles)) => bundles,
        (file, _) => {
            let file = match file {
                Some(file) => file.clone(),
                None => Layout::of(&arg.dir.dir)?.run("bundle.pem"),
            };
            let bundle = TrustBundle::from_pem(svid.id().trust_domain(), &read(&file, "the bundle")?);
            let bad = |error| Failure::new(Exit::Data, format!("{}: {}", file.display(), chain(&error)));
            Arc::new(BundleSet::new([Arc::new(bundle.map_err(bad)?)]))
        }
    };
    Ok(FixedSnapshot { svid: Some(svid), bundles })
}

fn from_files(cert: &Path, key: &Path) -> Result<Arc<X509Svid>, Failure> {
    let bad = |file: &Path, error: &dyn std::error::Error| {
        Failure::new(Exit::Data, format!("{}: {}", file.display(), chain(error)))
    };
    let chain_pem = identity::pem::decode_certificates(&read(cert, "the SVID")?).map_err(|error| bad(cert, &error))?;
    let key_pem = PrivateKey::from_pkcs8_pem(&read(key, "the key")?).map_err(|error| bad(key, &error))?;
    X509Svid::from_parts(chain_pem, key_pem).map(Arc::new).map_err(|error| bad(cert, &error))
}

async fn from_workload_api() -> Result<(Arc<X509Svid>, Option<Arc<BundleSet>>), Failure> {
    let endpoint = Endpoint::from_env().map_err(|error| Failure::new(Exit::Usage, chain(&error)))?;
    let endpoint = endpoint.ok_or_else(|| {
        Failure::new(Exit::Usage, "--server needs to know who you are")
            .remedy("give --cert and --key, or set SPIFFE_ENDPOINT_SOCKET to an agent's Workload API")
    })?;
    let identity = workload_api::fetch_x509(&endpoint).await.map_err(|error| {
        let exit = if error.is_no_identity() { Exit::Denied } else { Exit::Unavailable };
        Failure::new(exit, format!("the Workload API gives no identity: {}", chain(&error)))
            .remedy("see that the agent runs and that an entry matches this process (`kasbah agent whoami --pid $$`)")
    })?;
    Ok((identity.svid().clone(), Some(identity.bundles().clone())))
}

fn read(file: &Path, what: &str) -> Result<Vec<u8>, Failure> {
    std::fs::read(file)
        .map_err(|error| Failure::new(Exit::Data, format!("{what} cannot be read from {}: {error}", file.display())))
}

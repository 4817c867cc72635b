//! The ingress gateway's certificate for browsers and `curl`: issued by a small web CA of this mesh, valid for
//! `localhost` and `127.0.0.1`, renewed at a start when a third of its life is left.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use identity::authority::WebAuthority;

use super::layout::{Layout, write_atomically};
use crate::exit::Failure;

/// Makes `data/ingress/{cert,key}.pem` and `run/ingress-ca.pem` where they are missing or old.
pub(crate) fn ensure(layout: &Layout) -> Result<(), Failure> {
    let folder = layout.data("ingress");
    std::fs::create_dir_all(&folder)?;
    let (cert, key, ca) = (folder.join("cert.pem"), folder.join("key.pem"), layout.run("ingress-ca.pem"));
    if young(&cert) && super::settings::filled(&key) && super::settings::filled(&ca) {
        return Ok(());
    }
    let now = runtime::clock::now();
    let authority = WebAuthority::generate("Kasbah demo CA", CA_TTL, now).map_err(anyhow::Error::from)?;
    let names = ["localhost".to_owned()];
    let addresses = [IpAddr::V4(Ipv4Addr::LOCALHOST)];
    let server = authority.issue_server(&names, &addresses, SERVER_TTL, now).map_err(anyhow::Error::from)?;
    write_atomically(&key, server.key_pem().as_bytes(), 0o600)?;
    write_atomically(&cert, server.certificate_pem().as_bytes(), 0o644)?;
    write_atomically(&ca, authority.certificate_pem().as_bytes(), 0o644)?;
    Ok(())
}

fn young(cert: &std::path::Path) -> bool {
    std::fs::metadata(cert)
        .and_then(|m| m.modified())
        .is_ok_and(|at| at.elapsed().is_ok_and(|age| age < SERVER_TTL * 2 / 3))
}

const CA_TTL: Duration = Duration::from_secs(825 * 24 * 3600);
const SERVER_TTL: Duration = Duration::from_secs(90 * 24 * 3600);

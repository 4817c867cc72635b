//! Which loopback addresses and ports a mesh uses: chosen free once, written down, and kept, so that documents and
//! bookmarks stay true. Meshes of different folders get different addresses and run side by side.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::layout::{Layout, path_number, write_atomically};
use crate::exit::{Exit, Failure};

/// All addresses of one mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Addresses {
    pub(crate) helloworld: IpAddr,
    pub(crate) test: IpAddr,
    pub(crate) egress: IpAddr,
    pub(crate) external: IpAddr,
    pub(crate) ingress_http: u16,
    pub(crate) ingress_https: u16,
    pub(crate) ingress_tcp: u16,
    pub(crate) ingress_admin: u16,
    pub(crate) egress_admin: u16,
    pub(crate) ca_grpc: u16,
    pub(crate) ca_istio_csr: u16,
    pub(crate) ca_bundle_endpoint: u16,
    pub(crate) ca_oidc: u16,
    pub(crate) ca_admin: u16,
    pub(crate) agent_admin: u16,
    pub(crate) discovery_xds: u16,
    pub(crate) discovery_xds_tls: u16,
    pub(crate) discovery_admin: u16,
    pub(crate) policy_grpc: u16,
    pub(crate) policy_admin: u16,
    pub(crate) helloworld_admin: u16,
    pub(crate) test_admin: u16,
    /// 0 in what an older version wrote down.
    #[serde(default)]
    pub(crate) ca_revocation: u16,
}

impl Addresses {
    /// The addresses written down for this mesh, or fresh ones; the ingress port follows `asked`, then what was
    /// kept, then 80, then 8080, then any free port.
    pub(crate) fn choose(layout: &Layout, asked: Option<u16>) -> Result<Self, Failure> {
        let file = layout.data("addresses.json");
        let mut addresses = match std::fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| {
                Failure::new(Exit::Data, format!("{} is damaged: {e}", file.display()))
                    .remedy("delete that file; new addresses are chosen at the next start")
            })?,
            Err(_) => Self::fresh(&layout.dir)?,
        };
        if addresses.ca_revocation == 0 {
            addresses.ca_revocation = addresses.another_port(&layout.dir)?;
        }
        addresses.ingress_http = ingress_port(asked, addresses.ingress_http, &addresses.ports())?;
        addresses.check_free()?;
        let text = serde_json::to_vec_pretty(&addresses).map_err(anyhow::Error::from)?;
        write_atomically(&file, &text, 0o600)?;
        Ok(addresses)
    }

    fn fresh(dir: &Path) -> Result<Self, Failure> {
        let number = path_number(dir);
        let [helloworld, test, egress, external] = free_hosts(number)?;
        let mut ports = FreePorts::from(number);
        Ok(Self {
            helloworld,
            test,
            egress,
            external,
            ingress_http: 0,
            ingress_https: ports.next()?,
            ingress_tcp: ports.next()?,
            ingress_admin: ports.next()?,
            egress_admin: ports.next()?,
            ca_grpc: ports.next()?,
            ca_istio_csr: ports.next()?,
            ca_bundle_endpoint: ports.next()?,
            ca_oidc: ports.next()?,
            ca_admin: ports.next()?,
            agent_admin: ports.next()?,
            discovery_xds: ports.next()?,
            discovery_xds_tls: ports.next()?,
            discovery_admin: ports.next()?,
            policy_grpc: ports.next()?,
            policy_admin: ports.next()?,
            helloworld_admin: ports.next()?,
            test_admin: ports.next()?,
            ca_revocation: ports.next()?,
        })
    }

    /// A free port that is none of those that are kept.
    fn another_port(&self, dir: &Path) -> Result<u16, Failure> {
        let mut ports = FreePorts::from(path_number(dir));
        loop {
            let port = ports.next()?;
            if self.ports().iter().all(|(_, known)| *known != port) {
                return Ok(port);
            }
        }
    }

    /// Every port on 127.0.0.1 but the ingress port, with what it is for.
    fn ports(&self) -> [(&'static str, u16); 18] {
        [
            ("ingress https", self.ingress_https),
            ("ingress tcp", self.ingress_tcp),
            ("ingress admin", self.ingress_admin),
            ("egress admin", self.egress_admin),
            ("ca grpc", self.ca_grpc),
            ("ca istio_csr", self.ca_istio_csr),
            ("ca bundle_endpoint", self.ca_bundle_endpoint),
            ("ca oidc", self.ca_oidc),
            ("ca admin", self.ca_admin),
            ("agent admin", self.agent_admin),
            ("discovery xds", self.discovery_xds),
            ("discovery xds_tls", self.discovery_xds_tls),
            ("discovery admin", self.discovery_admin),
            ("policy grpc", self.policy_grpc),
            ("policy admin", self.policy_admin),
            ("helloworld sidecar admin", self.helloworld_admin),
            ("test sidecar admin", self.test_admin),
            ("ca revocation", self.ca_revocation),
        ]
    }

    /// Says which address is taken before any role trips over it.
    fn check_free(&self) -> Result<(), Failure> {
        let hosts = [
            ("helloworld", self.helloworld, &WORKLOAD_PORTS[..]),
            ("test", self.test, &WORKLOAD_PORTS[..]),
            ("egress gateway", self.egress, &[EGRESS_PORT][..]),
            ("external", self.external, &[WORKLOAD_PORT][..]),
        ];
        let on_hosts = hosts
            .iter()
            .flat_map(|(what, ip, ports)| ports.iter().map(move |port| (*what, SocketAddr::new(*ip, *port))));
        let on_loopback = self.ports().map(|(what, port)| (what, loopback(port)));
        for (what, address) in on_hosts.chain(on_loopback) {
            if let Err(error) = TcpListener::bind(address) {
                return Err(Failure::failed(format!("the address {address} ({what}) is taken: {error}")).remedy(
                    "stop the program that listens there, or start this mesh in another folder with --dir DIR",
                ));
            }
        }
        Ok(())
    }
}

/// `127.0.0.1:port`.
pub(crate) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Port of a demo workload at its own address.
pub(crate) const WORKLOAD_PORT: u16 = 9095;
/// Port of helloworld's TCP echo.
pub(crate) const WORKLOAD_TCP_PORT: u16 = 9096;
/// A sidecar's outbound listener.
pub(crate) const OUTBOUND_PORT: u16 = 15001;
/// A sidecar's inbound listener.
pub(crate) const INBOUND_PORT: u16 = 15006;
/// The egress gateway's mTLS listener.
pub(crate) const EGRESS_PORT: u16 = 8443;
const WORKLOAD_PORTS: [u16; 4] = [WORKLOAD_PORT, WORKLOAD_TCP_PORT, OUTBOUND_PORT, INBOUND_PORT];

fn ingress_port(asked: Option<u16>, kept: u16, others: &[(&str, u16)]) -> Result<u16, Failure> {
    if let Some(port) = asked {
        return match TcpListener::bind(loopback(port)) {
            Ok(_) => Ok(port),
            Err(error) => Err(Failure::failed(format!("the ingress port {port} cannot be used: {error}"))
                .remedy("stop the program that listens there, or choose another with --ingress-port N")),
        };
    }
    let candidates = [kept, 80, 8080].into_iter().filter(|port| *port != 0);
    for port in candidates {
        if TcpListener::bind(loopback(port)).is_ok() {
            return Ok(port);
        }
    }
    let mut ports = FreePorts { next: 8081 };
    loop {
        let port = ports.next()?;
        if others.iter().all(|(_, other)| *other != port) {
            return Ok(port);
        }
    }
}

/// Four neighbouring addresses in 127.0.0.0/8 on which all workload ports are free.
fn free_hosts(number: u64) -> Result<[IpAddr; 4], Failure> {
    for attempt in 0..HOST_ATTEMPTS_MAX {
        let spread = number.wrapping_add(attempt.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let second = 1 + (spread % 250) as u8;
        let third = ((spread >> 16) % 250) as u8;
        let hosts = [2, 3, 4, 5].map(|last| IpAddr::from([127, second, third, last]));
        let free = |ip: &IpAddr| {
            WORKLOAD_PORTS.iter().chain([&EGRESS_PORT]).all(|port| TcpListener::bind((*ip, *port)).is_ok())
        };
        if hosts.iter().all(free) {
            return Ok(hosts);
        }
    }
    Err(Failure::failed("no free loopback addresses were found in 127.0.0.0/8")
        .remedy("stop meshes that are no longer needed: kasbah down --dir DIR"))
}

/// A loopback address whose workload ports are free.
pub(crate) fn free_host(number: u64) -> Result<IpAddr, Failure> {
    free_hosts(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).map(|[first, ..]| first)
}

/// A free port on 127.0.0.1.
pub(crate) fn free_port_near(number: u64) -> Result<u16, Failure> {
    FreePorts::from(number).next()
}

/// Free ports below the range that the kernel hands to outgoing connections.
struct FreePorts {
    next: u16,
}

impl FreePorts {
    fn from(number: u64) -> Self {
        Self { next: 20_000 + (number % 11_000) as u16 }
    }

    fn next(&mut self) -> Result<u16, Failure> {
        for _ in 0..PORT_ATTEMPTS_MAX {
            let port = self.next;
            self.next = if port >= 31_999 { 20_000 } else { port + 1 };
            if TcpListener::bind(loopback(port)).is_ok() {
                return Ok(port);
            }
        }
        Err(Failure::failed("no free ports were found on 127.0.0.1"))
    }
}

const HOST_ATTEMPTS_MAX: u64 = 64;
const PORT_ATTEMPTS_MAX: usize = 4_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_ingress_port_is_refused_with_the_remedy() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = holder.local_addr().unwrap().port();
        let failure = ingress_port(Some(port), 0, &[]).unwrap_err();
        assert!(failure.to_string().contains(&port.to_string()));
        assert!(failure.to_string().contains("--ingress-port"));
    }

    #[test]
    fn the_kept_port_is_preferred() {
        let kept = FreePorts { next: 20_500 }.next().unwrap();
        assert_eq!(ingress_port(None, kept, &[]).unwrap(), kept);
    }

    #[test]
    fn addresses_are_kept_between_starts() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::of(folder.path()).unwrap();
        layout.create().unwrap();
        let first = Addresses::choose(&layout, None).unwrap();
        assert_eq!(Addresses::choose(&layout, None).unwrap(), first);
    }

    #[test]
    fn a_folder_of_an_older_version_gets_the_address_that_is_new() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::of(folder.path()).unwrap();
        layout.create().unwrap();
        let first = Addresses::choose(&layout, None).unwrap();
        let mut written = serde_json::to_value(&first).unwrap();
        written.as_object_mut().unwrap().remove("ca_revocation");
        std::fs::write(layout.data("addresses.json"), written.to_string()).unwrap();
        let second = Addresses::choose(&layout, None).unwrap();
        let ports: std::collections::BTreeSet<u16> = second.ports().iter().map(|(_, port)| *port).collect();
        assert!(second.ca_revocation != 0 && ports.len() == second.ports().len(), "{second:?}");
        assert_eq!(Addresses { ca_revocation: first.ca_revocation, ..second }, first);
    }
}

//! The guard of calls that strangers cause: which addresses are called, decided after the name was resolved.
//!
//! What is not a public address of somebody else is refused: loopback, private and link-local networks, the addresses of
//! cloud metadata services, and whatever carries such an IPv4 address inside. Settings may open networks, the metadata
//! addresses only by name. One refused address among several refuses all: such an answer is a trick.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use tokio::net::TcpStream;

use super::AttestError;

/// What may be called.
#[derive(Clone, Debug)]
pub(super) struct Networks {
    opened: Vec<IpNet>,
}

impl Networks {
    pub(super) fn new(opened: &[IpNet]) -> Self {
        Self { opened: opened.to_vec() }
    }

    /// The addresses, when all of them may be called.
    pub(super) fn check(&self, found: &[SocketAddr]) -> Result<Vec<SocketAddr>, AttestError> {
        match found.iter().find(|addr| !self.allows(addr.ip())) {
            Some(refused) => Err(AttestError::AddressForbidden(refused.ip())),
            None => Ok(found.iter().copied().take(ADDRESSES_MAX).collect()),
        }
    }

    fn allows(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let opened = |network: &&IpNet| network.contains(&ip);
        if is_metadata(ip) {
            return self.opened.iter().filter(opened).any(|network| network.prefix_len() == network.max_prefix_len());
        }
        is_public(ip) || self.opened.iter().any(|network| opened(&network))
    }
}

/// Connects to the first address that answers.
pub(super) async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, AttestError> {
    for address in addresses {
        if let Ok(stream) = TcpStream::connect(address).await {
            return Ok(stream);
        }
    }
    Err(AttestError::HostUnreachable("no connection"))
}

/// Whether a cloud's metadata service is there.
pub(crate) fn is_metadata(ip: IpAddr) -> bool {
    METADATA.contains(&ip)
}

fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_documentation()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (18..20).contains(&b)))
}

/// Of IPv6 only 2000::/3 is given out to anybody; the parts of it that carry an IPv4 address are judged by that.
fn is_public_v6(ip: Ipv6Addr) -> bool {
    let [a, b, c, ..] = ip.segments();
    let inner = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match (a, b) {
        (0x64, 0xff9b) => c == 0 && inner(ip.segments()[6], ip.segments()[7]),
        (0x2002, high) => inner(high, c),
        // Teredo, benchmarking, ORCHID, documentation.
        (0x2001, 0x0000..=0x01ff | 0x0db8) | (0x3fff, _) => false,
        _ => a & 0xe000 == 0x2000,
    }
}

/// Where clouds tell secrets to whoever calls from inside.
const METADATA: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];
/// The most addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(opened: &[&str], ip: &str) -> bool {
        let opened: Vec<IpNet> = opened.iter().map(|text| text.parse().unwrap()).collect();
        Networks::new(&opened).allows(ip.parse().unwrap())
    }

    #[test]
    fn only_public_addresses_are_called() {
        for public in
            ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "2a00:1450::1", "64:ff9b::101:101", "2002:101:101::1"]
        {
            assert!(allows(&[], public), "{public}");
        }
        for inner in [
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "0.1.2.3",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "169.254.170.2",
            "100.64.0.1",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.8",
            "192.0.2.1",
            "198.18.0.1",
            "198.19.255.255",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "fe80::1",
            "fec0::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:a00:1::",
            "2001:0:1::1",
            "2001:db8::1",
            "3fff::1",
            "100::1",
        ] {
            assert!(!allows(&[], inner), "{inner}");
        }
    }

    #[test]
    fn settings_open_networks_but_metadata_only_by_name() {
        assert!(allows(&["127.0.0.0/8"], "127.0.0.1") && allows(&["127.0.0.0/8"], "::ffff:127.0.0.1"));
        assert!(!allows(&["10.0.0.0/8"], "127.0.0.1"));
        assert!(allows(&["169.254.0.0/16"], "169.254.1.1") && !allows(&["169.254.0.0/16"], "169.254.169.254"));
        assert!(!allows(&["0.0.0.0/0"], "168.63.129.16") && !allows(&["::/0"], "fd00:ec2::254"));
        assert!(allows(&["169.254.169.254/32"], "169.254.169.254"));
    }

    #[test]
    fn one_refused_address_refuses_all() {
        let addr = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let networks = Networks::new(&[]);
        assert_eq!(networks.check(&[addr("1.1.1.1:80")]).unwrap(), [addr("1.1.1.1:80")]);
        let mixed = networks.check(&[addr("1.1.1.1:80"), addr("127.0.0.1:80")]);
        assert!(matches!(mixed, Err(AttestError::AddressForbidden(ip)) if ip.is_loopback()));
    }
}

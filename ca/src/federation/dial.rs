//! Which addresses are called for a bundle endpoint, decided after its name was resolved, and connecting to exactly those.
//!
//! Whoever may name an endpoint shall not thereby reach what only this machine reaches: loopback, link-local and
//! multicast addresses and the metadata services of clouds are not called unless the settings open their network (the
//! metadata services only by name). Private networks are: that is where other meshes live. One refused address among several
//! refuses all: such an answer is a trick.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use tokio::net::TcpStream;

use super::error::FetchError;
use crate::attest::is_metadata;

/// What may be called.
#[derive(Clone, Debug)]
pub(super) struct Networks {
    opened: Vec<IpNet>,
}

impl Networks {
    pub(super) fn new(opened: &[IpNet]) -> Self {
        Self { opened: opened.to_vec() }
    }

    /// Resolves and connects to the first address that answers.
    pub(super) async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, FetchError> {
        let found = tokio::net::lookup_host((host, port)).await;
        self.connect_to(found.map_err(FetchError::Name)?).await
    }

    /// The same for what a name was resolved to.
    async fn connect_to(&self, found: impl Iterator<Item = SocketAddr>) -> Result<TcpStream, FetchError> {
        let found: Vec<SocketAddr> = found.take(ADDRESSES_SEEN_MAX).collect();
        self.check(&found)?;
        let mut last = None;
        for address in found.iter().take(ADDRESSES_TRIED_MAX) {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(error),
            }
        }
        Err(FetchError::Connect(last.unwrap_or_else(|| std::io::ErrorKind::AddrNotAvailable.into())))
    }

    fn check(&self, found: &[SocketAddr]) -> Result<(), FetchError> {
        match found.iter().find(|addr| !self.allows(addr.ip())) {
            Some(refused) => Err(FetchError::Address(refused.ip())),
            None => Ok(()),
        }
    }

    fn allows(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let mut opened = self.opened.iter().filter(|network| network.contains(&ip));
        if is_metadata(ip) {
            return opened.any(|network| network.prefix_len() == network.max_prefix_len());
        }
        opened.next().is_some() || !is_of_this_machine(ip)
    }
}

/// Addresses that mean this machine, its link, or many at once.
fn is_of_this_machine(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [first, ..] = ip.octets();
            ip.is_loopback() || ip.is_link_local() || ip.is_multicast() || first == 0 || first >= 240
        }
        IpAddr::V6(ip) => {
            let [first, ..] = ip.segments();
            // An IPv4 address inside of another form than the canonical one hides something.
            let embeds = matches!(first, 0x64 | 0x2002) || ip.to_ipv4().is_some();
            ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || first & 0xffc0 == 0xfe80 || embeds
        }
    }
}

/// The most addresses of one name that are looked at.
const ADDRESSES_SEEN_MAX: usize = 32;
/// The most of them that are tried.
const ADDRESSES_TRIED_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(opened: &[&str], ip: &str) -> bool {
        let opened: Vec<IpNet> = opened.iter().map(|text| text.parse().unwrap()).collect();
        Networks::new(&opened).allows(ip.parse().unwrap())
    }

    #[test]
    fn what_only_this_machine_reaches_is_not_called() {
        for good in
            ["1.1.1.1", "10.1.2.3", "192.168.1.1", "172.16.0.9", "2606:4700::1111", "fd12::1", "::ffff:10.0.0.1"]
        {
            assert!(allows(&[], good), "{good}");
        }
        for bad in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "169.254.1.1",
            "169.254.169.254",
            "100.100.100.200",
            "168.63.129.16",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
        ] {
            assert!(!allows(&[], bad), "{bad}");
        }
    }

    #[test]
    fn settings_open_networks_but_metadata_only_by_name() {
        assert!(allows(&["127.0.0.0/8"], "127.0.0.1") && allows(&["::1/128"], "::1"));
        assert!(!allows(&["0.0.0.0/0"], "169.254.169.254") && allows(&["169.254.169.254/32"], "169.254.169.254"));
    }

    /// Nobody listens there: port 9 of addresses that are this machine's.
    fn deaf(count: usize) -> Vec<SocketAddr> {
        (1..=count).map(|n| SocketAddr::from(([127, 0, 9, n as u8], 9))).collect()
    }

    #[tokio::test]
    async fn so_many_addresses_are_tried_and_no_more() {
        let networks = Networks::new(&["127.0.0.0/8".parse().unwrap()]);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let answers = listener.local_addr().unwrap();
        for (before, reached) in [(ADDRESSES_TRIED_MAX - 1, true), (ADDRESSES_TRIED_MAX, false)] {
            let connected = networks.connect_to(deaf(before).into_iter().chain([answers])).await;
            assert_eq!(connected.is_ok(), reached, "the one that answers comes after {before}");
        }
        assert_eq!(networks.connect_to([].into_iter()).await.unwrap_err().reason(), "FEDERATION_UNREACHABLE");
    }

    #[tokio::test]
    async fn so_many_addresses_are_looked_at_and_no_more() {
        let networks = Networks::new(&["127.0.0.0/8".parse().unwrap()]);
        let refused = SocketAddr::from(([169, 254, 1, 1], 443));
        let reason = async |before| {
            let found = deaf(before).into_iter().chain([refused]);
            networks.connect_to(found).await.unwrap_err().reason()
        };
        assert_eq!(reason(ADDRESSES_SEEN_MAX - 1).await, "FEDERATION_ADDRESS_FORBIDDEN");
        assert_eq!(reason(ADDRESSES_SEEN_MAX).await, "FEDERATION_UNREACHABLE", "it is not even called");
    }

    #[test]
    fn one_refused_address_refuses_all() {
        let addr = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let networks = Networks::new(&[]);
        assert!(networks.check(&[addr("1.1.1.1:443")]).is_ok());
        let mixed = networks.check(&[addr("1.1.1.1:443"), addr("127.0.0.1:443")]);
        assert_eq!(mixed.unwrap_err().reason(), "FEDERATION_ADDRESS_FORBIDDEN");
    }
}

//! Address ranges. IPv4-mapped IPv6 addresses are compared as the IPv4 addresses that they are.

use std::fmt;
use std::net::IpAddr;

use envoy_types::pb::envoy::config::core::v3::CidrRange;
use ipnet::IpNet;

use crate::config::{At, ConfigError, number};

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr(IpNet);

impl Cidr {
    pub(crate) fn compile(value: &CidrRange) -> Result<Self, ConfigError> {
        let ip: IpAddr = value
            .address_prefix
            .parse()
            .map_err(|_| ConfigError::new(format!("`{}` is not an IP address", value.address_prefix)))
            .at("address_prefix")?;
        let len = number(value.prefix_len.as_ref()).unwrap_or(0);
        let net = u8::try_from(len).ok().and_then(|len| IpNet::new(ip, len).ok());
        let net = net.ok_or_else(|| ConfigError::new(format!("{len} is too long for {ip}")).under("prefix_len"))?;
        Ok(Self(net.trunc()))
    }

    /// Whether the address lies in the range.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.contains(&ip.to_canonical())
    }

    /// How narrow the range is.
    pub fn prefix_len(&self) -> u8 {
        self.0.prefix_len()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::google::protobuf::UInt32Value;

    use super::*;

    fn cidr(text: &str, len: u32) -> Result<Cidr, ConfigError> {
        Cidr::compile(&CidrRange { address_prefix: text.into(), prefix_len: Some(UInt32Value { value: len }) })
    }

    #[test]
    fn ranges_hold_what_they_say() {
        for (text, len, ip, expected) in [
            ("10.1.2.3", 8, "10.255.0.1", true),
            ("10.1.2.3", 8, "11.0.0.1", false),
            ("10.1.2.3", 32, "10.1.2.3", true),
            ("10.0.0.0", 8, "::ffff:10.1.1.1", true),
            ("0.0.0.0", 0, "1.2.3.4", true),
            ("0.0.0.0", 0, "::1", false),
            ("2001:db8::", 32, "2001:db8:1::1", true),
        ] {
            assert_eq!(cidr(text, len).unwrap().contains(ip.parse().unwrap()), expected, "{ip} in {text}/{len}");
        }
    }

    #[test]
    fn impossible_ranges_are_refused() {
        assert!(cidr("10.0.0.0", 33).is_err());
        assert!(cidr("ten", 8).is_err());
    }
}

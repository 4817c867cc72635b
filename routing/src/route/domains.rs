//! Which virtual host is responsible for a host name.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::route::v3 as pb;

use crate::config::{At, ConfigError};

/// Domains of all virtual hosts, arranged by how they are looked up.
#[derive(Clone, Debug, Default)]
pub(super) struct Domains {
    exact: HashMap<Box<str>, usize>,
    suffixes: Wildcards,
    prefixes: Wildcards,
    any: Option<usize>,
}

/// The fixed parts of wildcards, longest first.
#[derive(Clone, Debug, Default)]
struct Wildcards(Vec<(usize, HashMap<Box<str>, usize>)>);

impl Domains {
    pub(super) fn compile(hosts: &[pb::VirtualHost]) -> Result<Self, ConfigError> {
        let mut domains = Self::default();
        for (index, host) in hosts.iter().enumerate() {
            for domain in &host.domains {
                domains.add(domain, index).at_index("virtual_hosts", index)?;
            }
            if host.domains.is_empty() {
                return Err(ConfigError::new("is required").under("domains")).at_index("virtual_hosts", index);
            }
        }
        domains.suffixes.sort();
        domains.prefixes.sort();
        Ok(domains)
    }

    fn add(&mut self, domain: &str, host: usize) -> Result<(), ConfigError> {
        let lower = domain.to_ascii_lowercase();
        let previous = match (lower.strip_prefix('*'), lower.strip_suffix('*')) {
            (Some(""), _) => self.any.replace(host),
            (Some(suffix), _) if !suffix.contains('*') => self.suffixes.add(suffix, host),
            (None, Some(prefix)) if !prefix.contains('*') => self.prefixes.add(prefix, host),
            (None, None) if !lower.is_empty() && !lower.contains('*') => {
                self.exact.insert(lower.trim_end_matches('.').into(), host)
            }
            _ => return Err(ConfigError::new(format!("`{domain}` is not a domain")).under("domains")),
        };
        match previous {
            None => Ok(()),
            Some(_) => Err(ConfigError::new(format!("`{domain}` is already taken")).under("domains")),
        }
    }

    /// The virtual host for a name in lower case.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.find_named(name).or(self.any)
    }

    /// The same without the one that takes everything.
    pub(super) fn find_named(&self, name: &str) -> Option<usize> {
        let exact = self.exact.get(name).copied();
        let suffix = || self.suffixes.find(name.len(), |len| name.get(name.len() - len..));
        let prefix = || self.prefixes.find(name.len(), |len| name.get(..len));
        exact.or_else(suffix).or_else(prefix)
    }
}

impl Wildcards {
    fn add(&mut self, part: &str, host: usize) -> Option<usize> {
        let known = self.0.iter_mut().find(|(len, _)| *len == part.len());
        match known {
            Some((_, parts)) => parts.insert(part.into(), host),
            None => {
                self.0.push((part.len(), HashMap::from([(part.into(), host)])));
                None
            }
        }
    }

    fn sort(&mut self) {
        self.0.sort_by_key(|(len, _)| std::cmp::Reverse(*len));
    }

    /// A wildcard never stands for nothing.
    fn find<'a>(&self, name_len: usize, part: impl Fn(usize) -> Option<&'a str>) -> Option<usize> {
        let shorter = self.0.iter().filter(|(len, _)| *len < name_len);
        shorter.filter_map(|(len, parts)| parts.get(part(*len)?).copied()).next()
    }
}

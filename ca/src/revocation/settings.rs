//! Settings of revocation.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::settings::SettingsProblem;

/// Where revocation lists and OCSP are served, and how lists are made.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevocationSettings {
    /// Lists and OCSP over http; off when absent.
    #[serde(default)]
    pub listen: Option<SocketAddr>,
    /// By which URL others reach `listen`: `http://ca.example:8089`.
    #[serde(default)]
    pub url: Option<String>,
    /// Whether certificates name the list of their issuer (CRL distribution point); needs `url`.
    #[serde(default)]
    pub in_certificates: bool,
    /// For how long a list is good. It is replaced when something is revoked, and at half of its life.
    #[serde(default = "default_crl_life", with = "humantime_serde")]
    pub crl_life: Duration,
}

impl Default for RevocationSettings {
    fn default() -> Self {
        Self { listen: None, url: None, in_certificates: false, crl_life: default_crl_life() }
    }
}

impl RevocationSettings {
    /// Checks what the types alone cannot.
    ///
    /// # Errors
    /// Names the first setting that cannot be.
    pub(crate) fn check(&self) -> Result<(), SettingsProblem> {
        let refused = |setting, problem| Err(SettingsProblem::Revocation { setting, problem });
        if self.crl_life < CRL_LIFE_MIN {
            return refused("crl_life", "must be at least 1m");
        }
        if self.in_certificates && self.url.is_none() {
            return refused("in_certificates", "needs `url`, or nobody could fetch the list");
        }
        let good = |url: &String| {
            let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
            rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_graphic()))
        };
        if self.url.as_ref().is_some_and(|url| !good(url)) {
            return refused("url", "must begin with http:// or https:// and hold printable ASCII only");
        }
        Ok(())
    }

    /// What the distribution points of lists begin with.
    pub(crate) fn base_url(&self) -> String {
        let served = || self.listen.map_or_else(|| "http://localhost".to_owned(), |addr| format!("http://{addr}"));
        self.url.clone().unwrap_or_else(served).trim_end_matches('/').to_owned()
    }
}

fn default_crl_life() -> Duration {
    Duration::from_secs(24 * 3600)
}

const CRL_LIFE_MIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_named() {
        let check = |change: fn(&mut RevocationSettings)| {
            let mut settings = RevocationSettings::default();
            change(&mut settings);
            settings.check().map_err(|error| error.to_string())
        };
        assert!(check(|_| ()).is_ok());
        assert!(check(|s| s.crl_life = CRL_LIFE_MIN).is_ok(), "at the edge");
        assert!(check(|s| s.crl_life = Duration::from_secs(59)).unwrap_err().contains("crl_life"));
        assert!(check(|s| s.in_certificates = true).unwrap_err().contains("`url`"));
        assert!(check(|s| s.url = Some("ca.example".into())).unwrap_err().contains("http://"));
        assert!(check(|s| (s.in_certificates, s.url) = (true, Some("http://ca/".into()))).is_ok());
    }

    #[test]
    fn the_base_is_the_url_or_the_address() {
        let mut settings = RevocationSettings::default();
        assert_eq!(settings.base_url(), "http://localhost");
        settings.listen = Some(SocketAddr::from(([127, 0, 0, 1], 8089)));
        assert_eq!(settings.base_url(), "http://127.0.0.1:8089");
        settings.url = Some("https://ca.example/".into());
        assert_eq!(settings.base_url(), "https://ca.example");
    }
}

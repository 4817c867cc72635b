//! A federation relationship: whose bundle, from where, and how the endpoint proves itself.

use std::fmt;

use http::Uri;
use identity::spiffe_id::{SpiffeId, TrustDomain};

/// One relationship, with how its fetching goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Relationship {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) url: EndpointUrl,
    pub(crate) profile: Profile,
    /// Unix seconds.
    pub(crate) created_at: i64,
    pub(crate) state: PollState,
}

/// How the endpoint proves itself (SPIFFE Federation, section 5.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// By a certificate of the web for the URL's host.
    HttpsWeb,
    /// By an SVID with this ID, verified with the bundle of the ID's trust domain as it is known here.
    HttpsSpiffe(SpiffeId),
}

/// How the fetching goes. Times are Unix seconds; 0: never, or at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PollState {
    pub(crate) succeeded_at: i64,
    pub(crate) tried_at: i64,
    pub(crate) next_at: i64,
    /// In a row.
    pub(crate) failures: u32,
    /// Reason code of the last failure; empty after a success.
    pub(crate) reason: String,
    pub(crate) problem: String,
}

impl Relationship {
    /// One that was never polled.
    pub(crate) fn new(trust_domain: TrustDomain, url: EndpointUrl, profile: Profile, now: i64) -> Self {
        Self { trust_domain, url, profile, created_at: now, state: PollState::default() }
    }

    /// Whether both would fetch the same.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain && self.url == other.url && self.profile == other.profile
    }
}

impl Profile {
    /// As the database and people write it.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::HttpsWeb => "https_web",
            Self::HttpsSpiffe(_) => "https_spiffe",
        }
    }

    /// The endpoint's ID, or nothing.
    pub(crate) fn endpoint_id(&self) -> &str {
        match self {
            Self::HttpsWeb => "",
            Self::HttpsSpiffe(id) => id.as_str(),
        }
    }

    pub(crate) fn read(kind: &str, endpoint_id: &str) -> Option<Self> {
        match kind {
            "https_web" => Some(Self::HttpsWeb),
            "https_spiffe" => SpiffeId::parse(endpoint_id).ok().map(Self::HttpsSpiffe),
            _ => None,
        }
    }
}

/// The URL of a bundle endpoint: https, a host, no user information, no fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EndpointUrl {
    text: String,
    host: String,
    port: u16,
    target: String,
}

impl EndpointUrl {
    /// # Errors
    /// One sentence that says what is wrong with `text`.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > URL_BYTES_MAX {
            return Err("is longer than 2048 bytes");
        }
        if text.contains('#') {
            return Err("must not have a fragment");
        }
        let uri: Uri = text.parse().map_err(|_| "is no URL")?;
        if uri.scheme_str() != Some("https") {
            return Err("must begin with https://");
        }
        let authority = uri.authority().ok_or("has no host")?;
        if authority.as_str().contains('@') {
            return Err("must not have a user or password");
        }
        if authority.host().is_empty() {
            return Err("has no host");
        }
        let port = match authority.as_str().rsplit_once(':') {
            Some((_, port)) if !port.ends_with(']') => port.parse().map_err(|_| "has a port that is no number")?,
            _ => HTTPS_PORT,
        };
        if port == 0 {
            return Err("has the port 0");
        }
        let host = authority.host().trim_matches(['[', ']']).to_ascii_lowercase();
        let target = uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
        Ok(Self { text: text.to_owned(), host, port, target })
    }

    /// DNS name or IP address, without brackets.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Path and query.
    pub(crate) fn target(&self) -> &str {
        &self.target
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The longest URL.
pub(crate) const URL_BYTES_MAX: usize = 2048;
const HTTPS_PORT: u16 = 443;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_https_with_a_host_and_nothing_to_hide() {
        let url = EndpointUrl::parse("https://Bundle.Example.org:8443/a/b?c=d").unwrap();
        assert_eq!((url.host(), url.port(), url.target()), ("bundle.example.org", 8443, "/a/b?c=d"));
        let url = EndpointUrl::parse("https://[::1]").unwrap();
        assert_eq!((url.host(), url.port(), url.target()), ("::1", 443, "/"));
        for bad in [
            "",
            "x",
            "http://a/",
            "https:///x",
            "https://u@a/",
            "https://u:p@a/",
            "https://a/#f",
            "https://a:0/",
            "https://a:70000/",
            "https://a:x/",
            "spiffe://a/b",
            "//a/b",
        ] {
            assert!(EndpointUrl::parse(bad).is_err(), "{bad}");
        }
        let long = |bytes: usize| format!("https://a/{}", "x".repeat(bytes - "https://a/".len()));
        assert!(EndpointUrl::parse(&long(URL_BYTES_MAX)).is_ok());
        assert!(EndpointUrl::parse(&long(URL_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn profiles_are_read_as_they_are_written() {
        let id = SpiffeId::parse("spiffe://other.org/spire/server").unwrap();
        for profile in [Profile::HttpsWeb, Profile::HttpsSpiffe(id)] {
            assert_eq!(Profile::read(profile.as_str(), profile.endpoint_id()), Some(profile));
        }
        assert_eq!(Profile::read("https_spiffe", ""), None);
        assert_eq!(Profile::read("http", ""), None);
    }
}

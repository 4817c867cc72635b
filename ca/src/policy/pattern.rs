//! Patterns of paths and DNS names. A pattern goes segment by segment: `*` is exactly one whole segment, `**` is everything
//! that remains (for DNS names: everything in front). A star beside other letters is refused, so that no pattern means
//! more than its writer saw.

use std::fmt;

/// A pattern of the paths of SPIFFE IDs: `/ns/*/sa/web`, `/ns/payments/**`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PathPattern {
    text: String,
    segments: Vec<Option<String>>,
    rest: bool,
}

impl PathPattern {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix('/').ok_or_else(|| format!("the pattern {text:?} must begin with a slash"))?;
        let mut segments: Vec<&str> = path.split('/').collect();
        let rest = segments.last() == Some(&"**");
        if rest {
            segments.pop();
        }
        let segments = segments.into_iter().map(|segment| Self::segment(text, segment)).collect::<Result<_, _>>()?;
        Ok(Self { text: text.to_owned(), segments, rest })
    }

    fn segment(text: &str, segment: &str) -> Result<Option<String>, String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        match segment {
            "*" => Ok(None),
            "**" => Err(format!("the pattern {text:?} may hold ** only at its end")),
            "" => Err(format!("the pattern {text:?} holds an empty segment")),
            "." | ".." => Err(format!("the pattern {text:?} holds a segment that no SPIFFE ID has")),
            _ if segment.contains('*') => {
                Err(format!("the pattern {text:?} holds a star beside other letters; * is one whole segment"))
            }
            _ if segment.chars().all(allowed) => Ok(Some(segment.to_owned())),
            _ => Err(format!("the pattern {text:?} holds a letter that no SPIFFE ID has")),
        }
    }

    /// Whether the path of an ID (with its slash) fits. `**` fits one segment or more.
    pub(crate) fn matches(&self, path: &str) -> bool {
        let Some(path) = path.strip_prefix('/') else { return false };
        let mut given = path.split('/');
        let fits = |wanted: &Option<String>| match (wanted, given.next()) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(wanted), Some(segment)) => wanted == segment,
        };
        self.segments.iter().all(fits) && given.next().is_some() == self.rest
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A pattern of callers: `local`, or the path of a node or an administrator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CallerPattern {
    Local,
    Path { prefix: String, pattern: PathPattern },
}

impl CallerPattern {
    /// `trust_domain` is that of the authority.
    pub(super) fn parse(text: &str, trust_domain: &str) -> Result<Self, String> {
        if text == LOCAL {
            return Ok(Self::Local);
        }
        Ok(Self::Path { prefix: format!("spiffe://{trust_domain}"), pattern: PathPattern::parse(text)? })
    }

    pub(super) fn matches(&self, caller: &str) -> bool {
        match self {
            Self::Local => caller == LOCAL,
            Self::Path { prefix, pattern } => caller.strip_prefix(prefix).is_some_and(|path| pattern.matches(path)),
        }
    }
}

impl fmt::Display for CallerPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str(LOCAL),
            Self::Path { pattern, .. } => pattern.fmt(f),
        }
    }
}

/// A pattern of DNS names: `web.default.svc`, `*.default.svc` (one label), `**.svc` (one label or more).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DnsPattern {
    text: String,
    /// From the right, as DNS names are read.
    labels: Vec<Option<String>>,
    rest: bool,
}

impl DnsPattern {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut labels: Vec<&str> = text.split('.').collect();
        let rest = labels.first() == Some(&"**");
        if rest {
            labels.remove(0);
        }
        let plain: Vec<&str> = labels.iter().map(|label| if *label == "*" { "x" } else { label }).collect();
        if !plain.is_empty() && !crate::names::is_dns_name(&plain.join(".")) {
            return Err(format!("the pattern {text:?} is no DNS name; * is one whole label, ** stands in front"));
        }
        let label = |label: &&str| (*label != "*").then(|| label.to_ascii_lowercase());
        Ok(Self { text: text.to_owned(), labels: labels.iter().rev().map(label).collect(), rest })
    }

    /// A wildcard name is only what a pattern says literally or by `**`: a certificate for `*.a` is more than one for `x.a`.
    pub(super) fn matches(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        let mut given = name.split('.').rev();
        let fits = |wanted: &Option<String>| match (wanted, given.next()) {
            (_, None) => false,
            (None, Some(label)) => label != "*",
            (Some(wanted), Some(label)) => wanted == label,
        };
        self.labels.iter().all(fits) && given.next().is_some() == self.rest
    }
}

impl fmt::Display for DnsPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

const LOCAL: &str = "local";

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_path(pattern: &str, yes: &[&str], no: &[&str]) {
        let pattern = PathPattern::parse(pattern).unwrap();
        yes.iter().for_each(|path| assert!(pattern.matches(path), "{pattern} {path}"));
        no.iter().for_each(|path| assert!(!pattern.matches(path), "{pattern} {path}"));
    }

    #[test]
    fn a_star_is_one_segment_and_two_are_the_rest() {
        check_path(
            "/ns/*/sa/web",
            &["/ns/a/sa/web"],
            &["/ns/a/b/sa/web", "/ns/sa/web", "/ns/a/sa/web/x", "/ns/a/sa/webb"],
        );
        check_path("/ns/pay/**", &["/ns/pay/a", "/ns/pay/a/b"], &["/ns/pay", "/ns/payments/a", "/ns"]);
        check_path("/**", &["/a", "/a/b"], &["", "/ns/../x".trim_start_matches('/')]);
        check_path("/a.b", &["/a.b"], &["/axb", "/a", "/A.b", "/a.b/"]);
    }

    #[test]
    fn what_could_mean_more_than_it_seems_is_refused() {
        for bad in
            ["", "a", "ns/*", "/", "/a//b", "/a/", "/ns/pay-*", "/**/a", "/ns/***", "/a/..", "/a b", "/a|b", "/ä"]
        {
            assert!(PathPattern::parse(bad).is_err(), "{bad}");
        }
        for bad in ["", ".", "a..b", "*a.b", "a.**", "a b", "**.", "-a.b"] {
            assert!(DnsPattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn dns_patterns_go_label_by_label() {
        let check = |pattern: &str, name: &str| DnsPattern::parse(pattern).unwrap().matches(name);
        assert!(check("*.default.svc", "web.default.svc") && check("*.default.svc", "WEB.default.svc"));
        assert!(!check("*.default.svc", "a.web.default.svc") && !check("*.default.svc", "default.svc"));
        assert!(check("**.svc", "a.b.svc") && check("**.svc", "*.b.svc") && !check("**.svc", "svc"));
        assert!(!check("*.svc", "*.svc"), "a wildcard is more than one name");
        assert!(!check("a.b", "axb") && check("a.b", "a.b"));
        assert!(check("**", "anything.at.all"));
    }

    #[test]
    fn callers_are_local_or_of_this_trust_domain() {
        let node = CallerPattern::parse("/spire/agent/**", "td").unwrap();
        assert!(node.matches("spiffe://td/spire/agent/join_token/x"));
        assert!(!node.matches("spiffe://tdx/spire/agent/join_token/x") && !node.matches("local"));
        assert!(CallerPattern::parse("local", "td").unwrap().matches("local"));
    }
}

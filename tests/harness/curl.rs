//! HTTP as users do it: by `curl`.

use anyhow::{Context, Result, bail};

use crate::program::{Answer, Program};
use crate::tools;

/// A request to be made by curl.
#[derive(Clone, Debug)]
pub struct Request {
    url: String,
    options: Vec<String>,
}

/// An HTTP answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// `1.1` or `2`.
    pub version: String,
    /// Status code.
    pub status: u16,
    /// Header lines as received.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: String,
}

/// A GET.
pub fn get(url: impl Into<String>) -> Request {
    Request { url: url.into(), options: Vec::new() }
}

impl Request {
    /// Adds curl options.
    #[must_use]
    pub fn options<'a>(mut self, options: impl IntoIterator<Item = &'a str>) -> Self {
        self.options.extend(options.into_iter().map(str::to_owned));
        self
    }

    /// HTTP/2 without TLS, by prior knowledge.
    #[must_use]
    pub fn http2(self) -> Self {
        self.options(["--http2-prior-knowledge"])
    }

    /// A header line.
    #[must_use]
    pub fn header(self, name: &str, value: &str) -> Self {
        self.options(["-H", &format!("{name}: {value}")])
    }

    /// A bearer token.
    #[must_use]
    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    /// The certificate authority to trust.
    #[must_use]
    pub fn trusting(self, file: &str) -> Self {
        self.options(["--cacert", file])
    }

    /// Client certificate and key from the folder that `kasbah agent fetch x509 --write` filled.
    #[must_use]
    pub fn identity(self, folder: &std::path::Path) -> Self {
        let file = |name: &str| folder.join(name).display().to_string();
        // The SPIFFE ID is no host name, so curl cannot judge the server; the test does.
        self.options(["--cert", &file("svid.pem"), "--key", &file("svid.key"), "--insecure"])
    }

    /// Makes the request and expects an HTTP answer of any status.
    ///
    /// # Errors
    /// When there is no HTTP answer.
    pub fn send(&self) -> Result<Response> {
        let answer = self.try_send()?;
        if answer.code != 0 {
            bail!("curl {} failed with {}: {}", self.url, answer.code, answer.stderr.trim());
        }
        parse(&answer.stdout).with_context(|| format!("curl {}", self.url))
    }

    /// Makes the request; the exit code is curl's.
    ///
    /// # Errors
    /// When curl cannot be run.
    pub fn try_send(&self) -> Result<Answer> {
        self.program()?.run()
    }

    fn program(&self) -> Result<Program> {
        let fixed = ["-sS", "-i", "--max-time", "20", "--noproxy", "*"];
        Ok(tools::system("curl")?.args(fixed).args(&self.options).arg(&self.url))
    }
}

impl Response {
    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The reason code of a refusal.
    pub fn reason(&self) -> &str {
        self.header("x-kasbah-reason").unwrap_or("-")
    }

    /// Expects a status.
    ///
    /// # Errors
    /// When it is another one.
    pub fn expect_status(self, status: u16) -> Result<Self> {
        if self.status != status {
            bail!("expected {status}, got {} (reason {}): {}", self.status, self.reason(), self.body);
        }
        Ok(self)
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.body).with_context(|| format!("no JSON: {}", self.body))
    }
}

fn parse(text: &str) -> Result<Response> {
    let (head, body) = text.split_once("\r\n\r\n").context("no end of the header")?;
    if head.starts_with("HTTP/1.1 100") || head.starts_with("HTTP/1.1 101") {
        return parse(body);
    }
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let mut words = first.split(' ');
    let version = words.next().and_then(|w| w.strip_prefix("HTTP/")).context("no status line")?.to_owned();
    let status = words.next().and_then(|w| w.parse().ok()).with_context(|| format!("no status in {first}"))?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    Ok(Response { version, status, headers, body: body.to_owned() })
}

/// A URL for an address and a path.
pub fn url(scheme: &str, address: &str, path: &str) -> String {
    format!("{scheme}://{address}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read() {
        let one = parse("HTTP/1.1 200 OK\r\nA: b\r\n\r\nbody").unwrap();
        assert_eq!(
            (one.version.as_str(), one.status, one.header("a"), one.body.as_str()),
            ("1.1", 200, Some("b"), "body")
        );
        let two = parse("HTTP/2 403 \r\nx-kasbah-reason: RBAC_DENIED\r\n\r\n").unwrap();
        assert_eq!((two.version.as_str(), two.status, two.reason()), ("2", 403, "RBAC_DENIED"));
    }
}

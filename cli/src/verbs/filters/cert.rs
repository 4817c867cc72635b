//! `kasbah cert verify --limbo` and `kasbah cert lint --lines`: certificates judged without a server.

use std::io::Read as _;
use std::time::SystemTime;

use identity::profile::{self, Profile};
use serde::Deserialize;

use super::parallel::{self, Answerer};
use crate::exit::{Exit, Failure};
use crate::output;

/// `kasbah cert verify --limbo`: an x509-limbo document in, a results document out.
pub(crate) fn verify_limbo() -> Result<(), Failure> {
    let mut document = Vec::new();
    std::io::stdin().lock().read_to_end(&mut document)?;
    let results = identity::limbo::judge(&document, identity::unix_time(SystemTime::now()))
        .map_err(|error| Failure::new(Exit::Data, error.to_string()).remedy("give the whole of a `limbo.json`"))?;
    let text = serde_json::to_string(&results).map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    output::line(&text);
    Ok(())
}

/// `kasbah cert lint --lines`: a PEM text as a JSON string in, `ok` or `err CODE,CODE…` out.
pub(crate) fn lint() -> Result<(), Failure> {
    parallel::run::<Linter>()
}

#[derive(Default)]
struct Linter;

impl Answerer for Linter {
    fn answer(&mut self, line: &[u8]) -> String {
        match serde_json::from_slice(line) {
            Ok(asked) => lint_one(asked),
            Err(_) => "err BAD_JSON".to_owned(),
        }
    }
}

/// What may stand on a line.
#[derive(Deserialize)]
#[serde(untagged)]
enum Asked {
    Pem(String),
    With {
        pem: String,
        #[serde(default)]
        profile: ProfileName,
    },
}

#[derive(Default, Deserialize)]
enum ProfileName {
    #[default]
    #[serde(rename = "x509-svid")]
    Svid,
    #[serde(rename = "rfc5280")]
    Rfc5280,
}

fn lint_one(asked: Asked) -> String {
    let (pem, profile) = match asked {
        Asked::Pem(pem) => (pem, Profile::Svid),
        Asked::With { pem, profile: ProfileName::Svid } => (pem, Profile::Svid),
        Asked::With { pem, profile: ProfileName::Rfc5280 } => (pem, Profile::Rfc5280),
    };
    match profile::lint(pem.as_bytes(), profile) {
        Ok(defects) if defects.is_empty() => "ok".to_owned(),
        Ok(defects) => format!("err {}", defects.iter().map(|defect| defect.code()).collect::<Vec<_>>().join(",")),
        Err(error) => format!("err {}", error.reason()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(line: &str) -> String {
        Linter.answer(line.as_bytes())
    }

    #[test]
    fn lines_are_texts_or_objects_and_nothing_else() {
        assert_eq!(answer("\"text\""), "err PEM_INVALID");
        assert_eq!(answer(r#"{"pem": "text"}"#), "err PEM_INVALID");
        assert_eq!(answer(r#"{"pem": "text", "profile": "rfc5280"}"#), "err PEM_INVALID");
        for bad in ["", "1", "text", "[]", "{}", r#"{"pem": 1}"#, r#"{"pem": "", "profile": "x"}"#, "\"a\" \"b\""] {
            assert_eq!(answer(bad), "err BAD_JSON", "{bad}");
        }
    }

    #[test]
    fn all_codes_of_a_certificate_stand_on_its_line() {
        let authority = identity::authority::WebAuthority::generate(
            "web",
            std::time::Duration::from_secs(3600),
            SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000),
        );
        let pem = serde_json::to_string(&authority.unwrap().certificate_pem()).unwrap();
        assert_eq!(answer(&pem), "ok");
        let broken = serde_json::to_string("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n").unwrap();
        assert_eq!(answer(&broken), "err CERT_MALFORMED");
    }
}

//! The rules file: who may do what, and how often.
//!
//! A file becomes [`Rules`] whole or not at all; what is refused is named with line and column.

mod authorization;
mod document;
mod limits;

use std::path::{Path, PathBuf};

pub use authorization::{Authorization, Decision};
pub use limits::{Limit, Limits, Rate, Unit};

/// What one version of the rules file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Answers of the authorization service.
    pub authorization: Authorization,
    /// Quotas of the rate limit service.
    pub limits: Limits,
}

impl Rules {
    /// Reads and compiles `file`.
    ///
    /// # Errors
    /// When the file cannot be read, is too large, is no YAML of this form, or says something impossible.
    pub fn load(file: &Path) -> Result<Self, RulesError> {
        let unreadable = |source| RulesError::Unreadable { file: file.to_owned(), source };
        let bytes = std::fs::metadata(file).map_err(unreadable)?.len();
        if bytes > RULES_BYTES_MAX {
            return Err(RulesError::TooLarge { file: file.to_owned(), bytes });
        }
        let text = std::fs::read_to_string(file).map_err(unreadable)?;
        Self::parse(file, &text)
    }

    /// Compiles `text`, which stands in `file`.
    ///
    /// # Errors
    /// When it is no YAML of this form or says something impossible.
    pub fn parse(file: &Path, text: &str) -> Result<Self, RulesError> {
        let document: document::Document = serde_saphyr::from_str(text).map_err(|error| syntax(file, &error))?;
        Self::compile(document).map_err(|fault| RulesError::Invalid {
            file: file.to_owned(),
            line: fault.line,
            column: fault.column,
            text: fault.text,
        })
    }

    fn compile(document: document::Document) -> Result<Self, Fault> {
        Ok(Self {
            authorization: Authorization::compile(document.authorization)?,
            limits: Limits::compile(document.quotas)?,
        })
    }
}

/// Why a rules file was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RulesError {
    /// The file cannot be read.
    #[error("{}: the rules cannot be read; see that the file exists and is readable", file.display())]
    Unreadable {
        /// Which file.
        file: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The file is larger than rules may be.
    #[error("{}: {bytes} bytes, more than the {RULES_BYTES_MAX} that rules may have", file.display())]
    TooLarge {
        /// Which file.
        file: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The text is no YAML or not of this form.
    #[error("{}:{line}:{column}: {text}", file.display())]
    Syntax {
        /// Which file.
        file: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Column, from 1.
        column: u64,
        /// What is wrong.
        text: String,
    },
    /// The form is right, but it says something impossible.
    #[error("{}:{line}:{column}: {text}", file.display())]
    Invalid {
        /// Which file.
        file: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Column, from 1.
        column: u64,
        /// What is wrong.
        text: String,
    },
}

impl RulesError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "POLICY_RULES_UNREADABLE",
            Self::TooLarge { .. } => "POLICY_RULES_TOO_LARGE",
            Self::Syntax { .. } | Self::Invalid { .. } => "POLICY_RULES_INVALID",
        }
    }
}

/// Something impossible at a place of the document.
#[derive(Debug)]
struct Fault {
    line: u64,
    column: u64,
    text: String,
}

impl Fault {
    fn at<T>(place: &serde_saphyr::Spanned<T>, text: impl Into<String>) -> Self {
        Self { line: place.referenced.line(), column: place.referenced.column(), text: text.into() }
    }
}

fn syntax(file: &Path, error: &serde_saphyr::Error) -> RulesError {
    let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
    let text = error.without_snippet().to_string();
    let first = text.lines().next().unwrap_or_default();
    let position = format!(" at line {line}, column {column}");
    let text = first.strip_suffix(&position).unwrap_or(first).to_owned();
    RulesError::Syntax { file: file.to_owned(), line, column, text }
}

/// The largest rules file.
pub const RULES_BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        Rules::parse(Path::new("r.yaml"), text).unwrap_err().to_string()
    }

    #[test]
    fn nothing_written_allows_everything_and_limits_nothing() {
        let rules = Rules::parse(Path::new("r.yaml"), "{}").unwrap();
        assert_eq!(rules.authorization.len(), 0);
        assert_eq!(rules.limits.len(), 0);
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place() {
        let text = refusal("authorization:\n  default: allow\n  rulez: []\n");
        assert!(text.starts_with("r.yaml:3:3: ") && text.contains("rulez"), "{text}");
    }

    #[test]
    fn broken_yaml_is_refused_with_its_place() {
        let text = refusal("authorization:\n  default: [allow\nquotas: []\n");
        assert!(text.starts_with("r.yaml:"), "{text}");
    }

    #[test]
    fn an_impossible_value_is_refused_with_its_place() {
        let text = refusal(
            "quotas:\n  - domain: demo\n    limits:\n      - descriptor: [{key: path}]\n        requests: 0\n        per: minute\n",
        );
        assert!(text.starts_with("r.yaml:5:19: "), "{text}");
    }

    #[test]
    fn the_demo_rules_are_good() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo/policy/rules.yaml");
        let rules = Rules::load(&file).unwrap();
        assert_eq!((rules.authorization.len(), rules.limits.len()), (1, 1));
    }

    #[test]
    fn a_missing_or_too_large_file_is_refused() {
        assert_eq!(Rules::load(Path::new("/nonexistent/rules.yaml")).unwrap_err().reason(), "POLICY_RULES_UNREADABLE");
        let file = std::env::temp_dir().join(format!("kasbah-policy-large-{}.yaml", std::process::id()));
        let edge = usize::try_from(RULES_BYTES_MAX).unwrap();
        std::fs::write(&file, format!("{{}}{}", " ".repeat(edge - 2))).unwrap();
        assert!(Rules::load(&file).is_ok());
        std::fs::write(&file, format!("{{}}{}", " ".repeat(edge - 1))).unwrap();
        assert_eq!(Rules::load(&file).unwrap_err().reason(), "POLICY_RULES_TOO_LARGE");
        std::fs::remove_file(&file).unwrap();
    }
}

//! A process's own settings: a YAML file, each top-level scalar overridable by `KASBAH_<ROLE>_<SETTING>`.
//!
//! Unknown keys are refused (the type says `deny_unknown_fields`), and an error names file, line and column.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why settings could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("{}: cannot read the settings; name an existing file with --config", file.display())]
    Read {
        /// Which file.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is larger than any settings are.
    #[error("{}: larger than {SETTINGS_BYTES_MAX} bytes, which is no settings file", file.display())]
    TooLarge {
        /// Which file.
        file: PathBuf,
    },
    /// The content is refused.
    #[error("{}:{line}:{column}: {message}", file.display())]
    Invalid {
        /// Which file.
        file: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Column, from 1.
        column: u64,
        /// What is wrong.
        message: String,
    },
    /// The file with the overrides of the environment is refused.
    #[error("{} with {variables}: {message}", file.display())]
    Override {
        /// Which file.
        file: PathBuf,
        /// The variables that override something.
        variables: String,
        /// What is wrong.
        message: String,
    },
}

impl SettingsError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "SETTINGS_UNREADABLE",
            Self::TooLarge { .. } | Self::Invalid { .. } | Self::Override { .. } => "SETTINGS_INVALID",
        }
    }
}

/// Loads the settings of `role` from `file`, overridden by the environment.
///
/// # Errors
/// When the file cannot be read or its content, or an override, is refused.
pub fn load<T: DeserializeOwned + Serialize>(role: &str, file: &Path) -> Result<T, SettingsError> {
    let text = read(file)?;
    let prefix = format!("KASBAH_{}_", role.to_ascii_uppercase());
    let overrides = std::env::vars()
        .filter_map(|(name, value)| Some((name.strip_prefix(&prefix)?.to_ascii_lowercase(), value)))
        .collect();
    parse(file, &text, &prefix, &overrides)
}

/// As [`load`], from text and given overrides: setting name → value.
fn parse<T: DeserializeOwned>(
    file: &Path,
    text: &str,
    prefix: &str,
    overrides: &BTreeMap<String, String>,
) -> Result<T, SettingsError> {
    if overrides.is_empty() {
        return serde_saphyr::from_str(text).map_err(|error| invalid(file, &error));
    }
    let merged = merge(file, text, overrides)?;
    serde_saphyr::from_str(&merged).map_err(|error| SettingsError::Override {
        file: file.to_owned(),
        variables: overrides
            .keys()
            .map(|key| format!("{prefix}{}", key.to_ascii_uppercase()))
            .collect::<Vec<_>>()
            .join(", "),
        message: plain(&error),
    })
}

fn read(file: &Path) -> Result<String, SettingsError> {
    let unreadable = |source| SettingsError::Read { file: file.to_owned(), source };
    if std::fs::metadata(file).map_err(unreadable)?.len() > SETTINGS_BYTES_MAX {
        return Err(SettingsError::TooLarge { file: file.to_owned() });
    }
    std::fs::read_to_string(file).map_err(unreadable)
}

/// The document with the overridden keys replaced, as YAML text again so that scalars keep their flexible typing.
fn merge(file: &Path, text: &str, overrides: &BTreeMap<String, String>) -> Result<String, SettingsError> {
    let mut document: BTreeMap<String, serde_json::Value> = if text.trim().is_empty() {
        BTreeMap::new()
    } else {
        serde_saphyr::from_str(text).map_err(|error| invalid(file, &error))?
    };
    document.retain(|key, _| !overrides.contains_key(key));
    let mut merged = String::new();
    for (key, value) in &document {
        // JSON is YAML; each value stands on one line.
        merged.push_str(&format!("{key}: {value}\n"));
    }
    for (key, value) in overrides {
        let plain =
            !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_./:+-".contains(&byte));
        let value = if plain { value.clone() } else { serde_json::Value::from(value.as_str()).to_string() };
        merged.push_str(&format!("{key}: {value}\n"));
    }
    Ok(merged)
}

fn invalid(file: &Path, error: &serde_saphyr::Error) -> SettingsError {
    let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
    SettingsError::Invalid { file: file.to_owned(), line, column, message: plain(error) }
}

/// The first line of the error without the drawn snippet and without the position, which we print in front.
fn plain(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let first = text.lines().next().unwrap_or_default();
    let position = error.location().map(|at| format!(" at line {}, column {}", at.line(), at.column()));
    position.and_then(|position| first.strip_suffix(&position)).unwrap_or(first).to_owned()
}

/// The largest settings file.
pub const SETTINGS_BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        trust_domain: String,
        #[serde(default = "port")]
        port: u16,
        #[serde(default)]
        names: Vec<String>,
    }

    fn port() -> u16 {
        8081
    }

    fn check(text: &str, overrides: &[(&str, &str)]) -> Result<Sample, String> {
        let overrides = overrides.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        parse(Path::new("f.yaml"), text, "KASBAH_X_", &overrides).map_err(|error: SettingsError| error.to_string())
    }

    #[test]
    fn defaults_fill_what_the_file_leaves_out() {
        let sample = check("trust_domain: a.b\n", &[]).unwrap();
        assert_eq!((sample.port, sample.trust_domain.as_str()), (8081, "a.b"));
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place() {
        let error = check("trust_domain: a\nprot: 1\n", &[]).unwrap_err();
        assert!(error.starts_with("f.yaml:2:1: ") && error.contains("prot"), "{error}");
    }

    #[test]
    fn a_value_of_the_wrong_type_is_refused_with_its_place() {
        let error = check("trust_domain: a\nport: many\n", &[]).unwrap_err();
        assert!(error.starts_with("f.yaml:2:7: "), "{error}");
        assert!(!error.contains("line 2"), "{error}");
    }

    #[test]
    fn the_environment_overrides_and_supplies_scalars() {
        let sample = check("trust_domain: a\nnames: [x, 'y: z']\n", &[("port", "9"), ("trust_domain", "1.5")]).unwrap();
        assert_eq!(sample, Sample { trust_domain: "1.5".into(), port: 9, names: vec!["x".into(), "y: z".into()] });
        assert_eq!(check("", &[("trust_domain", "a b: c # d")]).unwrap().trust_domain, "a b: c # d");
    }

    #[test]
    fn a_bad_override_names_the_variable() {
        let error = check("trust_domain: a\n", &[("port", "many")]).unwrap_err();
        assert!(error.contains("KASBAH_X_PORT"), "{error}");
        assert!(check("trust_domain: a\n", &[("prot", "1")]).unwrap_err().contains("prot"));
    }

    #[test]
    fn an_override_cannot_smuggle_in_structure() {
        assert!(check("trust_domain: a\n", &[("names", "[a, b]")]).is_err());
        assert_eq!(check("", &[("trust_domain", "a\nport: 1")]).unwrap().trust_domain, "a\nport: 1");
    }

    #[test]
    fn a_missing_file_says_what_to_do() {
        let error = load::<Sample>("nobody", Path::new("/nonexistent/x.yaml")).unwrap_err();
        assert_eq!(error.reason(), "SETTINGS_UNREADABLE");
        assert!(error.to_string().contains("--config"));
    }
}

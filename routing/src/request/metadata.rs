//! What filters note about a request for those behind them: verified claims, decisions, answers of services.

use std::sync::Arc;

use identity::jwt::VerifiedClaims;
use serde_json::Value;
use smallvec::SmallVec;

/// The claims of a token whose signature, issuer, audience and times were verified.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenClaims {
    json: Arc<Value>,
    space_delimited: Arc<[Box<str>]>,
}

impl TokenClaims {
    /// Claims that nobody verified: for explanations, offline evaluation and tests.
    pub fn danger_assume(json: Value) -> Self {
        Self { json: Arc::new(json), space_delimited: Arc::from([]) }
    }

    /// All claims.
    pub fn json(&self) -> &Value {
        &self.json
    }

    /// The claim `iss`.
    pub fn issuer(&self) -> Option<&str> {
        self.text("iss")
    }

    /// The claim `sub`.
    pub fn subject(&self) -> Option<&str> {
        self.text("sub")
    }

    /// A claim at the top level, if it is text.
    pub fn text(&self, claim: &str) -> Option<&str> {
        self.json.get(claim).and_then(Value::as_str)
    }

    /// A number claim at the top level, in seconds.
    pub(crate) fn seconds(&self, claim: &str) -> Option<f64> {
        self.json.get(claim).and_then(Value::as_f64)
    }

    /// The same claims, where some top-level texts also count as lists of their words.
    pub(crate) fn split_at_blanks(mut self, claims: &Arc<[Box<str>]>) -> Self {
        self.space_delimited = claims.clone();
        self
    }

    fn find(&self, path: &[Box<str>]) -> Option<MetadataValue<'_>> {
        let words = matches!(path, [claim] if self.space_delimited.contains(claim));
        Some(MetadataValue::Json { value: walk(&self.json, path)?, words })
    }
}

impl From<VerifiedClaims> for TokenClaims {
    fn from(claims: VerifiedClaims) -> Self {
        Self { json: Arc::new(Value::Object(claims.claims().clone())), space_delimited: Arc::from([]) }
    }
}

/// What filters noted about one request.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    tokens: SmallVec<[(Arc<str>, TokenClaims); 1]>,
    texts: Vec<(&'static str, Box<str>, Arc<str>)>,
    objects: Vec<(Box<str>, Value)>,
}

impl Metadata {
    /// Notes the claims of a verified token under the key that its provider was given for them.
    pub fn insert_claims(&mut self, key: &Arc<str>, claims: TokenClaims) {
        self.tokens.retain(|(existing, _)| existing != key);
        self.tokens.push((key.clone(), claims));
    }

    /// Notes one text of a filter.
    pub fn insert_text(&mut self, filter: &'static str, key: &str, value: &Arc<str>) {
        self.texts.retain(|(known, existing, _)| *known != filter || **existing != *key);
        self.texts.push((filter, key.into(), value.clone()));
    }

    /// Notes a whole object of a filter. Nobody can speak for the token filter in this way.
    pub fn insert_json(&mut self, filter: &str, value: Value) {
        if filter != JWT_FILTER {
            self.objects.retain(|(existing, _)| **existing != *filter);
            self.objects.push((filter.into(), value));
        }
    }

    /// Whether any token was verified.
    pub fn has_claims(&self) -> bool {
        !self.tokens.is_empty()
    }

    /// The claims of all verified tokens, with their keys.
    pub fn claims(&self) -> impl Iterator<Item = (&str, &TokenClaims)> {
        self.tokens.iter().map(|(key, claims)| (&**key, claims))
    }

    /// The `issuer/subject` of the first verified token.
    pub fn request_principal(&self) -> Option<String> {
        let (_, claims) = self.tokens.first()?;
        Some(format!("{}/{}", claims.issuer()?, claims.subject()?))
    }

    /// Looks a value up by the filter's name and a path of keys.
    pub fn find(&self, filter: &str, path: &[Box<str>]) -> Option<MetadataValue<'_>> {
        let (first, rest) = path.split_first()?;
        if filter == JWT_FILTER {
            let (_, claims) = self.tokens.iter().find(|(key, _)| **key == **first)?;
            return claims.find(rest);
        }
        if let (Some((_, _, text)), true) =
            (self.texts.iter().find(|(known, key, _)| *known == filter && key == first), rest.is_empty())
        {
            return Some(MetadataValue::Text(text));
        }
        let (_, object) = self.objects.iter().find(|(known, _)| **known == *filter)?;
        Some(MetadataValue::Json { value: walk(object, path)?, words: false })
    }
}

/// A value found in [`Metadata`].
#[derive(Clone, Copy, Debug)]
pub enum MetadataValue<'a> {
    /// Text that a filter noted.
    Text(&'a str),
    /// Part of an object.
    Json {
        /// The value.
        value: &'a Value,
        /// Whether its text also counts as a list of words.
        words: bool,
    },
}

impl<'a> MetadataValue<'a> {
    /// The text of a string.
    pub fn as_str(self) -> Option<&'a str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Json { value, .. } => value.as_str(),
        }
    }

    /// The items of a list.
    pub(crate) fn items(self) -> impl Iterator<Item = MetadataValue<'a>> {
        let (list, text) = match self {
            Self::Json { value: Value::Array(items), .. } => (items.as_slice(), ""),
            Self::Json { value: Value::String(text), words: true } => (&[][..], text.as_str()),
            Self::Json { .. } | Self::Text(_) => (&[][..], ""),
        };
        let items = list.iter().map(|value| MetadataValue::Json { value, words: false });
        items.chain(text.split_ascii_whitespace().map(MetadataValue::Text))
    }

    /// The value in the form that headers and logs show: text bare, everything else as JSON.
    pub fn to_text(self) -> String {
        match self {
            Self::Text(text) => text.to_owned(),
            Self::Json { value: Value::String(text), .. } => text.clone(),
            Self::Json { value, .. } => value.to_string(),
        }
    }
}

fn walk<'a>(value: &'a Value, path: &[Box<str>]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, key| value.as_object()?.get(&**key))
}

/// The name of the filter that verifies tokens, under which their claims are found.
pub const JWT_FILTER: &str = "envoy.filters.http.jwt_authn";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn path(keys: &[&str]) -> Vec<Box<str>> {
        keys.iter().map(|&key| key.into()).collect()
    }

    #[test]
    fn claims_are_found_under_their_key_only() {
        let mut metadata = Metadata::default();
        let claims = TokenClaims::danger_assume(json!({"iss": "i", "sub": "s", "a": {"b": [1, 2]}}));
        metadata.insert_claims(&"payload".into(), claims);

        let find = |keys: &[&str]| metadata.find(JWT_FILTER, &path(keys)).map(MetadataValue::to_text);
        assert_eq!(find(&["payload", "a", "b"]).as_deref(), Some("[1,2]"));
        assert_eq!(find(&["payload", "iss"]).as_deref(), Some("i"));
        assert_eq!(find(&["other", "iss"]), None);
        assert_eq!(find(&["payload", "iss", "x"]), None);
        assert_eq!(metadata.request_principal().as_deref(), Some("i/s"));
    }

    #[test]
    fn words_of_a_claim_count_as_items_where_that_was_asked_for() {
        let claims = TokenClaims::danger_assume(json!({"scope": "read write", "other": "read write"}));
        let claims = claims.split_at_blanks(&Arc::from([Box::from("scope")]));
        let mut metadata = Metadata::default();
        metadata.insert_claims(&"payload".into(), claims);

        let items = |claim| metadata.find(JWT_FILTER, &path(&["payload", claim])).unwrap().items().count();
        assert_eq!(items("scope"), 2);
        assert_eq!(items("other"), 0);
    }

    #[test]
    fn no_other_filter_can_speak_for_the_token_filter() {
        let mut metadata = Metadata::default();
        metadata.insert_json(JWT_FILTER, json!({"payload": {"iss": "forged"}}));
        metadata.insert_json("ext", json!({"a": {"b": 1}}));

        assert!(metadata.find(JWT_FILTER, &path(&["payload", "iss"])).is_none());
        assert!(metadata.find("ext", &path(&["a", "b"])).is_some());
    }
}

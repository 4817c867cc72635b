//! From the xDS resource to requirements.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source, http_uri::HttpUpstreamType};
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3 as pb;
use http::{HeaderName, header};

use super::{JwtAuthn, JwtProvider, KeySource, Location, Requirement};
use crate::config::{At, ConfigError, duration, each, not_supported, optional_duration, required};
use crate::matcher::{StringMatcher, header_name};
use crate::route::RouteMatch;

impl JwtAuthn {
    /// Compiles the filter.
    pub fn compile(value: &pb::JwtAuthentication) -> Result<Self, ConfigError> {
        if value.filter_state_rules.is_some() {
            return not_supported("choosing by filter state").at("filter_state_rules");
        }
        let mut providers = BTreeMap::new();
        for (name, provider) in &value.providers {
            let compiled = JwtProvider::compile(name, provider).at(&format!("providers[\"{name}\"]"))?;
            providers.insert(compiled.name.clone(), Arc::new(compiled));
        }
        let mut named = BTreeMap::new();
        for (name, requirement) in &value.requirement_map {
            let compiled = Requirement::compile(requirement, &providers);
            named.insert(name.as_str().into(), compiled.at(&format!("requirement_map[\"{name}\"]"))?);
        }
        let rules = each("rules", &value.rules, |rule| compile_rule(rule, &providers, &named))?;
        let outputs = providers.values().flat_map(|provider| provider.outputs().cloned().collect::<Vec<_>>()).collect();
        Ok(Self { providers, rules, named, bypass_cors_preflight: value.bypass_cors_preflight, outputs })
    }
}

type Providers = BTreeMap<Arc<str>, Arc<JwtProvider>>;

fn compile_rule(
    value: &pb::RequirementRule,
    providers: &Providers,
    named: &BTreeMap<Box<str>, Requirement>,
) -> Result<(RouteMatch, Option<Requirement>), ConfigError> {
    use pb::requirement_rule::RequirementType;
    let route = required(value.r#match.as_ref()).and_then(RouteMatch::compile).at("match")?;
    let requirement = match value.requirement_type.as_ref() {
        None => None,
        Some(RequirementType::Requires(requirement)) if requirement.requires_type.is_none() => None,
        Some(RequirementType::Requires(requirement)) => {
            Some(Requirement::compile(requirement, providers).at("requires")?)
        }
        Some(RequirementType::RequirementName(name)) => {
            let found = named.get(name.as_str()).cloned();
            Some(found.ok_or_else(|| unknown("requirement", name)).at("requirement_name")?)
        }
    };
    Ok((route, requirement))
}

fn unknown(what: &str, name: &str) -> ConfigError {
    ConfigError::new(format!("there is no {what} `{name}`"))
}

impl Requirement {
    fn compile(value: &pb::JwtRequirement, providers: &Providers) -> Result<Self, ConfigError> {
        use pb::jwt_requirement::RequiresType as Type;
        let find = |name: &str| providers.get(name).cloned().ok_or_else(|| unknown("provider", name));
        let list = |items: &[pb::JwtRequirement]| each("requirements", items, |item| Self::compile(item, providers));
        Ok(match required(value.requires_type.as_ref())? {
            Type::ProviderName(name) => Self::Provider(find(name).at("provider_name")?, None),
            Type::ProviderAndAudiences(both) => {
                let audiences = both.audiences.iter().map(|audience| audience.as_str().into()).collect();
                Self::Provider(find(&both.provider_name).at("provider_and_audiences")?, Some(audiences))
            }
            Type::RequiresAny(any) => Self::Any(non_empty(list(&any.requirements)).at("requires_any")?),
            Type::RequiresAll(all) => Self::All(non_empty(list(&all.requirements)).at("requires_all")?),
            Type::AllowMissing(_) => Self::AllowMissing,
            Type::AllowMissingOrFailed(_) => Self::AllowMissingOrFailed,
            Type::ExtractOnlyWithoutValidation(_) => {
                return not_supported("reading claims without verifying them").at("extract_only_without_validation");
            }
        })
    }
}

fn non_empty(list: Result<Vec<Requirement>, ConfigError>) -> Result<Vec<Requirement>, ConfigError> {
    match list?.as_slice() {
        [] => Err(ConfigError::new("is empty").under("requirements")),
        items => Ok(items.to_vec()),
    }
}

impl JwtProvider {
    fn compile(name: &str, value: &pb::JwtProvider) -> Result<Self, ConfigError> {
        let skew = if value.clock_skew_seconds == 0 { CLOCK_SKEW_SECS } else { value.clock_skew_seconds };
        let normalize = value.normalize_payload_in_metadata.as_ref();
        let words = normalize.map_or(&[][..], |normalize| &normalize.space_delimited_claims);
        Ok(Self {
            name: name.into(),
            issuer: non_empty_text(&value.issuer),
            audiences: value.audiences.iter().map(|audience| audience.as_str().into()).collect(),
            keys: KeySource::compile(value.jwks_source_specifier.as_ref()).at("jwks_source_specifier")?,
            clock_skew: Duration::from_secs(skew.into()),
            require_expiration: value.require_expiration,
            lifetime_max: optional_duration("max_lifetime", value.max_lifetime.as_ref())?,
            forward: value.forward,
            subjects: value.subjects.as_ref().map(StringMatcher::compile).transpose().at("subjects")?,
            locations: locations(value)?,
            payload_header: output_header(&value.forward_payload_header)
                .at("forward_payload_header")?
                .map(|name| (name, value.pad_forward_payload_header)),
            claim_headers: each("claim_to_headers", &value.claim_to_headers, claim_header)?,
            metadata_key: non_empty_text(&value.payload_in_metadata),
            space_delimited: words.iter().map(|claim| claim.as_str().into()).collect(),
            clear_route_cache: value.clear_route_cache,
        })
    }

    /// Headers that only this provider may write.
    pub(super) fn outputs(&self) -> impl Iterator<Item = &HeaderName> {
        let payload = self.payload_header.iter().map(|(name, _)| name);
        payload.chain(self.claim_headers.iter().map(|(name, _)| name))
    }
}

fn non_empty_text(text: &str) -> Option<Arc<str>> {
    Some(text).filter(|text| !text.is_empty()).map(Into::into)
}

fn locations(value: &pb::JwtProvider) -> Result<Vec<Location>, ConfigError> {
    let mut locations = each("from_headers", &value.from_headers, |from| {
        Ok(Location::Header { name: header_name(&from.name).at("name")?, prefix: from.value_prefix.as_str().into() })
    })?;
    locations.extend(value.from_params.iter().map(|name| Location::Param(name.as_str().into())));
    locations.extend(value.from_cookies.iter().map(|name| Location::Cookie(name.as_str().into())));
    if locations.is_empty() {
        locations.push(Location::Header { name: header::AUTHORIZATION, prefix: "Bearer ".into() });
        locations.push(Location::Param("access_token".into()));
    }
    Ok(locations)
}

fn output_header(name: &str) -> Result<Option<HeaderName>, ConfigError> {
    match name.is_empty() {
        true => Ok(None),
        false => header_name(name).map(Some),
    }
}

fn claim_header(value: &pb::JwtClaimToHeader) -> Result<(HeaderName, Vec<Box<str>>), ConfigError> {
    let name = header_name(&value.header_name).at("header_name")?;
    let path: Vec<Box<str>> = match value.claim_path.is_empty() {
        true => value.claim_name.split('.').map(Into::into).collect(),
        false => value.claim_path.iter().map(|segment| segment.key.as_str().into()).collect(),
    };
    match path.iter().any(|key| key.is_empty()) {
        true => Err(ConfigError::new("is required").under("claim_name")),
        false => Ok((name, path)),
    }
}

impl KeySource {
    fn compile(value: Option<&pb::jwt_provider::JwksSourceSpecifier>) -> Result<Self, ConfigError> {
        use pb::jwt_provider::JwksSourceSpecifier as Source;
        match required(value)? {
            Source::LocalJwks(source) => Self::local(source).at("local_jwks"),
            Source::RemoteJwks(remote) => Self::remote(remote).at("remote_jwks"),
        }
    }

    fn local(source: &DataSource) -> Result<Self, ConfigError> {
        use data_source::Specifier;
        match source.specifier.as_ref() {
            Some(Specifier::InlineString(text)) => Ok(Self::Inline(text.as_str().into())),
            Some(Specifier::InlineBytes(bytes)) => {
                let text = std::str::from_utf8(bytes).map_err(|_| ConfigError::new("is not text"))?;
                Ok(Self::Inline(text.into()))
            }
            Some(Specifier::Filename(path)) => Ok(Self::File(path.into())),
            _ => Err(ConfigError::new("must be written inline or name a file")),
        }
    }

    fn remote(value: &pb::RemoteJwks) -> Result<Self, ConfigError> {
        let uri = required(value.http_uri.as_ref()).at("http_uri")?;
        let HttpUpstreamType::Cluster(cluster) = required(uri.http_upstream_type.as_ref()).at("http_uri.cluster")?;
        Ok(Self::Remote {
            uri: uri.uri.as_str().into(),
            cluster: cluster.as_str().into(),
            timeout: uri.timeout.as_ref().map(duration).transpose().at("http_uri.timeout")?.unwrap_or(FETCH_TIMEOUT),
            cache: optional_duration("cache_duration", value.cache_duration.as_ref())?.unwrap_or(CACHE_DURATION),
        })
    }
}

const CLOCK_SKEW_SECS: u32 = 60;
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
const CACHE_DURATION: Duration = Duration::from_secs(600);

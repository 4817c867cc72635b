//! From the xDS resource to rules.

use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::config::rbac::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::{http::rbac::v3 as http, network::rbac::v3 as network};
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use envoy_types::pb::envoy::extensions::rbac::principals::mtls_authenticated::v3::Config as MtlsAuthenticated;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::envoy::r#type::v3::Int32Range;

use super::rule::{HttpTest, PeerTest, Rule};
use super::{Action, Engine, Policy, RbacFilter};
use crate::config::{At, ConfigError, decode, each, limit, not_supported, port, required};
use crate::matcher::{Cidr, HeaderMatcher, MetadataMatcher, Reading, StringMatcher, UriTemplate};

impl RbacFilter {
    /// Compiles the filter of requests.
    pub fn compile_http(value: &http::Rbac) -> Result<Self, ConfigError> {
        if value.matcher.is_some() || value.shadow_matcher.is_some() {
            return not_supported("a matcher tree").at("matcher");
        }
        Ok(Self {
            rules: value.rules.as_ref().map(engine).transpose().at("rules")?,
            shadow: value.shadow_rules.as_ref().map(engine).transpose().at("shadow_rules")?,
            shadow_prefix: value.shadow_rules_stat_prefix.as_str().into(),
            stat_prefix: value.rules_stat_prefix.as_str().into(),
            delay_deny: None,
        })
    }

    /// Compiles the filter of connections.
    pub fn compile_network(value: &network::Rbac) -> Result<Self, ConfigError> {
        if value.matcher.is_some() || value.shadow_matcher.is_some() {
            return not_supported("a matcher tree").at("matcher");
        }
        Ok(Self {
            rules: value.rules.as_ref().map(engine).transpose().at("rules")?,
            shadow: value.shadow_rules.as_ref().map(engine).transpose().at("shadow_rules")?,
            shadow_prefix: value.shadow_rules_stat_prefix.as_str().into(),
            stat_prefix: value.stat_prefix.as_str().into(),
            delay_deny: limit("delay_deny", value.delay_deny.as_ref())?,
        })
    }
}

fn engine(value: &pb::Rbac) -> Result<Engine, ConfigError> {
    let action = match pb::rbac::Action::try_from(value.action) {
        Ok(pb::rbac::Action::Allow) => Action::Allow,
        Ok(pb::rbac::Action::Deny) => Action::Deny,
        Ok(pb::rbac::Action::Log) => Action::Log,
        Err(_) => return Err(ConfigError::new("unknown action").under("action")),
    };
    let reading = match action {
        Action::Allow => Reading::AllPass,
        Action::Deny => Reading::AnyPasses,
        Action::Log => Reading::Joined,
    };
    let mut policies = Vec::with_capacity(value.policies.len());
    for (name, policy) in &value.policies {
        policies.push(compile_policy(name, policy, reading).at(&format!("policies[\"{name}\"]"))?);
    }
    // The map has no order of its own; by name, the policy that is named in logs is always the same.
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Engine { action, policies })
}

fn compile_policy(name: &str, value: &pb::Policy, reading: Reading) -> Result<Policy, ConfigError> {
    if value.condition.is_some() || value.checked_condition.is_some() {
        return not_supported("a CEL condition").at("condition");
    }
    if value.permissions.is_empty() || value.principals.is_empty() {
        return Err(ConfigError::new("needs at least one permission and one principal"));
    }
    let permissions = Rule::Any(each("permissions", &value.permissions, |rule| permission(rule, reading))?);
    let principals = Rule::Any(each("principals", &value.principals, |rule| principal(rule, reading))?);
    let reads_claims = permissions.reads_claims() || principals.reads_claims();
    Ok(Policy { name: name.into(), permissions, principals, reads_claims })
}

fn permission(value: &pb::Permission, reading: Reading) -> Result<Rule, ConfigError> {
    use pb::permission::Rule as Pb;
    let set = |set: &pb::permission::Set| each("rules", &set.rules, |rule| permission(rule, reading));
    Ok(match required(value.rule.as_ref())? {
        Pb::Any(true) => Rule::Always,
        Pb::Any(false) => return Err(ConfigError::new("can only be true").under("any")),
        Pb::AndRules(rules) => Rule::All(set(rules).at("and_rules")?),
        Pb::OrRules(rules) => Rule::Any(set(rules).at("or_rules")?),
        Pb::NotRule(rule) => Rule::Not(Box::new(permission(rule, reading.negated()).at("not_rule")?)),
        Pb::Header(header) => {
            Rule::Http(HttpTest::Header(HeaderMatcher::compile(header, reading).at("header")?), reading)
        }
        Pb::UrlPath(path) => Rule::Http(HttpTest::Path(path_test(path).at("url_path")?), reading),
        Pb::DestinationIp(range) => Rule::DestinationIp(Cidr::compile(range).at("destination_ip")?),
        Pb::DestinationPort(value) => {
            let port = port(*value).at("destination_port")?;
            Rule::DestinationPort(port, port)
        }
        Pb::DestinationPortRange(range) => port_range(range).at("destination_port_range")?,
        Pb::Metadata(test) => metadata(test, reading).at("metadata")?,
        Pb::SourcedMetadata(test) => sourced(test, reading).at("sourced_metadata")?,
        Pb::RequestedServerName(test) => Rule::ServerName(StringMatcher::compile(test).at("requested_server_name")?),
        Pb::UriTemplate(extension) => Rule::Http(HttpTest::Template(template(extension).at("uri_template")?), reading),
        Pb::Matcher(extension) => return not_supported(&format!("the matcher {}", extension.name)),
    })
}

fn principal(value: &pb::Principal, reading: Reading) -> Result<Rule, ConfigError> {
    use pb::principal::Identifier as Pb;
    let set = |set: &pb::principal::Set| each("ids", &set.ids, |id| principal(id, reading));
    Ok(match required(value.identifier.as_ref())? {
        Pb::Any(true) => Rule::Always,
        Pb::Any(false) => return Err(ConfigError::new("can only be true").under("any")),
        Pb::AndIds(ids) => Rule::All(set(ids).at("and_ids")?),
        Pb::OrIds(ids) => Rule::Any(set(ids).at("or_ids")?),
        Pb::NotId(id) => Rule::Not(Box::new(principal(id, reading.negated()).at("not_id")?)),
        Pb::Authenticated(peer) => match peer.principal_name.as_ref() {
            None => Rule::Peer(PeerTest::Present),
            Some(name) => Rule::Peer(PeerTest::Name(StringMatcher::compile(name).at("authenticated.principal_name")?)),
        },
        Pb::SourceIp(range) => Rule::Source(Cidr::compile(range).at("source_ip")?),
        Pb::DirectRemoteIp(range) => Rule::DirectSource(Cidr::compile(range).at("direct_remote_ip")?),
        Pb::RemoteIp(range) => Rule::Remote(Cidr::compile(range).at("remote_ip")?),
        Pb::Header(header) => {
            Rule::Http(HttpTest::Header(HeaderMatcher::compile(header, reading).at("header")?), reading)
        }
        Pb::UrlPath(path) => Rule::Http(HttpTest::Path(path_test(path).at("url_path")?), reading),
        Pb::Metadata(test) => metadata(test, reading).at("metadata")?,
        Pb::SourcedMetadata(test) => sourced(test, reading).at("sourced_metadata")?,
        Pb::FilterState(state) => filter_state(state).at("filter_state")?,
        Pb::Custom(extension) => mtls_authenticated(extension).at("custom")?,
    })
}

fn path_test(value: &matcher::PathMatcher) -> Result<StringMatcher, ConfigError> {
    let matcher::path_matcher::Rule::Path(test) = required(value.rule.as_ref()).at("rule")?;
    StringMatcher::compile(test).at("path")
}

fn port_range(value: &Int32Range) -> Result<Rule, ConfigError> {
    let bound = |value: i32| u16::try_from(value).map_err(|_| ConfigError::new(format!("{value} is not a port")));
    let (start, end) = (bound(value.start)?, bound(value.end)?);
    match end.checked_sub(1) {
        Some(last) if start <= last => Ok(Rule::DestinationPort(start, last)),
        _ => Err(ConfigError::new("the range is empty")),
    }
}

fn metadata(value: &matcher::MetadataMatcher, reading: Reading) -> Result<Rule, ConfigError> {
    Ok(Rule::Http(HttpTest::Metadata(MetadataMatcher::compile(value)?), reading))
}

fn sourced(value: &pb::SourcedMetadata, reading: Reading) -> Result<Rule, ConfigError> {
    match pb::MetadataSource::try_from(value.metadata_source) {
        Ok(pb::MetadataSource::Dynamic) => {
            metadata(required(value.metadata_matcher.as_ref())?, reading).at("metadata_matcher")
        }
        Ok(pb::MetadataSource::Route) | Err(_) => not_supported("metadata of routes").at("metadata_source"),
    }
}

fn template(extension: &TypedExtensionConfig) -> Result<UriTemplate, ConfigError> {
    let config: UriTemplateMatchConfig = decode(required(extension.typed_config.as_ref())?)?;
    UriTemplate::parse(&config.path_template).at("path_template")
}

/// The only state that matters here is the peer's identity, as waypoints of Istio pass it on.
fn filter_state(value: &matcher::FilterStateMatcher) -> Result<Rule, ConfigError> {
    use matcher::filter_state_matcher::Matcher;
    match (value.key.as_str(), value.matcher.as_ref()) {
        ("io.istio.peer_principal", Some(Matcher::StringMatch(test))) => {
            Ok(Rule::Peer(PeerTest::Uri(StringMatcher::compile(test).at("string_match")?)))
        }
        (key, _) => not_supported(&format!("the state `{key}`")),
    }
}

fn mtls_authenticated(extension: &TypedExtensionConfig) -> Result<Rule, ConfigError> {
    let config: MtlsAuthenticated = decode(required(extension.typed_config.as_ref())?)?;
    let Some(san) = config.san_matcher.as_ref() else {
        return match config.any_validated_client_certificate {
            true => Ok(Rule::Peer(PeerTest::Present)),
            false => Err(ConfigError::new("asks for nothing")),
        };
    };
    let test = required(san.matcher.as_ref()).and_then(StringMatcher::compile).at("san_matcher.matcher")?;
    match SanType::try_from(san.san_type) {
        Ok(SanType::Uri) => Ok(Rule::Peer(PeerTest::Uri(test))),
        Ok(SanType::Dns) => Ok(Rule::Peer(PeerTest::Dns(test))),
        _ => not_supported("any name but URI and DNS").at("san_matcher.san_type"),
    }
}

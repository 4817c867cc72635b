//! Which cluster a gRPC service is reached through.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use http::{HeaderName, HeaderValue};

use crate::config::{At, ConfigError, each, limit, not_supported, required};
use crate::matcher::header_name;

/// Where a gRPC service is.
#[derive(Clone, Debug)]
pub struct GrpcTarget {
    /// The cluster.
    pub cluster: Arc<str>,
    /// The authority to ask for; the cluster's name if there is none.
    pub authority: Option<Arc<str>>,
    /// How long one call may take.
    pub timeout: Option<Duration>,
    /// Headers to send along.
    pub metadata: Vec<(HeaderName, HeaderValue)>,
}

impl GrpcTarget {
    pub(crate) fn compile(value: Option<&core::GrpcService>) -> Result<Self, ConfigError> {
        use core::grpc_service::TargetSpecifier;
        let value = required(value)?;
        let target = match required(value.target_specifier.as_ref())? {
            TargetSpecifier::EnvoyGrpc(target) => target,
            TargetSpecifier::GoogleGrpc(_) => return not_supported("google_grpc"),
        };
        if target.cluster_name.is_empty() {
            return Err(ConfigError::new("is required").under("envoy_grpc.cluster_name"));
        }
        Ok(Self {
            cluster: target.cluster_name.as_str().into(),
            authority: Some(target.authority.as_str()).filter(|name| !name.is_empty()).map(Into::into),
            timeout: limit("timeout", value.timeout.as_ref())?,
            metadata: each("initial_metadata", &value.initial_metadata, header)?,
        })
    }
}

/// A literal header.
pub(crate) fn header(value: &core::HeaderValue) -> Result<(HeaderName, HeaderValue), ConfigError> {
    let bytes = match value.raw_value.is_empty() {
        true => value.value.as_bytes(),
        false => &value.raw_value,
    };
    let text = HeaderValue::from_bytes(bytes).map_err(|_| ConfigError::new("is not a header value").under("value"))?;
    Ok((header_name(&value.key).at("key")?, text))
}

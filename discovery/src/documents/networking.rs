//! `DestinationRule`, `Gateway`, `ServiceEntry` and `WorkloadEntry`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::shapes::{Labels, MatchLabels, ServerTls, TrafficPolicy, WorkloadSelector};

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct DestinationRule {
    pub(crate) host: String,
    #[serde(default)]
    pub(crate) traffic_policy: Option<TrafficPolicy>,
    #[serde(default)]
    pub(crate) subsets: Vec<Subset>,
    #[serde(default)]
    pub(crate) export_to: Vec<String>,
    #[serde(default)]
    pub(crate) workload_selector: Option<MatchLabels>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Subset {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) labels: Labels,
    #[serde(default)]
    pub(crate) traffic_policy: Option<TrafficPolicy>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Gateway {
    pub(crate) servers: Vec<Server>,
    pub(crate) selector: Labels,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Server {
    pub(crate) port: Port,
    #[serde(default)]
    pub(crate) bind: String,
    pub(crate) hosts: Vec<String>,
    #[serde(default)]
    pub(crate) tls: Option<ServerTls>,
    #[serde(default)]
    pub(crate) default_endpoint: String,
    #[serde(default)]
    pub(crate) name: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Port {
    pub(crate) number: u32,
    #[serde(default)]
    pub(crate) protocol: String,
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) target_port: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Location {
    #[default]
    MeshExternal,
    MeshInternal,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Resolution {
    #[default]
    None,
    Static,
    Dns,
    DnsRoundRobin,
    DynamicDns,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ServiceEntry {
    pub(crate) hosts: Vec<String>,
    #[serde(default)]
    pub(crate) addresses: Vec<String>,
    #[serde(default)]
    pub(crate) ports: Vec<Port>,
    #[serde(default)]
    pub(crate) location: Location,
    #[serde(default)]
    pub(crate) resolution: Resolution,
    #[serde(default)]
    pub(crate) endpoints: Vec<WorkloadEntry>,
    #[serde(default)]
    pub(crate) workload_selector: Option<WorkloadSelector>,
    #[serde(default)]
    pub(crate) export_to: Vec<String>,
    #[serde(default)]
    pub(crate) subject_alt_names: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct WorkloadEntry {
    pub(crate) address: String,
    pub(crate) ports: BTreeMap<String, u32>,
    pub(crate) labels: Labels,
    pub(crate) network: String,
    pub(crate) locality: String,
    pub(crate) weight: u32,
    pub(crate) service_account: String,
}

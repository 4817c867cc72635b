//! Istio's standard labels, in the order its dashboards were recorded with.
//!
//! A label set is rendered once, when its series is made, and never again. What is not known says `unknown`.

use std::fmt::Write as _;
use std::sync::Arc;

/// What is known of a workload at one end of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct WorkloadLabels {
    pub(crate) workload: Option<Arc<str>>,
    pub(crate) namespace: Option<Arc<str>>,
    pub(crate) principal: Option<Arc<str>>,
    pub(crate) app: Option<Arc<str>>,
    pub(crate) version: Option<Arc<str>>,
    pub(crate) canonical_service: Option<Arc<str>>,
    pub(crate) canonical_revision: Option<Arc<str>>,
    pub(crate) cluster: Option<Arc<str>>,
}

/// The service that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct ServiceLabels {
    pub(crate) host: Option<Arc<str>>,
    pub(crate) name: Option<Arc<str>>,
    pub(crate) namespace: Option<Arc<str>>,
}

/// Which end reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reporter {
    Source,
    Destination,
}

/// What was spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Spoken {
    Http,
    Grpc,
    Tcp,
}

/// How the connection was protected, as the reporting side knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Security {
    MutualTls,
    None,
    Unknown,
}

/// Everything but the outcome.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BaseLabels {
    pub(crate) reporter: Reporter,
    pub(crate) source: WorkloadLabels,
    pub(crate) destination: WorkloadLabels,
    pub(crate) service: ServiceLabels,
    pub(crate) spoken: Spoken,
    pub(crate) security: Security,
}

/// How a request ended; part of the labels of HTTP series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Outcome {
    pub(crate) code: u16,
    pub(crate) grpc_status: Option<u16>,
    pub(crate) flags: &'static str,
}

impl WorkloadLabels {
    /// The part that an identity proves: `spiffe://td/ns/NS/sa/SA` names a namespace and a principal.
    pub(crate) fn from_spiffe_id(id: &str) -> Self {
        let mut path = id.strip_prefix("spiffe://").unwrap_or_default().split('/').skip(1);
        let namespace = (path.next() == Some("ns")).then(|| path.next()).flatten().map(Arc::from);
        let account: Option<Arc<str>> = (path.next() == Some("sa")).then(|| path.next()).flatten().map(Arc::from);
        Self { workload: account, namespace, principal: Some(Arc::from(id)), ..Self::default() }
    }
}

impl BaseLabels {
    /// The labels of a TCP series, or of an HTTP series with its outcome.
    pub(crate) fn render(&self, outcome: Option<&Outcome>) -> String {
        let mut out = String::with_capacity(768);
        let reporter = match self.reporter {
            Reporter::Source => "source",
            Reporter::Destination => "destination",
        };
        let _ = write!(out, "reporter=\"{reporter}\"");
        let (src, dst, service) = (&self.source, &self.destination, &self.service);
        for (name, value) in [
            ("source_workload", &src.workload),
            ("source_canonical_service", &src.canonical_service),
            ("source_canonical_revision", &src.canonical_revision),
            ("source_workload_namespace", &src.namespace),
            ("source_principal", &src.principal),
            ("source_app", &src.app),
            ("source_version", &src.version),
            ("source_cluster", &src.cluster),
            ("destination_workload", &dst.workload),
            ("destination_workload_namespace", &dst.namespace),
            ("destination_principal", &dst.principal),
            ("destination_app", &dst.app),
            ("destination_version", &dst.version),
            ("destination_service", &service.host),
            ("destination_canonical_service", &dst.canonical_service),
            ("destination_canonical_revision", &dst.canonical_revision),
            ("destination_service_name", &service.name),
            ("destination_service_namespace", &service.namespace),
            ("destination_cluster", &dst.cluster),
        ] {
            write_label(&mut out, name, value.as_deref().unwrap_or("unknown"));
        }
        self.render_rest(&mut out, outcome);
        out
    }

    fn render_rest(&self, out: &mut String, outcome: Option<&Outcome>) {
        let spoken = match self.spoken {
            Spoken::Http => "http",
            Spoken::Grpc => "grpc",
            Spoken::Tcp => "tcp",
        };
        write_label(out, "request_protocol", spoken);
        if let Some(outcome) = outcome {
            let _ = write!(out, ",response_code=\"{}\",grpc_response_status=\"", outcome.code);
            if let Some(status) = outcome.grpc_status {
                let _ = write!(out, "{status}");
            }
            out.push('"');
        }
        write_label(out, "response_flags", outcome.map_or("-", |outcome| outcome.flags));
        let security = match self.security {
            Security::MutualTls => "mutual_tls",
            Security::None => "none",
            Security::Unknown => "unknown",
        };
        write_label(out, "connection_security_policy", security);
    }
}

/// Writes `,name="value"` with the value escaped and cut at [`LABEL_BYTES_MAX`].
pub(crate) fn write_label(out: &mut String, name: &str, value: &str) {
    let _ = write!(out, ",{name}=\"");
    write_escaped(out, value);
    out.push('"');
}

/// Writes a label value, escaped and cut.
pub(crate) fn write_escaped(out: &mut String, value: &str) {
    let mut cut = value.len().min(LABEL_BYTES_MAX);
    while !value.is_char_boundary(cut) {
        cut -= 1;
    }
    for c in value[..cut].chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

/// The longest label value that is written.
const LABEL_BYTES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_come_in_istios_order_and_unknowns_say_so() {
        let base = BaseLabels {
            reporter: Reporter::Destination,
            source: WorkloadLabels::from_spiffe_id("spiffe://cluster.local/ns/default/sa/test"),
            destination: WorkloadLabels { app: Some("he\"llo".into()), ..WorkloadLabels::default() },
            service: ServiceLabels { host: Some("helloworld.default".into()), ..ServiceLabels::default() },
            spoken: Spoken::Grpc,
            security: Security::MutualTls,
        };
        let outcome = Outcome { code: 200, grpc_status: Some(7), flags: "-" };
        assert_eq!(
            base.render(Some(&outcome)),
            "reporter=\"destination\",source_workload=\"test\",source_canonical_service=\"unknown\",\
             source_canonical_revision=\"unknown\",source_workload_namespace=\"default\",\
             source_principal=\"spiffe://cluster.local/ns/default/sa/test\",source_app=\"unknown\",\
             source_version=\"unknown\",source_cluster=\"unknown\",destination_workload=\"unknown\",\
             destination_workload_namespace=\"unknown\",destination_principal=\"unknown\",\
             destination_app=\"he\\\"llo\",destination_version=\"unknown\",\
             destination_service=\"helloworld.default\",destination_canonical_service=\"unknown\",\
             destination_canonical_revision=\"unknown\",destination_service_name=\"unknown\",\
             destination_service_namespace=\"unknown\",destination_cluster=\"unknown\",\
             request_protocol=\"grpc\",response_code=\"200\",grpc_response_status=\"7\",response_flags=\"-\",\
             connection_security_policy=\"mutual_tls\""
        );
    }

    #[test]
    fn other_ids_name_no_workload() {
        let labels = WorkloadLabels::from_spiffe_id("spiffe://td/node/local");
        assert_eq!((labels.workload, labels.namespace), (None, None));
        assert_eq!(labels.principal.as_deref(), Some("spiffe://td/node/local"));
    }
}

//! Facts about the running server and the level of its log, as SPIRE's tools ask for them.

use std::sync::Arc;
use std::time::Instant;

use identity::summary::CertificateSummary;
use identity::tls::Snapshot;
use proto::spire::api::server::debug::v1::{GetInfoRequest, GetInfoResponse, debug_server, get_info_response::Cert};
use proto::spire::api::server::logger::v1::{
    GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest, logger_server,
};
use proto::spire::api::types::{LogLevel, Logger};
use runtime::logs::LogControl;
use tonic::{Request, Response, Status};

use super::Api;
use super::convert::id_message;
use crate::audit::Act;
use crate::certifier::secs;
use crate::refusal::Refusal;
use crate::server_svid::ServerSvid;

/// What the services know of the process.
#[derive(Debug)]
pub(crate) struct ServerFacts {
    svid: Arc<ServerSvid>,
    logs: LogControl,
    launch_filter: String,
    started: Instant,
}

impl ServerFacts {
    /// At the start of the process.
    pub(crate) fn new(svid: Arc<ServerSvid>, logs: LogControl) -> Self {
        let launch_filter = logs.current();
        Self { svid, logs, launch_filter, started: Instant::now() }
    }

    fn logger(&self) -> Logger {
        let level = |filter: &str| level_of(filter).into();
        Logger { current_level: level(&self.logs.current()), launch_level: level(&self.launch_filter) }
    }
}

#[tonic::async_trait]
impl debug_server::Debug for Api {
    async fn get_info(&self, request: Request<GetInfoRequest>) -> Result<Response<GetInfoResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            Ok(self.info())
        };
        self.answer("GetInfo", &caller, work).await
    }
}

#[tonic::async_trait]
impl logger_server::Logger for Api {
    async fn get_logger(&self, request: Request<GetLoggerRequest>) -> Result<Response<Logger>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            Ok(self.facts.logger())
        };
        self.answer("GetLogger", &caller, work).await
    }

    async fn set_log_level(&self, request: Request<SetLogLevelRequest>) -> Result<Response<Logger>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            let filter = filter_of(request.get_ref().new_level()).ok_or(Refusal::Filter("new_level"))?;
            self.set_log_filter(&caller, filter).await
        };
        self.answer("SetLogLevel", &caller, work).await
    }

    async fn reset_log_level(&self, request: Request<ResetLogLevelRequest>) -> Result<Response<Logger>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            self.set_log_filter(&caller, &self.facts.launch_filter).await
        };
        self.answer("ResetLogLevel", &caller, work).await
    }
}

impl Api {
    fn info(&self) -> GetInfoResponse {
        let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
        let registry = self.certifier.store.registry();
        let chain = self.facts.svid.svid().map(|svid| svid.to_chain()).unwrap_or_default();
        let chain = chain.iter().filter_map(|certificate| CertificateSummary::decode(certificate).ok());
        GetInfoResponse {
            svid_chain: chain
                .map(|found| Cert {
                    id: found.spiffe_id.as_ref().map(id_message),
                    expires_at: secs(found.not_after()),
                    subject: found.subject,
                })
                .collect(),
            uptime: i32::try_from(self.facts.started.elapsed().as_secs()).unwrap_or(i32::MAX),
            agents_count: count(registry.agents().count()),
            federated_bundles_count: count(registry.all_federated().count()),
            entries_count: count(registry.entry_count()),
        }
    }

    /// First the record, then the act: a log that is quieter than before must have somebody who made it so.
    async fn set_log_filter(&self, caller: &super::Caller, filter: &str) -> Result<Logger, Refusal> {
        let record = self.certifier.record_of(caller, Act::new("server.log_level", filter));
        self.certifier.store.write_audit(vec![record]).await?;
        self.facts.logs.set(filter).map_err(|_| Refusal::Filter("new_level"))?;
        Ok(self.facts.logger())
    }
}

/// What the filter says of everything that it does not name.
fn level_of(filter: &str) -> LogLevel {
    let default = filter.split(',').map(str::trim).find(|part| !part.contains(['=', '['])).unwrap_or("error");
    match default.to_ascii_lowercase().as_str() {
        "trace" => LogLevel::Trace,
        "debug" => LogLevel::Debug,
        "info" => LogLevel::Info,
        "warn" => LogLevel::Warn,
        "off" => LogLevel::Panic,
        _ => LogLevel::Error,
    }
}

/// There is nothing here above an error: the two levels above it are that.
fn filter_of(level: LogLevel) -> Option<&'static str> {
    match level {
        LogLevel::Unspecified => None,
        LogLevel::Panic | LogLevel::Fatal | LogLevel::Error => Some("error"),
        LogLevel::Warn => Some("warn"),
        LogLevel::Info => Some("info"),
        LogLevel::Debug => Some("debug"),
        LogLevel::Trace => Some("trace"),
    }
}

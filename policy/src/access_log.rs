//! `envoy.service.accesslog.v3.AccessLogService`: takes the proxies' access logs into one file.

use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::AccessLogService;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::{Identifier, LogEntries};
use envoy_types::pb::envoy::service::accesslog::v3::{StreamAccessLogsMessage, StreamAccessLogsResponse};
use runtime::shutdown::Shutdown;
use tonic::{Request, Response, Status, Streaming};

use crate::caller::Caller;
use crate::record::{self, Reporter};
use crate::sink::LogSink;

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct AccessLogs {
    pub(crate) sink: LogSink,
    pub(crate) shutdown: Shutdown,
}

/// Who a stream says it is; its first message tells.
#[derive(Default)]
struct Source {
    node: String,
    log_name: String,
}

#[tonic::async_trait]
impl AccessLogService for AccessLogs {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let caller = request.extensions().get::<Caller>().map(|caller| caller.0.clone()).unwrap_or_default();
        let mut stream = request.into_inner();
        let mut source = Source::default();
        // A proxy keeps its stream open for ever, so the end of the service ends it.
        while let Some(message) = self.shutdown.unless(stream.message()).await {
            let Some(message) = message? else { break };
            if let Some(identifier) = message.identifier {
                source = Source::of(identifier);
            }
            if let Some(entries) = message.log_entries {
                self.take(Reporter { spiffe_id: &caller, node: &source.node, log_name: &source.log_name }, &entries);
            }
        }
        Ok(Response::new(StreamAccessLogsResponse {}))
    }
}

impl AccessLogs {
    fn take(&self, reporter: Reporter<'_>, entries: &LogEntries) {
        match entries {
            LogEntries::HttpLogs(logs) => {
                for entry in &logs.log_entry {
                    self.sink.push(record::http_line(reporter, entry));
                }
            }
            LogEntries::TcpLogs(logs) => {
                for entry in &logs.log_entry {
                    self.sink.push(record::tcp_line(reporter, entry));
                }
            }
        }
    }
}

impl Source {
    fn of(identifier: Identifier) -> Self {
        Self { node: identifier.node.map(|node| node.id).unwrap_or_default(), log_name: identifier.log_name }
    }
}

//! The demo's workloads and tokens: something to protect, something that calls it, and something outside the mesh.

mod echo;
mod external;
mod helloworld;
mod http;
mod outbound;
mod test;
pub(crate) mod token;
mod websocket;

use std::net::{IpAddr, SocketAddr};

use axum::Router;
use runtime::logs::LogFormat;
use runtime::serve::Limits;
use runtime::shutdown::Shutdown;
use runtime::tasks::TaskSet;
use tokio::net::TcpListener;

use crate::args::{ServeArgs, ServeKind, TokenArgs, TokenKind};
use crate::exit::{Exit, Failure, chain};
use crate::output;
use crate::up::layout::Layout;

use token::{Issuers, ServiceAccount, TokenError};

/// `kasbah demo token`: prints a token of the mesh's own issuers.
pub(crate) fn token_verb(args: &TokenArgs) -> Result<(), Failure> {
    let layout = Layout::of(&args.dir.dir)?;
    let issuers = Issuers::open(&layout.data("demo"))
        .map_err(|error| Failure::refused(Exit::Unavailable, "MESH_NOT_RUNNING", chain(&error)))?;
    let now = runtime::clock::now();
    let token = match (args.kind, &args.account) {
        (TokenKind::User, _) => issuers.mint_user(&args.groups, args.ttl, now),
        (TokenKind::ServiceAccount, Some(account)) => {
            let account = ServiceAccount { namespace: &args.namespace, name: account, audience: &args.audience };
            issuers.mint_service_account(account, args.ttl, now)
        }
        (TokenKind::ServiceAccount, None) => return Err(Failure::new(Exit::Usage, "--account is missing")),
    };
    output::line(&token.map_err(|error| Failure::new(exit_of(&error), chain(&error)))?);
    Ok(())
}

fn exit_of(error: &TokenError) -> Exit {
    match error {
        TokenError::Name { .. } | TokenError::TooLong => Exit::Usage,
        _ => Exit::Failed,
    }
}

/// `kasbah demo serve`: one workload in the foreground until it is told to stop.
pub(crate) fn serve_verb(args: &ServeArgs) -> Result<(), Failure> {
    let _logs =
        runtime::logs::init("demo", LogFormat::Text).map_err(|error| Failure::new(Exit::Usage, chain(&error)))?;
    let executor = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    executor.block_on(async {
        let shutdown = Shutdown::on_signals()?;
        Workload::build(args).await?.run(shutdown).await;
        Ok(())
    })
}

/// One workload with its addresses open.
pub(crate) struct Workload {
    name: &'static str,
    http: TcpListener,
    tcp: Option<TcpListener>,
    kind: ServeKind,
    outbound: Option<SocketAddr>,
}

impl Workload {
    /// Opens the workload's addresses.
    pub(crate) async fn build(args: &ServeArgs) -> Result<Self, Failure> {
        if matches!(args.kind, ServeKind::Test) && args.outbound.is_none() {
            return Err(Failure::new(Exit::Usage, "--outbound is missing: `test` calls others through its sidecar"));
        }
        let open = |address: IpAddr, port: u16| {
            runtime::listen::tcp(SocketAddr::new(address, port)).map_err(|error| Failure::failed(chain(&error)))
        };
        let tcp =
            if matches!(args.kind, ServeKind::Helloworld) { Some(open(args.address, args.tcp_port)?) } else { None };
        let name = match args.kind {
            ServeKind::Helloworld => "helloworld",
            ServeKind::Test => "test",
            ServeKind::External => "external",
        };
        Ok(Self { name, http: open(args.address, args.port)?, tcp, kind: args.kind, outbound: args.outbound })
    }

    /// The address of its HTTP face.
    #[cfg(test)]
    fn http_addr(&self) -> SocketAddr {
        self.http.local_addr().expect("an open listener has an address")
    }

    /// The address of its TCP face.
    #[cfg(test)]
    fn tcp_addr(&self) -> SocketAddr {
        self.tcp.as_ref().expect("only helloworld has one").local_addr().expect("an open listener has an address")
    }

    /// Serves until `shutdown`.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let instance = self.http.local_addr().map(|addr| addr.to_string()).unwrap_or_default();
        tracing::info!(workload = self.name, address = instance, "demo workload serves");
        let router = self.router(&instance, &shutdown).await;
        let mut tasks = TaskSet::new();
        tasks.spawn("http", runtime::serve::tcp(self.http, router, LIMITS, shutdown.clone()));
        if let Some(tcp) = self.tcp {
            tasks.spawn("tcp echo", echo::run(tcp, shutdown.clone()));
        }
        tasks.run(&shutdown).await;
    }

    async fn router(&self, instance: &str, shutdown: &Shutdown) -> Router {
        match (self.kind, self.outbound) {
            (ServeKind::Test, Some(outbound)) => test::router(outbound),
            (ServeKind::External, _) => external::router(),
            (ServeKind::Helloworld | ServeKind::Test, _) => helloworld::router(instance, shutdown.clone()).await,
        }
    }
}

/// A demo workload's work is small; the second thread keeps health checks answered under load.
const WORKERS: usize = 2;
const LIMITS: Limits = Limits { connections_max: 2_048, ..Limits::DEFAULT };

#[cfg(test)]
mod tests;

//! What can be typed after `kasbah explain`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Args;

use super::OutputArg;

pub(super) const EXPLAIN_EXAMPLES: &str = "Examples:
  kasbah explain helloworld --config .kasbah/config              what holds for a workload
  kasbah explain GET http://localhost/test --config .kasbah/config
  kasbah explain http://localhost/test --config ./documents --claims '{\"groups\": [\"testers\"]}'
  kasbah explain http://localhost/test --dir /tmp/mesh --token -   what the running proxies decide; token from stdin
  kasbah explain http://helloworld.default.svc.cluster.local:9095/ --from test
  kasbah explain http://elsewhere.example.com/ --from test -o json
  kasbah explain GET /admin --to helloworld --peer spiffe://cluster.local/ns/default/sa/test
  kasbah explain http://localhost/test --proxy 127.0.0.1:15000 --config ./documents

With --config, only these documents count, and nothing needs to run. Without, the mesh of --dir is asked: each proxy says
what it holds, and what differs from the documents is named. Services that authorize or count are not asked: their answer
is taken to be yes, and said to be so.

Exit code 0 when the request is allowed, 1 when it is denied, 64 for wrong usage, 65 for bad documents, 69 when a proxy
cannot be reached.";

#[derive(Debug, Args)]
pub(crate) struct ExplainMeshArgs {
    /// A request as `[METHOD] URL` (http, https or tcp; with --to a path will do), or the name of a workload or gateway.
    #[arg(required = true, num_args = 1..=2, value_name = "REQUEST|WORKLOAD")]
    pub(crate) what: Vec<String>,
    /// Operator documents: files or folders [default: those of the mesh folder, with what its proxies hold].
    #[arg(long, value_name = "PATH")]
    pub(crate) config: Vec<PathBuf>,
    /// Folder of the mesh whose proxies are asked.
    #[arg(long, env = "KASBAH_DIR", default_value = ".kasbah", value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Admin address of a proxy that is asked what it holds; may be given more than once.
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) proxy: Vec<SocketAddr>,
    /// The gateway at which the request arrives [default: the one with the port].
    #[arg(long, value_name = "NAME", conflicts_with_all = ["from", "to"])]
    pub(crate) gateway: Option<String>,
    /// The workload that sends the request, by its sidecar.
    #[arg(long, value_name = "WORKLOAD", conflicts_with = "to")]
    pub(crate) from: Option<String>,
    /// The workload whose sidecar gets the request, with nothing before it.
    #[arg(long, value_name = "WORKLOAD")]
    pub(crate) to: Option<String>,
    /// SPIFFE ID that the sender proves by mTLS [default: none, in plain text].
    #[arg(long, value_name = "ID")]
    pub(crate) peer: Option<String>,
    /// A header of the request, as `name: value`; may be given more than once.
    #[arg(long, value_name = "HEADER")]
    pub(crate) header: Vec<String>,
    /// Claims of a token that is taken to verify, as a JSON object; a missing `iss` is the first trusted issuer.
    #[arg(long, value_name = "JSON", conflicts_with = "token")]
    pub(crate) claims: Option<String>,
    /// A token, which is verified; `-` is stdin, where it stays out of lists of processes.
    #[arg(long, value_name = "JWT")]
    pub(crate) token: Option<String>,
    /// Address of the sender.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub(crate) source_ip: IpAddr,
    /// Port that is called [default: that of the URL].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,
    /// Trust domain of the mesh [default: what the proxies say, else cluster.local].
    #[arg(long, value_name = "TD")]
    pub(crate) trust_domain: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArg,
}

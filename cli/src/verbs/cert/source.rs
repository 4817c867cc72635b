//! Where a certificate is: a file, stdin, a server, a Workload API, a workload of the mesh.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use identity::tls::FixedSnapshot;
use identity::tls::danger::DangerousLook;
use identity::{CertificateDer, pem};
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::args::{DirArg, StartTls, TargetArgs};
use crate::exit::{Exit, Failure, chain};
use crate::up::layout::Layout;

/// Certificates that belong together, leaf first, and where they were.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) source: String,
    pub(super) chain: Vec<CertificateDer<'static>>,
}

/// Everything at a target; never nothing.
pub(super) async fn find(args: &TargetArgs) -> Result<Vec<Found>, Failure> {
    let target = args.target.as_str();
    if target == "-" || Path::new(target).is_file() {
        return Ok(vec![read(target)?]);
    }
    if target.starts_with("unix:") || target.starts_with("tcp:") {
        return workload_api(target).await;
    }
    if let Some(address) = inbound(&args.trust.dir, target)? {
        let found = server(args, &address).await?;
        return Ok(vec![Found { source: format!("{target} at {address}"), ..found }]);
    }
    match target.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => Ok(vec![server(args, target).await?]),
        _ => Err(Failure::new(Exit::Usage, format!("{target} is no file, no HOST:PORT and no workload of the mesh"))
            .remedy("see the forms in `kasbah cert show --help`; for a workload, name its mesh with --dir DIR")),
    }
}

/// The certificates of a PEM file, or of stdin.
pub(super) fn read(file: &str) -> Result<Found, Failure> {
    let mut text = Vec::new();
    if file == "-" {
        std::io::stdin().lock().take(FILE_BYTES_MAX).read_to_end(&mut text)?;
    } else {
        let unreadable = |error| Failure::new(Exit::Data, format!("{file} cannot be read: {error}"));
        let open = std::fs::File::open(file).map_err(unreadable)?;
        open.take(FILE_BYTES_MAX).read_to_end(&mut text).map_err(unreadable)?;
    }
    let source = if file == "-" { "stdin" } else { file }.to_owned();
    match pem::decode_certificates(&text) {
        Ok(chain) if !chain.is_empty() => Ok(Found { source, chain }),
        Ok(_) => Err(Failure::new(Exit::Data, format!("{source} holds no certificate"))
            .remedy("give a PEM file with `-----BEGIN CERTIFICATE-----`, leaf first")),
        Err(error) => {
            let text = format!("{source} holds no readable certificate: {}", chain(&error));
            Err(Failure::refused(Exit::Data, error.reason(), text)
                .remedy("give a PEM file with `-----BEGIN CERTIFICATE-----`, leaf first"))
        }
    }
}

async fn workload_api(address: &str) -> Result<Vec<Found>, Failure> {
    let context = agent::client::fetch_x509(address).await.map_err(crate::verbs::agent::failure)?;
    let svid = |svid: &Arc<identity::X509Svid>| Found { source: address.to_owned(), chain: svid.to_chain() };
    Ok(context.svids.iter().map(svid).collect())
}

/// Where the mesh in DIR serves a workload; none when there is no such mesh or workload.
fn inbound(dir: &DirArg, name: &str) -> Result<Option<String>, Failure> {
    let Some(endpoints) = endpoints(dir)? else { return Ok(None) };
    let at = |pointer: &str| Some(endpoints.pointer(pointer)?.as_str()?.to_owned());
    Ok(match name {
        "ingress" => at("/ingress/https"),
        "ca" => at("/ca/grpc"),
        "discovery" => at("/discovery/xds_tls"),
        _ if name.contains(['/', '~']) => None,
        _ => at(&format!("/workloads/{name}/inbound")),
    })
}

/// The addresses of the mesh in DIR, when there is one.
pub(super) fn endpoints(dir: &DirArg) -> Result<Option<Value>, Failure> {
    let file = Layout::of(&dir.dir)?.endpoints();
    let Ok(text) = std::fs::read(&file) else { return Ok(None) };
    let damaged = |error| Failure::new(Exit::Data, format!("{} is damaged: {error}", file.display()));
    serde_json::from_slice(&text).map(Some).map_err(damaged)
}

/// What a server presents in one handshake.
async fn server(args: &TargetArgs, address: &str) -> Result<Found, Failure> {
    let unreachable = |why: String| {
        Failure::new(Exit::Unavailable, format!("{address} cannot be asked: {why}"))
            .remedy("see that something serves TLS there; for PostgreSQL add `--starttls postgres`")
    };
    let look = tokio::time::timeout(WAIT_MAX, handshake(args, address));
    let chain = look.await.map_err(|_| unreachable(format!("no answer in {WAIT_MAX:?}")))?.map_err(unreachable)?;
    Ok(Found { source: address.to_owned(), chain })
}

async fn handshake(args: &TargetArgs, address: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    if args.starttls == Some(StartTls::Postgres) {
        ask_postgres(&mut stream).await?;
    }
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    let name = args.server_name.as_deref().unwrap_or(host);
    let name = ServerName::try_from(name.to_owned()).map_err(|_| format!("{name} is no server name"))?;
    let alpn: Vec<&[u8]> = args.alpn.iter().map(String::as_bytes).collect();
    let look = DangerousLook::new(FixedSnapshot::default(), &alpn).map_err(|error| error.to_string())?;
    let outcome = tokio_rustls::TlsConnector::from(look.config()).connect(name, stream).await;
    match (look.seen(), outcome) {
        (seen, _) if !seen.is_empty() => Ok(seen),
        (_, Err(error)) => Err(chain(&error)),
        (_, Ok(_)) => Err("it presents no certificate".into()),
    }
}

/// `SSLRequest` (PostgreSQL, frontend/backend protocol); the answer is one byte.
async fn ask_postgres(stream: &mut TcpStream) -> Result<(), String> {
    let asked = async {
        stream.write_all(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]).await?;
        stream.read_u8().await
    };
    match asked.await {
        Ok(b'S') => Ok(()),
        Ok(b'N') => Err("the server has TLS switched off (`ssl = off`)".into()),
        Ok(_) => Err("what answers there is not PostgreSQL".into()),
        Err(error) => Err(error.to_string()),
    }
}

const FILE_BYTES_MAX: u64 = 1 << 20;
const WAIT_MAX: Duration = Duration::from_secs(5);

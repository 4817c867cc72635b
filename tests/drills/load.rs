//! The load: HTTP/1.1 through the ingress gateway and to each node, gRPC, and TCP connections that stay open.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use harness::load::{Load, Plan};
use harness::steady::{self, Counts, Steady};
use proto::demo::helloworld::HelloRequest;
use proto::demo::helloworld::greeter_client::GreeterClient;

use crate::scene::Scene;

mod streams;

/// All loads of a drill.
pub(crate) struct Loads {
    http: Vec<(String, Load)>,
    others: Vec<(String, Steady)>,
}

/// What a load has seen.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) answered: u64,
    pub(crate) failed: u64,
    /// How often the mesh closed a connection in order and another one was opened.
    pub(crate) reopened: u64,
    pub(crate) trouble: String,
}

impl Loads {
    pub(crate) fn start(scene: &Scene) -> Result<Self> {
        let mesh = &scene.mesh;
        let ingress = mesh.address("/ingress/http")?;
        let token = mesh.token("testers")?;
        let through = format!("GET /test HTTP/1.1\r\nhost: {ingress}\r\nauthorization: Bearer {token}");
        let mut http = vec![("HTTP: ingress, test, helloworld".to_owned(), start(ingress, through, 4))];
        let outbound = SocketAddr::new(mesh.at("/workloads/test/address")?.parse()?, 15001);
        for node in &scene.nodes {
            let host = Scene::host(node);
            let request = format!("GET /helloworld HTTP/1.1\r\nhost: {host}");
            http.push((format!("HTTP: test, {}", node.name), start(outbound, request, 2)));
        }
        let tcp = mesh.address("/ingress/tcp")?;
        let kept_open = |n| (format!("TCP {n}, kept open"), Steady::start(PAUSE, move |counts| echo(tcp, counts)));
        let mut others: Vec<(String, Steady)> = (1..=3).map(kept_open).collect();
        let grpc = Steady::start(PAUSE, move |counts| greet(ingress, counts));
        others.push(("gRPC: ingress, helloworld".into(), grpc));
        for node in &scene.nodes {
            let (to, host) = (node.name, Scene::host(node));
            let stream = Steady::start(PAUSE, move |counts| streams::reflect(outbound, &host, counts));
            others.push((format!("gRPC stream: test, {to}"), stream));
            let host = Scene::host(node);
            let chat = Steady::start(PAUSE, move |counts| streams::chat(outbound, &host, counts));
            others.push((format!("WebSocket: test, {to}"), chat));
        }
        Ok(Self { http, others })
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        let http = self.http.iter().map(|(name, load)| {
            let tally = load.tally();
            let trouble = if tally.failed > 0 { format!("{:?}", tally.failures) } else { String::new() };
            Seen { name: name.clone(), answered: tally.answered, failed: tally.failed, reopened: 0, trouble }
        });
        let others = self.others.iter().map(|(name, load)| {
            let steady::Seen { answered, failed, reopened, trouble } = load.seen();
            Seen { name: name.clone(), answered, failed, reopened, trouble }
        });
        http.chain(others).collect()
    }

    /// Forgets failures of the time in which the mesh was not yet whole.
    pub(crate) fn forget(&self) {
        self.http.iter().for_each(|(_, load)| load.forget());
        self.others.iter().for_each(|(_, load)| load.forget());
    }

    /// # Errors
    /// When anything failed, or a load asked nothing.
    pub(crate) fn expect_no_failure(&self, when: &str) -> Result<()> {
        for Seen { name, answered, failed, trouble, .. } in self.seen() {
            if failed > 0 || answered == 0 {
                bail!("{when}: {name}: {failed} of {} failed: {trouble}", answered + failed);
            }
        }
        Ok(())
    }
}

fn start(address: SocketAddr, request: String, connections: usize) -> Load {
    Load::start(Plan { address, request, connections, pause: Duration::from_millis(20), expect: 200 })
}

/// One connection for as long as it holds.
fn echo(address: SocketAddr, counts: &Counts) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let mut number = 0_u64;
    while counts.goes_on() {
        number += 1;
        let (sent, mut back) = (number.to_be_bytes(), [0; 8]);
        stream.write_all(&sent)?;
        match stream.read(&mut back)? {
            0 => {
                counts.reopened();
                return Ok(());
            }
            got => stream.read_exact(&mut back[got..]).with_context(|| format!("after {number} messages"))?,
        }
        if sent != back {
            bail!("another echo");
        }
        counts.answered();
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// One HTTP/2 connection for as long as it holds.
fn greet(address: SocketAddr, counts: &Counts) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?.timeout(ANSWER_MAX);
        let mut client = GreeterClient::new(endpoint.connect().await?);
        while counts.goes_on() {
            client.say_hello(HelloRequest { name: "drill".into() }).await?;
            counts.answered();
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    })
}

const PAUSE: Duration = Duration::from_millis(20);
const ANSWER_MAX: Duration = Duration::from_secs(5);

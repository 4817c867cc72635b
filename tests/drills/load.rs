//! The load: HTTP/1.1 through the ingress gateway and to each node, gRPC, and TCP connections that stay open.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use harness::load::{Load, Plan};
use proto::demo::helloworld::HelloRequest;
use proto::demo::helloworld::greeter_client::GreeterClient;

use crate::scene::Scene;

/// All loads of a drill.
pub(crate) struct Loads {
    http: Vec<(String, Load)>,
    others: Vec<Steady>,
}

/// What a load has seen.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) answered: u64,
    pub(crate) failed: u64,
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
        let mut others: Vec<Steady> =
            (1..=3).map(|n| Steady::start(format!("TCP {n}, kept open"), move |s| echo(tcp, s))).collect();
        others.push(Steady::start("gRPC: ingress, helloworld".into(), move |s| greet(ingress, s)));
        Ok(Self { http, others })
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        let http = self.http.iter().map(|(name, load)| {
            let tally = load.tally();
            let trouble = if tally.failed > 0 { format!("{:?}", tally.failures) } else { String::new() };
            Seen { name: name.clone(), answered: tally.answered, failed: tally.failed, trouble }
        });
        http.chain(self.others.iter().map(Steady::seen)).collect()
    }

    /// Forgets failures of the time in which the mesh was not yet whole.
    pub(crate) fn forget(&self) {
        self.http.iter().for_each(|(_, load)| load.forget());
        for other in &self.others {
            other.counts.answered.store(0, Ordering::Relaxed);
            other.counts.failed.store(0, Ordering::Relaxed);
        }
    }

    /// # Errors
    /// When anything failed, or a load asked nothing.
    pub(crate) fn expect_no_failure(&self, when: &str) -> Result<()> {
        for Seen { name, answered, failed, trouble } in self.seen() {
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

/// A load on a thread of its own that asks again and again.
struct Steady {
    name: String,
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    answered: AtomicU64,
    failed: AtomicU64,
    trouble: std::sync::Mutex<String>,
}

impl Steady {
    fn start(name: String, ask: impl Fn(&Counts) -> Result<()> + Send + 'static) -> Self {
        let counts = Arc::new(Counts::default());
        let shared = counts.clone();
        let thread = std::thread::spawn(move || {
            while !shared.stop.load(Ordering::Relaxed) {
                if let Err(error) = ask(&shared) {
                    shared.failed.fetch_add(1, Ordering::Relaxed);
                    *shared.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = format!("{error:#}");
                    std::thread::sleep(PAUSE);
                }
            }
        });
        Self { name, counts, thread: Some(thread) }
    }

    fn seen(&self) -> Seen {
        let Counts { answered, failed, trouble, .. } = &*self.counts;
        let trouble = trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let (answered, failed) = (answered.load(Ordering::Relaxed), failed.load(Ordering::Relaxed));
        Seen { name: self.name.clone(), answered, failed, trouble }
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.counts.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One connection for as long as it holds.
fn echo(address: SocketAddr, counts: &Counts) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let mut number = 0_u64;
    while !counts.stop.load(Ordering::Relaxed) {
        number += 1;
        let (sent, mut back) = (number.to_be_bytes(), [0; 8]);
        stream.write_all(&sent)?;
        stream.read_exact(&mut back).with_context(|| format!("after {number} messages"))?;
        if sent != back {
            bail!("another echo");
        }
        counts.answered.fetch_add(1, Ordering::Relaxed);
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
        while !counts.stop.load(Ordering::Relaxed) {
            client.say_hello(HelloRequest { name: "drill".into() }).await?;
            counts.answered.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    })
}

const PAUSE: Duration = Duration::from_millis(20);
const ANSWER_MAX: Duration = Duration::from_secs(5);

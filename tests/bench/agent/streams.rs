//! Memory of open streams. One process may hold few, so this program is started many times.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use runtime::workload_api::{Endpoint, IdentityStream};

use super::Site;

/// What streams cost.
pub(super) struct Streams {
    pub(super) kb_each: f64,
    /// How much of it came back after they were closed, 0 to 1.
    pub(super) given_back: f64,
}

#[allow(clippy::cast_precision_loss, reason = "counts of a few thousand")]
pub(super) async fn measure(site: &Site, count: usize) -> Result<Streams> {
    let before = site.usage()?.own_mib;
    let mut holders = Vec::new();
    let mut left = count;
    while left > 0 {
        let some = left.min(PER_PROCESS);
        holders.push(start(&site.endpoint(), some)?);
        left -= some;
    }
    tokio::time::sleep(SETTLE).await;
    let open = site.usage()?.own_mib;
    for mut holder in holders {
        drop(holder.stdin.take());
        holder.wait()?;
    }
    tokio::time::sleep(SETTLE).await;
    let after = site.usage()?.own_mib;
    let grown = (open - before).max(0.0);
    let given_back = if grown > 0.0 { ((open - after) / grown).clamp(0.0, 1.0) } else { 1.0 };
    Ok(Streams { kb_each: grown * 1024.0 / count as f64, given_back })
}

fn start(endpoint: &Endpoint, count: usize) -> Result<Child> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["agent-streams", &endpoint.to_string(), &count.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
    ensure!(line.trim() == OPEN, "the streams were not opened: {line}");
    Ok(child)
}

/// `agent-streams ADDRESS COUNT`: holds streams open until its input ends.
pub(crate) fn hold(words: &[&str]) -> Result<()> {
    let [address, count] = words else { anyhow::bail!("agent-streams ADDRESS COUNT") };
    let (endpoint, count) = (Endpoint::parse(address)?, count.parse::<usize>()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut open = Vec::with_capacity(count);
        for _ in 0..count {
            let mut stream = IdentityStream::open(&endpoint).await?;
            stream.next().await.context("no message")??;
            open.push(stream);
        }
        println!("{OPEN}");
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
        drop(open);
        Ok(())
    })
}

const OPEN: &str = "open";
const PER_PROCESS: usize = 60;
const SETTLE: Duration = Duration::from_secs(3);

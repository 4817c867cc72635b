//! The benchmarks: what our proxies cost beside stock Envoy and a bare hyper+rustls pair, and what the certificate authority
//! costs beside its cryptography, each in the same run; and what the node agent costs.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints its table and its progress")]

mod agent;
mod bare;
mod ca;
mod envoy;
mod measure;
mod options;
mod origin;
mod ours;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use harness::load::{Load, Plan};
use harness::{Mesh, MeshOptions, Skipped};

use measure::Measurement;
use options::Options;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["proxy", options @ ..] => Options::parse(options).and_then(|options| proxy(&options)),
        ["ca", options @ ..] => ca::run(options),
        ["agent", options @ ..] => agent::run(options),
        // Who holds streams open is this program again.
        ["agent-streams", options @ ..] => agent::hold_streams(options).map(|()| true),
        // The bare pair's two processes are this program again.
        ["bare-proxy", options @ ..] => bare::serve(options).map(|()| true),
        _ => Err(anyhow::anyhow!("tests/bench/run proxy|ca|agent; see tests/bench/run --help")),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Two proxies in a row and how to reach them.
pub(crate) struct Pair {
    /// Name in the table.
    pub(crate) name: &'static str,
    /// The client's proxy and the server's.
    pub(crate) proxies: Vec<harness::program::Running>,
    /// Where the client's proxy takes requests.
    pub(crate) address: std::net::SocketAddr,
}

/// Measures all pairs in turns; says whether ours kept the limit.
fn proxy(options: &Options) -> Result<bool> {
    let mesh = Mesh::start(&MeshOptions::default())?;
    let client = mesh.write_identity("test")?;
    let server = mesh.write_identity("helloworld")?;
    let origin = origin::start(ours::origin_address(&mesh)?)?;
    let mut pairs = vec![ours::start(&mesh).with_context(|| mesh.logs())?];
    match envoy::start(&mesh, origin, &client, &server) {
        Ok(pair) => pairs.push(pair),
        Err(error) if error.is::<Skipped>() => eprintln!("{error}"),
        Err(error) => return Err(error),
    }
    pairs.push(bare::start(&mesh, origin, &client, &server)?);

    let before = measure::Environment::read();
    let mut results: Vec<Vec<Measurement>> = pairs.iter().map(|_| Vec::new()).collect();
    for round in 1..=options.rounds {
        for (pair, results) in pairs.iter().zip(&mut results) {
            let result = one_round(pair, options).with_context(|| format!("{}\n{}", pair.name, mesh.logs()))?;
            eprintln!("round {round}: {}: {:.1} µs per request, {} requests/s", pair.name, result.micros, result.rate);
            results.push(result);
        }
    }
    let medians: Vec<(&str, Measurement)> =
        pairs.iter().zip(&results).filter_map(|(pair, results)| Some((pair.name, measure::median(results)?))).collect();
    println!("{}", measure::table(options, &before, &medians));
    let ours = medians.first().context("nothing was measured")?.1.micros;
    Ok(options.max_micros.is_none_or(|max| ours <= max))
}

fn one_round(pair: &Pair, options: &Options) -> Result<Measurement> {
    let load = Load::start(Plan {
        address: pair.address,
        request: format!("GET /bench HTTP/1.1\r\nhost: {}", ours::HOST),
        connections: options.connections,
        pause: std::time::Duration::ZERO,
        expect: 200,
    });
    std::thread::sleep(options::WARM_UP);
    load.forget();
    let clock = measure::Clock::start(pair)?;
    std::thread::sleep(options.time);
    let tally = load.stop();
    let result = clock.stop(pair, &tally)?;
    if tally.failed > 0 {
        bail!("{} requests failed: {:?}", tally.failed, tally.failures);
    }
    Ok(result)
}

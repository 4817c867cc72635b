//! `kasbah agent join`: comes into a trust domain once, explains what stands in the way, and leaves settings to run with.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent::{RunError, Settings};
use serde_json::{Value, json};

use crate::args::JoinArgs;
use crate::exit::{Exit, Failure, chain};
use crate::output;
use crate::up::layout::write_atomically;
use crate::verbs::wait;

pub(super) fn run(args: &JoinArgs) -> Result<(), Failure> {
    std::fs::create_dir_all(&args.data_dir)
        .map_err(|error| Failure::failed(format!("{}: cannot be made: {error}", args.data_dir.display())))?;
    let folder = std::path::absolute(&args.data_dir)?;
    let value = settings(args, &folder)?;
    let settings: Settings = serde_json::from_value(value.clone()).map_err(|error| {
        Failure::new(Exit::Usage, format!("the options make no settings: {error}"))
            .remedy("see kasbah agent join --help")
    })?;
    settings.validate().map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    let joined = wait(attempt(&settings, args.wait))?;
    let file = folder.join("agent.yaml");
    let text = serde_json::to_vec_pretty(&value).map_err(anyhow::Error::from)?;
    write_atomically(&file, &text, 0o600)?;
    let value = json!({"spiffe_id": joined.spiffe_id, "not_after": joined.not_after, "settings": file});
    output::print(args.output.output, &value, || {
        format!(
            "joined as {}, valid until {}\nrun it with: kasbah agent run --config {}",
            joined.spiffe_id,
            joined.not_after,
            file.display()
        )
    })
}

/// Tries until the CA answers or the time is up.
async fn attempt(settings: &Settings, limit: Duration) -> Result<agent::Joined, Failure> {
    let began = Instant::now();
    loop {
        let error = match agent::join(settings).await {
            Ok(joined) => return Ok(joined),
            Err(error) => error,
        };
        if !error.is_away() || began.elapsed() >= limit {
            return Err(explain(&error, settings));
        }
        output::message(&format!("not yet: {}", chain(&error)));
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// What went wrong, under which code, and what to do next.
fn explain(error: &RunError, settings: &Settings) -> Failure {
    let reason = error.reason();
    let exit = match reason {
        _ if error.is_away() => Exit::Unavailable,
        "JOIN_TOKEN_REFUSED" | "JOIN_REFUSED" | "ROOT_NOT_PINNED" => Exit::Denied,
        _ => Exit::Data,
    };
    let failure = Failure::refused(exit, reason, chain(error));
    match reason {
        "PEER_UNREACHABLE" | "CA_UNAVAILABLE" => failure.remedy(format!(
            "see that the CA runs and that {} reaches its `grpc` address from here (a firewall may stand between)",
            settings.server
        )),
        "TLS_PEER_UNTRUSTED" => failure.remedy(
            "the roots given do not vouch for this CA: take them from it with `kasbah bundle show`, and compare the trust domains",
        ),
        _ => failure,
    }
}

fn settings(args: &JoinArgs, folder: &Path) -> Result<Value, Failure> {
    let mut settings = json!({
        "trust_domain": args.trust_domain,
        "data_dir": folder,
        "server": args.server,
        "workload_api": args.workload_api.clone().unwrap_or_else(|| folder.join("agent.sock")),
        "sds": folder.join("sds.sock"),
        "launch": folder.join("launch.sock"),
    });
    let mut set = |name: &str, value: Value| settings[name] = value;
    if let Some(file) = &args.trust_bundle {
        set("trust_bundle", json!(std::path::absolute(file)?));
    }
    if !args.fingerprint.is_empty() {
        set("root_pins", json!({"fingerprints": args.fingerprint, "url": args.url}));
    }
    let evidence = &args.evidence;
    if let Some(token) = &evidence.token {
        let file = folder.join("join-token");
        write_atomically(&file, token.as_bytes(), 0o600)?;
        set("join_token_file", json!(file));
    }
    if let Some(file) = &evidence.token_file {
        set("join_token_file", json!(std::path::absolute(file)?));
    }
    match evidence.x509pop.as_slice() {
        [] => (),
        [certificate, key] => {
            let absolute = |file: &PathBuf| std::path::absolute(file);
            set("x509pop", json!({"certificate_file": absolute(certificate)?, "private_key_file": absolute(key)?}));
        }
        _ => return Err(Failure::new(Exit::Usage, "--x509pop takes CERT,KEY")),
    }
    if let Some(cluster) = &evidence.k8s_psat {
        set("k8s_psat", json!({"cluster": cluster}));
    }
    if let Some(file) = &evidence.oidc_token_file {
        set("oidc_jwt", json!({"token_file": std::path::absolute(file)?}));
    }
    Ok(settings)
}

const RETRY_PAUSE: Duration = Duration::from_secs(1);

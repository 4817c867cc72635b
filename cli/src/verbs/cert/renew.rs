//! `kasbah cert renew`: a certificate and its key in files are replaced by showing the old one to the authority's CSR API, with a
//! new key each time; once, or for ever.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use identity::bundle::{BundleSet, TrustBundle};
use identity::key::PrivateKey;
use identity::pem;
use identity::svid::X509Svid;
use identity::tls::{FixedSnapshot, PeerRule};
use proto::istio::v1::auth::IstioCertificateRequest;
use proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use rustix::process::{Pid, kill_process};

use super::{Life, source, time};
use crate::args::RenewArgs;
use crate::exit::{Exit, Failure, chain};
use crate::output;
use crate::up::layout::write_atomically;

pub(super) fn run(args: &RenewArgs) -> Result<(), Failure> {
    super::wait(async {
        if !args.daemon {
            return once(args).await.map(drop);
        }
        let mut failures = 0;
        loop {
            let pause = match once(args).await {
                Ok(()) => {
                    failures = 0;
                    args.every
                }
                Err(failure) => {
                    output::message(&format!("not renewed, tried again: {failure}"));
                    failures = (failures + 1).min(FAILURES_MAX);
                    // Seldom enough for an authority that is away, often enough for a short life.
                    args.every * 2_u32.pow(failures) / 2
                }
            };
            tokio::time::sleep(pause).await;
        }
    })
}

/// Renews when it is time.
async fn once(args: &RenewArgs) -> Result<(), Failure> {
    let (old, now) = (read(args)?, SystemTime::now());
    let life = Life { not_before: old.not_before(), not_after: old.not_after() };
    if !args.force && !life.is_within(args.expires_in, now) {
        if !args.daemon {
            output::message(&format!("{} need not be renewed yet: {} left", args.cert.display(), life.text(now)));
        }
        return Ok(());
    }
    if life.not_after <= now {
        return Err(Failure::failed(format!("{} has expired and can prove nothing", args.cert.display()))
            .remedy("ask for the identity anew: by entry and agent, by token, or `kasbah cert issue`"));
    }
    let (new, roots) = ask(args, &old).await?;
    // Who reads between the two finds an old certificate with a new key for a moment: tell him by --exec or --signal.
    write_atomically(&args.key, new.key().pkcs8_pem().as_bytes(), 0o600)?;
    write_atomically(&args.cert, new.chain_pem().as_bytes(), 0o644)?;
    if let Some(bundle) = &args.bundle {
        write_atomically(bundle, roots.as_bytes(), 0o644)?;
    }
    output::line(&format!("{}  {}  serial {}  until {}", time(now), new.id(), new.serial(), time(new.not_after())));
    tell(args).await
}

fn read(args: &RenewArgs) -> Result<X509Svid, Failure> {
    let bad = |file: &Path, why: String| Failure::new(Exit::Data, format!("{}: {why}", file.display()));
    let found = source::read(&args.cert.to_string_lossy())?;
    let key = std::fs::read(&args.key).map_err(|error| bad(&args.key, error.to_string()))?;
    let key = PrivateKey::from_pkcs8_pem(&key).map_err(|error| bad(&args.key, chain(&error)))?;
    X509Svid::from_parts(found.chain, key).map_err(|error| bad(&args.cert, chain(&error)))
}

/// The next certificate, and the roots of now as PEM.
async fn ask(args: &RenewArgs, old: &X509Svid) -> Result<(X509Svid, String), Failure> {
    let (server, bundle) = place(args)?;
    let domain = old.id().trust_domain();
    let unusable =
        |error: &dyn std::error::Error| Failure::new(Exit::Data, format!("the trust bundle: {}", chain(error)));
    let bundle = TrustBundle::from_pem(domain.clone(), &bundle).map_err(|error| unusable(&error))?;
    let id = domain.with_path(ca::SERVER_PATH).map_err(|error| unusable(&error))?;
    let source =
        FixedSnapshot { svid: Some(Arc::new(old.clone())), bundles: Arc::new(BundleSet::new([Arc::new(bundle)])) };
    let channel = runtime::mtls::channel_within(&server, source, PeerRule::exactly(id), CALL_WAIT_MAX);
    let failed = |error: &dyn std::error::Error| Failure::failed(chain(error));
    let key = PrivateKey::generate_p256().map_err(|error| failed(&error))?;
    let csr = key.csr_der_with(Some(old.id()), old.dns_names()).map_err(|error| failed(&error))?;
    let request = IstioCertificateRequest {
        csr: pem::encode("CERTIFICATE REQUEST", &csr),
        validity_duration: args.ttl.map_or(0, |ttl| i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX)),
        metadata: None,
    };
    let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await?.into_inner();
    let (roots, certificates) = answer.cert_chain.split_last().ok_or_else(|| Failure::failed("an empty answer"))?;
    let certificates: Result<Vec<_>, _> =
        certificates.iter().map(|text| pem::decode_certificates(text.as_bytes())).collect();
    let certificates = certificates.map_err(|error| failed(&error))?.concat();
    let svid = X509Svid::from_parts(certificates, key).map_err(|error| failed(&error))?;
    if svid.id() != old.id() {
        return Err(Failure::failed(format!("the authority answered with another identity: {}", svid.id())));
    }
    Ok((svid, roots.clone()))
}

/// Whom to ask, and by what to know him.
fn place(args: &RenewArgs) -> Result<(String, Vec<u8>), Failure> {
    let endpoints = source::endpoints(&args.dir)?;
    let of_mesh = |pointer: &str| Some(endpoints.as_ref()?.pointer(pointer)?.as_str()?.to_owned());
    let missing = |what: &str, option: &str| {
        Failure::new(Exit::Usage, format!("{what} is not known"))
            .remedy(format!("give {option}, or the mesh's folder by --dir DIR"))
    };
    let server = args.server.clone().or_else(|| of_mesh("/ca/istio_csr"));
    let server = server.ok_or_else(|| missing("the authority's CSR API", "--server HOST:PORT"))?;
    let file = args.bundle.clone().filter(|file| file.exists()).or_else(|| of_mesh("/ca/bundle_file").map(Into::into));
    let file = file.ok_or_else(|| missing("the trust bundle", "--bundle FILE"))?;
    let text = std::fs::read(&file).map_err(|e| Failure::new(Exit::Data, format!("{}: {e}", file.display())))?;
    Ok((server, text))
}

/// Whoever uses the files learns of it.
async fn tell(args: &RenewArgs) -> Result<(), Failure> {
    if let Some((pid, signal)) = &args.signal {
        let pid = Pid::from_raw(*pid).ok_or_else(|| Failure::new(Exit::Usage, "there is no process 0"))?;
        kill_process(pid, *signal)
            .map_err(|error| Failure::failed(format!("process {} not told: {error}", pid.as_raw_nonzero())))?;
    }
    if let Some(command) = &args.exec {
        let status = tokio::process::Command::new("sh").arg("-c").arg(command).status().await?;
        if !status.success() {
            return Err(Failure::failed(format!("renewed, but `{command}` ended with {status}")));
        }
    }
    Ok(())
}

const CALL_WAIT_MAX: Duration = Duration::from_secs(30);
/// The longest pause is 32 times the usual one.
const FAILURES_MAX: u32 = 6;

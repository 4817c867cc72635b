//! Certificates from a small ACME server of our own ([`stand_in`]), as the endpoint serves them. The same was tried by hand against
//! Pebble of April 2026, built from its source, which the tests cannot have: docs/federation.md says what was seen.

mod stand_in;

use std::os::unix::fs::PermissionsExt;

use runtime::shutdown::Shutdown;

use self::stand_in::{Mood, StandIn};
use super::*;
use crate::federation::WebEndpoint;
use crate::testing::running::{Running, until};

const DOMAIN: &str = "bundles.example.org";

struct Scene {
    server: Arc<StandIn>,
    shutdown: Shutdown,
}

impl Scene {
    async fn new() -> Self {
        let shutdown = Shutdown::new();
        Self { server: StandIn::start(&shutdown).await, shutdown }
    }

    fn settings(&self) -> AcmeSettings {
        AcmeSettings {
            directory_url: self.server.directory_url(),
            domain_name: DOMAIN.into(),
            email: Some("ops@example.org".into()),
            tos_accepted: true,
            http_listen: "127.0.0.1:0".parse().unwrap(),
            roots_file: None,
        }
    }

    fn endpoint(&self) -> WebEndpoint {
        let listen = "127.0.0.1:0".parse().unwrap();
        WebEndpoint { listen, cert_file: None, key_file: None, acme: Some(self.settings()) }
    }

    /// The part that orders, with its proofs served where the server looks for them.
    async fn part(&self, dir: &Path) -> (Acme, WebCertificate) {
        let acme = Acme::new(self.settings(), dir);
        let listener = runtime::listen::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        *self.server.proof_at.lock().unwrap() = Some(listener.local_addr().unwrap());
        tokio::spawn(runtime::serve::tcp(
            listener,
            acme.pages(),
            runtime::serve::Limits::default(),
            self.shutdown.clone(),
        ));
        let certificate = WebCertificate::open(self.endpoint(), dir, SystemTime::now()).unwrap();
        (acme, certificate)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.shutdown.trigger();
    }
}

const DAY: Duration = Duration::from_secs(86_400);

fn files(dir: &Path) -> Vec<(String, u32)> {
    let folder = std::fs::read_dir(dir.join("acme")).unwrap().next().unwrap().unwrap().path();
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().to_string_lossy().into_owned(), entry.metadata().unwrap().permissions().mode() & 0o777)
        })
        .collect();
    found.sort();
    found
}

#[tokio::test]
async fn a_certificate_is_ordered_kept_and_renewed_at_two_thirds_of_its_life() {
    let (scene, dir, now) = (Scene::new().await, tempfile::tempdir().unwrap(), SystemTime::now());
    let (acme, certificate) = scene.part(dir.path()).await;
    assert!(!certificate.is_there());
    let first = acme.round(&certificate, now).await.unwrap();
    assert!(certificate.is_there());
    assert_eq!(scene.server.counts(), (1, 1));
    assert_eq!(scene.server.contacts(), [serde_json::json!(["mailto:ops@example.org"])]);
    assert_eq!(files(dir.path()), [("account.json".into(), 0o600), ("certificate.pem".into(), 0o600)]);
    let due = first.due().duration_since(first.not_before).unwrap();
    assert_eq!(due, DAY * 60, "of 90 days");

    // Until then nothing is asked, also by a process that starts anew.
    let before = first.due() - Duration::from_secs(1);
    assert_eq!(acme.round(&certificate, before).await.unwrap().chain, first.chain);
    let again = WebCertificate::open(scene.endpoint(), dir.path(), before).unwrap();
    assert!(again.is_there());
    assert_eq!(scene.server.counts(), (1, 1));

    let second = acme.round(&certificate, first.due()).await.unwrap();
    assert!(second.chain != first.chain && second.key != first.key);
    assert_eq!(scene.server.counts(), (1, 2), "by the same account");

    // What has ended is not served.
    let ended = WebCertificate::open(scene.endpoint(), dir.path(), now + 91 * DAY).unwrap();
    assert!(!ended.is_there());
}

#[tokio::test]
async fn what_cannot_be_had_is_told_and_the_certificate_before_goes_on() {
    let (scene, dir) = (Scene::new().await, tempfile::tempdir().unwrap());
    let (acme, certificate) = scene.part(dir.path()).await;
    let first = acme.round(&certificate, SystemTime::now()).await.unwrap();
    let refused = async |mood| {
        *scene.server.mood.lock().unwrap() = mood;
        let refused = acme.round(&certificate, first.due()).await.map(drop).unwrap_err();
        assert!(certificate.is_there());
        assert_eq!(acme.stored(first.due()).unwrap().chain, first.chain);
        (refused.reason(), refused.to_string())
    };
    let (reason, text) = refused(Mood::Busy).await;
    assert!(reason == "ACME_REFUSED" && text.contains("too many certificates for this domain"), "{reason} {text}");
    assert_eq!(refused(Mood::DnsOnly).await.0, "ACME_NO_CHALLENGE");
    assert_eq!(refused(Mood::WrongDomain).await.0, "ACME_CERTIFICATE_UNFIT");
    let proof_at = scene.server.proof_at.lock().unwrap().replace("127.0.0.1:9".parse().unwrap());
    let (reason, text) = refused(Mood::Well).await;
    assert!(reason == "ACME_DOMAIN_UNPROVEN" && text.contains("wrong answer at"), "{reason} {text}");
    *scene.server.proof_at.lock().unwrap() = proof_at;

    // An account that was forgotten there is made anew.
    assert_eq!(refused(Mood::Forgetful).await.0, "ACME_REFUSED");
    *scene.server.mood.lock().unwrap() = Mood::Well;
    acme.round(&certificate, first.due()).await.unwrap();
    assert_eq!(scene.server.counts().0, 2);

    let settings = AcmeSettings { directory_url: "http://127.0.0.1:9/dir".into(), ..scene.settings() };
    let elsewhere = Acme::new(settings, dir.path());
    assert!(elsewhere.stored(SystemTime::now()).is_none(), "another server begins anew");
    let refused = elsewhere.round(&certificate, SystemTime::now()).await.map(drop).unwrap_err();
    assert_eq!(refused.reason(), "ACME_UNREACHABLE");
}

/// A whole authority: nothing is served before there is a certificate, which is told, and then the bundle is.
#[tokio::test]
async fn the_endpoint_serves_when_it_has_a_certificate_and_says_why_it_does_not() {
    let scene = Scene::new().await;
    *scene.server.mood.lock().unwrap() = Mood::Busy;
    let mut endpoint = scene.endpoint();
    let proof_at = free_address();
    endpoint.acme.as_mut().unwrap().http_listen = proof_at;
    *scene.server.proof_at.lock().unwrap() = Some(proof_at);
    let ca = Running::start_with(|settings| settings.federation.web_endpoint = Some(endpoint)).await;
    assert_eq!(ca.addresses.acme, Some(proof_at));
    let page = async |ca: &Running, path: &str| {
        let (status, body) = runtime::ask::get(ca.addresses.admin.unwrap(), path).await.unwrap();
        (status, String::from_utf8_lossy(&body).into_owned())
    };
    until("the refusal", Duration::from_secs(20), async || page(&ca, "/status").await.1.contains("ACME_REFUSED")).await;
    let (status, ready) = page(&ca, "/healthz/ready").await;
    assert!(status == StatusCode::OK && ready.contains("web bundle endpoint: ACME_REFUSED"), "{status} {ready}");
    let metrics = page(&ca, "/metrics").await.1;
    for line in ["ca_acme_failures 1", "ca_web_certificate_expiry_timestamp 0"] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    let tls = || {
        let roots = std::fs::read(scene.server.root()).unwrap();
        identity::tls::web::client_config(&roots, None, &[b"http/1.1"]).unwrap()
    };
    let fetch = async |ca: &Running| {
        let web = ca.addresses.web_endpoint.unwrap();
        let stream = tokio::net::TcpStream::connect(web).await.unwrap();
        let name = rustls_pki_types::ServerName::try_from(DOMAIN).unwrap();
        let mut stream = tokio_rustls::TlsConnector::from(tls()).connect(name, stream).await?;
        let request = format!("GET / HTTP/1.1\r\nhost: {DOMAIN}\r\nconnection: close\r\n\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await?;
        let mut answer = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    assert!(fetch(&ca).await.is_err(), "nothing without a certificate");

    // The next attempt would be due in a minute; a restart makes one at once.
    *scene.server.mood.lock().unwrap() = Mood::Well;
    let ca = ca.restart().await;
    until("the bundle", Duration::from_secs(20), async || {
        fetch(&ca).await.is_ok_and(|answer| answer.contains("spiffe_sequence"))
    })
    .await;
    until("all is well", Duration::from_secs(5), async || {
        page(&ca, "/status").await.1.contains("\"web_endpoint\":\"OK\"")
    })
    .await;
    let ready = page(&ca, "/healthz/ready").await.1;
    assert!(!ready.contains("ACME"), "{ready}");
    let metrics = page(&ca, "/metrics").await.1;
    assert!(
        metrics.contains("ca_acme_failures 0") && !metrics.contains("ca_web_certificate_expiry_timestamp 0"),
        "{metrics}"
    );

    // Proofs are there while an order runs, and nothing else ever.
    let url = format!("http://{proof_at}/.well-known/acme-challenge/guess");
    let guessed = runtime::fetch::Fetch { url: &url, tls: None, bearer: None, bytes_max: 1 << 10 }.get().await;
    assert!(guessed.unwrap_err().to_string().contains("404"));
}

fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn what_cannot_be_is_named() {
    let good = AcmeSettings {
        directory_url: "https://acme.example/dir".into(),
        domain_name: DOMAIN.into(),
        email: None,
        tos_accepted: true,
        http_listen: default_http_listen(),
        roots_file: None,
    };
    assert_eq!(good.problem(), None);
    let check = |change: fn(&mut AcmeSettings), word: &str| {
        let mut settings = good.clone();
        change(&mut settings);
        assert!(settings.problem().is_some_and(|problem| problem.contains(word)), "{word}: {:?}", settings.problem());
    };
    check(|settings| settings.tos_accepted = false, "tos_accepted");
    for domain in ["", "localhost", "*.example.org", "a b.example.org", "192.0.2.1:80"] {
        let settings = AcmeSettings { domain_name: domain.into(), ..good.clone() };
        assert!(settings.problem().is_some_and(|problem| problem.contains("domain_name")), "{domain}");
    }
    for url in ["", "acme.example/dir", "http://acme.example/dir", "ftp://127.0.0.1/"] {
        let settings = AcmeSettings { directory_url: url.into(), ..good.clone() };
        assert!(settings.problem().is_some_and(|problem| problem.contains("directory_url")), "{url}");
    }
}

//! `kasbah cert`: certificates shown, listed, watched, verified and issued, by exit code, table and JSON.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Mesh, tools};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::trial::{own, shared};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("cert_verbs::every_kind_of_target_is_shown", every_kind_of_target_is_shown),
        shared("cert_verbs::the_list_has_all_and_says_what_renews_them", the_list_has_all),
        shared("cert_verbs::needs_renewal_answers_by_exit_code", needs_renewal_answers_by_exit_code),
        shared("cert_verbs::what_is_issued_verifies_and_strangers_do_not", what_is_issued_verifies),
        shared("cert_verbs::revocation_lists_count", revocation_lists_count),
        shared("cert_verbs::bad_targets_are_named_with_the_remedy", bad_targets_are_named),
        shared("cert_verbs::postgresql_is_asked_for_tls_first", postgresql_is_asked_for_tls_first),
        shared("cert_verbs::a_pair_of_files_is_renewed_and_whoever_uses_it_is_told", a_pair_of_files_is_renewed),
        own("cert_verbs::watch_tells_each_replacement", &["--leaf-ttl", "10s"], watch_tells_each_replacement),
    ]
}

fn every_kind_of_target_is_shown(mesh: &Mesh) -> Result<()> {
    let id = mesh.at("/workloads/helloworld/spiffe_id")?;
    let inbound = mesh.at("/workloads/helloworld/inbound")?;
    let files = mesh.write_identity("helloworld")?;
    let file = files.join("svid.pem").display().to_string();
    for target in ["helloworld", inbound, &file] {
        let shown = mesh.kasbah(["cert", "show", target, "-o", "json"]).ok()?.json()?;
        for member in "spiffe_id serial issuer not_before not_after life_left key_type fingerprint_sha256 chain verdict"
            .split(' ')
        {
            ensure!(shown.get(member).is_some_and(|value| !value.is_null()), "no {member} of {target}: {shown:#}");
        }
        ensure!(shown["verdict"] == "ok" && shown["defects"] == serde_json::json!([]), "{target}: {shown:#}");
        ensure!(shown["chain"].as_array().is_some_and(|chain| chain.len() == 2), "{shown:#}");
        // The file was written by a program that was launched under this name.
        ensure!(shown["spiffe_id"] == id, "{target}: {shown:#}");
    }
    let page = mesh.kasbah(["cert", "show", "helloworld"]).ok()?.stdout;
    for words in ["by the node agent at ", "verdict    ok: proven to be ", "life left  "] {
        ensure!(page.contains(words), "no `{words}` in {page}");
    }
    let ingress = mesh.kasbah(["cert", "show", "ingress", "--server-name", "localhost", "-o", "json"]).ok()?.json()?;
    ensure!(ingress["verdict"] == "TLS_PEER_NO_SPIFFE_ID" && ingress["dns_names"][0] == "localhost", "{ingress:#}");
    let pem = std::fs::read(&file)?;
    let piped = mesh.kasbah(["cert", "show", "-", "-o", "json"]).input(pem).ok()?.json()?;
    ensure!(piped["verdict"] == "ok" && piped["source"] == "stdin", "{piped:#}");
    Ok(())
}

fn the_list_has_all(mesh: &Mesh) -> Result<()> {
    let list = mesh.kasbah(["cert", "list", "-o", "json"]).ok()?.json()?;
    let list = list.as_array().context("no list")?;
    for name in ["root authority (active)", "jwt authority (active)", mesh.at("/workloads/test/spiffe_id")?] {
        ensure!(list.iter().any(|one| one["name"] == name), "no {name} in {list:#?}");
    }
    let workload = list.iter().find(|one| one["name"] == mesh.at("/workloads/test/spiffe_id").unwrap_or_default());
    ensure!(workload.is_some_and(|one| one["renew_at"].is_string()), "{workload:#?}");
    let ends: Vec<&str> = list.iter().filter_map(|one| one["not_after"].as_str()).collect();
    ensure!(ends.is_sorted(), "{ends:?}");
    let none = mesh.kasbah(["cert", "list", "--expires-in", "1s", "-o", "json"]).ok()?.json()?;
    ensure!(none == serde_json::json!([]), "{none}");
    Ok(())
}

fn needs_renewal_answers_by_exit_code(mesh: &Mesh) -> Result<()> {
    for (limit, code) in [("1s", 1), ("1000h", 0), ("100%", 0), ("0%", 1), ("soon", 64)] {
        let answer = mesh.kasbah(["cert", "needs-renewal", "helloworld", "--expires-in", limit]).run()?;
        ensure!(answer.code == code, "{limit}: {}", answer.said());
        ensure!(answer.stdout.is_empty() == (code == 64), "{limit}: {}", answer.said());
    }
    Ok(())
}

fn what_is_issued_verifies(mesh: &Mesh) -> Result<()> {
    let folder = mesh.scratch("issued")?;
    let folder = folder.to_str().context("a path")?;
    let id = "spiffe://cluster.local/ns/shop/sa/job";
    mesh.kasbah(["cert", "issue", "--spiffe-id", id, "--dns", "job.shop.svc", "--ttl", "30m", "--write", folder])
        .ok()?;
    let (svid, bundle) = (format!("{folder}/svid.pem"), format!("{folder}/bundle.pem"));
    let verified = mesh.kasbah(["cert", "verify", &svid, "--bundle", &bundle, "-o", "json"]).ok()?.json()?;
    ensure!(verified["holds"] == true && verified["verdict"] == "ok", "{verified:#}");
    ensure!(mesh.kasbah(["cert", "lint", &svid, &bundle]).ok()?.stdout.lines().all(|line| line.ends_with(": ok")));
    let stranger = mesh.at("/ingress/ca_file")?;
    let refused = mesh.kasbah(["cert", "verify", &svid, "--bundle", stranger]).run()?;
    ensure!(refused.code == 1 && refused.stdout.contains("TLS_PEER_UNTRUSTED"), "{}", refused.said());
    let key = std::fs::metadata(format!("{folder}/svid.key"))?;
    ensure!(std::os::unix::fs::PermissionsExt::mode(&key.permissions()) & 0o777 == 0o600, "others may read the key");
    let csr = format!("{folder}/request.pem");
    let made = tools::system("openssl")?.args(["req", "-new", "-key", &format!("{folder}/svid.key"), "-subj", "/"]);
    made.args(["-addext", &format!("subjectAltName=URI:{id}"), "-out", &csr]).ok()?;
    let issued = mesh.kasbah(["cert", "issue", "--csr", &csr]).ok()?.stdout;
    let again = mesh.kasbah(["cert", "show", "-", "-o", "json"]).input(issued).ok()?.json()?;
    ensure!(again["spiffe_id"] == id && again["verdict"] == "ok", "{again:#}");
    let foreign = mesh.kasbah(["cert", "issue", "--spiffe-id", "spiffe://other/x", "--write", folder]).run()?;
    ensure!(foreign.code == 65 && foreign.stderr.contains("trust domain"), "{}", foreign.said());
    Ok(())
}

/// A list that openssl makes with an authority of its own: the leaf verifies until its serial number is on it.
fn revocation_lists_count(mesh: &Mesh) -> Result<()> {
    let folder = mesh.scratch("openssl-ca")?;
    let run = |args: &[&str]| tools::system("openssl")?.args(args).in_folder(&folder).ok();
    std::fs::write(folder.join("leaf.cnf"), LEAF)?;
    std::fs::write(folder.join("ca.cnf"), AUTHORITY)?;
    std::fs::write(folder.join("index.txt"), "")?;
    std::fs::write(folder.join("crlnumber"), "01\n")?;
    let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    run(&[&["req", "-x509", "-days", "30", "-keyout", "ca.key", "-out", "ca.pem", "-config", "ca.cnf"], &new_key[..]]
        .concat())?;
    run(&[&["req", "-new", "-subj", "/", "-keyout", "leaf.key", "-out", "leaf.csr"], &new_key[..]].concat())?;
    run(&[
        "x509",
        "-req",
        "-in",
        "leaf.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-days",
        "1",
        "-extfile",
        "leaf.cnf",
        "-out",
        "leaf.pem",
        "-CAcreateserial",
    ])?;
    let verify = |crl: &str| {
        let at = |name: &str| folder.join(name).display().to_string();
        mesh.kasbah(["cert", "verify", &at("leaf.pem"), "--bundle", &at("ca.pem"), "--crl", &at(crl)]).run()
    };
    run(&["ca", "-gencrl", "-config", "ca.cnf", "-out", "empty.crl"])?;
    let good = verify("empty.crl")?;
    ensure!(good.code == 0, "{}", good.said());
    run(&["ca", "-revoke", "leaf.pem", "-config", "ca.cnf"])?;
    run(&["ca", "-gencrl", "-config", "ca.cnf", "-out", "revoked.crl"])?;
    let revoked = verify("revoked.crl")?;
    ensure!(revoked.code == 1 && revoked.stdout.contains("REVOKED"), "{}", revoked.said());
    let no_list = verify("leaf.csr")?;
    ensure!(no_list.code == 65 && no_list.stderr.contains("no revocation list"), "{}", no_list.said());
    Ok(())
}

fn bad_targets_are_named(mesh: &Mesh) -> Result<()> {
    let nothing = mesh.scratch("bad-targets")?.join("nothing.pem");
    std::fs::write(&nothing, "no certificate")?;
    let file = nothing.display().to_string();
    let closed = format!("127.0.0.1:{}", harness::mesh::free_port()?);
    let plain = mesh.at("/ingress/http")?;
    for (target, code, words) in [
        ("nowhere", 64, "no workload of the mesh"),
        (&file, 65, "holds no"),
        (&closed, 69, "cannot be asked"),
        (plain, 69, "cannot be asked"),
        ("unix:relative", 64, "not absolute"),
    ] {
        let answer = mesh.kasbah(["cert", "show", target]).run()?;
        ensure!(answer.code == code && answer.stderr.contains(words), "{target}: {}", answer.said());
        ensure!(answer.stdout.is_empty(), "{target}: {}", answer.said());
    }
    Ok(())
}

/// A real server where there is one; here one that speaks the first byte of its protocol and then TLS: the ingress gateway's
/// certificate behind a relay.
fn postgresql_is_asked_for_tls_first(mesh: &Mesh) -> Result<()> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let (address, https) = (listener.local_addr()?.to_string(), mesh.at("/ingress/https")?.to_owned());
    let relay = std::thread::spawn(move || relay(&listener, &https));
    let target = ["cert", "show", &address, "--starttls", "postgres", "--server-name", "localhost", "-o", "json"];
    let shown = mesh.kasbah(target).ok()?.json()?;
    ensure!(shown["dns_names"][0] == "localhost", "{shown:#}");
    relay.join().map_err(|_| anyhow::anyhow!("the relay failed"))?
}

fn relay(listener: &std::net::TcpListener, to: &str) -> Result<()> {
    use std::io::{Read as _, Write as _};
    let (mut client, _) = listener.accept()?;
    let mut asked = [0; 8];
    client.read_exact(&mut asked)?;
    ensure!(asked == [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f], "not SSLRequest: {asked:?}");
    client.write_all(b"S")?;
    let mut server = std::net::TcpStream::connect(to)?;
    let (mut back, mut from) = (client.try_clone()?, server.try_clone()?);
    let down = std::thread::spawn(move || std::io::copy(&mut from, &mut back));
    let _ = std::io::copy(&mut client, &mut server);
    let _ = server.shutdown(std::net::Shutdown::Both);
    let _ = down.join();
    Ok(())
}

fn a_pair_of_files_is_renewed(mesh: &Mesh) -> Result<()> {
    let folder = mesh.scratch("renewed")?;
    let folder = folder.to_str().context("a path")?;
    let id = "spiffe://cluster.local/ns/shop/sa/renewed";
    mesh.kasbah(["cert", "issue", "--spiffe-id", id, "--ttl", "1h", "--write", folder]).ok()?;
    let (cert, key) = (format!("{folder}/svid.pem"), format!("{folder}/svid.key"));
    let renew = |more: &[&str]| mesh.kasbah([&["cert", "renew", "--cert", &cert, "--key", &key], more].concat());
    let read = || Ok::<_, anyhow::Error>((std::fs::read_to_string(&cert)?, std::fs::read_to_string(&key)?));
    let first = read()?;
    let early = renew(&[]).ok()?;
    ensure!(early.stderr.contains("need not be renewed") && read()? == first, "{}", early.said());
    let told = format!("{folder}/told");
    let renewed = renew(&["--force", "--ttl", "20m", "--exec", &format!("touch {told}")]).ok()?;
    ensure!(renewed.stdout.contains(id) && std::path::Path::new(&told).exists(), "{}", renewed.said());
    let second = read()?;
    ensure!(second.0 != first.0 && second.1 != first.1, "certificate or key are the old ones");
    let shown = mesh.kasbah(["cert", "show", &cert, "-o", "json"]).ok()?.json()?;
    ensure!(shown["spiffe_id"] == id && shown["verdict"] == "ok", "{shown:#}");
    let failing = renew(&["--force", "--exec", "false"]).run()?;
    ensure!(failing.code == 1 && failing.stderr.contains("renewed, but"), "{}", failing.said());
    let away = renew(&["--force", "--server", "127.0.0.1:1"]).run()?;
    ensure!(away.code == 69, "{}", away.said());
    let wrong = renew(&["--signal", "0:HUP"]).run()?;
    ensure!(wrong.code == 64, "{}", wrong.said());
    // A revoked one renews nothing.
    mesh.kasbah(["cert", "revoke", "--spiffe-id", id, "--reason", "keyCompromise", "--yes"]).ok()?;
    let revoked = renew(&["--force"]).run()?;
    ensure!(revoked.code != 0, "{}", revoked.said());
    Ok(())
}

fn watch_tells_each_replacement(mesh: &mut Mesh) -> Result<()> {
    let watch = mesh.kasbah(["cert", "watch", "helloworld", "--every", "200ms", "--count", "2", "-o", "json"]);
    let answer = watch.limit(Duration::from_secs(60)).ok()?;
    let lines: Vec<Value> = answer.stdout.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let serials: Vec<&str> = lines.iter().filter_map(|line| line["serial"].as_str()).collect();
    ensure!(serials.len() == 3 && serials[0] != serials[1] && serials[1] != serials[2], "{lines:#?}");
    Ok(())
}

const LEAF: &str = "subjectAltName=critical,URI:spiffe://openssl.example/leaf
keyUsage=critical,digitalSignature
basicConstraints=critical,CA:FALSE
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
";
const AUTHORITY: &str = "[req]
distinguished_name=name
x509_extensions=authority
prompt=no
[name]
CN=openssl
[authority]
subjectAltName=URI:spiffe://openssl.example
keyUsage=critical,keyCertSign,cRLSign
basicConstraints=critical,CA:TRUE
subjectKeyIdentifier=hash
[ca]
default_ca=here
[here]
certificate=ca.pem
private_key=ca.key
database=index.txt
crlnumber=crlnumber
default_md=sha256
default_crl_days=1
crl_extensions=list
[list]
authorityKeyIdentifier=keyid
";

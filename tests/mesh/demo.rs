//! Every row of the demo's table, by the programs that people use for it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use harness::curl::{self, Request, Response, url};
use harness::{Mesh, Program, tools};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::trial::shared;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        shared("demo::helloworld_says_hello", helloworld_says_hello),
        shared("demo::test_without_a_token_is_401", test_without_a_token_is_401),
        shared("demo::test_with_a_bad_token_is_401", test_with_a_bad_token_is_401),
        shared("demo::test_without_the_group_is_403", test_without_the_group_is_403),
        shared("demo::test_tells_both_identities_of_its_call", test_tells_both_identities_of_its_call),
        shared("demo::egress_goes_through_the_gateway", egress_goes_through_the_gateway),
        shared("demo::egress_direct_comes_from_the_sidecar", egress_direct_comes_from_the_sidecar),
        shared("demo::egress_denied_is_502_with_the_reason", egress_denied_is_502_with_the_reason),
        shared("demo::an_unknown_path_is_refused", an_unknown_path_is_refused),
        shared("demo::websocket_echoes_text_and_binary", websocket_echoes_text_and_binary),
        shared("demo::grpc_greets_reflects_and_is_healthy", grpc_greets_reflects_and_is_healthy),
        shared("demo::tcp_echoes", tcp_echoes),
        shared("demo::plain_http_to_the_inbound_address_is_refused", plain_http_to_the_inbound_address_is_refused),
    ]
}

/// The ways into the ingress gateway: both versions of HTTP, without TLS and with it.
pub(crate) fn ways(mesh: &Mesh, path: &str) -> Result<Vec<(&'static str, Request)>> {
    let plain = url("http", mesh.at("/ingress/http")?, path);
    let https = mesh.address("/ingress/https")?;
    let ca_file = mesh.at("/ingress/ca_file")?;
    let by_name = url("https", &format!("localhost:{}", https.port()), path);
    let by_address = url("https", &https.to_string(), path);
    Ok(vec![
        ("1.1", curl::get(&plain).options(["--http1.1"])),
        ("2", curl::get(&plain).http2()),
        ("1.1", curl::get(&by_name).options(["--http1.1"]).trusting(ca_file)),
        ("2", curl::get(&by_address).options(["--http2"]).trusting(ca_file)),
    ])
}

/// Makes the request in every way and expects the same of each.
fn each_way(mesh: &Mesh, path: &str, token: Option<&str>, expect: impl Fn(Response) -> Result<()>) -> Result<()> {
    for (version, request) in ways(mesh, path)? {
        let request = match token {
            Some(token) => request.bearer(token),
            None => request,
        };
        let context = || format!("{request:?}");
        let response = request.send().with_context(context)?;
        ensure!(response.version == version, "{request:?} was answered in HTTP/{}", response.version);
        expect(response).with_context(context)?;
    }
    Ok(())
}

fn expect_refusal(response: Response, status: u16, reasons: &[&str]) -> Result<()> {
    let response = response.expect_status(status)?;
    ensure!(reasons.contains(&response.reason()), "the reason is {}, not one of {reasons:?}", response.reason());
    Ok(())
}

fn helloworld_says_hello(mesh: &Mesh) -> Result<()> {
    each_way(mesh, "/helloworld", None, |response| {
        let response = response.expect_status(200)?;
        ensure!(response.body.starts_with("Hello"), "the body is {:?}", response.body);
        ensure!(response.body.contains("helloworld"), "it does not say who answered: {:?}", response.body);
        Ok(())
    })
}

fn test_without_a_token_is_401(mesh: &Mesh) -> Result<()> {
    each_way(mesh, "/test", None, |response| expect_refusal(response, 401, &["JWT_MISSING"]))
}

fn test_with_a_bad_token_is_401(mesh: &Mesh) -> Result<()> {
    let token = mesh.token("testers")?;
    let (signed, signature) = token.rsplit_once('.').context("no token")?;
    // The first character carries six whole bits of the signature; the last may carry padding only.
    let flipped = if signature.starts_with('A') { 'B' } else { 'A' };
    let forged = format!("{signed}.{flipped}{}", &signature[1..]);
    for bad in [forged.as_str(), "nonsense", "a.b.c"] {
        each_way(mesh, "/test", Some(bad), |response| {
            let response = response.expect_status(401)?;
            ensure!(response.reason().starts_with("JWT_"), "the reason is {}", response.reason());
            Ok(())
        })?;
    }
    Ok(())
}

fn test_without_the_group_is_403(mesh: &Mesh) -> Result<()> {
    let token = mesh.token("visitors")?;
    each_way(mesh, "/test", Some(&token), |response| expect_refusal(response, 403, &["RBAC_DENIED"]))
}

fn test_tells_both_identities_of_its_call(mesh: &Mesh) -> Result<()> {
    let token = mesh.token("testers")?;
    each_way(mesh, "/test", Some(&token), |response| {
        let body = response.expect_status(200)?.json()?;
        expect_at(&body, "/helloworld/client_spiffe_id", "spiffe://cluster.local/ns/default/sa/test")?;
        expect_at(&body, "/helloworld/server_spiffe_id", "spiffe://cluster.local/ns/default/sa/helloworld")?;
        let ingress = "spiffe://cluster.local/ns/istio-system/sa/istio-ingressgateway";
        expect_at(&body, "/caller/peer_spiffe_id", ingress)
    })
}

fn expect_at(body: &Value, pointer: &str, expected: &str) -> Result<()> {
    let found = body.pointer(pointer).and_then(Value::as_str);
    ensure!(found == Some(expected), "{pointer} is {found:?}, not {expected}: {body:#}");
    Ok(())
}

fn egress_goes_through_the_gateway(mesh: &Mesh) -> Result<()> {
    let token = mesh.token("testers")?;
    let test = mesh.at("/workloads/test/address")?;
    each_way(mesh, "/test/egress", Some(&token), |response| {
        let peer = external_peer(&response.expect_status(200)?)?;
        ensure!(peer != test, "the external service was called by the sidecar itself ({peer})");
        Ok(())
    })
}

fn egress_direct_comes_from_the_sidecar(mesh: &Mesh) -> Result<()> {
    let token = mesh.token("testers")?;
    let test = mesh.at("/workloads/test/address")?;
    each_way(mesh, "/test/egress-direct", Some(&token), |response| {
        let peer = external_peer(&response.expect_status(200)?)?;
        ensure!(peer == test, "the external service was called by {peer}, not by the sidecar at {test}");
        Ok(())
    })
}

/// Which address the external service saw.
fn external_peer(response: &Response) -> Result<String> {
    let body = response.json()?;
    let peer = body.pointer("/external/body/peer").and_then(Value::as_str);
    let peer: std::net::SocketAddr = peer.with_context(|| format!("no peer in {body:#}"))?.parse()?;
    Ok(peer.ip().to_string())
}

fn egress_denied_is_502_with_the_reason(mesh: &Mesh) -> Result<()> {
    let token = mesh.token("testers")?;
    each_way(mesh, "/test/egress-denied", Some(&token), |response| {
        let response = response.expect_status(502)?;
        ensure!(response.body.contains("HOST_NOT_IN_MESH"), "the body does not say why: {}", response.body);
        expect_refusal(response, 502, &["HOST_NOT_IN_MESH"])
    })
}

fn an_unknown_path_is_refused(mesh: &Mesh) -> Result<()> {
    // The demo's policy names what is open; without that policy there would still be no route.
    each_way(mesh, "/no-such-path", None, |response| expect_refusal(response, 403, &["RBAC_DENIED"]))
}

fn websocket_echoes_text_and_binary(mesh: &Mesh) -> Result<()> {
    let plain = url("ws", mesh.at("/ingress/http")?, "/helloworld/ws");
    tools::script("websocket_echo.py")?.args(["--url", &plain]).ok()?;
    let port = mesh.address("/ingress/https")?.port();
    let tls = format!("wss://localhost:{port}/helloworld/ws");
    tools::script("websocket_echo.py")?.args(["--url", &tls, "--ca-file", mesh.at("/ingress/ca_file")?]).ok()?;
    Ok(())
}

fn grpc_greets_reflects_and_is_healthy(mesh: &Mesh) -> Result<()> {
    let plain: Vec<String> = vec!["-plaintext".into(), mesh.at("/ingress/http")?.into()];
    let port = mesh.address("/ingress/https")?.port();
    let tls: Vec<String> = vec!["-cacert".into(), mesh.at("/ingress/ca_file")?.into(), format!("localhost:{port}")];
    for way in [plain, tls] {
        let (address, options) = way.split_last().context("no address")?;
        let grpcurl = |more: &[&str], verb: &[&str]| -> Result<String> {
            let program = Program::new(tools::python_program("grpcurl")?).args(["-max-time", "20"]);
            Ok(program.args(options).args(more).arg(address).args(verb).ok()?.stdout)
        };
        let services = grpcurl(&[], &["list"])?;
        for service in ["helloworld.Greeter", "grpc.health.v1.Health"] {
            ensure!(services.contains(service), "reflection does not know {service}: {services}");
        }
        let reply = grpcurl(&["-d", r#"{"name":"Amina"}"#], &["helloworld.Greeter/SayHello"])?;
        ensure!(reply.contains("Hello Amina"), "the greeting is {reply}");
        let health = grpcurl(&[], &["grpc.health.v1.Health/Check"])?;
        ensure!(health.contains("SERVING"), "the health is {health}");
    }
    Ok(())
}

fn tcp_echoes(mesh: &Mesh) -> Result<()> {
    let mut stream = TcpStream::connect(mesh.address("/ingress/tcp")?)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let sent: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut writer = stream.try_clone()?;
    let writing = {
        let sent = sent.clone();
        std::thread::spawn(move || writer.write_all(&sent).and_then(|()| writer.shutdown(Shutdown::Write)))
    };
    let mut received = Vec::new();
    stream.read_to_end(&mut received).context("the echo broke off")?;
    writing.join().map_err(|_| anyhow::anyhow!("the writer failed"))??;
    ensure!(received == sent, "{} bytes came back of {}", received.len(), sent.len());
    Ok(())
}

fn plain_http_to_the_inbound_address_is_refused(mesh: &Mesh) -> Result<()> {
    for inbound in [mesh.at("/workloads/helloworld/inbound")?, mesh.at("/workloads/test/inbound")?] {
        for request in
            [curl::get(url("http", inbound, "/helloworld")), curl::get(url("http", inbound, "/helloworld")).http2()]
        {
            let answer = request.try_send()?;
            if answer.code == 0 || answer.stdout.contains("HTTP/") {
                bail!("{inbound} answered plain HTTP: {}", answer.stdout);
            }
        }
    }
    Ok(())
}

//! Generates the wire code with protox, so that no `protoc` is needed.

use std::path::PathBuf;

use prost::Message;

const FILES: &[&str] = &[
    "workload/workload.proto",
    "istio/ca.proto",
    "spire/types.proto",
    "spire/agent.proto",
    "spire/entry.proto",
    "spire/svid.proto",
    "spire/bundle.proto",
    "spire/trustdomain.proto",
    "spire/localauthority.proto",
    "spire/delegatedidentity.proto",
    "spiffe/broker.proto",
    "kasbah/node.proto",
    "kasbah/log.proto",
    "kasbah/audit.proto",
    "kasbah/policy.proto",
    "kasbah/rotation.proto",
    "kasbah/custody.proto",
    "kasbah/federation.proto",
    "kasbah/registration.proto",
    "kasbah/revocation.proto",
    "kasbah/signer.proto",
    "kasbah/rights.proto",
    "spire/debug.proto",
    "spire/logger.proto",
    "demo/helloworld.proto",
];

/// Messages that carry a secret: their `Debug` is written by hand in `lib.rs` and shows nothing of it.
const SECRETS: &[&str] = &[
    ".X509SVID",
    ".JWTSVID",
    ".WITSVID",
    ".ValidateJWTSVIDRequest",
    ".spiffe.broker.X509SVID",
    ".spiffe.broker.JWTSVID",
    ".spire.api.agent.delegatedidentity.v1.X509SVIDWithKey",
    ".spire.api.types.AttestationData",
    ".spire.api.types.JoinToken",
    ".spire.api.types.JWTSVID",
    ".spire.api.types.WITSVID",
    ".spire.api.server.agent.v1.CreateJoinTokenRequest",
    ".kasbah.ca.v1.ImportAuthorityRequest",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut set = protox::Compiler::new(["proto"])?
        .include_imports(true)
        .include_source_info(true)
        .open_files(FILES)?
        .file_descriptor_set();
    tonic_prost_build::configure()
        .btree_map(".")
        .skip_debug(SECRETS)
        .codec_path("crate::codec::FrugalCodec")
        .emit_rerun_if_changed(false)
        .compile_fds(set.clone())?;
    for file in &mut set.file {
        file.source_code_info = None;
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), set.encode_to_vec())?;
    Ok(())
}

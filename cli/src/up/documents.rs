//! The demo's operator documents, carried in the binary and copied to `DIR/config/` once, with this mesh's addresses
//! filled in. What already lies there is the user's and stays.

use std::path::Path;

use super::addresses::{Addresses, loopback};
use super::layout::Layout;
use crate::exit::Failure;

/// Copies each document that is not there yet.
pub(crate) fn copy(layout: &Layout, addresses: &Addresses, jwks_file: &Path) -> Result<(), Failure> {
    let marker = layout.data("documents-copied");
    if marker.exists() {
        return Ok(());
    }
    let jwks = std::fs::read_to_string(jwks_file)?;
    let values = [
        ("${HELLOWORLD_ADDRESS}", addresses.helloworld.to_string()),
        ("${TEST_ADDRESS}", addresses.test.to_string()),
        ("${EGRESS_ADDRESS}", addresses.egress.to_string()),
        ("${EXTERNAL_ADDRESS}", addresses.external.to_string()),
        ("${POLICY_ADDRESS}", loopback(0).ip().to_string()),
        ("${POLICY_PORT}", addresses.policy_grpc.to_string()),
        ("${INGRESS_CERT}", layout.data("ingress/cert.pem").display().to_string()),
        ("${INGRESS_KEY}", layout.data("ingress/key.pem").display().to_string()),
        ("${JWKS}", jwks.replace('\n', " ").trim().to_owned()),
    ];
    for (name, text) in DOCUMENTS {
        let target = match name.strip_prefix("policy/") {
            Some(_) => super::settings::rules_file(layout),
            None => layout.config().join(name),
        };
        if !target.exists() {
            let filled = values.iter().fold((*text).to_owned(), |text, (from, to)| text.replace(from, to));
            if let Some(folder) = target.parent() {
                std::fs::create_dir_all(folder)?;
            }
            super::layout::write_atomically(&target, filled.as_bytes(), 0o644)?;
        }
    }
    std::fs::write(marker, b"")?;
    Ok(())
}

/// File name below `DIR/config/` and text. The policy service's rules go beside that folder.
const DOCUMENTS: &[(&str, &str)] = &[
    ("mesh.yaml", include_str!("../../../deploy/demo/mesh.yaml")),
    ("services.yaml", include_str!("../../../deploy/demo/services.yaml")),
    ("ingress.yaml", include_str!("../../../deploy/demo/ingress.yaml")),
    ("routes.yaml", include_str!("../../../deploy/demo/routes.yaml")),
    ("security.yaml", include_str!("../../../deploy/demo/security.yaml")),
    ("egress.yaml", include_str!("../../../deploy/demo/egress.yaml")),
    ("limits.yaml", include_str!("../../../deploy/demo/limits.yaml")),
    ("policy/rules.yaml", include_str!("../../../deploy/demo/policy/rules.yaml")),
];

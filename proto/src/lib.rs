//! The wire, nothing else: the `.proto` files in `proto/proto/` and the code generated from them.
//!
//! xDS, `ext_authz`, rate limit and access log types come from `envoy-types`.

mod codec;

/// Wraps generated code in a module with the lints it cannot meet switched off.
macro_rules! generated {
    ($(#[$doc:meta])* $name:ident, $package:literal) => {
        $(#[$doc])*
        #[allow(
            missing_docs,
            unreachable_pub,
            unused_qualifications,
            elided_lifetimes_in_paths,
            rustdoc::all,
            clippy::all,
            clippy::use_self,
            clippy::or_fun_call,
            clippy::redundant_clone,
            clippy::allow_attributes_without_reason,
            reason = "generated code; what the messages mean stands in the .proto files"
        )]
        pub mod $name {
            tonic::include_proto!($package);
        }
    };
}

generated!(
    /// SPIFFE Workload API (no package on the wire).
    workload,
    "_"
);

/// The SPIFFE standards' further APIs.
pub mod spiffe {
    generated!(
        /// The Broker API.
        broker,
        "spiffe.broker"
    );
}

/// Istio's certificate signing API.
pub mod istio {
    /// Version 1.
    pub mod v1 {
        generated!(
            /// `istio.v1.auth`.
            auth,
            "istio.v1.auth"
        );
    }
}

/// SPIRE's API.
pub mod spire {
    /// `spire.api`.
    pub mod api {
        generated!(
            /// What the services share.
            types,
            "spire.api.types"
        );
        /// The agent's services.
        pub mod agent {
            /// Identities of other workloads.
            pub mod delegatedidentity {
                generated!(
                    /// Version 1.
                    v1,
                    "spire.api.agent.delegatedidentity.v1"
                );
            }
        }
        /// The server's services.
        pub mod server {
            /// Nodes.
            pub mod agent {
                generated!(
                    /// Version 1.
                    v1,
                    "spire.api.server.agent.v1"
                );
            }
            /// Registration entries.
            pub mod entry {
                generated!(
                    /// Version 1.
                    v1,
                    "spire.api.server.entry.v1"
                );
            }
            /// Issuance.
            pub mod svid {
                generated!(
                    /// Version 1.
                    v1,
                    "spire.api.server.svid.v1"
                );
            }
            /// Trust bundles.
            pub mod bundle {
                generated!(
                    /// Version 1.
                    v1,
                    "spire.api.server.bundle.v1"
                );
            }
            /// Federation relationships.
            pub mod trustdomain {
                generated!(
                    /// Version 1.
                    v1,
                    "spire.api.server.trustdomain.v1"
                );
            }
            /// Facts about the server.
            pub mod debug {
                generated!(
                    /// Version 1.
                    v1,
                    "spire.api.server.debug.v1"
                );
            }
            /// The server's log.
            pub mod logger {
                generated!(
                    /// Version 1.
                    v1,
                    "spire.api.server.logger.v1"
                );
            }
            /// Signing authorities.
            pub mod localauthority {
                generated!(
                    /// Version 1.
                    v1,
                    "spire.api.server.localauthority.v1"
                );
            }
        }
    }
}

/// Kasbah's own additions.
pub mod kasbah {
    /// Administration of the CA: transparency log, audit trail, issuance policy.
    pub mod ca {
        generated!(
            /// Version 1.
            v1,
            "kasbah.ca.v1"
        );
    }
    /// A keeper of keys outside of the CA.
    pub mod signer {
        generated!(
            /// Version 1.
            v1,
            "kasbah.signer.v1"
        );
    }
    /// Between agent and CA.
    pub mod node {
        generated!(
            /// Version 1.
            v1,
            "kasbah.node.v1"
        );
    }
}

/// The demo's workloads.
pub mod demo {
    generated!(
        /// The greeter.
        helloworld,
        "helloworld"
    );
}

/// Descriptors of all files with their imports, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// A `Debug` that shows the named fields only, for messages that carry a secret.
macro_rules! redacted {
    ($($message:ty { $($shown:ident),* })*) => { $(
        impl std::fmt::Debug for $message {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($message))$(.field(stringify!($shown), &self.$shown))*.finish_non_exhaustive()
            }
        }
    )* };
}

redacted! {
    workload::X509svid { spiffe_id, hint }
    workload::Jwtsvid { spiffe_id, hint }
    workload::Witsvid { spiffe_id, hint }
    workload::ValidateJwtsvidRequest { audience }
    spiffe::broker::X509svid { spiffe_id, hint }
    spiffe::broker::Jwtsvid { spiffe_id, hint }
    spire::api::agent::delegatedidentity::v1::X509svidWithKey { x509_svid }
    spire::api::types::AttestationData { r#type }
    spire::api::types::JoinToken { expires_at }
    spire::api::types::Jwtsvid { id, expires_at, hint }
    spire::api::types::Witsvid { id, expires_at, hint }
    spire::api::server::agent::v1::CreateJoinTokenRequest { ttl, agent_id }
    kasbah::ca::v1::ImportAuthorityRequest { certificate }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn descriptors_name_every_service() {
        let set = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("decodes");
        let mut names: Vec<String> = Vec::new();
        for file in &set.file {
            let package = file.package();
            for service in &file.service {
                names.push(if package.is_empty() {
                    service.name().to_owned()
                } else {
                    format!("{package}.{}", service.name())
                });
            }
        }
        names.sort();
        assert_eq!(
            names,
            [
                "SpiffeWorkloadAPI",
                "helloworld.Greeter",
                "istio.v1.auth.IstioCertificateService",
                "kasbah.ca.v1.Audit",
                "kasbah.ca.v1.Custody",
                "kasbah.ca.v1.Federation",
                "kasbah.ca.v1.IssuancePolicy",
                "kasbah.ca.v1.Log",
                "kasbah.ca.v1.Registration",
                "kasbah.ca.v1.Revocation",
                "kasbah.ca.v1.Rights",
                "kasbah.ca.v1.Rotation",
                "kasbah.node.v1.Node",
                "kasbah.signer.v1.Signer",
                "spiffe.broker.API",
                "spire.api.agent.delegatedidentity.v1.DelegatedIdentity",
                "spire.api.server.agent.v1.Agent",
                "spire.api.server.bundle.v1.Bundle",
                "spire.api.server.debug.v1.Debug",
                "spire.api.server.entry.v1.Entry",
                "spire.api.server.localauthority.v1.LocalAuthority",
                "spire.api.server.logger.v1.Logger",
                "spire.api.server.svid.v1.SVID",
                "spire.api.server.trustdomain.v1.TrustDomain",
            ]
        );
    }

    #[test]
    fn debug_of_secret_messages_shows_no_secret() {
        let svid = workload::X509svid {
            spiffe_id: "spiffe://td/a".into(),
            x509_svid_key: b"secret".to_vec(),
            ..Default::default()
        };
        let shown = format!("{:?}", workload::X509svidResponse { svids: vec![svid], ..Default::default() });
        assert!(shown.contains("spiffe://td/a"));
        assert!(!shown.contains("115, 101"), "{shown}");
        let token = spire::api::types::JoinToken { value: "secret".into(), expires_at: 7 };
        assert!(!format!("{token:?}").contains("secret"));
    }
}

//! Every call of the server's APIs with the one right that it needs. What is not in the table is not served.

use super::Verb;

/// A call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// `/PACKAGE.SERVICE/METHOD`.
    pub(crate) path: &'static str,
    pub(crate) need: Need,
}

/// Who may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Anyone, without a certificate.
    Anyone,
    /// Whoever holds an SVID of the trust domain, and local users.
    Member,
    /// Nodes, for what is theirs.
    Agent,
    /// Nodes, and administrators who have the verb.
    AgentOr(Verb),
    /// Administrators who have the verb.
    Admin(Verb),
}

impl Need {
    /// The administrators' verb.
    pub(crate) fn verb(self) -> Option<Verb> {
        match self {
            Self::AgentOr(verb) | Self::Admin(verb) => Some(verb),
            Self::Anyone | Self::Member | Self::Agent => None,
        }
    }
}

/// The call of this path.
pub(crate) fn find(path: &str) -> Option<&'static Call> {
    CALLS.iter().find(|call| call.path == path)
}

/// The names of all services, in the order of the table.
pub(crate) fn services() -> Vec<&'static str> {
    let mut names: Vec<&str> = CALLS.iter().filter_map(|call| call.path[1..].split('/').next()).collect();
    names.dedup();
    names
}

const fn call(path: &'static str, need: Need) -> Call {
    Call { path, need }
}

use Need::{Admin, Agent, AgentOr, Anyone, Member};

pub(crate) const CALLS: &[Call] = &[
    call("/spire.api.server.agent.v1.Agent/CountAgents", Admin(Verb::NodeRead)),
    call("/spire.api.server.agent.v1.Agent/ListAgents", Admin(Verb::NodeRead)),
    call("/spire.api.server.agent.v1.Agent/GetAgent", Admin(Verb::NodeRead)),
    call("/spire.api.server.agent.v1.Agent/DeleteAgent", Admin(Verb::NodeEvict)),
    call("/spire.api.server.agent.v1.Agent/BanAgent", Admin(Verb::NodeBan)),
    call("/spire.api.server.agent.v1.Agent/AttestAgent", Anyone),
    call("/spire.api.server.agent.v1.Agent/RenewAgent", Agent),
    call("/spire.api.server.agent.v1.Agent/CreateJoinToken", Admin(Verb::TokenCreate)),
    call("/spire.api.server.agent.v1.Agent/PostStatus", Agent),
    call("/spire.api.server.bundle.v1.Bundle/CountBundles", Admin(Verb::BundleRead)),
    call("/spire.api.server.bundle.v1.Bundle/GetBundle", Anyone),
    call("/spire.api.server.bundle.v1.Bundle/AppendBundle", Admin(Verb::AuthorityRotate)),
    // Servers below: their entry says so, and the call asks for it.
    call("/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority", Member),
    call("/spire.api.server.bundle.v1.Bundle/PublishWITAuthority", Member),
    call("/spire.api.server.bundle.v1.Bundle/ListFederatedBundles", Admin(Verb::BundleRead)),
    call("/spire.api.server.bundle.v1.Bundle/GetFederatedBundle", AgentOr(Verb::BundleRead)),
    call("/spire.api.server.bundle.v1.Bundle/BatchCreateFederatedBundle", Admin(Verb::BundleWrite)),
    call("/spire.api.server.bundle.v1.Bundle/BatchUpdateFederatedBundle", Admin(Verb::BundleWrite)),
    call("/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle", Admin(Verb::BundleWrite)),
    call("/spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle", Admin(Verb::BundleWrite)),
    call("/spire.api.server.debug.v1.Debug/GetInfo", Admin(Verb::ServerRead)),
    call("/spire.api.server.entry.v1.Entry/CountEntries", Admin(Verb::EntryRead)),
    call("/spire.api.server.entry.v1.Entry/ListEntries", Admin(Verb::EntryRead)),
    call("/spire.api.server.entry.v1.Entry/GetEntry", Admin(Verb::EntryRead)),
    call("/spire.api.server.entry.v1.Entry/BatchCreateEntry", Admin(Verb::EntryWrite)),
    call("/spire.api.server.entry.v1.Entry/BatchUpdateEntry", Admin(Verb::EntryWrite)),
    call("/spire.api.server.entry.v1.Entry/BatchDeleteEntry", Admin(Verb::EntryWrite)),
    call("/spire.api.server.entry.v1.Entry/GetAuthorizedEntries", Agent),
    call("/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries", Agent),
    call("/spire.api.server.localauthority.v1.LocalAuthority/GetJWTAuthorityState", Admin(Verb::AuthorityRead)),
    call("/spire.api.server.localauthority.v1.LocalAuthority/PrepareJWTAuthority", Admin(Verb::AuthorityRotate)),
    call("/spire.api.server.localauthority.v1.LocalAuthority/ActivateJWTAuthority", Admin(Verb::AuthorityRotate)),
    call("/spire.api.server.localauthority.v1.LocalAuthority/TaintJWTAuthority", Admin(Verb::AuthorityTaint)),
    call("/spire.api.server.localauthority.v1.LocalAuthority/RevokeJWTAuthority", Admin(Verb::AuthorityRevoke)),
    call("/spire.api.server.localauthority.v1.LocalAuthority/GetX509AuthorityState", Admin(Verb::AuthorityRead)),
    call("/spire.api.server.localauthority.v1.LocalAuthority/PrepareX509Authority", Admin(Verb::AuthorityRotate)),
    call("/spire.api.server.localauthority.v1.LocalAuthority/ActivateX509Authority", Admin(Verb::AuthorityRotate)),
    call("/spire.api.server.localauthority.v1.LocalAuthority/TaintX509Authority", Admin(Verb::AuthorityTaint)),
    call("/spire.api.server.localauthority.v1.LocalAuthority/TaintX509UpstreamAuthority", Admin(Verb::AuthorityTaint)),
    call("/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509Authority", Admin(Verb::AuthorityRevoke)),
    call(
        "/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509UpstreamAuthority",
        Admin(Verb::AuthorityRevoke),
    ),
    call("/spire.api.server.localauthority.v1.LocalAuthority/GetWITAuthorityState", Admin(Verb::AuthorityRead)),
    call("/spire.api.server.localauthority.v1.LocalAuthority/PrepareWITAuthority", Admin(Verb::AuthorityRotate)),
    call("/spire.api.server.localauthority.v1.LocalAuthority/ActivateWITAuthority", Admin(Verb::AuthorityRotate)),
    call("/spire.api.server.localauthority.v1.LocalAuthority/TaintWITAuthority", Admin(Verb::AuthorityTaint)),
    call("/spire.api.server.localauthority.v1.LocalAuthority/RevokeWITAuthority", Admin(Verb::AuthorityRevoke)),
    call("/spire.api.server.logger.v1.Logger/GetLogger", Admin(Verb::ServerRead)),
    call("/spire.api.server.logger.v1.Logger/SetLogLevel", Admin(Verb::ServerWrite)),
    call("/spire.api.server.logger.v1.Logger/ResetLogLevel", Admin(Verb::ServerWrite)),
    call("/spire.api.server.svid.v1.SVID/MintX509SVID", Admin(Verb::Mint)),
    call("/spire.api.server.svid.v1.SVID/MintJWTSVID", Admin(Verb::Mint)),
    call("/spire.api.server.svid.v1.SVID/MintWITSVID", Admin(Verb::Mint)),
    call("/spire.api.server.svid.v1.SVID/BatchNewX509SVID", Agent),
    call("/spire.api.server.svid.v1.SVID/NewJWTSVID", Agent),
    call("/spire.api.server.svid.v1.SVID/BatchNewWITSVID", Agent),
    call("/spire.api.server.svid.v1.SVID/NewDownstreamX509CA", Member),
    call("/spire.api.server.trustdomain.v1.TrustDomain/ListFederationRelationships", Admin(Verb::FederationRead)),
    call("/spire.api.server.trustdomain.v1.TrustDomain/GetFederationRelationship", Admin(Verb::FederationRead)),
    call(
        "/spire.api.server.trustdomain.v1.TrustDomain/BatchCreateFederationRelationship",
        Admin(Verb::FederationWrite),
    ),
    call(
        "/spire.api.server.trustdomain.v1.TrustDomain/BatchUpdateFederationRelationship",
        Admin(Verb::FederationWrite),
    ),
    call(
        "/spire.api.server.trustdomain.v1.TrustDomain/BatchDeleteFederationRelationship",
        Admin(Verb::FederationWrite),
    ),
    call("/spire.api.server.trustdomain.v1.TrustDomain/RefreshBundle", Admin(Verb::FederationWrite)),
    call("/kasbah.ca.v1.Audit/ListRecords", Admin(Verb::AuditRead)),
    call("/kasbah.ca.v1.Custody/GetCustody", Admin(Verb::AuthorityRead)),
    call("/kasbah.ca.v1.Custody/ImportAuthority", Admin(Verb::AuthorityRotate)),
    call("/kasbah.ca.v1.Custody/MakeCsr", Admin(Verb::AuthorityRotate)),
    call("/kasbah.ca.v1.Custody/InstallCertificate", Admin(Verb::AuthorityRotate)),
    call("/kasbah.ca.v1.Federation/ListStates", Admin(Verb::FederationRead)),
    call("/kasbah.ca.v1.IssuancePolicy/Explain", Admin(Verb::PolicyRead)),
    call("/kasbah.ca.v1.Log/GetSignedTreeHead", Member),
    call("/kasbah.ca.v1.Log/GetEntries", Admin(Verb::LogRead)),
    call("/kasbah.ca.v1.Log/GetInclusionProof", Admin(Verb::LogRead)),
    call("/kasbah.ca.v1.Log/GetConsistencyProof", Member),
    call("/kasbah.ca.v1.Registration/ApplyEntries", Admin(Verb::EntryWrite)),
    call("/kasbah.ca.v1.Revocation/Preview", Admin(Verb::Revoke)),
    call("/kasbah.ca.v1.Revocation/Revoke", Admin(Verb::Revoke)),
    call("/kasbah.ca.v1.Revocation/ListRevocations", Admin(Verb::AuditRead)),
    call("/kasbah.ca.v1.Rights/Explain", Admin(Verb::RightsRead)),
    // Who may decide is a matter of the request's own verb.
    call("/kasbah.ca.v1.Rights/ListApprovals", Member),
    call("/kasbah.ca.v1.Rights/DecideApproval", Member),
    call("/kasbah.ca.v1.Rotation/Status", Admin(Verb::AuthorityRead)),
    call("/kasbah.ca.v1.Rotation/Start", Admin(Verb::AuthorityRotate)),
    call("/kasbah.ca.v1.Rotation/Resume", Admin(Verb::AuthorityRotate)),
    call("/kasbah.ca.v1.Rotation/Waive", Admin(Verb::AuthorityRotate)),
    call("/kasbah.ca.v1.Rotation/Abort", Admin(Verb::AuthorityRotate)),
    call("/kasbah.ca.v1.Rotation/Receipt", Admin(Verb::AuthorityRead)),
    call("/kasbah.node.v1.Node/Watch", Agent),
    call("/kasbah.node.v1.Node/FetchRevocations", Agent),
    call("/grpc.health.v1.Health/Check", Anyone),
    call("/grpc.health.v1.Health/Watch", Anyone),
    call("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Member),
    call("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Member),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;

    use super::*;

    /// A call without a right does not pass: the gate serves only what stands here.
    #[test]
    fn every_call_of_every_service_has_exactly_one_right() {
        let set = prost_types::FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut offered = BTreeSet::new();
        for file in set.file.iter().filter(|file| is_ours(file.package())) {
            for service in &file.service {
                for method in &service.method {
                    offered.insert(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
                }
            }
        }
        let listed: Vec<&str> = CALLS.iter().map(|call| call.path).filter(|path| !path.starts_with("/grpc.")).collect();
        let unique: BTreeSet<String> = listed.iter().map(|path| (*path).to_owned()).collect();
        assert_eq!(unique.len(), listed.len(), "a call stands twice");
        assert_eq!(unique, offered);
    }

    fn is_ours(package: &str) -> bool {
        package.starts_with("spire.api.server.") || package.starts_with("kasbah.ca.") || package == "kasbah.node.v1"
    }
}

//! Rotations as operators and nodes meet them: nodes that were away find their way back, whoever lags is named.

use identity::tls::{FixedSnapshot, PeerRule};
use identity::transparency::LogPublicKey;
use proto::kasbah::ca::v1::rotation_client::RotationClient;
use proto::kasbah::ca::v1::{
    AbortRequest, Kind, ReceiptRequest, StartRequest, StatusRequest, StatusResponse, WaiveRequest,
};
use proto::spire::api::server::localauthority::v1::{
    ActivateX509AuthorityRequest, GetJwtAuthorityStateRequest, PrepareJwtAuthorityRequest, RevokeX509AuthorityRequest,
    TaintX509AuthorityRequest, TaintX509UpstreamAuthorityRequest,
};
use tonic::transport::Channel;

use super::*;

/// An authority with an operator.
struct Scene {
    ca: Running,
    operator: Channel,
}

impl Scene {
    async fn new() -> Self {
        let ca = Running::start().await;
        let operator = ca.local().await;
        Self { ca, operator }
    }

    fn authorities(&self) -> LocalAuthorityClient<Channel> {
        LocalAuthorityClient::new(self.operator.clone())
    }

    fn rotations(&self) -> RotationClient<Channel> {
        RotationClient::new(self.operator.clone())
    }

    async fn status(&self) -> StatusResponse {
        self.rotations().status(StatusRequest::default()).await.unwrap().into_inner()
    }

    /// The IDs of the roots, the one that signs last.
    async fn roots(&self) -> Vec<String> {
        self.status().await.authorities.into_iter().map(|authority| authority.id).collect()
    }

    async fn prepare(&self) {
        self.authorities().prepare_x509_authority(PrepareX509AuthorityRequest {}).await.unwrap();
    }

    async fn activate(&self) -> Result<(), Status> {
        let authority_id = self.roots().await.pop().unwrap();
        self.authorities().activate_x509_authority(ActivateX509AuthorityRequest { authority_id }).await.map(drop)
    }

    async fn taint(&self, authority_id: &str) -> Result<(), Status> {
        let request = TaintX509AuthorityRequest { authority_id: authority_id.into() };
        self.authorities().taint_x509_authority(request).await.map(drop)
    }

    async fn revoke(&self, authority_id: &str) -> Result<(), Status> {
        let request = RevokeX509AuthorityRequest { authority_id: authority_id.into() };
        self.authorities().revoke_x509_authority(request).await.map(drop)
    }

    async fn waive(&self, node: &X509Svid) {
        let request = WaiveRequest { kind: Kind::X509.into(), node_id: node.id().to_string() };
        self.rotations().waive(request).await.unwrap();
    }

    /// The node says that it enforces the present bundle.
    async fn acknowledge(&self, node: &Node) {
        let current_bundle_serial = self.status().await.bundle_sequence;
        let request = PostStatusRequest { current_bundle_serial, agent_version: "1".into() };
        AgentClient::new(node.channel(&self.ca)).post_status(request).await.unwrap();
    }

    /// Waits until the server is signed by the root that signs for everybody.
    async fn until_server_follows(&self, node: &Node) {
        for _ in 0..500 {
            let bundle = BundleClient::new(node.channel(&self.ca)).get_bundle(GetBundleRequest::default()).await;
            if bundle.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the server's SVID did not follow");
    }
}

/// A node with what it has on its disk.
struct Node {
    svid: Arc<X509Svid>,
    knows: FixedSnapshot,
}

impl Node {
    async fn join(ca: &Running) -> Self {
        let svid = ca.node(None).await;
        Self { knows: ca.snapshot(Some(&svid)), svid }
    }

    /// A connection that judges the server by what the node knows.
    fn channel(&self, ca: &Running) -> Channel {
        let knows = FixedSnapshot { svid: Some(self.svid.clone()), bundles: self.knows.bundles.clone() };
        let peers = PeerRule::exactly(id("/spire/server"));
        runtime::mtls::channel(&ca.addresses.grpc.to_string(), Arc::new(knows), peers)
    }

    /// Takes the bundle that is in force.
    fn fetch(&mut self, ca: &Running) {
        self.knows.bundles = ca.certifier.authorities.current().bundles.clone();
    }

    async fn renew(&mut self, ca: &Running) -> Result<(), Status> {
        let key = PrivateKey::generate_p256().unwrap();
        let params = Some(AgentX509svidParams { csr: key.csr_der(None).unwrap() });
        let answer = AgentClient::new(self.channel(ca)).renew_agent(RenewAgentRequest { params }).await?;
        self.svid = svid_of(answer.into_inner().svid.unwrap(), key);
        Ok(())
    }
}

async fn a_step_waits_for_every_node_and_names_who_lags() {
    let scene = Scene::new().await;
    let (one, two) = (Node::join(&scene.ca).await, Node::join(&scene.ca).await);
    scene.prepare().await;
    let refused = scene.activate().await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains(one.svid.id().as_str()) && refused.message().contains("2 of 2"), "{refused}");
    scene.acknowledge(&one).await;
    let status = scene.status().await;
    assert_eq!(
        (status.phase.as_str(), status.acknowledged, status.total, status.safe_to_proceed),
        ("prepared", 1, 2, false)
    );
    assert_eq!(status.laggards[0].id, two.svid.id().to_string());
    assert_eq!(status.laggards[0].reason, "BUNDLE_NOT_FETCHED");
    assert_eq!(reason(scene.activate().await), "ROTATION_NOT_ACKNOWLEDGED");
    scene.acknowledge(&two).await;
    assert!(scene.status().await.safe_to_proceed);
    scene.activate().await.unwrap();
}

async fn a_node_that_was_down_when_its_server_changed_authority_comes_back() {
    let scene = Scene::new().await;
    let (mut there, mut away) = (Node::join(&scene.ca).await, Node::join(&scene.ca).await);
    scene.acknowledge(&there).await;
    scene.acknowledge(&away).await;
    let old = scene.roots().await.pop().unwrap();
    scene.prepare().await;
    there.fetch(&scene.ca);
    scene.acknowledge(&there).await;
    assert_eq!(reason(scene.activate().await), "ROTATION_NOT_ACKNOWLEDGED");
    scene.waive(&away.svid).await;
    scene.activate().await.unwrap();
    scene.taint(&old).await.unwrap();
    // It knows the old root alone, and its SVID is of the old root; both still do.
    let bundle = BundleClient::new(away.channel(&scene.ca)).get_bundle(GetBundleRequest::default()).await;
    let bundle = bundle.unwrap().into_inner();
    let tainted: Vec<bool> = bundle.x509_authorities.iter().map(|root| root.tainted).collect();
    assert_eq!(tainted.iter().filter(|tainted| **tainted).count(), 1, "it sees the mark");
    away.renew(&scene.ca).await.unwrap();
    away.fetch(&scene.ca);
    scene.acknowledge(&away).await;
    there.renew(&scene.ca).await.unwrap();
    scene.acknowledge(&there).await;
    scene.revoke(&old).await.unwrap();
    for node in [&mut there, &mut away] {
        node.fetch(&scene.ca);
        scene.until_server_follows(node).await;
        node.renew(&scene.ca).await.unwrap();
    }
}

async fn a_node_that_slept_through_a_whole_rotation_joins_anew() {
    let scene = Scene::new().await;
    let asleep = Node::join(&scene.ca).await;
    // Its SVID ran out: nobody waits for it any more.
    let expire = scene.ca.certifier.store.change_agent(asleep.svid.id(), |agent| agent.expires_at = 1);
    expire.await.unwrap();
    let old = scene.roots().await.pop().unwrap();
    scene.rotations().start(StartRequest::default()).await.unwrap();
    for _ in 0..500 {
        if scene.status().await.phase == "idle" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!scene.roots().await.contains(&old), "the server took every step by itself");
    let stranger = BundleClient::new(asleep.channel(&scene.ca)).get_bundle(GetBundleRequest::default()).await;
    assert!(stranger.is_err(), "it cannot trust a server whose root it never heard of");
    let mut back = Node::join(&scene.ca).await;
    back.fetch(&scene.ca);
    scene.until_server_follows(&back).await;
    back.renew(&scene.ca).await.unwrap();
}

async fn an_authority_several_rotations_back_is_tainted_and_revoked() {
    let scene = Scene::new().await;
    let mut node = Node::join(&scene.ca).await;
    for _ in 0..3 {
        scene.prepare().await;
        node.fetch(&scene.ca);
        scene.acknowledge(&node).await;
        scene.activate().await.unwrap();
    }
    let roots = scene.roots().await;
    assert_eq!(roots.len(), 4);
    scene.taint(&roots[0]).await.unwrap();
    assert_eq!(reason(scene.revoke(&roots[0]).await), "ROTATION_NOT_ACKNOWLEDGED");
    node.renew(&scene.ca).await.unwrap();
    scene.acknowledge(&node).await;
    scene.revoke(&roots[0]).await.unwrap();
    assert_eq!(scene.roots().await, roots[1..]);
}

async fn steps_out_of_order_have_the_codes_that_tools_know() {
    let scene = Scene::new().await;
    let active = scene.roots().await.pop().unwrap();
    let code = |outcome: Result<(), Status>| outcome.unwrap_err().code();
    assert_eq!(code(scene.activate().await), Code::FailedPrecondition);
    assert_eq!(code(scene.taint(&active).await), Code::InvalidArgument);
    assert_eq!(code(scene.revoke(&active).await), Code::InvalidArgument);
    assert_eq!(code(scene.taint("nobody").await), Code::InvalidArgument);
    let upstream = TaintX509UpstreamAuthorityRequest { subject_key_id: active };
    let refused = scene.authorities().taint_x509_upstream_authority(upstream).await;
    assert_eq!(refused.unwrap_err().code(), Code::FailedPrecondition);
    let abort = scene.rotations().abort(AbortRequest::default()).await;
    assert_eq!(reason(abort), "AUTHORITY_STATE");
    let waive = WaiveRequest { kind: Kind::X509.into(), node_id: "spiffe://example.org/nobody".into() };
    assert_eq!(scene.rotations().waive(waive).await.unwrap_err().code(), Code::NotFound);
}

async fn a_jwt_key_is_rotated_in_the_same_way() {
    let scene = Scene::new().await;
    let prepared = scene.authorities().prepare_jwt_authority(PrepareJwtAuthorityRequest {}).await.unwrap();
    let prepared = prepared.into_inner().prepared_authority.unwrap().authority_id;
    let state = scene.authorities().get_jwt_authority_state(GetJwtAuthorityStateRequest {}).await.unwrap();
    let state = state.into_inner();
    assert_eq!(state.prepared.unwrap().authority_id, prepared);
    assert_ne!(state.active.unwrap().authority_id, prepared);
    let abort = AbortRequest { kind: Kind::Jwt.into() };
    let status = scene.rotations().abort(abort).await.unwrap().into_inner();
    assert_eq!((status.phase.as_str(), status.authorities.len()), ("idle", 1));
}

async fn the_receipt_names_who_acknowledged_and_who_was_waived_and_is_signed() {
    let scene = Scene::new().await;
    let (mut good, away) = (Node::join(&scene.ca).await, Node::join(&scene.ca).await);
    let receipt = || async {
        let answer = scene.rotations().receipt(ReceiptRequest::default()).await?.into_inner();
        let key = LogPublicKey::from_spki_der(&answer.log_key).unwrap();
        key.verify_statement(&answer.document, &answer.signature).unwrap();
        let forged = [&answer.document[..], b" "].concat();
        assert!(key.verify_statement(&forged, &answer.signature).is_err());
        Ok::<serde_json::Value, Status>(serde_json::from_slice(&answer.document).unwrap())
    };
    assert_eq!(reason(receipt().await), "ROTATION_UNKNOWN");
    let old = scene.roots().await.pop().unwrap();
    scene.prepare().await;
    scene.rotations().abort(AbortRequest::default()).await.unwrap();
    let aborted = receipt().await.unwrap();
    assert_eq!((&aborted["result"], aborted["steps"].as_array().unwrap().len()), (&"aborted".into(), 2), "{aborted}");
    // In the same second, most of the time, and another rotation all the same.
    scene.prepare().await;
    scene.acknowledge(&good).await;
    assert_eq!(receipt().await.unwrap()["result"], "under way");
    scene.waive(&away.svid).await;
    scene.activate().await.unwrap();
    scene.taint(&old).await.unwrap();
    good.fetch(&scene.ca);
    good.renew(&scene.ca).await.unwrap();
    scene.acknowledge(&good).await;
    scene.revoke(&old).await.unwrap();
    let document = receipt().await.unwrap();
    let steps = document["steps"].as_array().unwrap();
    let names: Vec<&str> = steps.iter().map(|step| step["step"].as_str().unwrap()).collect();
    assert_eq!(names, ["prepare", "waive", "activate", "taint", "revoke"]);
    assert_eq!((&document["result"], &document["kind"]), (&"done".into(), &"root".into()));
    let activate = &steps[2];
    assert_eq!((&activate["by"], &activate["bundle_sequence"]), (&"local".into(), &4.into()), "{activate}");
    assert_eq!(activate["acknowledged"].as_array().unwrap().len(), 1, "{activate}");
    assert_eq!(activate["acknowledged"][0]["node"], good.svid.id().as_str(), "{activate}");
    assert_eq!(activate["waived"][0], away.svid.id().as_str(), "{activate}");
}

crate::testing::database::on_each_database! {
    the_receipt_names_who_acknowledged_and_who_was_waived_and_is_signed,
    a_step_waits_for_every_node_and_names_who_lags,
    a_node_that_was_down_when_its_server_changed_authority_comes_back,
    a_node_that_slept_through_a_whole_rotation_joins_anew,
    an_authority_several_rotations_back_is_tainted_and_revoked,
    steps_out_of_order_have_the_codes_that_tools_know,
    a_jwt_key_is_rotated_in_the_same_way,
}

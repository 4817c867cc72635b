//! The steps, one by one.

use super::*;

/// `r0` is active since bundle 1.
fn line() -> Line {
    Line { members: vec![member("r0", Stage::Active, 1)], ..Line::default() }
}

fn member(id: &str, stage: Stage, published: u64) -> Member {
    Member { id: id.into(), stage, not_before: 0, not_after: 1_000, published, tainted: 0 }
}

fn node(id: &str, enforced: u64) -> Node {
    Node { id: id.into(), enforced }
}

/// Takes steps in a world of `nodes`, the bundle growing from 1.
struct Scene {
    line: Line,
    sequence: u64,
    nodes: Vec<Node>,
    now: i64,
}

impl Scene {
    fn new(nodes: &[Node]) -> Self {
        Self { line: line(), sequence: 1, nodes: nodes.to_vec(), now: 10 }
    }

    fn take(&mut self, step: Step) -> Result<(), Refused> {
        let world = World { nodes: &self.nodes, next_sequence: self.sequence + 1, now: self.now, in_use_until: 0 };
        let moved = self.line.take(&step, world)?;
        self.sequence += u64::from(moved.publishes);
        self.line = moved.line;
        Ok(())
    }

    fn prepare(&mut self, id: &str) -> Result<(), Refused> {
        self.take(Step::Prepare(member(id, Stage::Prepared, 0), Mode::Steps))
    }

    fn enforce(&mut self, sequence: u64) {
        self.nodes.iter_mut().for_each(|node| node.enforced = sequence);
    }

    fn rotate(&mut self, id: &str) {
        self.prepare(id).unwrap();
        self.enforce(self.sequence);
        self.take(Step::Activate(id.into())).unwrap();
    }

    fn stages(&self) -> Vec<(&str, Stage)> {
        self.line.members.iter().map(|member| (member.id.as_str(), member.stage)).collect()
    }
}

fn waits(outcome: Result<(), Refused>) -> Vec<String> {
    match outcome {
        Err(Refused::NotAcknowledged { laggards, .. }) => laggards,
        other => panic!("not waiting: {other:?}"),
    }
}

#[test]
fn every_step_waits_for_every_node() {
    let mut scene = Scene::new(&[node("a", 1), node("b", 1)]);
    scene.prepare("r1").unwrap();
    assert_eq!(waits(scene.take(Step::Activate("r1".into()))), ["a", "b"]);
    scene.nodes[0].enforced = 2;
    assert_eq!(waits(scene.take(Step::Activate("r1".into()))), ["b"]);
    scene.nodes[1].enforced = 2;
    scene.take(Step::Activate("r1".into())).unwrap();
    // A node that came since does not know the new one yet.
    scene.nodes.push(node("c", 0));
    assert_eq!(waits(scene.take(Step::Taint("r0".into()))), ["c"]);
    scene.enforce(2);
    scene.take(Step::Taint("r0".into())).unwrap();
    assert_eq!(waits(scene.take(Step::Revoke("r0".into()))), ["a", "b", "c"]);
    scene.enforce(3);
    scene.take(Step::Revoke("r0".into())).unwrap();
    assert_eq!((scene.stages(), scene.line.phase()), (vec![("r1", Stage::Active)], Phase::Idle));
}

#[test]
fn a_waived_node_is_not_waited_for_in_this_rotation_alone() {
    let mut scene = Scene::new(&[node("a", 1), node("b", 1)]);
    assert_eq!(scene.take(Step::Waive("b".into())), Err(Refused::Idle));
    scene.prepare("r1").unwrap();
    assert_eq!(scene.take(Step::Waive("x".into())), Err(Refused::NodeUnknown));
    scene.take(Step::Waive("b".into())).unwrap();
    scene.nodes[0].enforced = 2;
    scene.take(Step::Activate("r1".into())).unwrap();
    scene.take(Step::Taint("r0".into())).unwrap();
    scene.nodes[0].enforced = 3;
    scene.take(Step::Revoke("r0".into())).unwrap();
    scene.prepare("r2").unwrap();
    assert_eq!(waits(scene.take(Step::Activate("r2".into()))), ["a", "b"]);
}

#[test]
fn steps_out_of_order_are_refused() {
    let mut scene = Scene::new(&[]);
    let refused = |scene: &mut Scene, step, expected| assert_eq!(scene.take(step), Err(expected));
    refused(&mut scene, Step::Activate("x".into()), Refused::Unknown("x".into()));
    refused(&mut scene, Step::Activate("r0".into()), Refused::NotPrepared);
    refused(&mut scene, Step::Taint("r0".into()), Refused::IsActive);
    refused(&mut scene, Step::Revoke("r0".into()), Refused::IsActive);
    refused(&mut scene, Step::Abort, Refused::Idle);
    refused(&mut scene, Step::Resume, Refused::Idle);
    scene.prepare("r1").unwrap();
    assert_eq!(scene.prepare("r2"), Err(Refused::AlreadyPrepared));
    refused(&mut scene, Step::Taint("r1".into()), Refused::NotOld);
    refused(&mut scene, Step::Revoke("r1".into()), Refused::NotTainted);
    scene.take(Step::Activate("r1".into())).unwrap();
    refused(&mut scene, Step::Revoke("r0".into()), Refused::NotTainted);
    scene.take(Step::Taint("r0".into())).unwrap();
    refused(&mut scene, Step::Taint("r0".into()), Refused::NotOld);
}

#[test]
fn an_authority_several_rotations_back_is_withdrawn() {
    let mut scene = Scene::new(&[node("a", 1)]);
    for id in ["r1", "r2", "r3"] {
        scene.rotate(id);
    }
    assert_eq!(scene.line.newest(Stage::Old).unwrap().id, "r2");
    scene.take(Step::Taint("r0".into())).unwrap();
    assert_eq!(waits(scene.take(Step::Revoke("r0".into()))), ["a"]);
    scene.enforce(scene.sequence);
    scene.take(Step::Revoke("r0".into())).unwrap();
    let left = [("r1", Stage::Old), ("r2", Stage::Old), ("r3", Stage::Active)];
    assert_eq!(scene.stages(), left);
    assert_eq!(scene.line.phase(), Phase::Activated, "the rotation to r3 goes on");
}

#[test]
fn abort_goes_back_from_every_step() {
    let mut scene = Scene::new(&[node("a", 1)]);
    scene.prepare("r1").unwrap();
    scene.take(Step::Abort).unwrap();
    assert_eq!((scene.stages(), scene.sequence), (vec![("r0", Stage::Active)], 3));
    scene.rotate("r2");
    scene.take(Step::Abort).unwrap();
    assert_eq!(scene.stages(), [("r0", Stage::Active), ("r2", Stage::Old)]);
    scene.rotate("r3");
    scene.take(Step::Taint("r0".into())).unwrap();
    let sequence = scene.sequence;
    scene.take(Step::Abort).unwrap();
    assert_eq!(scene.stages(), [("r0", Stage::Active), ("r2", Stage::Old), ("r3", Stage::Old)]);
    assert_eq!((scene.line.member("r0").unwrap().tainted, scene.sequence), (0, sequence + 1), "the mark is taken off");
    scene.rotate("r4");
    scene.now = 1_000;
    assert_eq!(scene.take(Step::Abort), Err(Refused::Ended), "the old one can sign no more");
}

#[test]
fn the_number_of_trusted_authorities_is_limited() {
    let mut scene = Scene::new(&[]);
    for number in 1..MEMBERS_MAX {
        scene.rotate(&format!("r{number}"));
    }
    assert_eq!(scene.prepare("one more"), Err(Refused::TooMany));
    scene.take(Step::Taint("r0".into())).unwrap();
    scene.take(Step::Revoke("r0".into())).unwrap();
    scene.prepare("one more").unwrap();
}

#[test]
fn the_server_is_signed_by_what_the_slowest_node_knows() {
    let mut scene = Scene::new(&[node("a", 1), node("b", 1)]);
    let signer = |scene: &Scene| scene.line.signs_for_server(&scene.nodes).unwrap().id.clone();
    scene.prepare("r1").unwrap();
    scene.take(Step::Waive("b".into())).unwrap();
    scene.nodes[0].enforced = 2;
    scene.take(Step::Activate("r1".into())).unwrap();
    assert_eq!(signer(&scene), "r0", "b would not find its way back");
    scene.take(Step::Taint("r0".into())).unwrap();
    assert_eq!(signer(&scene), "r0");
    scene.nodes[1].enforced = 3;
    assert_eq!(signer(&scene), "r1");
    scene.nodes[1].enforced = 0;
    assert_eq!(signer(&scene), "r1", "nothing that it knows is left");
    scene.nodes.clear();
    assert_eq!(signer(&scene), "r1");
}

#[test]
fn a_long_list_of_laggards_is_cut() {
    let nodes: Vec<Node> = (0..50).map(|number| node(&format!("n{number}"), 1)).collect();
    let mut scene = Scene::new(&nodes);
    scene.prepare("r1").unwrap();
    let text = scene.take(Step::Activate("r1".into())).unwrap_err().to_string();
    assert!(text.starts_with("50 of 50 nodes") && text.ends_with("n9, …"), "{text}");
}

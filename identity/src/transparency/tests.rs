//! The tree beside the RFC's own recursive definition, exhaustively for small sizes, and the RFC's known values.

use proptest::prelude::*;

use super::*;

/// Leaves as the reference implementation of Certificate Transparency uses them in its tests.
const KNOWN_LEAVES: [&[u8]; 8] = [
    b"",
    b"\x00",
    b"\x10",
    b"\x20\x21",
    b"\x30\x31",
    b"\x40\x41\x42\x43",
    b"\x50\x51\x52\x53\x54\x55\x56\x57",
    b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
];
const KNOWN_ROOTS: [&str; 8] = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];

fn leaves(count: u64) -> Vec<Hash> {
    (0..count).map(|n| leaf_hash(&n.to_be_bytes())).collect()
}

/// MTH of RFC 6962, section 2.1, word for word.
fn reference_root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => empty_root(),
        [one] => *one,
        _ => {
            let (left, right) = leaves.split_at(reference_split(leaves.len()));
            node_hash(&reference_root(left), &reference_root(right))
        }
    }
}

/// PATH of RFC 6962, section 2.1.1.
fn reference_path(index: usize, leaves: &[Hash]) -> Vec<Hash> {
    if leaves.len() <= 1 {
        return Vec::new();
    }
    let split = reference_split(leaves.len());
    let (left, right) = leaves.split_at(split);
    let (mut path, sibling) = if index < split {
        (reference_path(index, left), reference_root(right))
    } else {
        (reference_path(index - split, right), reference_root(left))
    };
    path.push(sibling);
    path
}

/// SUBPROOF of RFC 6962, section 2.1.2.
fn reference_subproof(old: usize, leaves: &[Hash], whole: bool) -> Vec<Hash> {
    if old == leaves.len() {
        return if whole { Vec::new() } else { vec![reference_root(leaves)] };
    }
    let split = reference_split(leaves.len());
    let (left, right) = leaves.split_at(split);
    let (mut proof, sibling) = if old <= split {
        (reference_subproof(old, left, whole), reference_root(right))
    } else {
        (reference_subproof(old - split, right, false), reference_root(left))
    };
    proof.push(sibling);
    proof
}

fn reference_split(size: usize) -> usize {
    let mut split = 1;
    while split * 2 < size {
        split *= 2;
    }
    split
}

/// A tree that was appended leaf by leaf, with every full subtree it was told of.
struct Grown {
    frontier: Frontier,
    nodes: std::collections::BTreeMap<Node, Hash>,
}

impl Grown {
    fn of(leaves: &[Hash]) -> Self {
        let mut grown = Self { frontier: Frontier::new(), nodes: std::collections::BTreeMap::new() };
        for leaf in leaves {
            let nodes = &mut grown.nodes;
            grown.frontier.append(*leaf, |node, hash| {
                assert!(nodes.insert(node, hash).is_none(), "{node:?} is told twice");
            });
        }
        grown
    }

    fn assemble(&self, plan: &Plan) -> Vec<Hash> {
        plan.assemble(|node| self.nodes.get(&node).copied()).expect("every full subtree was told")
    }
}

#[test]
fn known_trees_have_their_known_roots() {
    let mut frontier = Frontier::new();
    assert_eq!(
        digest::hex(&frontier.root()),
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "the root over nothing"
    );
    for (leaf, root) in KNOWN_LEAVES.iter().zip(KNOWN_ROOTS) {
        frontier.append(leaf_hash(leaf), |_, _| ());
        assert_eq!(digest::hex(&frontier.root()), root, "{} leaves", frontier.size());
    }
}

#[test]
fn every_proof_of_every_small_tree_is_the_rfcs_and_verifies() {
    let leaves = leaves(SIZES);
    let grown = Grown::of(&leaves);
    let mut frontier = Frontier::new();
    for size in 0..=SIZES {
        let tree = &leaves[..size as usize];
        let root = reference_root(tree);
        assert_eq!(frontier.root(), root, "size {size}");
        let stored = Frontier::from_parts(size, frontier.hashes().to_vec()).expect("fits");
        assert_eq!(stored, frontier);
        let of_tree: Vec<Hash> = Node::of_tree(size).iter().map(|node| grown.nodes[node]).collect();
        assert_eq!(of_tree, frontier.hashes(), "the frontier of {size} can be read from the nodes");
        for index in 0..size {
            let proof = grown.assemble(&Plan::inclusion(index, size).unwrap());
            assert_eq!(proof, reference_path(index as usize, tree), "leaf {index} of {size}");
            verify_inclusion(&leaves[index as usize], index, size, &proof, &root).unwrap();
        }
        if let Some(leaf) = leaves.get(size as usize) {
            frontier.append(*leaf, |_, _| ());
        }
    }
}

#[test]
fn every_growth_of_every_small_tree_is_proven() {
    let leaves = leaves(SIZES);
    let grown = Grown::of(&leaves);
    let roots: Vec<Hash> = (0..=SIZES).map(|size| reference_root(&leaves[..size as usize])).collect();
    for new in 0..=SIZES {
        for old in 0..=new {
            let proof = grown.assemble(&Plan::consistency(old, new).unwrap());
            if old > 0 {
                assert_eq!(proof, reference_subproof(old as usize, &leaves[..new as usize], true), "{old} to {new}");
            }
            verify_consistency(old, &roots[old as usize], new, &roots[new as usize], &proof)
                .unwrap_or_else(|error| panic!("{old} to {new}: {error}"));
        }
    }
}

#[test]
fn what_is_outside_of_the_tree_is_refused() {
    assert_eq!(Plan::inclusion(5, 5), Err(TransparencyError::NoSuchLeaf { index: 5, size: 5 }));
    assert_eq!(Plan::consistency(6, 5), Err(TransparencyError::Shrunk { old: 6, new: 5 }));
    assert!(Plan::inclusion(0, u64::MAX).is_err() && Plan::consistency(1, u64::MAX).is_err());
    let hash = [0; 32];
    assert!(verify_inclusion(&hash, 0, 0, &[], &hash).is_err());
    assert!(verify_inclusion(&hash, u64::MAX, u64::MAX, &[], &hash).is_err());
    assert!(verify_inclusion(&hash, u64::MAX - 1, u64::MAX, &vec![hash; 100], &hash).is_err());
    assert!(verify_consistency(u64::MAX - 1, &hash, u64::MAX, &hash, &vec![hash; 100]).is_err());
    assert!(verify_consistency(3, &hash, 2, &hash, &[]).is_err());
    assert!(verify_consistency(3, &hash, 4, &hash, &[]).is_err(), "an empty proof");
    assert!(Frontier::from_parts(3, vec![hash]).is_none());
}

/// A tree, one change of its proof, and the hash it changes.
fn tampered(size: u64) -> impl Strategy<Value = (u64, u64, usize, u8)> {
    (2..=size).prop_flat_map(|size| (0..size, Just(size), any::<usize>(), any::<u8>()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_changed_proof_of_inclusion_verifies((index, size, at, bit) in tampered(SIZES)) {
        let leaves = leaves(size);
        let root = reference_root(&leaves);
        let proof = reference_path(index as usize, &leaves);
        let leaf = leaves[index as usize];
        let check = |leaf: &Hash, index, size, proof: &[Hash], root: &Hash| verify_inclusion(leaf, index, size, proof, root);
        let flip = |hash: &Hash| { let mut hash = *hash; hash[usize::from(bit) / 8] ^= 1 << (bit % 8); hash };
        let mut changed = proof.clone();
        let place = at % proof.len();
        changed[place] = flip(&changed[place]);
        prop_assert!(check(&leaf, index, size, &changed, &root).is_err(), "a hash of the proof");
        prop_assert!(check(&flip(&leaf), index, size, &proof, &root).is_err(), "the leaf");
        prop_assert!(check(&leaf, index, size, &proof, &flip(&root)).is_err(), "the root");
        prop_assert!(check(&leaf, index, size, &proof[1..], &root).is_err(), "one hash less in front");
        prop_assert!(check(&leaf, index, size, &proof[..proof.len() - 1], &root).is_err(), "one hash less at the end");
        let longer: Vec<Hash> = proof.iter().copied().chain([root]).collect();
        prop_assert!(check(&leaf, index, size, &longer, &root).is_err(), "one hash more");
        for other in (0..size).filter(|other| *other != index) {
            prop_assert!(check(&leaf, other, size, &proof, &root).is_err(), "at {} instead", other);
        }
    }

    #[test]
    fn no_changed_proof_of_growth_verifies((old, new, at, bit) in tampered(SIZES)) {
        prop_assume!(old > 0);
        let leaves = leaves(new);
        let (old_root, root) = (reference_root(&leaves[..old as usize]), reference_root(&leaves));
        let proof = reference_subproof(old as usize, &leaves, true);
        let flip = |hash: &Hash| { let mut hash = *hash; hash[usize::from(bit) / 8] ^= 1 << (bit % 8); hash };
        let mut changed = proof.clone();
        let place = at % proof.len();
        changed[place] = flip(&changed[place]);
        prop_assert!(verify_consistency(old, &old_root, new, &root, &changed).is_err(), "a hash of the proof");
        prop_assert!(verify_consistency(old, &flip(&old_root), new, &root, &proof).is_err(), "the old root");
        prop_assert!(verify_consistency(old, &old_root, new, &flip(&root), &proof).is_err(), "the new root");
        prop_assert!(verify_consistency(old, &old_root, new, &root, &proof[1..]).is_err(), "one hash less");
        let longer: Vec<Hash> = proof.iter().copied().chain([root]).collect();
        prop_assert!(verify_consistency(old, &old_root, new, &root, &longer).is_err(), "one hash more");
    }

    /// A log that replaced any one leaf of its past cannot prove its growth, whatever it sends of its own tree.
    #[test]
    fn a_rewritten_history_has_no_proof((old, new, victim, _bit) in tampered(SIZES)) {
        prop_assume!(old > 0);
        let honest = leaves(new);
        let mut rewritten = honest.clone();
        rewritten[victim % old as usize] = leaf_hash(b"another");
        let proof = reference_subproof(old as usize, &rewritten, true);
        let old_root = reference_root(&honest[..old as usize]);
        prop_assert!(verify_consistency(old, &old_root, new, &reference_root(&rewritten), &proof).is_err());
    }
}

#[test]
fn proofs_of_huge_trees_are_short_and_planned_at_once() {
    let size = 1_000_000_007;
    for index in [0, 1, size / 3, size - 2, size - 1] {
        let plan = Plan::inclusion(index, size).unwrap();
        assert!(plan.0.len() <= 30 && plan.nodes().count() < 64, "{} of {}", plan.0.len(), plan.nodes().count());
        assert!(plan.nodes().all(|node| node.leaves().1 <= size));
    }
    assert!(Plan::consistency(999_999_937, size).unwrap().nodes().count() < 64);
}

#[test]
fn a_head_verifies_with_its_own_key_only() {
    let (key, other) = (LogKey::generate().unwrap(), LogKey::generate().unwrap());
    let head = TreeHead { size: 7, root: [9; 32], timestamp_ms: 1_700_000_000_123 };
    let signed = key.sign(head.clone()).unwrap();
    key.public().verify(&signed).unwrap();
    assert_eq!(other.public().verify(&signed), Err(TransparencyError::OtherLog));
    let check = |change: fn(&mut SignedTreeHead)| {
        let mut changed = signed.clone();
        change(&mut changed);
        assert_eq!(key.public().verify(&changed), Err(TransparencyError::Signature));
    };
    check(|signed| signed.head.size = 8);
    check(|signed| signed.head.root[0] ^= 1);
    check(|signed| signed.head.timestamp_ms += 1);
    check(|signed| signed.signature[10] ^= 1);
    check(|signed| signed.signature.clear());
    let again = LogKey::from_pkcs8_der(key.pkcs8_der()).unwrap();
    again.public().verify(&signed).unwrap();
    assert!(!format!("{key:?}").contains(&digest::hex(&key.pkcs8_der()[40..60])));
    let p384 = PrivateKey::generate_p384().unwrap();
    assert_eq!(LogPublicKey::from_spki_der(&p384.public_key_spki()), Err(TransparencyError::Key));
    assert_eq!(head.to_signed_bytes()[..2], [0, 1]);
}

#[test]
fn records_that_differ_anywhere_have_different_leaves() {
    let record = IssuanceLeaf {
        kind: "x509",
        serial: "ab",
        spiffe_id: "spiffe://td/a",
        entry_id: "e",
        caller: "c",
        authority_id: "s",
        fingerprint: "f",
        issued_at: 1,
        not_after: 2,
    };
    let variants = [
        IssuanceLeaf { kind: "x50", serial: "9ab", ..record },
        IssuanceLeaf { spiffe_id: "spiffe://td/ae", entry_id: "", ..record },
        IssuanceLeaf { caller: "", authority_id: "cs", ..record },
        IssuanceLeaf { fingerprint: "g", ..record },
        IssuanceLeaf { issued_at: 2, ..record },
        IssuanceLeaf { not_after: -2, ..record },
    ];
    assert!(variants.iter().all(|variant| variant.hash() != record.hash()));
    assert_eq!(record.encode()[..6], [1, 0, 0, 0, 4, b'x']);
}

use crate::PrivateKey;

const SIZES: u64 = 200;

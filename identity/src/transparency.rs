//! The Merkle tree of a transparency log (RFC 6962, section 2; verification as in RFC 9162, section 2.1): hashing, appending
//! with logarithmic state, proofs that a leaf is in the tree, proofs that a tree only grew, and signed tree heads.
//!
//! Nothing here stores anything. A proof is planned first ([`Plan`]: which full subtrees are needed), so that a server can
//! read just those, and then assembled. What always holds: a proof that verifies for another leaf, position, size or root
//! would be a collision of SHA-256.

mod head;
mod leaf;

use crate::digest::{self, Sha256};

pub use head::{LogKey, LogPublicKey, SignedTreeHead, TreeHead};
pub use leaf::IssuanceLeaf;

/// A hash of the tree.
pub type Hash = [u8; 32];

/// The hash of a leaf with this content.
pub fn leaf_hash(content: &[u8]) -> Hash {
    let mut hash = Sha256::new();
    hash.update(&[LEAF_PREFIX]);
    hash.update(content);
    hash.finish()
}

/// The hash of a node with these children.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut bytes = [NODE_PREFIX; 65];
    bytes[1..33].copy_from_slice(left);
    bytes[33..].copy_from_slice(right);
    digest::sha256(&bytes)
}

/// The root of a tree without leaves.
pub fn empty_root() -> Hash {
    digest::sha256(b"")
}

/// A full subtree: the leaves from `index << level` up to (without) `(index + 1) << level`. Its hash never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    /// The logarithm of its number of leaves; 0 is a leaf.
    pub level: u8,
    /// Its place among the nodes of its level, from 0.
    pub index: u64,
}

impl Node {
    /// The first leaf, and the leaf behind the last.
    pub fn leaves(self) -> (u64, u64) {
        (self.index << self.level, (self.index + 1) << self.level)
    }

    /// The full subtrees, largest first, that together are a tree of `size` leaves.
    pub fn of_tree(size: u64) -> Vec<Self> {
        Self::of_range(0, size)
    }

    /// The same for the leaves from `begin` to `end`. `begin` must be aligned, as the splits of a tree are.
    fn of_range(mut begin: u64, end: u64) -> Vec<Self> {
        let mut nodes = Vec::new();
        while begin < end {
            let level = (end - begin).ilog2();
            nodes.push(Self { level: level as u8, index: begin >> level });
            begin += 1 << level;
        }
        nodes
    }
}

/// All that is needed to append to a tree and to know its root: the hashes of [`Node::of_tree`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    hashes: Vec<Hash>,
}

impl Frontier {
    /// Of a tree without leaves.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes stored hashes; `None` when their number does not fit the size.
    pub fn from_parts(size: u64, hashes: Vec<Hash>) -> Option<Self> {
        (hashes.len() == size.count_ones() as usize).then_some(Self { size, hashes })
    }

    /// How many leaves the tree has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The hashes of [`Node::of_tree`], largest subtree first.
    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    /// Appends a leaf and tells `full` each subtree that it completes, itself first.
    pub fn append(&mut self, leaf: Hash, mut full: impl FnMut(Node, Hash)) {
        full(Node { level: 0, index: self.size }, leaf);
        self.size += 1;
        let mut hash = leaf;
        for level in 1..=self.size.trailing_zeros() {
            let Some(left) = self.hashes.pop() else { break };
            hash = node_hash(&left, &hash);
            full(Node { level: level as u8, index: (self.size >> level) - 1 }, hash);
        }
        self.hashes.push(hash);
    }

    /// The root of the tree.
    pub fn root(&self) -> Hash {
        fold(&self.hashes).unwrap_or_else(empty_root)
    }
}

/// The root over neighboring full subtrees, largest first; `None` over none.
fn fold(hashes: &[Hash]) -> Option<Hash> {
    let (last, rest) = hashes.split_last()?;
    Some(rest.iter().rev().fold(*last, |right, left| node_hash(left, &right)))
}

/// Which full subtrees a proof is made of. Each hash of the proof is the root over one or several of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan(Vec<Vec<Node>>);

impl Plan {
    /// For the proof that the leaf at `index` is in the tree of `size` leaves.
    ///
    /// # Errors
    /// When there is no such leaf.
    pub fn inclusion(index: u64, size: u64) -> Result<Self, TransparencyError> {
        if index >= size || size > SIZE_MAX {
            return Err(TransparencyError::NoSuchLeaf { index, size });
        }
        let (mut begin, mut end, mut ranges) = (0, size, Vec::new());
        while end - begin > 1 {
            let middle = begin + split(end - begin);
            if index < middle {
                ranges.push((middle, end));
                end = middle;
            } else {
                ranges.push((begin, middle));
                begin = middle;
            }
        }
        Ok(Self::of_ranges(ranges))
    }

    /// For the proof that the tree of `new` leaves continues the tree of `old` leaves.
    ///
    /// # Errors
    /// When `old` is larger.
    pub fn consistency(old: u64, new: u64) -> Result<Self, TransparencyError> {
        if old > new || new > SIZE_MAX {
            return Err(TransparencyError::Shrunk { old, new });
        }
        if old == 0 || old == new {
            return Ok(Self(Vec::new()));
        }
        let (mut begin, mut end, mut ranges) = (0, new, Vec::new());
        while old < end {
            let middle = begin + split(end - begin);
            if old <= middle {
                ranges.push((middle, end));
                end = middle;
            } else {
                ranges.push((begin, middle));
                begin = middle;
            }
        }
        // What both trees have in common is known to the verifier when it is the whole old tree.
        if begin > 0 {
            ranges.push((begin, end));
        }
        Ok(Self::of_ranges(ranges))
    }

    /// `ranges` come from the root down; proofs go up.
    fn of_ranges(ranges: Vec<(u64, u64)>) -> Self {
        Self(ranges.into_iter().rev().map(|(begin, end)| Node::of_range(begin, end)).collect())
    }

    /// All subtrees that are needed.
    pub fn nodes(&self) -> impl Iterator<Item = Node> + '_ {
        self.0.iter().flatten().copied()
    }

    /// The proof, made of the hashes that `hash_of` knows; `None` when it does not know one.
    pub fn assemble(&self, mut hash_of: impl FnMut(Node) -> Option<Hash>) -> Option<Vec<Hash>> {
        let root_over = |nodes: &Vec<Node>| {
            let hashes: Option<Vec<Hash>> = nodes.iter().map(|node| hash_of(*node)).collect();
            fold(&hashes?)
        };
        self.0.iter().map(root_over).collect()
    }
}

/// The largest power of two below `size`, which is at least 2.
fn split(size: u64) -> u64 {
    1 << (size - 1).ilog2()
}

/// Verifies that the leaf with this hash stands at `index` in the tree of `size` leaves with this root.
///
/// # Errors
/// When the proof does not show it.
pub fn verify_inclusion(
    leaf: &Hash,
    index: u64,
    size: u64,
    proof: &[Hash],
    root: &Hash,
) -> Result<(), TransparencyError> {
    if index >= size {
        return Err(TransparencyError::NoSuchLeaf { index, size });
    }
    let (mut at, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in proof {
        if last == 0 {
            return Err(TransparencyError::Inclusion);
        }
        if at & 1 == 1 || at == last {
            hash = node_hash(sibling, &hash);
            (at, last) = skip_right_edge(at, last);
        } else {
            hash = node_hash(&hash, sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    if last == 0 && digest::equal(&hash, root) { Ok(()) } else { Err(TransparencyError::Inclusion) }
}

/// Verifies that a tree of `new` leaves and root `new_root` continues one of `old` leaves and root `old_root`.
///
/// # Errors
/// When the proof does not show it.
pub fn verify_consistency(
    old: u64,
    old_root: &Hash,
    new: u64,
    new_root: &Hash,
    proof: &[Hash],
) -> Result<(), TransparencyError> {
    let same = |a: &Hash, b: &Hash| digest::equal(a, b);
    let verdict = |holds: bool| if holds { Ok(()) } else { Err(TransparencyError::Consistency) };
    if old > new {
        return Err(TransparencyError::Shrunk { old, new });
    }
    if old == new {
        return verdict(proof.is_empty() && same(old_root, new_root));
    }
    if old == 0 {
        return verdict(proof.is_empty() && same(old_root, &empty_root()));
    }
    // A full old tree is a subtree of the new one: its root is the first hash and need not be sent.
    let (first, rest) = if old.is_power_of_two() {
        (old_root, proof)
    } else {
        proof.split_first().ok_or(TransparencyError::Consistency)?
    };
    let shift = (old - 1).trailing_ones();
    let (mut at, mut last) = ((old - 1) >> shift, (new - 1) >> shift);
    let (mut old_hash, mut new_hash) = (*first, *first);
    for sibling in rest {
        if last == 0 {
            return Err(TransparencyError::Consistency);
        }
        if at & 1 == 1 || at == last {
            old_hash = node_hash(sibling, &old_hash);
            new_hash = node_hash(sibling, &new_hash);
            (at, last) = skip_right_edge(at, last);
        } else {
            new_hash = node_hash(&new_hash, sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    verdict(last == 0 && same(&old_hash, old_root) && same(&new_hash, new_root))
}

/// On the right edge levels without a sibling are passed over.
fn skip_right_edge(mut at: u64, mut last: u64) -> (u64, u64) {
    while at & 1 == 0 && at != 0 {
        (at, last) = (at >> 1, last >> 1);
    }
    (at, last)
}

/// Why a log is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransparencyError {
    /// A position outside the tree.
    #[error("the log of {size} leaves has none at {index}")]
    NoSuchLeaf {
        /// The position asked for.
        index: u64,
        /// How many leaves there are.
        size: u64,
    },
    /// A tree that is smaller than it was.
    #[error("the log has {new} leaves, fewer than the {old} it had before")]
    Shrunk {
        /// As it was.
        old: u64,
        /// As it is.
        new: u64,
    },
    /// The proof does not lead to the root.
    #[error("the proof does not show that the leaf is in the log")]
    Inclusion,
    /// The proof does not lead to both roots.
    #[error("the log does not continue what it said before: history was changed")]
    Consistency,
    /// The leaves do not have the root that was signed.
    #[error("the leaves do not have the root that the tree head says")]
    Root,
    /// A record does not have the hash that the log holds.
    #[error("the record at {0} is not the one that was logged")]
    Record(u64),
    /// The tree head was not signed by this key.
    #[error("the tree head's signature does not verify")]
    Signature,
    /// The tree head belongs to another log.
    #[error("the tree head was signed by another log's key")]
    OtherLog,
    /// Not a key that a log has.
    #[error("the log's key is not a P-256 key")]
    Key,
}

impl TransparencyError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoSuchLeaf { .. } => "LOG_LEAF_UNKNOWN",
            Self::Shrunk { .. } | Self::Consistency => "LOG_HISTORY_CHANGED",
            Self::Inclusion => "LOG_PROOF_INVALID",
            Self::Root | Self::Record(_) => "LOG_LEAVES_CHANGED",
            Self::Signature | Self::OtherLog | Self::Key => "LOG_HEAD_REFUSED",
        }
    }
}

const LEAF_PREFIX: u8 = 0;
const NODE_PREFIX: u8 = 1;
/// More leaves than any log will have, so that no arithmetic of positions overflows.
pub const SIZE_MAX: u64 = 1 << 62;

#[cfg(test)]
mod tests;

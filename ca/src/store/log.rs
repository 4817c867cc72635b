//! The transparency log's rows: appended by the writer in the transaction of the records, never changed, never deleted.
//!
//! Appending needs only the frontier of the tree, which the writer remembers. The one row of `log_state` decides: it is
//! changed on condition that it still says what we know, so that several writers of one database cannot fork the log.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use identity::transparency::{Frontier, Hash, Node};
use sqlx::AnyConnection;

use super::{Done, Issuance, Store, StoreError, column, number};

/// What the writer knows of the log between two transactions; nothing after a failed one.
pub(super) type Tail = Option<Frontier>;

/// The hashes of leaves from `first` on.
#[derive(Debug)]
pub(super) struct Leaves {
    first: u64,
    hashes: Vec<Hash>,
}

/// What records bring to the log.
pub(super) struct Grown {
    pub(super) next: Frontier,
    pub(super) leaves: Vec<Leaves>,
    pub(super) nodes: Vec<(Node, Hash)>,
}

/// Gives `rows` their places in the log and writes what the log must remember.
pub(super) async fn append(conn: &mut AnyConnection, tail: &mut Tail, rows: &mut [Issuance]) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let known = match tail.take() {
        Some(known) => known,
        None => read_frontier(conn).await?,
    };
    let Grown { next, leaves, nodes } = match grow(conn, known, rows).await? {
        Some(grown) => grown,
        None => {
            // Another writer of this database was quicker. Hold the row first, then look again.
            sqlx::query("UPDATE log_state SET size = size WHERE id = 1").execute(&mut *conn).await?;
            let known = read_frontier(conn).await?;
            grow(conn, known, rows).await?.ok_or(StoreError::Damaged { what: WHAT })?
        }
    };
    for leaves in leaves {
        let sql = "INSERT INTO log_leaves (first_leaf, hashes) VALUES ($1, $2)";
        sqlx::query(sql).bind(leaves.first()).bind(leaves.text()).execute(&mut *conn).await?;
    }
    for (node, hash) in nodes {
        let sql = "INSERT INTO log_node (level, place, hash) VALUES ($1, $2, $3)";
        let query = sqlx::query(sql).bind(i64::from(node.level)).bind(number(node.index));
        query.bind(STANDARD_NO_PAD.encode(hash)).execute(&mut *conn).await?;
    }
    *tail = Some(next);
    Ok(())
}

/// Appends to `known` and takes the new state, if the database still is where we think.
async fn grow(conn: &mut AnyConnection, known: Frontier, rows: &mut [Issuance]) -> Result<Option<Grown>, StoreError> {
    let old = number(known.size());
    let grown = place(known, rows);
    let sql = "UPDATE log_state SET size = $1, frontier = $2 WHERE id = 1 AND size = $3";
    let query = sqlx::query(sql).bind(number(grown.next.size())).bind(state_text(&grown.next)).bind(old);
    let taken = query.execute(conn).await?.rows_affected() == 1;
    Ok(taken.then_some(grown))
}

/// Gives `rows` the places after `known`.
pub(super) fn place(known: Frontier, rows: &mut [Issuance]) -> Grown {
    let (mut next, mut leaves, mut nodes) = (known, Vec::<Leaves>::new(), Vec::new());
    for row in rows {
        let index = next.size();
        row.log_index = number(index);
        let hash = row.leaf().hash();
        next.append(hash, |node, hash| {
            if node.level >= STORED_LEVEL {
                nodes.push((node, hash));
            }
        });
        match leaves.last_mut() {
            Some(leaves) if index % BLOCK != 0 => leaves.hashes.push(hash),
            _ => leaves.push(Leaves { first: index, hashes: vec![hash] }),
        }
    }
    Grown { next, leaves, nodes }
}

/// The column `frontier` of `log_state`.
pub(super) fn state_text(frontier: &Frontier) -> String {
    join(frontier.hashes())
}

impl Leaves {
    /// The column `first_leaf`.
    pub(super) fn first(&self) -> i64 {
        number(self.first)
    }

    /// The column `hashes`.
    pub(super) fn text(&self) -> String {
        join(&self.hashes)
    }
}

async fn read_frontier(conn: &mut AnyConnection) -> Result<Frontier, StoreError> {
    let row = sqlx::query("SELECT size, frontier FROM log_state WHERE id = 1").fetch_one(conn).await?;
    let size = column::<i64>(&row, "size", WHAT)?.unsigned_abs();
    let hashes = split(&column::<String>(&row, "frontier", WHAT)?)?;
    Frontier::from_parts(size, hashes).ok_or(StoreError::Damaged { what: WHAT })
}

impl Store {
    /// The log as of the last commit.
    pub(crate) async fn log_frontier(&self) -> Result<Frontier, StoreError> {
        read_frontier(&mut *self.pool.acquire().await?).await
    }

    /// The log's id and its sealed key; none in a new database.
    pub(crate) async fn log_key(&self) -> Result<Option<(String, String)>, StoreError> {
        let sql = "SELECT id, sealed_key FROM log_key ORDER BY created_at, id LIMIT 1";
        let row = sqlx::query(sql).fetch_optional(&self.pool).await?;
        row.map(|row| Ok((column(&row, "id", WHAT)?, column(&row, "sealed_key", WHAT)?))).transpose()
    }

    /// Stores the log's key, unless another replica did a moment ago.
    pub(crate) async fn add_log_key(&self, id: &str, sealed_key: &str, now: i64) -> Result<(), StoreError> {
        let (id, sealed_key) = (id.to_owned(), sealed_key.to_owned());
        self.write(move |conn| {
            Box::pin(async move {
                let known = sqlx::query("SELECT id FROM log_key LIMIT 1").fetch_optional(&mut *conn).await?;
                if known.is_some() {
                    return Ok(Done::quiet(()));
                }
                let sql = "INSERT INTO log_key (id, sealed_key, created_at) VALUES ($1, $2, $3)";
                sqlx::query(sql).bind(id).bind(sealed_key).bind(now).execute(conn).await?;
                Ok(Done::written(()))
            })
        })
        .await
    }

    /// The hashes of `count` leaves from `first` on; fewer at the end of the log.
    pub(crate) async fn log_leaves(&self, first: u64, count: u64) -> Result<Vec<Hash>, StoreError> {
        let mut conn = self.pool.acquire().await?;
        let begin = first / BLOCK * BLOCK;
        let all = read_leaves(&mut conn, begin, first.saturating_add(count)).await?;
        let skip = usize::try_from(first - begin).unwrap_or(usize::MAX);
        Ok(all.into_iter().skip(skip).take(usize::try_from(count).unwrap_or(usize::MAX)).collect())
    }

    /// The hashes of full subtrees; those that are not (yet) there are left out.
    pub(crate) async fn log_nodes(
        &self,
        nodes: impl Iterator<Item = Node>,
    ) -> Result<BTreeMap<Node, Hash>, StoreError> {
        let mut conn = self.pool.acquire().await?;
        let (mut found, mut blocks) = (BTreeMap::new(), BTreeMap::<u64, Vec<Hash>>::new());
        for node in nodes {
            let hash = if node.level >= STORED_LEVEL {
                read_node(&mut conn, node).await?
            } else {
                let block = node.leaves().0 / BLOCK;
                if let Entry::Vacant(unread) = blocks.entry(block) {
                    unread.insert(read_leaves(&mut conn, block * BLOCK, (block + 1) * BLOCK).await?);
                }
                blocks.get(&block).and_then(|leaves| hash_within(leaves, block * BLOCK, node))
            };
            if let Some(hash) = hash {
                found.insert(node, hash);
            }
        }
        Ok(found)
    }
}

/// The root over a full subtree whose leaves are among `leaves`, which begin at `first`.
fn hash_within(leaves: &[Hash], first: u64, node: Node) -> Option<Hash> {
    let (begin, end) = node.leaves();
    let place = |leaf: u64| usize::try_from(leaf - first).ok();
    let mut subtree = Frontier::new();
    leaves.get(place(begin)?..place(end)?)?.iter().for_each(|leaf| subtree.append(*leaf, |_, _| ()));
    Some(subtree.root())
}

async fn read_node(conn: &mut AnyConnection, node: Node) -> Result<Option<Hash>, StoreError> {
    let sql = "SELECT hash FROM log_node WHERE level = $1 AND place = $2";
    let row = sqlx::query(sql).bind(i64::from(node.level)).bind(number(node.index)).fetch_optional(conn).await?;
    let Some(row) = row else { return Ok(None) };
    Ok(split(&column::<String>(&row, "hash", WHAT)?)?.first().copied())
}

/// All leaves from `begin`, which begins a block, up to `end`.
async fn read_leaves(conn: &mut AnyConnection, begin: u64, end: u64) -> Result<Vec<Hash>, StoreError> {
    let sql =
        "SELECT first_leaf, hashes FROM log_leaves WHERE first_leaf >= $1 AND first_leaf < $2 ORDER BY first_leaf";
    let rows = sqlx::query(sql).bind(number(begin)).bind(number(end)).fetch_all(conn).await?;
    let mut leaves = Vec::new();
    for row in &rows {
        let first = column::<i64>(row, "first_leaf", WHAT)?.unsigned_abs();
        if first != begin + leaves.len() as u64 {
            return Err(StoreError::Damaged { what: WHAT });
        }
        leaves.extend(split(&column::<String>(row, "hashes", WHAT)?)?);
    }
    Ok(leaves)
}

fn join(hashes: &[Hash]) -> String {
    let mut text = String::with_capacity(hashes.len() * HASH_CHARS);
    hashes.iter().for_each(|hash| STANDARD_NO_PAD.encode_string(hash, &mut text));
    text
}

fn split(text: &str) -> Result<Vec<Hash>, StoreError> {
    let damaged = || StoreError::Damaged { what: WHAT };
    let decode = |piece: &[u8]| STANDARD_NO_PAD.decode(piece).ok().and_then(|hash| Hash::try_from(hash).ok());
    text.as_bytes().chunks(HASH_CHARS).map(|piece| decode(piece).ok_or_else(damaged)).collect()
}

const WHAT: &str = "transparency log";
/// Subtrees of this level and above are stored; smaller ones are computed from one block of leaves.
const STORED_LEVEL: u8 = 8;
const BLOCK: u64 = 1 << STORED_LEVEL;
/// A hash in base64 without padding.
const HASH_CHARS: usize = 43;

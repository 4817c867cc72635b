-- What was handed out and what was changed, so that nobody can deny it: a transparency log over the issuance records
-- (RFC 6962) and an audit trail.
--
-- As everywhere: only TEXT and BIGINT, times are Unix seconds, binary is base64 (hashes without padding: 43 characters).

-- SHA-256 (hex) of an X.509-SVID; empty for tokens, whose serial is that already.
ALTER TABLE issuance ADD COLUMN fingerprint TEXT NOT NULL DEFAULT '';
-- Place of the record in the log; -1 for what was issued before there was a log.
ALTER TABLE issuance ADD COLUMN log_index BIGINT NOT NULL DEFAULT -1;
CREATE INDEX issuance_by_log ON issuance (log_index);

-- One row: how many leaves the log has, and the hashes (joined) that are needed to append to it.
CREATE TABLE log_state (
    id       BIGINT NOT NULL PRIMARY KEY,
    size     BIGINT NOT NULL,
    frontier TEXT   NOT NULL
);
INSERT INTO log_state (id, size, frontier) VALUES (1, 0, '');

-- Hashes of leaves, as many in a row as one transaction wrote: those from `first_leaf` on, joined. Never deleted. A row stays
-- within one block of 256 leaves.
CREATE TABLE log_leaves (
    first_leaf BIGINT NOT NULL PRIMARY KEY,
    hashes     TEXT   NOT NULL
);

-- Hashes of full subtrees of 256 leaves and more (level 8 and up): what lies below is computed from the leaves.
CREATE TABLE log_node (
    level BIGINT NOT NULL,
    place BIGINT NOT NULL,
    hash  TEXT   NOT NULL,
    PRIMARY KEY (level, place)
);

-- The key that signs tree heads. The log is known by it, so there is one.
CREATE TABLE log_key (
    -- SHA-256 (hex) of the public key.
    id         TEXT   NOT NULL PRIMARY KEY,
    -- PKCS#8, sealed by the key-encryption key; the id is bound into the seal.
    sealed_key TEXT   NOT NULL,
    created_at BIGINT NOT NULL
);

-- Every act of an administrator, written in the transaction of the act; and what was refused, counted.
CREATE TABLE audit (
    -- Milliseconds since 1970, then randomness: the order of the ids is that of time.
    id        TEXT   NOT NULL PRIMARY KEY,
    at        BIGINT NOT NULL,
    -- Who: a SPIFFE ID, `local`, or `-` for somebody without a certificate.
    actor     TEXT   NOT NULL,
    -- From where: an address, or the process and user at the local socket.
    source    TEXT   NOT NULL,
    -- What: `entry.create`, `node.ban`, …
    action    TEXT   NOT NULL,
    -- To what: an entry's id, a node, a trust domain, a serial.
    target    TEXT   NOT NULL,
    -- The identity concerned; empty when there is none.
    spiffe_id TEXT   NOT NULL,
    -- `done` or `refused`.
    result    TEXT   NOT NULL,
    -- Reason code of a refusal.
    reason    TEXT   NOT NULL,
    -- More about it, for people.
    detail    TEXT   NOT NULL,
    -- How often, for refusals that were gathered.
    times     BIGINT NOT NULL
);
CREATE INDEX audit_by_id ON audit (spiffe_id, id);
CREATE INDEX audit_by_result ON audit (result, id);

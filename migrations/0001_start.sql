-- What a certificate authority must not forget.
--
-- The statements run on SQLite and on PostgreSQL: only TEXT and BIGINT are used. Times are Unix seconds, flags are
-- 0 or 1, lists are JSON arrays, certificates are PEM, and what is sealed (encrypted) or binary is base64.

-- Facts about the database itself: trust_domain, key_check, bundle_sequence, entries_revision.
CREATE TABLE meta (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);

-- Signing authorities. `kind`: root, x509 (the intermediate that signs leaves) or jwt.
-- `state`: prepared (published, not yet signing), active, old (still trusted, no longer signing).
CREATE TABLE authority (
    id          TEXT   NOT NULL PRIMARY KEY,
    kind        TEXT   NOT NULL,
    state       TEXT   NOT NULL,
    -- Certificate of a root or an intermediate; empty for jwt.
    certificate TEXT   NOT NULL,
    -- PKCS#8, sealed by the key-encryption key; the id is bound into the seal.
    sealed_key  TEXT   NOT NULL,
    not_before  BIGINT NOT NULL,
    not_after   BIGINT NOT NULL,
    created_at  BIGINT NOT NULL
);
CREATE INDEX authority_by_kind ON authority (kind, state);

-- Registration entries: selectors -> SPIFFE ID.
CREATE TABLE entry (
    id             TEXT   NOT NULL PRIMARY KEY,
    -- SPIFFE ID, parent and sorted selectors: two entries that say the same are one.
    fingerprint    TEXT   NOT NULL UNIQUE,
    spiffe_id      TEXT   NOT NULL,
    parent_id      TEXT   NOT NULL,
    selectors      TEXT   NOT NULL,
    federates_with TEXT   NOT NULL,
    dns_names      TEXT   NOT NULL,
    hint           TEXT   NOT NULL,
    -- Seconds; 0: the default of the authority.
    x509_svid_ttl  BIGINT NOT NULL,
    jwt_svid_ttl   BIGINT NOT NULL,
    admin          BIGINT NOT NULL,
    downstream     BIGINT NOT NULL,
    store_svid     BIGINT NOT NULL,
    no_prefetch    BIGINT NOT NULL,
    jwt_jti        BIGINT NOT NULL,
    -- 0: never.
    expires_at     BIGINT NOT NULL,
    revision       BIGINT NOT NULL,
    created_at     BIGINT NOT NULL
);

-- Nodes that have attested.
CREATE TABLE agent (
    id               TEXT   NOT NULL PRIMARY KEY,
    attestation_type TEXT   NOT NULL,
    -- Serial (hex) of the SVID in use, and of one that was issued but not yet seen in use; empty: none.
    serial           TEXT   NOT NULL,
    expires_at       BIGINT NOT NULL,
    new_serial       TEXT   NOT NULL,
    new_expires_at   BIGINT NOT NULL,
    selectors        TEXT   NOT NULL,
    banned           BIGINT NOT NULL,
    can_reattest     BIGINT NOT NULL,
    version          TEXT   NOT NULL,
    -- The newest bundle that the node said it enforces.
    bundle_sequence  BIGINT NOT NULL,
    attested_at      BIGINT NOT NULL
);

-- Join tokens that nobody has used. Only the SHA-256 is kept; using a token deletes its row.
CREATE TABLE join_token (
    digest     TEXT   NOT NULL PRIMARY KEY,
    expires_at BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);

-- Every SVID that was handed out, written before it is handed out.
CREATE TABLE issuance (
    -- X.509: serial (hex). JWT: SHA-256 of the token.
    serial       TEXT   NOT NULL PRIMARY KEY,
    kind         TEXT   NOT NULL,
    spiffe_id    TEXT   NOT NULL,
    -- The entry that allowed it; empty for nodes, the server itself, minted SVIDs and mesh CSRs.
    entry_id     TEXT   NOT NULL,
    -- Who asked: a SPIFFE ID, `local` or the subject of a service account token.
    caller       TEXT   NOT NULL,
    authority_id TEXT   NOT NULL,
    issued_at    BIGINT NOT NULL,
    not_after    BIGINT NOT NULL
);
CREATE INDEX issuance_by_id ON issuance (spiffe_id, issued_at);
CREATE INDEX issuance_by_end ON issuance (not_after);

-- Bundles of other trust domains, as SPIFFE bundle documents.
CREATE TABLE federated_bundle (
    trust_domain TEXT   NOT NULL PRIMARY KEY,
    document     TEXT   NOT NULL,
    updated_at   BIGINT NOT NULL
);

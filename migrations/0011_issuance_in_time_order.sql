-- Records of what was issued lie in the order of time, and so do all their indexes: a record then changes the last page of each and
-- not one anywhere for every random key. Serial numbers of certificates begin with the time, so they stay an index. Hashes of
-- tokens do not: only administrators ask for one, and all records are looked through for it.

CREATE TABLE issuance_in_time_order (
    -- X.509: serial (hex). Tokens: SHA-256 of the token (hex).
    serial       TEXT   NOT NULL,
    kind         TEXT   NOT NULL,
    spiffe_id    TEXT   NOT NULL,
    -- The entry that allowed it; empty for nodes, the server itself, minted SVIDs and mesh CSRs.
    entry_id     TEXT   NOT NULL,
    -- Who asked: a SPIFFE ID, `local` or the subject of a service account token.
    caller       TEXT   NOT NULL,
    authority_id TEXT   NOT NULL,
    issued_at    BIGINT NOT NULL,
    not_after    BIGINT NOT NULL,
    -- SHA-256 (hex) of an X.509-SVID; empty for tokens, whose serial is that already.
    fingerprint  TEXT   NOT NULL,
    -- Place of the record in the log; -1 for what was issued before there was a log.
    log_index    BIGINT NOT NULL
);
INSERT INTO issuance_in_time_order
    SELECT serial, kind, spiffe_id, entry_id, caller, authority_id, issued_at, not_after, fingerprint, log_index
    FROM issuance ORDER BY issued_at, serial;
DROP TABLE issuance;
ALTER TABLE issuance_in_time_order RENAME TO issuance;
CREATE INDEX issuance_by_id ON issuance (spiffe_id, issued_at);
CREATE INDEX issuance_by_end ON issuance (not_after);
CREATE INDEX issuance_by_log ON issuance (log_index);
CREATE UNIQUE INDEX issuance_by_serial ON issuance (serial) WHERE length(serial) < 64;

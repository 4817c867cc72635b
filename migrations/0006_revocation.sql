-- What was revoked before its end, and the lists that say so (RFC 5280, section 5).
--
-- As everywhere: only TEXT and BIGINT, times are Unix seconds, binary is base64.

-- Revoked SVIDs, as long as they have not expired.
CREATE TABLE revocation (
    -- As in the record of its issue: X.509: serial (hex). Tokens: SHA-256 of the token (hex).
    serial       TEXT   NOT NULL PRIMARY KEY,
    -- x509 or token.
    kind         TEXT   NOT NULL,
    -- Who signed it, and whose list it stands on.
    authority_id TEXT   NOT NULL,
    spiffe_id    TEXT   NOT NULL,
    entry_id     TEXT   NOT NULL,
    caller       TEXT   NOT NULL,
    not_after    BIGINT NOT NULL,
    -- CRLReason (RFC 5280, section 5.3.1).
    reason       BIGINT NOT NULL,
    revoked_at   BIGINT NOT NULL,
    -- What the administrator revoked: `serial …`, `identity …`, `entry …` or `node …`.
    target       TEXT   NOT NULL,
    -- The number of the first lists that hold it; 0: none does yet.
    number       BIGINT NOT NULL
);
CREATE INDEX revocation_by_authority ON revocation (authority_id);
CREATE INDEX revocation_by_number ON revocation (number);

-- Entries and nodes that were revoked: what was signed for them before and is to be recorded after is refused.
CREATE TABLE revoked_source (
    -- entry or node.
    kind TEXT   NOT NULL,
    name TEXT   NOT NULL,
    at   BIGINT NOT NULL,
    PRIMARY KEY (kind, name)
);

-- The newest lists of each issuer, signed inside the transaction that gave them their number. The number continues the
-- counter `crl_number` of `meta` and is shared by all lists that were signed together.
CREATE TABLE crl (
    -- Subject key identifier (hex).
    issuer_id   TEXT   NOT NULL,
    -- 0: the whole list; from 1 on the parts of one that is too long.
    part        BIGINT NOT NULL,
    number      BIGINT NOT NULL,
    this_update BIGINT NOT NULL,
    next_update BIGINT NOT NULL,
    der         TEXT   NOT NULL,
    PRIMARY KEY (issuer_id, part)
);

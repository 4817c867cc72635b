-- Calls that wait for a second person, and those that were approved and not yet made.
CREATE TABLE approval (
    id           TEXT   NOT NULL PRIMARY KEY,
    -- The right that the call needs, and its gRPC path.
    verb         TEXT   NOT NULL,
    call         TEXT   NOT NULL,
    -- SHA-256 (hex) of path and message: only this very request is approved.
    digest       TEXT   NOT NULL,
    requester    TEXT   NOT NULL,
    source       TEXT   NOT NULL,
    -- The message as people read it.
    request      TEXT   NOT NULL,
    -- Who approved it; empty: nobody yet.
    approver     TEXT   NOT NULL,
    requested_at BIGINT NOT NULL,
    expires_at   BIGINT NOT NULL
);
CREATE INDEX approval_by_digest ON approval (digest, requester);

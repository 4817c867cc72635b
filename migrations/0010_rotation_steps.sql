-- What happened in each rotation, for the receipt at its end. A row is written in the transaction of its step.
CREATE TABLE rotation_step (
    -- root, jwt or wit.
    kind            TEXT   NOT NULL,
    -- When the rotation began, Unix seconds.
    started_at      BIGINT NOT NULL,
    -- From 1.
    number          BIGINT NOT NULL,
    -- prepare, activate, taint, revoke, waive, resume or abort.
    step            TEXT   NOT NULL,
    at              BIGINT NOT NULL,
    -- A SPIFFE ID, `local`, or `kasbah` for what the authority did by itself.
    actor           TEXT   NOT NULL,
    -- The authority, or the node that was waived.
    target          TEXT   NOT NULL,
    -- The bundle that every node had to enforce; 0: none.
    bundle_sequence BIGINT NOT NULL,
    -- JSON: the nodes that enforced it, each with what it enforced and since when.
    acknowledged    TEXT   NOT NULL,
    -- JSON: the nodes that were not waited for.
    waived          TEXT   NOT NULL,
    PRIMARY KEY (kind, started_at, number)
);

-- Replacing authorities by acknowledged steps.

-- The root that signed an intermediate; empty for roots and keys.
ALTER TABLE authority ADD COLUMN issuer_id TEXT NOT NULL DEFAULT '';
-- The bundle's sequence number that first held the authority.
ALTER TABLE authority ADD COLUMN published BIGINT NOT NULL DEFAULT 0;
-- The bundle's sequence number that first marked it as tainted; 0: it is not.
ALTER TABLE authority ADD COLUMN tainted BIGINT NOT NULL DEFAULT 0;
UPDATE authority SET issuer_id = COALESCE((SELECT MIN(r.id) FROM authority AS r WHERE r.kind = 'root'), '')
    WHERE kind = 'x509';

-- Since when the node enforces `bundle_sequence`, and when it was last written that it was heard. Unix seconds.
ALTER TABLE agent ADD COLUMN bundle_since BIGINT NOT NULL DEFAULT 0;
ALTER TABLE agent ADD COLUMN seen_at BIGINT NOT NULL DEFAULT 0;

-- The rotation that runs, one per kind of authority (root, jwt). No row: none runs and nobody is waived.
CREATE TABLE rotation (
    kind       TEXT   NOT NULL PRIMARY KEY,
    -- steps (an operator takes each), auto (the server takes each when it is safe) or age; empty: none runs.
    mode       TEXT   NOT NULL,
    -- The authority that is being replaced.
    old_id     TEXT   NOT NULL,
    started_at BIGINT NOT NULL,
    -- Nodes (SPIFFE IDs, JSON) that are not waited for.
    waived     TEXT   NOT NULL
);

-- Where the bundles of other trust domains come from, and how the fetching goes.
CREATE TABLE federation_relationship (
    trust_domain TEXT   NOT NULL PRIMARY KEY,
    -- https URL of the bundle endpoint.
    url          TEXT   NOT NULL,
    -- https_web or https_spiffe.
    profile      TEXT   NOT NULL,
    -- SPIFFE ID of the endpoint; empty for https_web.
    endpoint_id  TEXT   NOT NULL,
    created_at   BIGINT NOT NULL,
    -- Last success, last try, next try; Unix seconds, 0: never, at once.
    succeeded_at BIGINT NOT NULL,
    tried_at     BIGINT NOT NULL,
    next_at      BIGINT NOT NULL,
    -- Failures in a row, and why the last one failed: reason code and text; empty after a success.
    failures     BIGINT NOT NULL,
    reason       TEXT   NOT NULL,
    problem      TEXT   NOT NULL
);

-- What several replicas on one database tell each other.
--
-- Every transaction that changes what replicas hold in memory names it here, in the order of the commits; a replica reads
-- what is new to it and then the rows themselves. Old lines are removed: who was away for longer reads everything.
-- `number` continues the counter `change_number` of `meta`.
CREATE TABLE change (
    number  BIGINT NOT NULL PRIMARY KEY,
    -- entry, agent, bundle (of another trust domain) or authority.
    kind    TEXT   NOT NULL,
    -- Key of the row; empty for authorities.
    name    TEXT   NOT NULL,
    -- Unix seconds.
    made_at BIGINT NOT NULL
);

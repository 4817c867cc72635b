-- Where the keys of authorities are kept.

-- disk (sealed, in this row), memory, offline (not here at all), or the name of another keeper.
ALTER TABLE authority ADD COLUMN place TEXT NOT NULL DEFAULT 'disk';
-- What the keeper calls the key; empty for keys on the disk.
ALTER TABLE authority ADD COLUMN key_name TEXT NOT NULL DEFAULT '';
-- SubjectPublicKeyInfo, base64; empty in rows from before.
ALTER TABLE authority ADD COLUMN public_key TEXT NOT NULL DEFAULT '';

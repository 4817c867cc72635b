-- A small authority as the first layout (0001) held it, for the tests of later layouts. Its key-encryption key, which
-- protects nothing but these rows: wIH3j6zfwDYDj2fxYRO3q8gSHZQufXixTCG1iSe30gs=

INSERT INTO meta (name, value) VALUES ('bundle_sequence', '1');
INSERT INTO meta (name, value) VALUES ('entries_revision', '2');
INSERT INTO meta (name, value) VALUES ('key_check', 'AUsMxIHLJHHIjq3qgskCWapcu389jhGG0rOQhCZCSvePTgs=');
INSERT INTO meta (name, value) VALUES ('trust_domain', 'example.org');
INSERT INTO authority (id, kind, state, certificate, sealed_key, not_before, not_after, created_at) VALUES (
    '5f9ab1235ed8687015446930a4bb38a9d8a556a0',
    'root',
    'active',
    '-----BEGIN CERTIFICATE-----
MIICCDCCAa6gAwIBAgIQHVvjdh66m3RzUl7jIOZImzAKBggqhkjOPQQDAjBCMRQw
EgYDVQQKDAtleGFtcGxlLm9yZzEqMCgGA1UEAwwhS2FzYmFoIGF1dGhvcml0eSA1
ZjlhYjEyMzVlZDg2ODcwMB4XDTI2MTEyNjExNTU1N1oXDTM2MTEyMzExNTY1N1ow
QjEUMBIGA1UECgwLZXhhbXBsZS5vcmcxKjAoBgNVBAMMIUthc2JhaCBhdXRob3Jp
dHkgNWY5YWIxMjM1ZWQ4Njg3MDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABEMw
IydFtphWXyQ3LSnb4GMMZWuX7T1MHhyRYfaeTq1NNngvOuQ4J/G1aLNPXIPasBuh
QfJxkKj0wa9DnotjREijgYUwgYIwHwYDVR0jBBgwFoAUX5qxI17YaHAVRGkwpLs4
qdilVqAwHwYDVR0RBBgwFoYUc3BpZmZlOi8vZXhhbXBsZS5vcmcwDgYDVR0PAQH/
BAQDAgEGMB0GA1UdDgQWBBRfmrEjXthocBVEaTCkuzip2KVWoDAPBgNVHRMBAf8E
BTADAQH/MAoGCCqGSM49BAMCA0gAMEUCIHoKrfkH1l0A/U2be/KltDXXmIwES8vi
kb5itYQoeRk0AiEA+s26KtbNkPTULiXLIs82px1o8CP+fLhoSc551lE7fOc=
-----END CERTIFICATE-----
',
    'AWp6SrvCM5i28W7x1n9VIbONk6Bn8H7qjMSmL5EfCzrS+rXBg9bi3gmnw5c41GlbshH4cxkyjBHJaz/fZmLAmCly4H+0N5vmHlBYKTO9t88Aq8BX5YiRA30WZJtPf/h2JAR/ine8sxRqKyJkxvYQeQvNl1a8asNWFkaDOTN3PPvW4+3P2f6bNZJ3V1haxv0lF2AAV3tHF2Gg+1UqTPzPcOu/54KQBBI=',
    1795694157,
    2111054217,
    1795694217);
INSERT INTO authority (id, kind, state, certificate, sealed_key, not_before, not_after, created_at) VALUES (
    '7slwtKDUhjxLKwsE7c3s6v8nj-LARjszPc0oOR-nYoc',
    'jwt',
    'active',
    '',
    'ASvTTh1KhEXyawwsO2omOzkLGWymSDzXnyq2WiXo1sSO5NlVj/NJQccj/9fAitgU3el3fyDLSPSQ6CgxTHB4Wci5yZWSDyk7JMQ10uOj0XVIa2+z8hWDdu4IH/Xa9Dxledh27LlMonrbm3j1xQGreP9sl94mtczoi0v9CfxeHzjiaSOUuBsW1qB4/M0aCq2wBhf6dxDghw1G4P89droCBUiMVlAvrjQ=',
    1795694217,
    1827230217,
    1795694217);
INSERT INTO authority (id, kind, state, certificate, sealed_key, not_before, not_after, created_at) VALUES (
    '84994dad49797121f7d70bf1fca190a717e635bd',
    'x509',
    'active',
    '-----BEGIN CERTIFICATE-----
MIICDDCCAbGgAwIBAgIQL2TXDMsME5n58g/eLRRTzDAKBggqhkjOPQQDAjBCMRQw
EgYDVQQKDAtleGFtcGxlLm9yZzEqMCgGA1UEAwwhS2FzYmFoIGF1dGhvcml0eSA1
ZjlhYjEyMzVlZDg2ODcwMB4XDTI2MTEyNjExNTU1N1oXDTI3MTEyNjExNTY1N1ow
QjEUMBIGA1UECgwLZXhhbXBsZS5vcmcxKjAoBgNVBAMMIUthc2JhaCBhdXRob3Jp
dHkgODQ5OTRkYWQ0OTc5NzEyMTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABKAo
hC+UMnXDIB0NNXbTz3JqfDMNMXEX2N3TXgtQA70+w6vaz9saQeTrJTtkt5lagbT7
rcF8TuNqRTxab9+ENFyjgYgwgYUwHwYDVR0jBBgwFoAUX5qxI17YaHAVRGkwpLs4
qdilVqAwHwYDVR0RBBgwFoYUc3BpZmZlOi8vZXhhbXBsZS5vcmcwDgYDVR0PAQH/
BAQDAgEGMB0GA1UdDgQWBBSEmU2tSXlxIffXC/H8oZCnF+Y1vTASBgNVHRMBAf8E
CDAGAQH/AgEBMAoGCCqGSM49BAMCA0kAMEYCIQDYJ8gSO+8LJzx20zP28qeAK/ON
9jmIzI2t4M9hoOGV3QIhAOFypygVTNF+CjXeFpUi1WXuM2dbNY7oUTldw9VM5cLS
-----END CERTIFICATE-----
',
    'AUUAmqVykuFqYRbGPuuKNHSBMDvg9lApXzK6nh0BofBUeTTjMojGGVAZnxguhGQ8F62WIpXRycZ7xEkmapLleSxvC1W1ERVhCc0uboQyfguygfGi1iSqVPWRWUrMB5wkKrC5VGy0InvgR5ZfEC3qt4AwarsROASrvm+mfXvO0+6LiJBa27wa+LVnjrJvuwMAAqxSd8MXIDxJm452uFUm6RWyQSnoOxA=',
    1795694157,
    1827230217,
    1795694217);
INSERT INTO entry (id, fingerprint, spiffe_id, parent_id, selectors, federates_with, dns_names, hint, x509_svid_ttl, jwt_svid_ttl, admin, downstream, store_svid, no_prefetch, jwt_jti, expires_at, revision, created_at) VALUES (
    '4b18934b-47cb-4054-9a32-d42471726a0f',
    '89c95c6ad11bc31166a8609028d46b8ae66cbb620275df6e304a98cf88cc04c0',
    'spiffe://example.org/node/local',
    'spiffe://example.org/spire/server',
    '[{"type":"spiffe_id","value":"spiffe://example.org/spire/agent/join_token/ba680d47-5bd0-4e9c-8db4-e44162d9089d"}]',
    '[]',
    '[]',
    '',
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    1795694218);
INSERT INTO entry (id, fingerprint, spiffe_id, parent_id, selectors, federates_with, dns_names, hint, x509_svid_ttl, jwt_svid_ttl, admin, downstream, store_svid, no_prefetch, jwt_jti, expires_at, revision, created_at) VALUES (
    '8da8e1cd-7ccc-4d10-9b7a-ca79b7ede934',
    '025b97c4750449ed3dc3c47c6103ff1c875a7e0e03f9e2ae058701b7bf9f9141',
    'spiffe://example.org/web',
    'spiffe://example.org/node/local',
    '[{"type":"unix","value":"uid:1000"}]',
    '[]',
    '["web.example"]',
    'main',
    1800,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    1795694218);
INSERT INTO agent (id, attestation_type, serial, expires_at, new_serial, new_expires_at, selectors, banned, can_reattest, version, bundle_sequence, attested_at) VALUES (
    'spiffe://example.org/spire/agent/join_token/ba680d47-5bd0-4e9c-8db4-e44162d9089d',
    'join_token',
    '2fbd141c17bed1c36e731390f8627dd2',
    1795780619,
    '',
    0,
    '[]',
    0,
    0,
    '0.1.0',
    1,
    1795694219);
INSERT INTO join_token (digest, expires_at, created_at) VALUES ('65604b729978dbfa298887b718c2fff97db04d8cb88574c35135cbc438765762', 1798286218, 1795694218);
INSERT INTO issuance (serial, kind, spiffe_id, entry_id, caller, authority_id, issued_at, not_after) VALUES (
    '2fbd141c17bed1c36e731390f8627dd2',
    'agent',
    'spiffe://example.org/spire/agent/join_token/ba680d47-5bd0-4e9c-8db4-e44162d9089d',
    '',
    'spiffe://example.org/spire/agent/join_token/ba680d47-5bd0-4e9c-8db4-e44162d9089d',
    '84994dad49797121f7d70bf1fca190a717e635bd',
    1795694219,
    1795780619);
INSERT INTO issuance (serial, kind, spiffe_id, entry_id, caller, authority_id, issued_at, not_after) VALUES (
    '490fe763bf45dab34bd378c04726dd65',
    'server',
    'spiffe://example.org/spire/server',
    '',
    'spiffe://example.org/spire/server',
    '84994dad49797121f7d70bf1fca190a717e635bd',
    1795694217,
    1795780617);
INSERT INTO issuance (serial, kind, spiffe_id, entry_id, caller, authority_id, issued_at, not_after) VALUES (
    '7ddeb25bbe333dd0218bcce34874f302',
    'x509',
    'spiffe://example.org/web',
    '8da8e1cd-7ccc-4d10-9b7a-ca79b7ede934',
    'spiffe://example.org/spire/agent/join_token/ba680d47-5bd0-4e9c-8db4-e44162d9089d',
    '84994dad49797121f7d70bf1fca190a717e635bd',
    1795694219,
    1795696019);
INSERT INTO federated_bundle (trust_domain, document, updated_at) VALUES ('other.org', '{"keys":[],"spiffe_sequence":1}', 1);

//! Reason codes of this crate, each with cause and remedy. Codes that come from `identity` and `runtime` stand there.

use identity::ReasonDoc;

const fn doc(code: &'static str, cause: &'static str, remedy: &'static str) -> ReasonDoc {
    ReasonDoc { code, cause, remedy }
}

/// Every code of this crate, in lexical order.
pub const REASONS: &[ReasonDoc] = &[
    doc(
        "ACCOUNT_NOT_ALLOWED",
        "The service account of a token is not one of service_accounts.",
        "Add NAMESPACE:NAME to service_accounts of the cluster if its pods are agents.",
    ),
    doc(
        "ACME_CERTIFICATE_UNFIT",
        "The ACME server gave a certificate that is for another domain, has ended, or does not fit its key.",
        "Compare federation.web_endpoint.acme.domain_name with the order at the ACME server, and the clocks.",
    ),
    doc(
        "ACME_DOMAIN_UNPROVEN",
        "The ACME server did not find the proof for the domain; its own words stand beside the code.",
        "Let port 80 of domain_name lead to federation.web_endpoint.acme.http_listen of this authority.",
    ),
    doc(
        "ACME_NO_CHALLENGE",
        "The ACME server wants another proof of the domain than an answer over HTTP (http-01).",
        "Take a server that offers http-01, or give cert_file and key_file.",
    ),
    doc(
        "ACME_REFUSED",
        "The ACME server says no; its own words stand beside the code.",
        "Do what it says; the authority tries again by itself, more and more rarely.",
    ),
    doc(
        "ACME_UNREACHABLE",
        "The ACME server does not answer, or not in time.",
        "See that directory_url is right and can be reached from here; the authority tries again by itself.",
    ),
    doc(
        "ADDRESS_FORBIDDEN",
        "A host name leads to an address that is not called for strangers: loopback, private, link-local or a metadata service.",
        "Add the network to allowed_networks if nodes live there; otherwise look at the name's DNS records.",
    ),
    doc(
        "ADDRESS_RATE_LIMITED",
        "From one address came more requests without a certificate, or more that proves nothing, than address_limits allow.",
        "Wait as long as the answer says; raise address_limits if many nodes share the address, otherwise find out who guesses there.",
    ),
    doc(
        "AGENT_ALREADY_ATTESTED",
        "A node came a second time whose attestor admits each node once.",
        "If it is the same machine set up anew, run kasbah node evict; otherwise somebody else tries to be it.",
    ),
    doc(
        "AGENT_BANNED",
        "The node was banned.",
        "Find out why; to admit it again, delete it and let it join with a new token.",
    ),
    doc("AGENT_EXPIRED", "The node's SVID ran out.", "Let the node join again with a new token."),
    doc(
        "AGENT_NOT_ACTIVE",
        "The node shows an SVID that a newer one has replaced.",
        "Let the node use its newest SVID; if somebody else uses the old one, ban the node.",
    ),
    doc("AGENT_NOT_ATTESTED", "The node never joined, or was deleted.", "Let the node join with a new token."),
    doc("AGENT_UNKNOWN", "There is no such node.", "See `kasbah node list`."),
    doc(
        "APPROVALS_FULL",
        "As many calls wait for a second person as may.",
        "Approve or deny some: `kasbah ca approvals list`.",
    ),
    doc(
        "APPROVAL_DECIDED",
        "The call was approved already.",
        "Let its requester make it; or deny it to take the approval back.",
    ),
    doc(
        "APPROVAL_NEEDED",
        "The rights file wants a second person for this verb.",
        "Let somebody else with the same right run `kasbah ca approvals approve ID`, then repeat the call.",
    ),
    doc("APPROVAL_SAME_PERSON", "Who wants to make a call cannot approve it.", "Let somebody else approve it."),
    doc(
        "APPROVAL_UNKNOWN",
        "No call with this id waits, or its time is over.",
        "See `kasbah ca approvals list`; repeat the call to ask again.",
    ),
    doc(
        "ATTESTATION_BUSY",
        "More nodes attest at this moment than are served at once.",
        "Nothing to do; the agent tries again.",
    ),
    doc(
        "ATTESTATION_INCOMPLETE",
        "The node's first message lacks its evidence or its CSR.",
        "Look at the agent's version and log.",
    ),
    doc("ATTESTOR_UNKNOWN", "The node shows evidence that nobody here can check.", "Use a join token."),
    doc(
        "AUDIENCE_INVALID",
        "A JWT-SVID was asked for without an audience, or with too many or too long ones.",
        "Name one to 32 audiences.",
    ),
    doc("AUTHORITY_CHANGED", "The signing authority was replaced while a signature was made.", "Try again."),
    doc(
        "AUTHORITY_KEY_LOST",
        "A key of an authority was in the memory of a process that is gone.",
        "Nothing to do where `custody.keys` is `memory`: new authorities sign; nodes that know only the old root join again.",
    ),
    doc(
        "AUTHORITY_KEY_PLACE_UNKNOWN",
        "A key of an authority is kept in a place that the settings do not name.",
        "Keep the section of the old place in `custody` until a rotation has replaced its keys.",
    ),
    doc(
        "AUTHORITY_NOT_INSTALLED",
        "The setting `custody.offline_root` is on, and no intermediate is installed yet.",
        "Run `kasbah ca csr --config FILE`, have the CSR signed, then `kasbah ca install --config FILE`.",
    ),
    doc(
        "AUTHORITY_OFFLINE",
        "The key of the root is kept offline, so this server can make no new root or intermediate.",
        "Run `kasbah ca csr`, have the CSR signed, then `kasbah ca install`; or import an authority with `kasbah ca import`.",
    ),
    doc(
        "AUTHORITY_REFUSED",
        "The authority is not known, or only an old one can be tainted and only a tainted one revoked.",
        "See `kasbah ca rotate status` for the authorities and their states.",
    ),
    doc(
        "AUTHORITY_STATE",
        "The step does not fit the state of the signing authorities.",
        "See `kasbah ca rotate status`.",
    ),
    doc(
        "AUTHORITY_TRIAL_FAILED",
        "A new authority was tried before it might sign, and what it signed does not verify.",
        "Nothing was changed; look at the cause in the authority's log, then prepare again.",
    ),
    doc("BACKUP_DAMAGED", "The file is damaged, cut short, or no backup.", "Take another one."),
    doc("BACKUP_EMPTY", "The database holds no authority.", "Name the right database in `database`."),
    doc(
        "BACKUP_FILE_UNUSABLE",
        "The backup file cannot be read or written.",
        "See that it exists and its directory is writable.",
    ),
    doc("BACKUP_OTHER_VERSION", "The backup was made by a newer version.", "Restore it with that version."),
    doc("BACKUP_SEAL_FAILED", "The end of the backup could not be sealed.", "Try again."),
    doc(
        "BACKUP_UNPROVEN",
        "The backup was made with another key file, or was changed.",
        "Name the key file it was made with in `key_file`.",
    ),
    doc("BATCH_TOO_LARGE", "One request holds too many items.", "Send several smaller requests."),
    doc("BUNDLE_EXISTS", "There is a bundle of this trust domain.", "Set or update it instead."),
    doc(
        "BUNDLE_FILE_UNWRITABLE",
        "The file of the setting `bundle_file` cannot be written.",
        "Make its directory writable.",
    ),
    doc("BUNDLE_IN_USE", "Entries federate with this trust domain.", "Delete or dissociate those entries."),
    doc("BUNDLE_UNKNOWN", "There is no bundle of this trust domain.", "See `kasbah bundle list`."),
    doc(
        "CALLER_NOT_ADMIN",
        "The caller is no administrator.",
        "Use the admin socket, or an SVID whose entry says `admin`.",
    ),
    doc("CALLER_NOT_AGENT", "Only agents may call this.", "Call it with the SVID of an agent."),
    doc(
        "CALLER_NOT_DOWNSTREAM",
        "The caller asks for an intermediate or publishes keys, and its entry is not marked downstream.",
        "Create its entry with `kasbah entry create --downstream`, or find out who it is.",
    ),
    doc(
        "CALLER_NOT_LOCAL",
        "A private key was sent over the network.",
        "Run `kasbah ca import` on the machine of the authority, at its admin socket.",
    ),
    doc(
        "CERT_SIGNER_UNKNOWN",
        "The request names a signer of Kubernetes, and there is none here.",
        "Leave CertSigner empty.",
    ),
    doc(
        "CHALLENGE_UNANSWERED",
        "The node did not answer a challenge in time.",
        "Look at the agent's log; see that nothing between agent and CA delays streams.",
    ),
    doc(
        "CHALLENGE_WRONG",
        "The host of a node answers with something else than the challenge.",
        "See that the well-known path reaches the agent, without a redirect; otherwise somebody names a foreign host.",
    ),
    doc(
        "CLAIM_REFUSED",
        "A token lacks one of the claims that required_claims asks for.",
        "Show a token of a node that is ours, or correct required_claims.",
    ),
    doc(
        "CLIENT_CERTIFICATE_MISSING",
        "The caller shows no client certificate.",
        "Connect with an SVID of this trust domain.",
    ),
    doc(
        "CLOCK_JUMPED",
        "The clock of the authority's machine jumped; nothing is signed until it can be believed.",
        "Correct the clock; a new time that stands is believed after ten minutes.",
    ),
    doc(
        "CLUSTER_UNKNOWN",
        "The agent names a cluster that node_attestors.k8s_psat does not know.",
        "Add the cluster, or correct the cluster in the agent's settings.",
    ),
    doc(
        "CREDENTIALS_MISSING",
        "The settings name a systemd credential, and the process was started without credentials.",
        "Start the authority by systemd with LoadCredential= or SetCredentialEncrypted=.",
    ),
    doc(
        "CSR_NAMES_REFUSED",
        "The CSR of an administrator must name exactly one SPIFFE ID, and proper DNS names.",
        "Correct the CSR.",
    ),
    doc(
        "DATABASE_ACCESS_DENIED",
        "The database server refuses the user or the password.",
        "Correct them in `database`; the server's log says which.",
    ),
    doc(
        "DATABASE_CORRUPT",
        "The database file is damaged or no database.",
        "Restore it from a backup, or move it away to start a new authority.",
    ),
    doc("DATABASE_FOREIGN", "The database was made by another program.", "Name another one in `database`."),
    doc("DATABASE_IN_USE", "A running authority uses the database.", "Stop every replica first."),
    doc("DATABASE_MISSING", "The database server has no database of this name.", "Create it with CREATE DATABASE."),
    doc(
        "DATABASE_NOT_EMPTY",
        "There is an authority in the database.",
        "Restore into a new database, or lose what is in it with --force.",
    ),
    doc(
        "DATABASE_NO_RIGHTS",
        "The database user may not create and change tables.",
        "Make it the owner of the database, or GRANT it CREATE and USAGE on the schema.",
    ),
    doc(
        "DATABASE_OTHER_TRUST_DOMAIN",
        "The database belongs to another trust domain.",
        "Correct `trust_domain` or `database`.",
    ),
    doc(
        "DATABASE_OTHER_VERSION",
        "The database was written by another version.",
        "Start that version, or restore a backup.",
    ),
    doc(
        "DATABASE_PARAMETER_UNKNOWN",
        "The database's address has a parameter that nobody knows.",
        "Correct it; a mistyped `sslmode` must not mean none.",
    ),
    doc(
        "DATABASE_READ_ONLY",
        "The database can only be read: a standby server, or a disk mounted read-only.",
        "Name the primary server, or make the disk writable.",
    ),
    doc("DATABASE_RESTORING", "A restore by an earlier version did not end.", "Restore again with --force."),
    doc("DATABASE_UNAVAILABLE", "The database cannot be opened.", "See that it exists, is reachable and writable."),
    doc("DATABASE_UNSUPPORTED", "The database's address is of no known kind.", "Begin it with sqlite: or postgres:."),
    doc(
        "DATABASE_UNVERIFIED",
        "The database server does not prove who it is.",
        "Name its root certificate with `sslrootcert=FILE`, and the host name that its certificate carries.",
    ),
    doc(
        "DATA_DIR_IN_USE",
        "Another certificate authority uses the directory.",
        "Stop it or choose another `data_dir`.",
    ),
    doc(
        "DATA_DIR_UNUSABLE",
        "The directory cannot be made or written.",
        "Choose another `data_dir`, or correct its owner and mode.",
    ),
    doc(
        "DEVICE_ROOTS_UNAVAILABLE",
        "The files of ca_bundles cannot be read.",
        "See that the files exist, hold certificates, and are readable for the CA's user.",
    ),
    doc("ENTRY_EXISTS", "An entry with the same SPIFFE ID, parent and selectors exists.", "Update that one."),
    doc("ENTRY_ID_TAKEN", "Another entry has the id.", "Choose another id, or none."),
    doc("ENTRY_INVALID", "A field of the entry is refused; the message names it.", "Correct the field."),
    doc(
        "ENTRY_NOT_AUTHORIZED",
        "The entry does not exist, or does not belong to the node that asks.",
        "Compare the entry's parent with the node's ID: `kasbah entry show`.",
    ),
    doc("ENTRY_UNKNOWN", "There is no such entry.", "See `kasbah entry list`."),
    doc(
        "EVIDENCE_MALFORMED",
        "The evidence of a node, or its answer to a challenge, is not what the attestor reads.",
        "Compare the attestor in the agent's settings with the CA's node_attestors, and the versions.",
    ),
    doc(
        "FEDERATION_ADDRESS_FORBIDDEN",
        "The host of a bundle endpoint leads to an address that is not called: loopback, link-local or a metadata service.",
        "Add the network to federation.allowed_networks if the endpoint is meant to be there.",
    ),
    doc(
        "FEDERATION_ANSWER_REFUSED",
        "A bundle endpoint answers with something else than 200 and a document of acceptable length.",
        "Open the URL with curl; redirects are not followed, so name the place that they lead to.",
    ),
    doc(
        "FEDERATION_BUNDLE_MISSING",
        "The endpoint of a relationship proves itself by SVID, and no bundle to verify it with is known.",
        "Set the bundle once with `kasbah bundle set`, or create the relationship with one.",
    ),
    doc(
        "FEDERATION_EXISTS",
        "There is a federation relationship with this trust domain.",
        "Use `kasbah federation update`.",
    ),
    doc("FEDERATION_FULL", "As many federation relationships exist as are kept.", "Delete those that are not needed."),
    doc(
        "FEDERATION_INVALID",
        "A federation relationship is incomplete or contradicts itself.",
        "Name trust domain, https URL and profile; for https_spiffe the endpoint's SPIFFE ID.",
    ),
    doc(
        "FEDERATION_ROOTS_UNREADABLE",
        "The file of federation.web_roots_file cannot be read.",
        "Correct the setting or the file's rights.",
    ),
    doc(
        "FEDERATION_SEQUENCE_BACKWARDS",
        "A bundle endpoint serves an older bundle than the known one.",
        "If the other authority was restored from a backup, take over its bundle with `kasbah bundle set` after having compared it.",
    ),
    doc(
        "FEDERATION_TLS_FAILED",
        "A bundle endpoint does not finish the TLS handshake.",
        "See that the URL's port speaks TLS 1.3 (or 1.2 for https_web).",
    ),
    doc(
        "FEDERATION_UNKNOWN",
        "There is no federation relationship with this trust domain.",
        "See `kasbah federation list`.",
    ),
    doc(
        "FEDERATION_UNREACHABLE",
        "A bundle endpoint cannot be reached, or does not answer in time.",
        "Nothing is lost, the known bundle stays in force; look at the name, the port and the network between.",
    ),
    doc("FILTER_INVALID", "A filter or mask of the request is not understood.", "Correct the request."),
    doc(
        "HOST_NOT_ALLOWED",
        "A node names a host that is malformed or matches none of allowed_dns_patterns.",
        "Correct the hostname in the agent's settings, or add a pattern.",
    ),
    doc(
        "HOST_UNREACHABLE",
        "The CA cannot reach the host of a node over HTTP.",
        "See that name, port and firewall let the CA reach the agent.",
    ),
    doc(
        "IMPERSONATION_REFUSED",
        "The caller asks for the identity of somebody else.",
        "Let every workload show its own token.",
    ),
    doc(
        "IMPORT_FILE_UNREADABLE",
        "A file of `custody.import` cannot be read.",
        "See that it exists and can be read by the authority.",
    ),
    doc(
        "IMPORT_KEY_PLACE",
        "`custody.keys` names a place where keys are made and never put.",
        "Use `kasbah ca csr` and `kasbah ca install`; the key is then made there.",
    ),
    doc(
        "IMPORT_NO_REQUEST",
        "The certificate to install is not for the key of a CSR that waits.",
        "Make a CSR with `kasbah ca csr` and have that one signed; for a certificate with a key of its own use `kasbah ca import`.",
    ),
    doc(
        "IMPORT_ROOT_KNOWN",
        "The root is trusted already and is not the one that signs or is prepared, or it has another certificate.",
        "See `kasbah ca rotate status`; end the rotation that runs, or import a root with a new key.",
    ),
    doc(
        "INTERMEDIATE_RENEWAL_DUE",
        "The intermediate grows old, and its root is not here to sign the next one.",
        "Run `kasbah ca csr --out FILE`, have the offline root sign it, then `kasbah ca install --cert SIGNED`.",
    ),
    doc(
        "INTERMEDIATE_RENEWAL_OVERDUE",
        "The intermediate ends so soon that SVIDs are cut short, and its root is not here to sign the next one.",
        "At once: `kasbah ca csr --out FILE`, have the offline root sign it, then `kasbah ca install --cert SIGNED`.",
    ),
    doc(
        "ISSUANCE_DNS_NAME_NOT_ALLOWED",
        "The issuance policy does not allow a DNS name of the entry; the message names the rule and what it allows.",
        "Correct the entry's DNS names, or the rule: `kasbah ca policy explain`.",
    ),
    doc(
        "ISSUANCE_KEY_NOT_ALLOWED",
        "The issuance policy does not allow this type of key; the message names the rule and what it allows.",
        "Let the workload use another key, or correct the rule: `kasbah ca policy explain`.",
    ),
    doc(
        "ISSUANCE_NOT_ALLOWED",
        "No rule of the issuance policy gives this identity to this caller, or one denies it.",
        "See `kasbah ca policy explain`; correct the policy or the entry.",
    ),
    doc(
        "ISSUANCE_POLICY_INVALID",
        "The issuance policy says something impossible; the message names line and column. The last good one stays in force.",
        "Correct the file; `kasbah ca policy check FILE` tells whether it is good.",
    ),
    doc(
        "ISSUANCE_POLICY_UNREADABLE",
        "The file of the setting `policy_file` cannot be read. The last good policy stays in force.",
        "See that the file exists and can be read by the authority.",
    ),
    doc(
        "ISSUANCE_QUOTA_EXCEEDED",
        "A quota of the issuance policy is used up; the message names it and the time to wait.",
        "Wait; if it happens in normal operation, raise the quota, otherwise find out who asks so often.",
    ),
    doc(
        "ISSUANCE_TTL_NOT_ALLOWED",
        "The issuance policy asks for a longer life than was asked for.",
        "Correct the entry's TTL, or the rule: `kasbah ca policy explain`.",
    ),
    doc(
        "ISSUANCE_UNKNOWN",
        "No record of an SVID with this serial is kept.",
        "Compare the serial (hex); records are kept for `record_kept` after the SVID's end, the log keeps their hashes.",
    ),
    doc("JOIN_TOKEN_EXISTS", "A join token of this value exists.", "Let the server choose the value."),
    doc("JOIN_TOKEN_EXPIRED", "The join token was used too late.", "Make a new one with `kasbah token create`."),
    doc(
        "JOIN_TOKEN_INVALID",
        "The join token asked for cannot be part of a SPIFFE ID.",
        "Let the server choose the value.",
    ),
    doc(
        "JOIN_TOKEN_UNKNOWN",
        "The join token was never made, or was used before.",
        "Make a new one with `kasbah token create`.",
    ),
    doc("KEY_FILE_EXPOSED", "Other users can read the key-encryption key.", "Run `chmod 600` on the file."),
    doc("KEY_FILE_MALFORMED", "The key file does not hold a key.", "Restore it from the backup."),
    doc("KEY_FILE_MISSING", "The key file is not there, and the database needs it.", "Restore it from the backup."),
    doc("KEY_FILE_UNUSABLE", "The key file cannot be read or made.", "Correct the owner and mode of its directory."),
    doc("KEY_FILE_WRONG", "The key file belongs to another database.", "Name the right file in `key_file`."),
    doc(
        "KEY_PASSPHRASE_MISSING",
        "The keys in the database are sealed by a passphrase, and the settings name none.",
        "Name its file in `custody.passphrase_file`, or the credential in `custody.passphrase_credential`.",
    ),
    doc(
        "KEY_PASSPHRASE_UNUSED",
        "The settings name a passphrase, and the keys in the database are sealed by a key file.",
        "Take the passphrase out of the settings; a new database can begin with one.",
    ),
    doc(
        "NODE_NAME_UNUSABLE",
        "A fact about a node is missing, or holds characters that cannot be a part of its ID.",
        "Choose another field in agent_path_template, or correct the certificate or token.",
    ),
    doc("NOT_OFFERED", "The server does not offer this call.", "Use another way; the message names the call."),
    doc(
        "OLD_SVID_TOO_OLD",
        "A node came back with an SVID that ended longer ago than node_attestors.old_svid.age_max.",
        "Give it new evidence, such as a join token, or raise age_max.",
    ),
    doc(
        "OLD_SVID_UNKNOWN",
        "A node came back with an SVID that is not the last one issued to it, or the node was evicted.",
        "Give it new evidence, such as a join token; if you did not expect it, look who holds a copy of its key.",
    ),
    doc(
        "PART_ENDED",
        "A part of the process ended by itself.",
        "Look at the log lines before; the process should be started again.",
    ),
    doc(
        "PORT_NOT_ALLOWED",
        "A node names a port outside port_min and port_max.",
        "Let the agent listen on an allowed port.",
    ),
    doc(
        "REFLECTION_UNAVAILABLE",
        "gRPC reflection cannot be served.",
        "Everything else is; tell the developers what the log says.",
    ),
    doc(
        "RENEWAL_REFUSED",
        "A certificate is not renewed by showing it: no record of it is kept, its entry is gone, or it is a node's.",
        "See the log for which; ask for the identity anew, by token, entry or `kasbah cert issue`.",
    ),
    doc("REQUEST_TOO_LARGE", "A request that needs approval is larger than 4 MiB.", "Send several smaller requests."),
    doc(
        "REVOCATIONS_TOO_MANY",
        "More SVIDs of one authority would be revoked than a revocation list may hold.",
        "Replace the authority: `kasbah ca rotate`; what the old one signed is then worth nothing.",
    ),
    doc(
        "REVOCATION_INVALID",
        "A revocation names nothing, a malformed serial number, or a reason that RFC 5280 does not know.",
        "Give --reason as in RFC 5280, 5.3.1, and the serial number or SHA-256 in hexadecimal.",
    ),
    doc(
        "RIGHTS_INVALID",
        "The rights file says something impossible.",
        "Correct the place that the message names; `kasbah ca rights check FILE` tries it.",
    ),
    doc(
        "RIGHTS_UNREADABLE",
        "The file of the setting `rights_file` cannot be read.",
        "Correct the setting or the file's rights.",
    ),
    doc(
        "RIGHT_MISSING",
        "The caller has rights, but not the one that the call needs, or not for this identity.",
        "See `kasbah ca rights explain`; add it to a role of his in the rights file.",
    ),
    doc("ROTATION_BUSY", "Another server changed the authorities at the same time.", "Try again."),
    doc(
        "ROTATION_NOT_ACKNOWLEDGED",
        "Nodes have not acknowledged the bundle that this step of a rotation needs everywhere.",
        "See `kasbah ca rotate status` for who and why; mend or wait, or waive a node by name.",
    ),
    doc(
        "ROTATION_OVERDUE",
        "An authority ends although nodes have not acknowledged the next one; the rotation went on without them.",
        "Look at the nodes named in the log: they refuse certificates of the new authority.",
    ),
    doc(
        "ROTATION_UNKNOWN",
        "No rotation of this kind of authority is on record.",
        "`kasbah ca rotate status` shows the present state; receipts are kept for `audit_kept`.",
    ),
    doc("SHUTTING_DOWN", "The authority is ending.", "Try again."),
    doc(
        "SIGNER_UNUSABLE",
        "The signer cannot use its folder or its socket.",
        "See that both directories exist and can be written by the signer's user, and that no other signer runs.",
    ),
    doc("SIGNING_FAILED", "The certificate could not be signed.", "Look at the cause in the authority's log."),
    doc(
        "SOURCE_REVOKED",
        "The entry or node was revoked while an SVID for it was being signed; it was not handed out.",
        "Nothing, unless it was revoked by mistake: create the entry anew, or evict the node and let it join again.",
    ),
    doc(
        "SPIFFE_ID_REFUSED",
        "The SPIFFE ID is of another trust domain, reserved, or has no path.",
        "Correct the ID; the message names the field.",
    ),
    doc(
        "STORE_BUSY",
        "More is asked for than can be written; what is new waits behind renewals.",
        "Try again after a while; if it lasts, use a faster disk or database.",
    ),
    doc("STORE_DAMAGED", "A row of the database cannot be understood.", "Restore the database from a backup."),
    doc("STORE_FULL", "The disk of the database is full.", "Make room; the authority goes on by itself."),
    doc(
        "STORE_READ_ONLY",
        "The database takes no writes: a disk mounted read-only, or a standby server.",
        "Make it writable; the authority goes on by itself.",
    ),
    doc(
        "STORE_UNAVAILABLE",
        "The database does not take the request.",
        "Look at the cause in the log: disk full, file moved, server away.",
    ),
    doc(
        "SVID_NOT_EXCHANGEABLE",
        "An SVID was shown as a node's evidence that is not below svid_prefix.",
        "Issue the machine an SVID below svid_prefix of x509pop.",
    ),
    doc(
        "TOKEN_CONTRADICTS_ITSELF",
        "Claims of the token name different service accounts.",
        "Look at the issuer of the token.",
    ),
    doc("TOKEN_ISSUER_UNKNOWN", "The token's issuer is not configured.", "Add it to `service_account_issuers`."),
    doc("TOKEN_KEYS_UNAVAILABLE", "The keys of the token's issuer cannot be read.", "Look at its `jwks_file`."),
    doc("TOKEN_MISSING", "The caller shows no bearer token.", "Send the metadata `authorization: Bearer TOKEN`."),
    doc(
        "TOKEN_SUBJECT_REFUSED",
        "The token's subject is no service account.",
        "Use a token with the subject system:serviceaccount:NAMESPACE:NAME.",
    ),
    doc("TOKEN_TWICE", "The caller shows more than one authorization header.", "Send one."),
    doc(
        "TOKEN_UNBOUND",
        "A service account token does not say on which node or in which pod it is used.",
        "Use a projected token of Kubernetes 1.30 or later, or set agent_id: pod.",
    ),
    doc("TTL_INVALID", "A life was asked for that is not positive.", "Ask for at least one second."),
    doc(
        "UPSTREAM_FILE_UNREADABLE",
        "A file of the setting `upstream.files` cannot be read.",
        "See that it exists and can be read by the authority.",
    ),
    doc(
        "UPSTREAM_NOT_FOLLOWED",
        "What the upstream authority publishes or signs could not be taken over; the last good state stays in force.",
        "Look at the cause in the log line; it is tried again by itself.",
    ),
    doc(
        "UPSTREAM_REFUSED",
        "The upstream authority does not sign an intermediate.",
        "See that its certificate lives on and its path length allows a CA below it.",
    ),
    doc(
        "UPSTREAM_UNREACHABLE",
        "The server above does not answer.",
        "See its address and the entry of this server at its agent; it is tried again by itself.",
    ),
    doc(
        "WEB_CERTIFICATE_MISSING",
        "The bundle endpoint of the web has no certificate yet, so nothing is served there.",
        "Look for the ACME_ code in /status and the log.",
    ),
    doc(
        "WEB_CERTIFICATE_UNREADABLE",
        "The certificate or key of federation.web_endpoint cannot be read.",
        "Correct the setting or the files' rights.",
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn codes_are_sorted_and_sentences_whole() {
        assert!(REASONS.windows(2).all(|pair| pair[0].code < pair[1].code));
        assert!(REASONS.iter().all(|doc| doc.cause.ends_with('.') && doc.remedy.ends_with('.')));
    }

    #[test]
    fn every_code_in_the_source_is_explained() {
        let elsewhere = identity::REASONS.iter().chain(runtime::REASONS).map(|doc| doc.code);
        let known: BTreeSet<&str> = REASONS.iter().map(|doc| doc.code).chain(elsewhere).collect();
        let sources = [
            "refusal.rs",
            "attest/error.rs",
            "key_file.rs",
            "server.rs",
            "service_account.rs",
            "settings.rs",
            "backup/error.rs",
            "store/error.rs",
            "store/open/error.rs",
            "authorities.rs",
            "signer.rs",
            "upstream.rs",
            "policy.rs",
            "policy/document.rs",
            "federation/error.rs",
            "rights/document.rs",
            "federation/endpoint.rs",
        ];
        for source in sources {
            let text = std::fs::read_to_string(format!("{}/src/{source}", env!("CARGO_MANIFEST_DIR"))).unwrap();
            let reasons = text.lines().filter(|line| line.contains("=> \"") || line.trim().starts_with('"'));
            for line in reasons {
                let Some(code) = line.split('"').nth(1) else { continue };
                let upper = !code.is_empty() && code.chars().all(|c| c.is_ascii_uppercase() || c == '_');
                assert!(!upper || known.contains(code), "{source}: {code}");
            }
        }
    }
}

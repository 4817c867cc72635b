//! The reason codes of this crate, for `kasbah help reasons`.

use identity::ReasonDoc;

const fn doc(code: &'static str, cause: &'static str, remedy: &'static str) -> ReasonDoc {
    ReasonDoc { code, cause, remedy }
}

/// Every code of this crate, in lexical order.
pub const REASONS: &[ReasonDoc] = &[
    doc(
        "AFTER_CHANGE_FAILED",
        "Files were written, but the program that uses them could not be told.",
        "See the command or pid_file beside the code; it is told again at the next change.",
    ),
    doc(
        "AGENT_NOT_READY",
        "The agent has not heard of the CA yet, or the SVID has not been issued yet.",
        "Wait; if it stays, look at /healthz/ready of the agent.",
    ),
    doc(
        "AGENT_SVID_EXPIRED",
        "The agent was off for longer than its SVID lives.",
        "Create a join token, put it into join_token_file, start again.",
    ),
    doc(
        "ATTEST_AMBIGUOUS",
        "Several processes hold one connection on loopback, so nobody can tell which of them calls.",
        "Connect over the Unix socket, or let each process open a connection of its own.",
    ),
    doc(
        "ATTEST_NOT_LOCAL",
        "A caller is not on the loopback of this machine.",
        "Run an agent on the machine of the workload.",
    ),
    doc(
        "ATTEST_NO_CREDENTIALS",
        "The kernel does not say which process is calling.",
        "Call over the Unix socket, from this machine.",
    ),
    doc(
        "ATTEST_PROCESS_GONE",
        "The calling process has ended.",
        "Nothing to do; a process with this number is another one.",
    ),
    doc(
        "ATTEST_PROCESS_INVISIBLE",
        "The calling process lives in another PID namespace.",
        "Run the agent in the host's PID namespace.",
    ),
    doc(
        "ATTEST_PROC_UNREADABLE",
        "The facts of the calling process cannot be read from /proc.",
        "Let the agent run as root, or as the user of its workloads.",
    ),
    doc(
        "ATTEST_PROGRAM_CHANGED",
        "The process runs another program than when it connected.",
        "Connect again after exec.",
    ),
    doc(
        "CACHE_DAMAGED",
        "The offline cache cannot be opened: of another version of the agent, damaged, of another trust domain, or its key has changed.",
        "Nothing to do; it is written anew after the next contact with the CA.",
    ),
    doc(
        "CACHE_KEY_BAD",
        "The key of the offline cache cannot be read or made.",
        "Give a readable file of 32 bytes as cache.key_file, or see that data_dir is writable.",
    ),
    doc(
        "CACHE_NOT_WRITTEN",
        "The offline cache cannot be written.",
        "See that the disk is not full and data_dir writable; serving goes on meanwhile.",
    ),
    doc("CA_BAD_ANSWER", "The CA's answer breaks the protocol.", "Compare the versions of agent and CA."),
    doc(
        "CA_BUSY",
        "The CA has too much to do, or too much came from this node's address.",
        "Nothing to do; the agent tries again as the CA asks. If it lasts, see address_limits at the CA.",
    ),
    doc("CA_REFUSED", "The CA says no; its own words stand beside the code.", "Look at the CA's log for its reason."),
    doc(
        "CA_UNAVAILABLE",
        "The CA does not answer.",
        "See that it runs and that `server` is its address; what is valid is served meanwhile.",
    ),
    doc("CA_UNSUPPORTED", "The CA does not offer a call.", "Nothing to do; the agent works without it."),
    doc(
        "CLOCK_AHEAD",
        "This machine's clock is further ahead of the CA's than an SVID lives.",
        "Correct the clock, with timedatectl or chronyc.",
    ),
    doc(
        "CLOCK_BEHIND",
        "This machine's clock is behind: what the CA issued is not valid yet by it, and is not handed out.",
        "Correct the clock, with timedatectl or chronyc.",
    ),
    doc(
        "DATA_DIR_UNWRITABLE",
        "A file in data_dir cannot be written.",
        "Make the directory writable for the agent's user, and see that the disk is not full.",
    ),
    doc(
        "DELEGATE_NOT_ALLOWED",
        "A program asked for the identities of others without being named in broker.delegates.",
        "Add its SPIFFE ID there, if it may.",
    ),
    doc(
        "ENTRY_BAD",
        "The CA sent a registration entry that this agent cannot use.",
        "Look at the named field of the entry.",
    ),
    doc("EXE_TOO_LARGE", "An executable is too large to be digested.", "Use other selectors than unix:sha256 for it."),
    doc(
        "FILES_IN_THE_WAY",
        "A directory stands where a file of an identity is to be written.",
        "Move it away, or choose another name.",
    ),
    doc(
        "FILES_NOT_WRITTEN",
        "The files of an identity cannot be written.",
        "See that the directory is writable and the disk not full; the former version stays in force.",
    ),
    doc(
        "FILES_OWNER_UNKNOWN",
        "The owner or group of files is not known on this machine.",
        "Correct access.owner or access.group.",
    ),
    doc(
        "IDENTITY_NOT_ENTITLED",
        "The workload asked for an identity that no entry gives it.",
        "See kasbah agent whoami --pid PID.",
    ),
    doc("ISSUER_NOT_IN_BUNDLE", "The issuer of an SVID has left the bundle, so it is renewed early.", "Nothing to do."),
    doc(
        "JOIN_BAD_ANSWER",
        "The CA answered the join with something else than an agent's SVID.",
        "Compare the versions and the trust domain of agent and CA.",
    ),
    doc(
        "JOIN_EVIDENCE_BAD",
        "A file by which the agent proves what its node is holds nothing usable.",
        "See the setting named beside the code.",
    ),
    doc(
        "JOIN_EVIDENCE_UNREADABLE",
        "A file by which the agent proves what its node is cannot be read.",
        "See that the file exists and is readable for the agent's user.",
    ),
    doc(
        "JOIN_NO_TOKEN",
        "The agent has no SVID and nothing to join with.",
        "Create a token with kasbah token create and name its file as join_token_file, or set x509pop, k8s_psat, oidc_jwt or http_challenge.",
    ),
    doc(
        "JOIN_REFUSED",
        "The CA does not admit this node by the evidence that it shows.",
        "The CA's own reason stands beside the code; see kasbah help reasons for its remedy.",
    ),
    doc(
        "JOIN_TOKEN_REFUSED",
        "The join token is used, expired or unknown.",
        "Create a new one with kasbah token create.",
    ),
    doc(
        "JOIN_TOKEN_UNREADABLE",
        "The file of the join token cannot be read.",
        "See that join_token_file exists and is readable for the agent's user.",
    ),
    doc(
        "JWT_TRUST_DOMAIN_UNKNOWN",
        "A JWT-SVID is of a trust domain that this workload has no bundle of.",
        "Add federates_with to the workload's entry.",
    ),
    doc("KEY_NOT_MADE", "The machine makes no keys.", "Look at the cause; this is a fault of the machine."),
    doc(
        "KUBELET_UNAVAILABLE",
        "The kubelet does not tell its pods, so their selectors are left out.",
        "See kubelet in the settings: address, ca_file and token_file.",
    ),
    doc(
        "LAUNCH_ALREADY_NAMED",
        "A launched process, or a child of one, asked for another name.",
        "Start it from outside, or under the same name.",
    ),
    doc(
        "LAUNCH_CALLER_REFUSED",
        "Another user than the agent's own or root tried to launch.",
        "Run kasbah run as the agent's user.",
    ),
    doc(
        "LAUNCH_NAME_BAD",
        "A launch name is empty, too long or has other characters than letters, digits, dot, underscore and hyphen.",
        "Choose another name.",
    ),
    doc(
        "LAUNCH_NOT_RECORDED",
        "The table of launches cannot be written.",
        "Make data_dir writable for the agent's user.",
    ),
    doc("LAUNCH_REQUEST_BAD", "The request at the launch socket is not one line of JSON.", "Use kasbah run."),
    doc("LAUNCH_TOO_MANY", "Too many launched processes are running.", "End some of them."),
    doc(
        "NO_IDENTITY_ISSUED",
        "No registration entry matches the calling process.",
        "See kasbah agent whoami --pid PID, then create or correct an entry.",
    ),
    doc(
        "PART_ENDED",
        "A part of a process ended early, so the whole process ends.",
        "Look at its log; it is started again by its supervisor.",
    ),
    doc("REQUEST_FIELD_EMPTY", "A mandatory field of a Workload API request is empty.", "Fill it."),
    doc(
        "ROOT_NOT_PINNED",
        "None of the roots found has one of the fingerprints of root_pins.",
        "Compare the fingerprints with kasbah bundle show at the CA.",
    ),
    doc("SDS_REJECTED", "A proxy rejected the secrets it was sent.", "Look at its words beside the code."),
    doc(
        "SDS_SECRET_UNKNOWN",
        "A proxy asked for a secret that its workload does not have.",
        "Use default, ROOTCA, ALL, spiffe://TRUST-DOMAIN or the workload's own SPIFFE ID.",
    ),
    doc("SDS_TOO_MANY_NAMES", "A proxy subscribed to too many secrets on one stream.", "Use several streams."),
    doc(
        "SDS_TYPE_UNKNOWN",
        "A proxy asked the SDS socket for something else than secrets.",
        "Send xDS requests to discovery.",
    ),
    doc("SHUTTING_DOWN", "The agent is ending.", "Connect again in a moment."),
    doc(
        "STORED_SVID_DAMAGED",
        "The agent's stored SVID cannot be used.",
        "Create a join token, put it into join_token_file, start again.",
    ),
    doc(
        "SVID_ENDED",
        "The last SVID of a workload ended, and the CA has not renewed it.",
        "See the agent's log for why the CA cannot be reached.",
    ),
    doc(
        "TOKEN_REVOKED",
        "A JWT-SVID is valid by its signature, but was revoked.",
        "Let the workload fetch a new one, unless it was revoked for good reason.",
    ),
    doc(
        "TOO_MANY_CALLS",
        "A process, a user or all together have too many calls waiting for the CA.",
        "Wait for answers before asking again.",
    ),
    doc(
        "TOO_MANY_CONNECTIONS",
        "A process holds too many connections to the agent.",
        "Share one connection in the process.",
    ),
    doc(
        "TOO_MANY_STREAMS",
        "A process, a user or all together hold too many streams open.",
        "Share one stream in the process.",
    ),
    doc(
        "WORKLOAD_HEADER_MISSING",
        "A Workload API call lacks the metadata workload.spiffe.io: true.",
        "Send it; every SPIFFE library does.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_lexical_order_and_explained() {
        assert!(REASONS.windows(2).all(|pair| pair[0].code < pair[1].code));
        assert!(REASONS.iter().all(|doc| doc.cause.ends_with('.') && doc.remedy.ends_with('.')));
    }
}

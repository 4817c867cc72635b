//! The reason codes of every part in one list: what `kasbah help reasons` prints, and what a refusal is explained with.

use identity::reason::ReasonDoc;

/// The reason codes of every part, sorted, each once.
pub(crate) fn all() -> Vec<&'static ReasonDoc> {
    let mut docs: Vec<&ReasonDoc> = parts().into_iter().flatten().collect();
    docs.sort_by_key(|doc| doc.code);
    docs.dedup_by_key(|doc| doc.code);
    docs
}

/// What is known of a code; nothing when a newer part than this binary has said it.
pub(crate) fn find(code: &str) -> Option<&'static ReasonDoc> {
    parts().into_iter().flatten().find(|doc| doc.code == code)
}

fn parts() -> [&'static [ReasonDoc]; 10] {
    [
        identity::REASONS,
        runtime::REASONS,
        routing::REASONS,
        ca::REASONS,
        agent::REASONS,
        proxy::REASONS,
        discovery::REASONS,
        policy::REASONS,
        crate::verbs::filters::REASONS,
        OWN,
    ]
}

/// The codes that only the command line gives, in lexical order.
const OWN: &[ReasonDoc] = &[
    ReasonDoc {
        code: "LOCAL_ACCESS_DENIED",
        cause: "The operating system does not let this user into the mesh's folder or to its sockets.",
        remedy: "Be the user who started the mesh, or root; a CA also answers over the network (--server HOST:PORT).",
    },
    ReasonDoc {
        code: "MESH_NOT_RUNNING",
        cause: "In the folder that the command looks at no mesh runs, or none was ever started.",
        remedy: "Start one with `kasbah up`, or name its folder with --dir DIR or KASBAH_DIR.",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_codes_are_sorted() {
        assert!(OWN.is_sorted_by_key(|doc| doc.code));
    }

    #[test]
    fn every_reason_is_upper_snake_and_explained() {
        for doc in all() {
            let shape = doc.code.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
            assert!(shape, "{}", doc.code);
            assert!(!doc.cause.is_empty() && !doc.remedy.is_empty(), "{}", doc.code);
            assert_eq!(find(doc.code).map(|found| found.code), Some(doc.code));
        }
        assert!(find("NO_SUCH_CODE").is_none());
    }
}

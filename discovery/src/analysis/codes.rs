//! The codes of messages: their level, when they are told, and what to do. Numbers `IST…` are Istio's, with Istio's meaning
//! and level; `KSB…` are ours and about identities. A code never changes its meaning.

mod identity;
mod istio;

use super::message::Level;

/// A code with what it means.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    /// The code.
    pub code: &'static str,
    /// Its name; Istio's where the code is.
    pub name: &'static str,
    /// How bad it is.
    pub level: Level,
    /// When it is told.
    pub when: &'static str,
    /// What to do.
    pub fix: &'static str,
}

/// The entry of a code; that of an internal error for one that is in no table.
pub(crate) fn of(code: &str) -> &'static Code {
    all().find(|known| known.code == code).unwrap_or(&INTERNAL)
}

/// Every code that can be told, in order.
pub fn all() -> impl Iterator<Item = &'static Code> {
    istio::CODES.iter().chain(identity::CODES)
}

const fn code(code: &'static str, name: &'static str, level: Level, when: &'static str, fix: &'static str) -> Code {
    Code { code, name, level, when, fix }
}

const INTERNAL: Code = code(
    "IST0001",
    "InternalError",
    Level::Error,
    "an analyzer failed on these documents",
    "tell us with the documents (`kasbah bug-report`); all other analyzers have run",
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_there_once_and_in_order() {
        let codes: Vec<&str> = all().map(|code| code.code).collect();
        assert!(codes.is_sorted_by(|a, b| a < b));
        assert!(all().all(|code| code.code.len() == 7 && !code.when.is_empty() && !code.fix.is_empty()));
        assert_eq!(of("IST0145").name, "ConflictingGateways");
        assert_eq!(of("nonsense").code, "IST0001");
    }
}

//! Whether the intermediate must be renewed by an operator's hand, because its root is not here.

use identity::reason::ReasonDoc;

use crate::authorities::Signing;
use crate::certifier::{Certifier, secs};
use crate::custody::Place;

/// How the renewal of the intermediate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// The root is here, or the authority above is asked: the server renews by itself.
    Automatic,
    /// Enough life is left.
    NotYet,
    /// A new certificate should be asked for.
    Due,
    /// So little life is left that SVIDs are cut short.
    Overdue,
}

impl Renewal {
    /// Of an intermediate with this validity, Unix seconds. `lead` is the share of its life that is left when its
    /// renewal becomes due, `signs` the usual life of what it signs, in seconds.
    fn of(not_before: i64, not_after: i64, lead: f64, signs: i64, now: i64) -> Self {
        let (life, left) = ((not_after - not_before).max(1), not_after - now);
        if left <= signs {
            Self::Overdue
        } else if left as f64 <= life as f64 * lead {
            Self::Due
        } else {
            Self::NotYet
        }
    }

    /// The stable word.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Automatic => "AUTOMATIC",
            Self::NotYet => "OK",
            Self::Due => "INTERMEDIATE_RENEWAL_DUE",
            Self::Overdue => "INTERMEDIATE_RENEWAL_OVERDUE",
        }
    }

    /// What to do, for people; nothing while nothing is to be done.
    pub(crate) fn remedy(self) -> Option<&'static str> {
        let doc = |doc: &&ReasonDoc| doc.code == self.as_str();
        crate::REASONS.iter().find(doc).map(|doc| doc.remedy)
    }
}

impl Certifier {
    /// How the renewal of the intermediate stands.
    pub(crate) fn renewal(&self) -> Renewal {
        let by_itself = self.authorities.upstream().is_some();
        renewal(&self.authorities.current(), by_itself, self.ttls.renewal_lead, self.ttls.x509_svid, self.now_secs())
    }
}

fn renewal(signing: &Signing, by_itself: bool, lead: f64, svid_ttl: std::time::Duration, now: i64) -> Renewal {
    if by_itself || signing.root_place != Place::Offline {
        return Renewal::Automatic;
    }
    let signs = i64::try_from(svid_ttl.as_secs()).unwrap_or(i64::MAX);
    Renewal::of(secs(signing.x509.not_before()), secs(signing.x509.not_after()), lead, signs, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_asked_for_by_the_share_of_life_that_is_left() {
        let check = |lead, now, expected| assert_eq!(Renewal::of(0, 1_000, lead, 10, now), expected, "{lead} {now}");
        check(0.5, 499, Renewal::NotYet);
        check(0.5, 500, Renewal::Due);
        check(0.25, 749, Renewal::NotYet);
        check(0.25, 750, Renewal::Due);
        check(0.25, 989, Renewal::Due);
        check(0.25, 990, Renewal::Overdue);
        check(0.25, 5_000, Renewal::Overdue);
    }

    #[test]
    fn what_is_to_be_done_is_said() {
        assert!(Renewal::Due.remedy().unwrap().contains("kasbah ca csr"));
        assert!(Renewal::Overdue.remedy().unwrap().contains("kasbah ca install"));
        assert_eq!((Renewal::NotYet.remedy(), Renewal::Automatic.remedy()), (None, None));
    }
}

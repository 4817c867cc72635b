//! Shapes of names that are no SPIFFE IDs.

/// A DNS name as certificates carry it: labels of letters, digits, dashes (and underscores, which Kubernetes users
/// have), at most 253 bytes; the first label may be `*`.
pub(crate) fn is_dns_name(name: &str) -> bool {
    let rest = name.strip_prefix("*.").unwrap_or(name);
    !rest.is_empty() && name.len() <= DNS_NAME_BYTES_MAX && rest.split('.').all(is_dns_label)
}

/// One label of a DNS name.
fn is_dns_label(label: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    !label.is_empty()
        && label.len() <= DNS_LABEL_BYTES_MAX
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// A Kubernetes namespace: one DNS label in lower case.
pub(crate) fn is_namespace(name: &str) -> bool {
    name.len() <= DNS_LABEL_BYTES_MAX && is_kubernetes_label(name)
}

/// A Kubernetes service account: DNS labels in lower case, joined by dots.
pub(crate) fn is_service_account(name: &str) -> bool {
    name.len() <= DNS_NAME_BYTES_MAX && name.split('.').all(is_kubernetes_label)
}

fn is_kubernetes_label(label: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
}

/// The longest DNS name.
pub(crate) const DNS_NAME_BYTES_MAX: usize = 253;
/// The longest DNS label.
pub(crate) const DNS_LABEL_BYTES_MAX: usize = 63;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_names_hold_labels_within_their_limits() {
        for good in ["localhost", "a.b", "*.example.org", "istiod.istio-system.svc", "_a.b", &"x".repeat(63)] {
            assert!(is_dns_name(good), "{good}");
        }
        let long = vec!["x".repeat(63); 4].join(".");
        for bad in ["", ".", "a..b", "a.", "-a", "a-", "*", "a.*", "a b", "a\0b", "ä", &"x".repeat(64), &long] {
            assert!(!is_dns_name(bad), "{bad}");
        }
    }

    #[test]
    fn kubernetes_names_are_lower_case_and_limited() {
        assert!(is_namespace("default") && is_namespace(&"n".repeat(63)));
        assert!(is_service_account("a.b-c") && is_service_account(&"s".repeat(253)));
        for bad in ["", "A", "a/b", "a:b", "-a", "a_b", "..", "a..b", "ä"] {
            assert!(!is_namespace(bad) && !is_service_account(bad), "{bad}");
        }
        assert!(!is_namespace("a.b") && !is_namespace(&"n".repeat(64)) && !is_service_account(&"s".repeat(254)));
    }
}

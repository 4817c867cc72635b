//! Tests of `path`.

use proptest::prelude::*;

use super::*;

fn canonical(text: &str) -> Result<String, PathError> {
    CanonicalPath::parse(text).map(|path| path.as_str().to_owned())
}

#[test]
fn every_spelling_becomes_the_one_canonical_path() {
    for (text, expected) in [
        ("/", "/"),
        ("/admin", "/admin"),
        ("//admin", "/admin"),
        ("/a//b", "/a/b"),
        ("/a///", "/a/"),
        ("/x/../admin", "/admin"),
        ("/x/./admin", "/x/admin"),
        ("/%2e%2e", "/"),
        ("/x/%2e%2E/admin", "/admin"),
        ("/%61dmin", "/admin"),
        ("/a/.", "/a/"),
        ("/a/..", "/"),
        ("/a/b/..", "/a/"),
        ("/a%3fb", "/a%3Fb"),
        ("/%252e%252e", "/%252e%252e"),
        ("/%c3%a4", "/%C3%A4"),
        ("/.well-known/x", "/.well-known/x"),
        ("/...", "/..."),
        ("/a;x=1/b", "/a;x=1/b"),
        ("/a?b=//../c", "/a?b=//../c"),
        ("/a//b?", "/a/b?"),
        ("*", "*"),
    ] {
        if text == "/%2e%2e" {
            assert!(canonical(text).is_err());
            continue;
        }
        assert_eq!(canonical(text).unwrap(), expected, "{text}");
    }
}

#[test]
fn whatever_can_be_read_in_two_ways_is_refused() {
    for text in [
        "/a%2fb",
        "/a%2Fb",
        "/a%5cb",
        "/a\\b",
        "/a%00",
        "/a#b",
        "/a b",
        "/a\tb",
        "/a\u{7f}",
        "/ä",
        "/a%",
        "/a%2",
        "/a%zz",
        "/..",
        "/../admin",
        "/a/../../b",
        "/..;/admin",
        "/a/.;x/b",
        "/%2e%2e;x/admin",
        "admin",
        "",
        "http://a/",
    ] {
        let refused = canonical(text).unwrap_err();
        assert_eq!(refused.reason(), "PATH_NOT_CANONICAL", "{text}");
    }
}

#[test]
fn length_is_limited_at_the_edge() {
    let path = |len: usize| format!("/{}", "a".repeat(len - 1));
    assert!(canonical(&path(PATH_BYTES_MAX)).is_ok());
    assert_eq!(canonical(&path(PATH_BYTES_MAX + 1)).unwrap_err().reason(), "PATH_TOO_LONG");
}

#[test]
fn listeners_may_keep_or_decode_escaped_slashes() {
    let with = |text, escaped_slashes| {
        let options = PathOptions { escaped_slashes, ..PathOptions::STRICT };
        CanonicalPath::parse_raw(text, &options).unwrap().as_str().to_owned()
    };
    assert_eq!(with("/a%2fb", EscapedSlashes::Keep), "/a%2Fb");
    assert_eq!(with("/a\\b", EscapedSlashes::Keep), "/a/b");
    assert_eq!(with("/a%2f%2e%2e%5Cb", EscapedSlashes::Decode), "/b");
}

#[test]
fn without_normalising_nothing_changes() {
    let options = PathOptions { normalize: false, ..PathOptions::STRICT };
    assert_eq!(CanonicalPath::parse_raw("/a//../%2f", &options).unwrap().as_str(), "/a//../%2f");
    assert!(CanonicalPath::parse_raw("/a%00", &options).is_err());
}

#[test]
fn path_and_query_are_split_once() {
    let path = CanonicalPath::parse("/a%3Fb?c=1&d&e=x=y").unwrap();
    assert_eq!((path.path(), path.query()), ("/a%3Fb", Some("c=1&d&e=x=y")));
    assert_eq!(path.params().collect::<Vec<_>>(), [("c", "1"), ("d", ""), ("e", "x=y")]);
    assert_eq!(path.without_param("d").as_str(), "/a%3Fb?c=1&e=x=y");
    assert_eq!(CanonicalPath::parse("/a?t=1").unwrap().without_param("t").as_str(), "/a");
}

#[test]
fn segments_are_also_known_without_their_parameters() {
    assert_eq!(CanonicalPath::parse("/a;x=1/b;y").unwrap().path_without_parameters(), Some("/a/b"));
    assert_eq!(CanonicalPath::parse("/a/b?c;d").unwrap().path_without_parameters(), None);
}

#[test]
fn a_canonical_path_is_not_copied() {
    let raw = PathAndQuery::from_static("/a/b?c");
    let path = CanonicalPath::parse_with(&raw, &PathOptions::STRICT).unwrap();
    assert!(!path.is_changed());
    assert_eq!(path.as_str().as_ptr(), raw.as_str().as_ptr());
}

proptest! {
    #[test]
    fn any_text_is_refused_or_canonical_for_good(text in "/[ -~]{0,40}") {
        if let Ok(path) = CanonicalPath::parse(&text) {
            let again = CanonicalPath::parse(path.as_str()).unwrap();
            prop_assert_eq!(path.as_str(), again.as_str());
            prop_assert!(!path.path().contains("//"));
            prop_assert!(!path.path().split('/').any(|segment| segment == "." || segment == ".."));
        }
    }

    #[test]
    fn encoded_letters_are_the_letters(letters in "[a-z]{1,10}") {
        let encoded: String = letters.bytes().map(|byte| format!("%{byte:02x}")).collect();
        prop_assert_eq!(canonical(&format!("/{encoded}")).unwrap(), format!("/{letters}"));
    }

    #[test]
    fn any_bytes_do_no_harm(text in any::<String>()) {
        let _ = CanonicalPath::parse(&text);
        let _ = crate::request::Host::parse(&text);
    }
}

//! The folder of operators' documents, and the last good state of each file.
//!
//! A file is read again when its size, times or inode changed. A refused document changes nothing: what that file last
//! had accepted keeps serving, and the finding stands until the file is mended. A deleted file takes its documents along.
//! After a restart there is no last good state: refused documents are left out and reported, the others serve.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::documents::{Document, Finding, Severity, duplicate, files_of, parse, read_file, same_name, unreadable};

/// A watched folder.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
    files: BTreeMap<PathBuf, File>,
    /// Findings about the folder itself.
    own: Vec<Finding>,
}

#[derive(Debug)]
struct File {
    stamp: Stamp,
    documents: Vec<Document>,
    findings: Vec<Finding>,
}

/// What tells one state of a file from another without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    modified: Option<SystemTime>,
    changed_secs: i64,
    changed_nanos: i64,
    len: u64,
    inode: u64,
}

impl Folder {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), files: BTreeMap::new(), own: Vec::new() }
    }

    /// Whether anything on disk differs from what was last taken in.
    pub(crate) fn is_changed(&self) -> bool {
        let mut findings = Vec::new();
        let now: Vec<PathBuf> = files_of(std::slice::from_ref(&self.root), &mut findings);
        findings != self.own
            || now.len() != self.files.len()
            || now.iter().any(|path| self.files.get(path).is_none_or(|file| file.stamp != Stamp::of(path)))
    }

    /// What the folder looks like right now, to see whether it is still being written.
    pub(crate) fn fingerprint(&self) -> Vec<(PathBuf, Stamp)> {
        let paths = files_of(std::slice::from_ref(&self.root), &mut Vec::new());
        paths.into_iter().map(|path| (path.clone(), Stamp::of(&path))).collect()
    }

    /// Takes changed files in; whether the accepted documents or the findings changed.
    pub(crate) fn refresh(&mut self) -> bool {
        let mut findings = Vec::new();
        let paths = files_of(std::slice::from_ref(&self.root), &mut findings);
        let mut changed = findings != self.own;
        self.own = findings;
        let before = self.files.len();
        self.files.retain(|path, _| paths.contains(path));
        changed |= before != self.files.len();
        for path in paths {
            let stamp = Stamp::of(&path);
            let last = self.files.remove(&path);
            let file = match last {
                Some(file) if file.stamp == stamp => file,
                last => {
                    let read = read(&path, stamp, last.as_ref());
                    changed |= last.is_none_or(|last| !last.says_the_same(&read));
                    read
                }
            };
            self.files.insert(path, file);
        }
        changed
    }

    /// The accepted documents. Of two with one name the first (by file name) serves.
    pub(crate) fn documents(&self) -> Vec<Document> {
        self.merged().0
    }

    /// All that is wrong or worth knowing.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        let mut findings = self.own.clone();
        findings.extend(self.files.values().flat_map(|file| file.findings.iter().cloned()));
        findings.extend(self.merged().1);
        findings
    }

    fn merged(&self) -> (Vec<Document>, Vec<Finding>) {
        let mut documents: Vec<Document> = Vec::new();
        let mut findings = Vec::new();
        for document in self.files.values().flat_map(|file| &file.documents) {
            match documents.iter().find(|earlier| same_name(earlier, document)) {
                Some(first) => findings.push(duplicate(first, document, Severity::Error)),
                None => documents.push(document.clone()),
            }
        }
        (documents, findings)
    }
}

impl File {
    fn says_the_same(&self, other: &Self) -> bool {
        self.findings == other.findings
            && self.documents.len() == other.documents.len()
            && self.documents.iter().zip(&other.documents).all(|(a, b)| a.same_content(b))
    }
}

/// Reads a file; where it holds anything refused, its earlier documents stay beside what is accepted now.
fn read(path: &Path, stamp: Stamp, last: Option<&File>) -> File {
    let kept = || last.map(|file| file.documents.clone()).unwrap_or_default();
    let text = match read_file(path) {
        Ok(text) => text,
        Err(error) => return File { stamp, documents: kept(), findings: vec![unreadable(path, &error)] },
    };
    let parsed = parse(path, &text);
    let mut documents = parsed.documents;
    if parsed.unreadable || !parsed.refused.is_empty() {
        let missing: Vec<Document> =
            kept().into_iter().filter(|old| !documents.iter().any(|new| same_name(old, new))).collect();
        documents.extend(missing);
    }
    File { stamp, documents, findings: parsed.findings }
}

impl Stamp {
    fn of(path: &Path) -> Self {
        match std::fs::metadata(path) {
            Ok(meta) => Self {
                modified: meta.modified().ok(),
                changed_secs: meta.ctime(),
                changed_nanos: meta.ctime_nsec(),
                len: meta.len(),
                inode: meta.ino(),
            },
            Err(_) => Self { modified: None, changed_secs: 0, changed_nanos: 0, len: 0, inode: 0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: default\n  namespace: istio-system\nspec:\n  mtls:\n    mode: STRICT\n";

    fn folder_with(files: &[(&str, &str)]) -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let mut folder = Folder::new(dir.path());
        folder.refresh();
        (dir, folder)
    }

    #[test]
    fn a_broken_edit_keeps_the_last_good_document() {
        let (dir, mut folder) = folder_with(&[("a.yaml", GOOD)]);
        assert_eq!(folder.documents().len(), 1);
        std::fs::write(dir.path().join("a.yaml"), GOOD.replace("STRICT", "STRICTT")).unwrap();
        assert!(folder.is_changed());
        assert!(folder.refresh());
        assert_eq!(folder.documents().len(), 1);
        let findings = folder.findings();
        assert_eq!((findings[0].line, findings[0].is_error()), (8, true));
        std::fs::write(dir.path().join("a.yaml"), "a: [").unwrap();
        folder.refresh();
        assert_eq!(folder.documents().len(), 1, "an unreadable file keeps its documents");
    }

    #[test]
    fn a_deleted_file_takes_its_documents_along() {
        let (dir, mut folder) = folder_with(&[("a.yaml", GOOD)]);
        std::fs::remove_file(dir.path().join("a.yaml")).unwrap();
        assert!(folder.is_changed());
        assert!(folder.refresh());
        assert!(folder.documents().is_empty() && folder.findings().is_empty());
    }

    #[test]
    fn an_equal_rewrite_is_no_change() {
        let (dir, mut folder) = folder_with(&[("a.yaml", GOOD)]);
        std::fs::write(dir.path().join("a.yaml"), format!("# a comment\n{GOOD}")).unwrap();
        assert!(folder.is_changed());
        assert!(!folder.refresh());
    }

    #[test]
    fn the_second_of_two_documents_with_one_name_is_refused() {
        let (_dir, folder) = folder_with(&[("a.yaml", GOOD), ("b.yaml", GOOD)]);
        assert_eq!(folder.documents().len(), 1);
        assert_eq!(folder.findings()[0].reason, "DOCUMENT_DUPLICATE");
        assert!(folder.findings()[0].file.ends_with("b.yaml"));
    }

    #[test]
    fn a_missing_folder_is_a_finding() {
        let mut folder = Folder::new(Path::new("/nowhere/at/all"));
        folder.refresh();
        assert_eq!(folder.findings()[0].reason, "FILE_UNREADABLE");
    }
}

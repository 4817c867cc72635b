//! A directory whose content changes as a whole.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, chownat};
use rustix::process::{Gid, Uid};
use serde::{Deserialize, Serialize};

use super::Content;

/// Who may read the files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Access {
    /// Their owner, by name or number; the writer when left out. Needs root or `CAP_CHOWN`.
    pub owner: Option<String>,
    /// Their group, by name or number.
    pub group: Option<String>,
    /// The mode of secret files in octal, `0600` when left out; nobody else may get anything.
    pub mode: Option<String>,
}

/// Why files are not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
    /// A name or mode that cannot be.
    #[error("{what} `{value}` is not known on this machine")]
    Unknown {
        /// `owner` or `group`.
        what: &'static str,
        /// What was written.
        value: String,
    },
    /// Something that is no file of ours is in the way.
    #[error("{}: is a directory; move it away or choose another name", path.display())]
    InTheWay {
        /// Where.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("{}: cannot be written; see that it exists, is writable, and the disk not full", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl FilesError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "FILES_OWNER_UNKNOWN",
            Self::InTheWay { .. } => "FILES_IN_THE_WAY",
            Self::Io { .. } => "FILES_NOT_WRITTEN",
        }
    }
}

impl Access {
    /// What is wrong with it, if something is.
    pub fn problem(&self) -> Option<&'static str> {
        let mode = self.mode.as_ref().map(|_| self.secret_mode());
        matches!(mode, Some(None)).then_some("mode: three or four octal digits without rights for others, such as 0640")
    }

    fn secret_mode(&self) -> Option<u32> {
        let Some(text) = &self.mode else { return Some(0o600) };
        let mode = u32::from_str_radix(text, 8).ok()?;
        (text.len() <= 4 && mode <= 0o777 && mode & 0o007 == 0).then_some(mode)
    }

    fn ids(&self) -> Result<(Option<Uid>, Option<Gid>), FilesError> {
        let find = |what, file, value: &Option<String>| match value {
            None => Ok(None),
            Some(value) => {
                id_of(file, value).map(Some).ok_or_else(|| FilesError::Unknown { what, value: value.clone() })
            }
        };
        let owner = find("owner", "/etc/passwd", &self.owner)?.map(Uid::from_raw);
        let group = find("group", "/etc/group", &self.group)?.map(Gid::from_raw);
        Ok((owner, group))
    }
}

/// Whether `dir` shows `contents`; files of other names make no difference.
pub fn shows(dir: &Path, contents: &[Content]) -> bool {
    contents.iter().all(|content| {
        let link = dir.join(&content.name);
        let linked = fs::read_link(&link).is_ok_and(|to| to == Path::new(CURRENT).join(&content.name));
        linked && fs::read(&link).is_ok_and(|bytes| bytes == *content.bytes)
    })
}

/// Makes `contents` what `dir` shows, all at once; the former version goes. Answers whether anything changed.
///
/// # Errors
/// When the new version cannot be written; the former one then stays in force.
pub fn write(dir: &Path, contents: &[Content], access: &Access) -> Result<bool, FilesError> {
    let present = fs::read_dir(dir.join(CURRENT)).map_or(0, Iterator::count);
    if present == contents.len() && shows(dir, contents) {
        return Ok(false);
    }
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| FilesError::Io { path, source }
    };
    DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(at(dir))?;
    let version = format!("{VERSION}{}", identity::digest::hex(&identity::digest::random::<8>()));
    let fresh = dir.join(&version);
    let written = write_version(&fresh, contents, access)
        .and_then(|()| swap_link(&dir.join(CURRENT), &version))
        .and_then(|()| link_names(dir, contents));
    if let Err(error) = written {
        // It is not in force unless the link shows it.
        if fs::read_link(dir.join(CURRENT)).ok().as_deref() != Some(Path::new(&version)) {
            let _ = fs::remove_dir_all(&fresh);
        }
        return Err(error);
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(at(dir))?;
    remove_others(dir, &version, contents);
    Ok(true)
}

/// Whether a name may stand in such a directory.
pub(super) fn is_file_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(good) && !name.starts_with('.') && name != CURRENT
}

fn write_version(fresh: &Path, contents: &[Content], access: &Access) -> Result<(), FilesError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| FilesError::Io { path, source }
    };
    let (owner, group) = access.ids()?;
    let secret_mode = access.secret_mode().unwrap_or(0o600);
    // Nobody looks in before all files have their owners.
    DirBuilder::new().mode(0o700).create(fresh).map_err(at(fresh))?;
    for content in contents {
        let path = fresh.join(&content.name);
        let mode = if content.is_secret { secret_mode } else { OPEN_MODE };
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(at(&path))?;
        file.write_all(&content.bytes).map_err(at(&path))?;
        if owner.is_some() || group.is_some() {
            let done = chownat(CWD, &path, owner, group, AtFlags::SYMLINK_NOFOLLOW);
            done.map_err(io::Error::from).map_err(at(&path))?;
        }
        file.set_permissions(fs::Permissions::from_mode(mode)).map_err(at(&path))?;
        file.sync_all().map_err(at(&path))?;
    }
    fs::set_permissions(fresh, fs::Permissions::from_mode(0o755)).map_err(at(fresh))?;
    File::open(fresh).and_then(|dir| dir.sync_all()).map_err(at(fresh))
}

/// Points `link` to `to`, in one step for whoever looks.
fn swap_link(link: &Path, to: &str) -> Result<(), FilesError> {
    let failed = |source| FilesError::Io { path: link.to_owned(), source };
    let name = link.file_name().unwrap_or_default().to_string_lossy();
    let fresh = link.with_file_name(format!("{LINK}{name}"));
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => (),
    }
    std::os::unix::fs::symlink(to, &fresh).map_err(failed)?;
    if fs::symlink_metadata(link).is_ok_and(|found| found.is_dir()) {
        let _ = fs::remove_file(&fresh);
        return Err(FilesError::InTheWay { path: link.to_owned() });
    }
    fs::rename(&fresh, link).map_err(failed)
}

fn link_names(dir: &Path, contents: &[Content]) -> Result<(), FilesError> {
    for content in contents {
        let (link, to) = (dir.join(&content.name), format!("{CURRENT}/{}", content.name));
        if fs::read_link(&link).ok().as_deref() != Some(Path::new(&to)) {
            swap_link(&link, &to)?;
        }
    }
    Ok(())
}

/// Former versions, halves that were never in force, and links to what is there no more. What cannot go now goes next time.
fn remove_others(dir: &Path, version: &str, contents: &[Content]) {
    let Ok(found) = fs::read_dir(dir) else { return };
    for entry in found.flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let ours = fs::read_link(&path).is_ok_and(|to| to == Path::new(CURRENT).join(&name));
        if name.starts_with(VERSION) && name != version {
            let _ = fs::remove_dir_all(path);
        } else if name.starts_with(LINK) || (ours && !contents.iter().any(|content| content.name == name)) {
            let _ = fs::remove_file(path);
        }
    }
}

/// The number of a user or group, by name or as it stands.
fn id_of(file: &str, value: &str) -> Option<u32> {
    if let Ok(id) = value.parse() {
        return Some(id);
    }
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == value).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

const CURRENT: &str = "current";
const VERSION: &str = ".version-";
const LINK: &str = ".link-";
const OPEN_MODE: u32 = 0o644;
const NAME_BYTES_MAX: usize = 64;

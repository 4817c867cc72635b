//! Where everything of a mesh lives below its folder. The folder is made absolute once; sockets move to a short path
//! of their own when DIR is so deep that a Unix socket path (108 bytes) would not fit.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::exit::{Exit, Failure};

/// Paths of one mesh.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
    sockets: PathBuf,
}

impl Layout {
    /// The layout of `dir`, which need not exist yet.
    pub(crate) fn of(dir: &Path) -> Result<Self, Failure> {
        let dir = std::path::absolute(dir)
            .map_err(|e| Failure::new(Exit::Usage, format!("{} is no usable path: {e}", dir.display())))?;
        let run = dir.join("run");
        let sockets = if run.as_os_str().len() <= SOCKET_FOLDER_BYTES_MAX { run } else { short_folder(&dir) };
        Ok(Self { dir, sockets })
    }

    /// Creates the folders; data and sockets are for this user alone.
    pub(crate) fn create(&self) -> Result<(), Failure> {
        let private = [self.dir.join("data"), self.dir.join("run"), self.sockets.clone()];
        let open = [self.dir.clone(), self.config(), self.logs()];
        for folder in &open {
            fs::create_dir_all(folder).map_err(|e| self.unwritable(folder, &e))?;
        }
        for folder in &private {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(0o700)))
                .map_err(|e| self.unwritable(folder, &e))?;
        }
        let probe = self.dir.join("run/.writable");
        fs::write(&probe, b"").and_then(|()| fs::remove_file(&probe)).map_err(|e| self.unwritable(&probe, &e))?;
        // The run folder holds public files too (bundle, JWKS); others may pass through, not list.
        fs::set_permissions(self.dir.join("run"), fs::Permissions::from_mode(0o711)).map_err(Failure::from)?;
        fs::set_permissions(&self.sockets, fs::Permissions::from_mode(0o711)).map_err(Failure::from)
    }

    fn unwritable(&self, at: &Path, error: &std::io::Error) -> Failure {
        Failure::failed(format!("the mesh folder {} cannot be written: {}: {error}", self.dir.display(), at.display()))
            .remedy("choose a folder that you may write with --dir DIR, or change its owner")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("config")
    }

    pub(crate) fn data(&self, part: &str) -> PathBuf {
        self.dir.join("data").join(part)
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    pub(crate) fn log_of(&self, process: &str) -> PathBuf {
        self.logs().join(format!("{process}.log"))
    }

    pub(crate) fn run(&self, name: &str) -> PathBuf {
        self.dir.join("run").join(name)
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.sockets.join(name)
    }

    pub(crate) fn settings_of(&self, process: &str) -> PathBuf {
        self.dir.join("run").join("settings").join(format!("{process}.yaml"))
    }

    pub(crate) fn endpoints(&self) -> PathBuf {
        self.dir.join("endpoints.json")
    }

    /// Held locked by the supervisor as long as it lives; holds its process id.
    pub(crate) fn lock(&self) -> PathBuf {
        self.run("up.lock")
    }

    /// What the supervisor knows of its processes, for `kasbah status`.
    pub(crate) fn state(&self) -> PathBuf {
        self.run("mesh.json")
    }
}

/// Writes a file so that a reader sees the old or the new content, never a part. `mode` is set before any content.
pub(crate) fn write_atomically(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = path.with_file_name(name);
    let _ = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

/// A stable number for a path: FNV-1a, which is enough to spread meshes over addresses and folder names.
pub(crate) fn path_number(path: &Path) -> u64 {
    path.as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn short_folder(dir: &Path) -> PathBuf {
    let uid = rustix::process::geteuid().as_raw();
    std::env::temp_dir().join(format!("kasbah-{uid}-{:016x}", path_number(dir)))
}

/// Leaves room for `/` and the longest socket name in the 107 usable bytes of `sun_path`.
const SOCKET_FOLDER_BYTES_MAX: usize = 85;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deep_folder_gets_its_sockets_at_a_short_path() {
        let deep = PathBuf::from("/").join("d".repeat(200));
        let layout = Layout::of(&deep).unwrap();
        assert!(layout.socket("ca-admin.sock").as_os_str().len() < 108);
        let shallow = Layout::of(Path::new("/tmp/mesh")).unwrap();
        assert_eq!(shallow.socket("agent.sock"), PathBuf::from("/tmp/mesh/run/agent.sock"));
    }

    #[test]
    fn two_folders_have_two_numbers() {
        assert_ne!(path_number(Path::new("/a")), path_number(Path::new("/b")));
    }
}

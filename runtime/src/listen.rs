//! Opening the addresses a process serves on, with errors that say what to do.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

/// Why an address could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Somebody else has the port.
    #[error("{addr} is taken by another process; stop it or choose another address")]
    Taken {
        /// The address.
        addr: SocketAddr,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The user may not have the port.
    #[error("{addr} may not be opened by this user; choose a port from 1024 up")]
    NotAllowed {
        /// The address.
        addr: SocketAddr,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Anything else about a TCP address.
    #[error("{addr} cannot be opened")]
    Tcp {
        /// The address.
        addr: SocketAddr,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The path does not fit into a socket address.
    #[error("{}: longer than {SOCKET_PATH_BYTES_MAX} bytes, which a socket path cannot be; choose a shorter directory", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// Something that is no socket is in the way; it is not ours to delete.
    #[error("{}: exists and is no socket; move it away or choose another path", path.display())]
    InTheWay {
        /// The path.
        path: PathBuf,
    },
    /// A living process serves there.
    #[error("{}: another process serves there; stop it or choose another path", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Anything else about a socket path.
    #[error("{}: the socket cannot be made; see that the directory exists and is writable", path.display())]
    Unix {
        /// The path.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl ListenError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Taken { .. } | Self::InUse { .. } => "ADDRESS_IN_USE",
            Self::NotAllowed { .. } => "ADDRESS_NOT_ALLOWED",
            Self::InTheWay { .. } => "SOCKET_PATH_OCCUPIED",
            Self::PathTooLong { .. } => "SOCKET_PATH_TOO_LONG",
            Self::Tcp { .. } | Self::Unix { .. } => "LISTEN_FAILED",
        }
    }
}

/// Opens a TCP address.
///
/// # Errors
/// When it is taken, not allowed or not of this machine.
pub fn tcp(addr: SocketAddr) -> Result<TcpListener, ListenError> {
    open_tcp(addr).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::Taken { addr, source },
        io::ErrorKind::PermissionDenied => ListenError::NotAllowed { addr, source },
        _ => ListenError::Tcp { addr, source },
    })
}

/// Opens a Unix socket at `path` with file mode `mode`, making its directory when that is missing.
///
/// A socket that nobody serves any more is replaced; anything else at the path is left alone and refused.
/// The mode holds before the first connection is accepted.
///
/// # Errors
/// When the path is occupied, too long, or its directory does not permit it.
pub fn unix(path: &Path, mode: u32) -> Result<UnixListener, ListenError> {
    if path.as_os_str().as_bytes().len() > SOCKET_PATH_BYTES_MAX {
        return Err(ListenError::PathTooLong { path: path.to_owned() });
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(|source| ListenError::Unix { path: path.to_owned(), source })?;
    }
    clear_stale(path)?;
    open_unix(path, mode).map_err(|source| ListenError::Unix { path: path.to_owned(), source })
}

fn open_tcp(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn clear_stale(path: &Path) -> Result<(), ListenError> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(ListenError::InTheWay { path: path.to_owned() });
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|source| ListenError::Unix { path: path.to_owned(), source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(ListenError::InUse { path: path.to_owned() }),
    }
}

/// Bind, set the mode, and only then listen: before that a connection is refused.
fn open_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    socket.listen(BACKLOG)?;
    UnixListener::from_std(socket.into())
}

/// `sun_path` of Linux without its terminating zero.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;
const BACKLOG: i32 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        drop(unix(&path, 0o600).unwrap());
        let listener = unix(&path, 0o600).unwrap();
        assert_eq!(unix(&path, 0o600).unwrap_err().reason(), "ADDRESS_IN_USE");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(listener);
    }

    #[tokio::test]
    async fn a_file_or_link_in_the_way_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "precious").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for path in [&file, &link] {
            assert_eq!(unix(path, 0o600).unwrap_err().reason(), "SOCKET_PATH_OCCUPIED");
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    }

    #[tokio::test]
    async fn a_path_that_does_not_fit_is_refused_at_the_edge() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        let pad = |total: usize| base.join("x".repeat(total - base.as_os_str().len() - 1));
        assert!(unix(&pad(SOCKET_PATH_BYTES_MAX), 0o600).is_ok());
        assert_eq!(unix(&pad(SOCKET_PATH_BYTES_MAX + 1), 0o600).unwrap_err().reason(), "SOCKET_PATH_TOO_LONG");
    }

    #[tokio::test]
    async fn a_taken_port_says_so() {
        let first = tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let error = tcp(first.local_addr().unwrap()).unwrap_err();
        assert_eq!(error.reason(), "ADDRESS_IN_USE");
        assert!(error.to_string().contains("choose another"));
    }
}

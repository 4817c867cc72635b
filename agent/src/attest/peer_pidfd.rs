//! `SO_PEERPIDFD`: a handle on the very process that connected. The crate's only `unsafe`: no safe wrapper of this
//! socket option exists yet.
#![allow(unsafe_code, reason = "one getsockopt call whose option rustix and socket2 do not offer")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The pidfd of the process at the other end of a Unix socket. Linux before 6.5 answers `ENOPROTOOPT`.
pub(super) fn of(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut fd: libc::c_int = -1;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `fd` and `len` outlive the call, and `len` is the true size of what `fd` points at.
    let answer = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, (&raw mut fd).cast(), &raw mut len)
    };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    if fd < 0 {
        return Err(io::ErrorKind::NotFound.into());
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// From `asm-generic/socket.h`, the value of every architecture we build for.
const SO_PEERPIDFD: libc::c_int = 77;

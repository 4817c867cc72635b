//! Who is at the other end of a TCP connection on loopback: the kernel's table of sockets leads to the other end's socket, and
//! that to the one process that holds it.
//!
//! A socket that several processes hold proves nothing about which of them speaks, and is refused.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{AttestError, Process};

/// The process that holds the other end of a connection between `ours` and `theirs`.
pub(crate) fn process_of_peer(ours: SocketAddr, theirs: SocketAddr) -> Result<Process, AttestError> {
    if !ours.ip().to_canonical().is_loopback() || !theirs.ip().to_canonical().is_loopback() {
        return Err(AttestError::NotLocal);
    }
    let end =
        TABLES.iter().filter_map(|table| fs::read_to_string(table).ok()).find_map(|text| find(&text, theirs, ours));
    let end = end.ok_or(AttestError::Gone)?;
    let holder = only(holders(end.inode))?;
    let process = Process::open(holder)?;
    // It was this process, and no successor with its number, that held the socket; and still nobody else does.
    if only(holders(end.inode))? != holder || process.uid() != end.uid {
        return Err(AttestError::Ambiguous);
    }
    process.check_alive()?;
    Ok(process)
}

/// A socket as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    uid: u32,
    inode: u64,
}

/// The established socket from `local` to `remote` in a table like `/proc/net/tcp`.
fn find(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<End> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (from, to, state) = (address(fields.next()?)?, address(fields.next()?)?, fields.next()?);
        if state != ESTABLISHED || from != canonical(local) || to != canonical(remote) {
            return None;
        }
        let mut rest = fields.skip(3);
        Some(End { uid: rest.next()?.parse().ok()?, inode: rest.nth(1)?.parse().ok()? })
    })
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// `0100007F:1F90`: words in the order of the machine, the port as it is written.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(ip.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match ip.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(words.concat()).ok()?))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

/// Up to two processes that hold the socket; more make no difference.
fn holders(inode: u64) -> Vec<i32> {
    let wanted = format!("socket:[{inode}]");
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers.filter(|pid| holds(*pid, &wanted)).take(2).collect()
}

fn holds(pid: i32, socket: &str) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    open.flatten()
        .take(DESCRIPTORS_MAX)
        .any(|entry| fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str() == socket))
}

fn only(holders: Vec<i32>) -> Result<i32, AttestError> {
    match holders[..] {
        [] => Err(AttestError::Gone),
        [one] => Ok(one),
        _ => Err(AttestError::Ambiguous),
    }
}

const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
const ESTABLISHED: &str = "01";
/// Descriptors of one process that are looked at.
const DESCRIPTORS_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::{TcpListener, TcpStream};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn addresses_are_read_as_the_kernel_writes_them() {
        let read = |text| address(text).map(|addr| addr.to_string());
        if cfg!(target_endian = "little") {
            assert_eq!(read("0100007F:1F90").as_deref(), Some("127.0.0.1:8080"));
            assert_eq!(read("0000000000000000FFFF00000100007F:0050").as_deref(), Some("127.0.0.1:80"));
            assert_eq!(read("00000000000000000000000001000000:0050").as_deref(), Some("[::1]:80"));
        }
        for bad in ["", ":", "0100007F", "0100007F:1F901", "01:1F90", "zz00007F:1F90"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_process_at_the_other_end_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, theirs) = listener.accept().unwrap();
        let process = process_of_peer(server.local_addr().unwrap(), theirs).unwrap();
        assert_eq!(u32::try_from(process.pid()).unwrap(), std::process::id());
        assert_eq!(process.uid(), rustix::process::geteuid().as_raw());
        drop(client);
        let error = process_of_peer(server.local_addr().unwrap(), theirs).unwrap_err();
        assert_eq!(error.reason(), "ATTEST_PROCESS_GONE");
    }

    #[test]
    fn a_socket_that_two_processes_hold_is_nobodys() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        // A shell connects and hands the socket down to a child of its own.
        let mut shell = Command::new("bash")
            .args(["-c", &format!("exec 3<>/dev/tcp/127.0.0.1/{port}; sleep 600 & echo $!; wait")])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (server, theirs) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let error = process_of_peer(server.local_addr().unwrap(), theirs).unwrap_err();
        assert_eq!(error.reason(), "ATTEST_AMBIGUOUS");
        shell.kill().unwrap();
        shell.wait().unwrap();
        let child = rustix::process::Pid::from_raw(line.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
    }

    #[test]
    fn other_machines_have_no_processes_here() {
        let (ours, theirs) = ("127.0.0.1:80".parse().unwrap(), "192.0.2.1:80".parse().unwrap());
        assert_eq!(process_of_peer(ours, theirs).unwrap_err().reason(), "ATTEST_NOT_LOCAL");
        assert_eq!(process_of_peer(theirs, ours).unwrap_err().reason(), "ATTEST_NOT_LOCAL");
    }
}

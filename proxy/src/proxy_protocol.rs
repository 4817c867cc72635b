//! The PROXY protocol, versions 1 and 2, as a load balancer in front of a gateway speaks it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Why a header was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    #[error("the PROXY header cannot be read")]
    Io(#[from] io::Error),
    #[error("the PROXY header is malformed")]
    Malformed,
    #[error("there is no PROXY header")]
    Missing,
}

type Told = Option<(SocketAddr, SocketAddr)>;

/// Reads the header off the front of `socket`; `None` when it is optional and absent, or speaks of the balancer itself.
pub(crate) async fn read(socket: &mut TcpStream, optional: bool) -> Result<Told, ProxyError> {
    let mut head = [0; 12];
    loop {
        let seen = socket.peek(&mut head).await?;
        let (v1, v2) = (V1.len().min(seen), V2.len().min(seen));
        if seen == 0 || (head[..v1] != V1[..v1] && head[..v2] != V2[..v2]) {
            return if optional { Ok(None) } else { Err(ProxyError::Missing) };
        }
        if head[..seen].starts_with(V1) {
            return read_v1(socket).await;
        }
        if seen == V2.len() {
            return read_v2(socket).await;
        }
        // More bytes than are there cannot be waited for by peeking.
        tokio::time::sleep(PEEK_AGAIN).await;
    }
}

async fn read_v1(socket: &mut TcpStream) -> Result<Told, ProxyError> {
    let mut line = Vec::with_capacity(V1_BYTES_MAX);
    while !line.ends_with(b"\r\n") {
        if line.len() >= V1_BYTES_MAX {
            return Err(ProxyError::Malformed);
        }
        line.push(socket.read_u8().await?);
    }
    parse_v1(std::str::from_utf8(&line[..line.len() - 2]).map_err(|_| ProxyError::Malformed)?)
}

fn parse_v1(line: &str) -> Result<Told, ProxyError> {
    let words: Vec<&str> = line.split(' ').collect();
    match words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => Ok(None),
        ["PROXY", "TCP4" | "TCP6", from, to, from_port, to_port] => {
            let address = |ip: &str, port: &str| -> Option<SocketAddr> {
                Some(SocketAddr::new(ip.parse::<IpAddr>().ok()?, port.parse().ok()?))
            };
            let told = address(from, from_port).zip(address(to, to_port));
            told.map(Some).ok_or(ProxyError::Malformed)
        }
        _ => Err(ProxyError::Malformed),
    }
}

async fn read_v2(socket: &mut TcpStream) -> Result<Told, ProxyError> {
    let mut head = [0; 16];
    socket.read_exact(&mut head).await?;
    let len = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if head[12] >> 4 != 2 || len > V2_BODY_BYTES_MAX {
        return Err(ProxyError::Malformed);
    }
    let mut body = vec![0; len];
    socket.read_exact(&mut body).await?;
    parse_v2(head[12] & 0xf, head[13], &body)
}

fn parse_v2(command: u8, family: u8, body: &[u8]) -> Result<Told, ProxyError> {
    let port = |at: usize| body.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
    match (command, family) {
        (0, _) => Ok(None),
        (1, 0x11) => {
            let ip = |at: usize| <[u8; 4]>::try_from(body.get(at..at + 4)?).ok().map(Ipv4Addr::from);
            let from = ip(0).zip(port(8)).map(SocketAddr::from);
            from.zip(ip(4).zip(port(10)).map(SocketAddr::from)).map(Some).ok_or(ProxyError::Malformed)
        }
        (1, 0x21) => {
            let ip = |at: usize| <[u8; 16]>::try_from(body.get(at..at + 16)?).ok().map(Ipv6Addr::from);
            let from = ip(0).zip(port(32)).map(SocketAddr::from);
            from.zip(ip(16).zip(port(34)).map(SocketAddr::from)).map(Some).ok_or(ProxyError::Malformed)
        }
        (1, _) => Ok(None),
        _ => Err(ProxyError::Malformed),
    }
}

const V1: &[u8] = b"PROXY ";
const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V1_BYTES_MAX: usize = 107;
const V2_BODY_BYTES_MAX: usize = 1024;
const PEEK_AGAIN: std::time::Duration = std::time::Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_names_both_ends() {
        let told = parse_v1("PROXY TCP4 192.0.2.1 192.0.2.2 1000 443").unwrap().unwrap();
        assert_eq!((told.0.to_string(), told.1.to_string()), ("192.0.2.1:1000".into(), "192.0.2.2:443".into()));
        assert!(parse_v1("PROXY UNKNOWN").unwrap().is_none());
        for line in
            ["PROXY TCP4 a b 1 2", "PROXY TCP4 1.1.1.1 2.2.2.2 1", "PROXY TCP4 1.1.1.1 2.2.2.2 99999 1", "HELLO"]
        {
            assert!(parse_v1(line).is_err(), "{line}");
        }
    }

    #[test]
    fn version_2_is_read_within_its_length() {
        let body = [10, 0, 0, 1, 10, 0, 0, 2, 0, 80, 1, 187];
        let told = parse_v2(1, 0x11, &body).unwrap().unwrap();
        assert_eq!((told.0.to_string(), told.1.to_string()), ("10.0.0.1:80".into(), "10.0.0.2:443".into()));
        assert!(parse_v2(1, 0x11, &body[..11]).is_err());
        assert!(parse_v2(1, 0x21, &body).is_err());
        assert!(parse_v2(0, 0, &[]).unwrap().is_none());
    }
}

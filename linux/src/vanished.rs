//! TCP peers that vanish without a word: noticed, so that nobody keeps what was theirs.

use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

use crate::error::{Context, Result};

/// How long a connection is silent before its peer is asked whether it is there, and how often it is asked then.
const SILENCE: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_secs(15);
/// How long a peer may acknowledge nothing, or take nothing of what waits for it.
const PATIENCE: Duration = Duration::from_secs(300);

/// Ends a TCP socket's connection within minutes of its peer's vanishing; of a listening socket, those that it accepts from
/// now on: they inherit it.
///
/// # Errors
/// What the kernel refused.
pub fn notice(socket: impl AsFd) -> Result<()> {
    let socket = SockRef::from(&socket);
    let asks = TcpKeepalive::new().with_time(SILENCE).with_interval(INTERVAL);
    socket.set_tcp_keepalive(&asks).context("keep alive", "a TCP socket")?;
    socket.set_tcp_user_timeout(Some(PATIENCE)).context("bound the patience of", "a TCP socket")
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn what_a_listening_socket_accepts_inherits_it() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        notice(&listener).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), SILENCE);
        assert_eq!(accepted.tcp_keepalive_interval().unwrap(), INTERVAL);
        assert_eq!(accepted.tcp_user_timeout().unwrap(), Some(PATIENCE));
    }
}

//! Calls to servers.

use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use linux::transparent;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::runtime::{Called, ConnectError};

/// How long a server may take to be reached.
const PATIENCE: Duration = Duration::from_secs(10);

/// Calls the server in the client's name. Twice where the first try met a port that the client itself is using for the same
/// server: the kernel then says that the address is in use, or the node's program resets the call.
pub(super) async fn call(called: Called) -> Result<(TcpStream, Option<SocketAddr>), ConnectError> {
    let both = async {
        match once(called).await {
            Err(error) if is_worth_another(&error) => once(called).await,
            result => result,
        }
    };
    match timeout(PATIENCE, both).await {
        Ok(Ok(stream)) => {
            let local = stream.local_addr().ok();
            Ok((stream, local))
        }
        Ok(Err(error)) if error.kind() == ErrorKind::TimedOut => Err(ConnectError::Late),
        Ok(Err(error)) => {
            tracing::debug!(%error, server = %called.server, "cannot reach the server");
            Err(ConnectError::Refused)
        }
        Err(_) => Err(ConnectError::Late),
    }
}

fn is_worth_another(error: &Error) -> bool {
    use ErrorKind::{AddrInUse, AddrNotAvailable, ConnectionRefused, ConnectionReset};
    [AddrInUse, AddrNotAvailable, ConnectionRefused, ConnectionReset].contains(&error.kind())
}

async fn once(called: Called) -> Result<TcpStream, Error> {
    // For whom: without a connection of that port's by way of the proxy the node's programs let no call pass.
    let (client, port) = (called.client.ip(), called.client.port());
    let socket = transparent::caller(client, abi::MARK_FROM_PROXY, port.into()).map_err(Error::other)?;
    let stream = TcpSocket::from_std_stream(socket.into()).connect(called.server).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

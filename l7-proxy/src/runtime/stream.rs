//! What connections are made of.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A stream of bytes, both ways. Dropped, it is closed.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {
    /// What was sent on it breaks off: from now on it is closed by a reset, for an ordinary end would make that look whole.
    fn cut(&mut self);

    /// Whether the other end goes on to send when it hears that nothing more comes. Of TLS 1.2 it need not.
    fn has_halves(&self) -> bool {
        true
    }
}

impl Stream for TcpStream {
    fn cut(&mut self) {
        // Fails on a socket that has been reset, which is well.
        let _ = self.set_zero_linger();
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_breaks_off_ends_with_a_reset() {
        for (is_cut, expected) in [(false, Ok(0)), (true, Err(ErrorKind::ConnectionReset))] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"begin").await.unwrap();
            let mut read = [0; 5];
            client.read_exact(&mut read).await.unwrap();
            if is_cut {
                stream.cut();
            }
            drop(stream);
            assert_eq!(client.read(&mut read).await.map_err(|error| error.kind()), expected);
        }
    }
}

//! Length-delimited JSON on a unix stream; or, where a message is one of very many, postcard behind a zero byte, with which no
//! JSON begins.

use std::io;

use futures_util::{SinkExt, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::bytes::Bytes;
use tokio_util::codec::length_delimited::LengthDelimitedCodecError;
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

/// Why a frame could not be received or sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("the connection was closed")]
    Closed,
    #[error("frame of more than {limit} bytes")]
    TooLong { limit: usize },
    #[error("frame that is not what is expected here: {0}")]
    Meaning(String),
    #[error(transparent)]
    Io(io::Error),
}

impl From<serde_json::Error> for FrameError {
    fn from(error: serde_json::Error) -> Self {
        Self::Meaning(error.to_string())
    }
}

impl From<postcard::Error> for FrameError {
    fn from(error: postcard::Error) -> Self {
        Self::Meaning(error.to_string())
    }
}

/// What a packed message begins with.
const PACKED: u8 = 0;

/// Both directions of one connection, each with its own limit.
#[derive(Debug)]
pub(crate) struct Frames {
    read: FramedRead<OwnedReadHalf, LengthDelimitedCodec>,
    write: FramedWrite<OwnedWriteHalf, LengthDelimitedCodec>,
    send_limit: usize,
    receive_limit: usize,
}

impl Frames {
    pub(crate) fn new(stream: UnixStream, receive_limit: usize, send_limit: usize) -> Self {
        let (read, write) = stream.into_split();
        Self {
            read: FramedRead::new(read, codec(receive_limit)),
            write: FramedWrite::new(write, codec(send_limit)),
            send_limit,
            receive_limit,
        }
    }

    /// The next frame. Cancel safe: a half-received frame stays in the buffer.
    pub(crate) async fn receive<T: DeserializeOwned>(&mut self) -> Result<T, FrameError> {
        next(&mut self.read, self.receive_limit).await
    }

    /// Cancel safe once it has been polled, as [`Frames::flush`].
    pub(crate) async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), FrameError> {
        self.put(message)?;
        self.flush().await
    }

    /// Lets a frame wait, behind those that wait already.
    pub(crate) fn put<T: Serialize>(&mut self, message: &T) -> Result<(), FrameError> {
        self.put_bytes(serde_json::to_vec(message)?)
    }

    /// The same, packed.
    pub(crate) fn put_packed<T: Serialize>(&mut self, message: &T) -> Result<(), FrameError> {
        self.put_bytes(postcard::to_extend(message, vec![PACKED])?)
    }

    fn put_bytes(&mut self, bytes: Vec<u8>) -> Result<(), FrameError> {
        let limit = self.send_limit;
        let put = self.write.start_send_unpin(Bytes::from(bytes));
        put.map_err(|error| classify(error, limit))
    }

    /// Bytes that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.write.write_buffer().len()
    }

    /// Sends what waits. Cancel safe: what has not been sent waits still.
    pub(crate) async fn flush(&mut self) -> Result<(), FrameError> {
        flush(&mut self.write, self.send_limit).await
    }

    /// Sends what waits and receives meanwhile: a frame, or `None` when nothing waits any more that did; where nothing waits,
    /// the next frame. Cancel safe.
    pub(crate) async fn turn<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Self { read, write, send_limit, receive_limit } = self;
        if write.write_buffer().is_empty() {
            return next(read, *receive_limit).await.map(Some);
        }
        tokio::select! {
            biased;
            flushed = flush(write, *send_limit) => flushed.map(|()| None),
            frame = next(read, *receive_limit) => frame.map(Some),
        }
    }
}

async fn flush(
    write: &mut FramedWrite<OwnedWriteHalf, LengthDelimitedCodec>,
    limit: usize,
) -> Result<(), FrameError> {
    SinkExt::<Bytes>::flush(write).await.map_err(|error| classify(error, limit))
}

async fn next<T: DeserializeOwned>(
    read: &mut FramedRead<OwnedReadHalf, LengthDelimitedCodec>,
    limit: usize,
) -> Result<T, FrameError> {
    match read.next().await {
        None => Err(FrameError::Closed),
        Some(Ok(frame)) => match frame.strip_prefix(&[PACKED]) {
            Some(packed) => Ok(postcard::from_bytes(packed)?),
            None => Ok(serde_json::from_slice(&frame)?),
        },
        Some(Err(error)) => Err(classify(error, limit)),
    }
}

/// One message as it stands on the wire, for a single write that must not wait.
pub(crate) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let json = serde_json::to_vec(message)?;
    let length = u32::try_from(json.len()).map_err(|_| FrameError::TooLong { limit: u32::MAX as usize })?;
    Ok([&length.to_be_bytes()[..], &json].concat())
}

fn codec(limit: usize) -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().max_frame_length(limit).new_codec()
}

fn classify(error: io::Error, limit: usize) -> FrameError {
    let too_long = error.get_ref().is_some_and(|inner| inner.is::<LengthDelimitedCodecError>());
    match error.kind() {
        _ if too_long => FrameError::TooLong { limit },
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => FrameError::Closed,
        // What `FramedRead` says of a stream that ends within a frame.
        io::ErrorKind::Other if error.raw_os_error().is_none() => FrameError::Closed,
        _ => FrameError::Io(error),
    }
}

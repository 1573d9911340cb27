//! A lasting connection between the agent and one of its children: messages of one type each way.
//!
//! Framed as the node's socket is. Each side's first message must be understood by the other, or it closes: both are the
//! same binary, and one that is not is not talked to.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::MAX_REPLY;
use crate::frame::{FrameError, Frames};

/// Why a channel is of no use any more.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ChannelError(#[from] FrameError);

impl ChannelError {
    /// Whether the other side has simply gone.
    pub fn is_closed(&self) -> bool {
        matches!(self.0, FrameError::Closed)
    }
}

/// Sends `S`, receives `R`.
#[derive(Debug)]
pub struct Channel<S, R> {
    frames: Frames,
    types: PhantomData<fn(S) -> R>,
}

impl<S: Serialize, R: DeserializeOwned> Channel<S, R> {
    /// Over a connected socket.
    pub fn new(stream: UnixStream) -> Self {
        Self { frames: Frames::new(stream, MAX_REPLY, MAX_REPLY), types: PhantomData }
    }

    /// The next message. Cancel safe.
    pub async fn receive(&mut self) -> Result<R, ChannelError> {
        Ok(self.frames.receive().await?)
    }

    /// Sends a message. Not cancel safe: half a message may have been sent.
    pub async fn send(&mut self, message: &S) -> Result<(), ChannelError> {
        Ok(self.frames.send(message).await?)
    }
}

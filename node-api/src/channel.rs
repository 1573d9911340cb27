//! A lasting connection between the agent and one of its children: messages of one type each way.
//!
//! Framed as the node's socket is. Each side's first message must be understood by the other, or it closes: both are the
//! same binary, and one that is not is not talked to.
//!
//! A socket takes some hundred KB. Two sides that both write more than that and do not read meanwhile wait for each other for
//! ever: who may be told something unasked says what it has to say by [`Channel::put`] and [`Channel::turn`].

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

    /// Sends a message. Cancel safe once it has been polled: what has not been sent is [`Channel::put`] then.
    pub async fn send(&mut self, message: &S) -> Result<(), ChannelError> {
        self.put(message)?;
        self.flush().await
    }

    /// Lets a message wait to be sent: by [`Channel::turn`], behind those that wait already.
    pub fn put(&mut self, message: &S) -> Result<(), ChannelError> {
        Ok(self.frames.put(message)?)
    }

    /// The same in a form that costs both sides less (postcard), but that only the same build is sure to understand.
    pub fn put_packed(&mut self, message: &S) -> Result<(), ChannelError> {
        Ok(self.frames.put_packed(message)?)
    }

    /// How many bytes wait to be sent.
    pub fn waiting(&self) -> usize {
        self.frames.waiting()
    }

    /// Sends what waits, and receives nothing meanwhile. Cancel safe.
    pub async fn flush(&mut self) -> Result<(), ChannelError> {
        Ok(self.frames.flush().await?)
    }

    /// Sends what waits, and receives meanwhile: a message, or `None` when nothing waits any more that did. Where nothing
    /// does to begin with, the next message. Cancel safe.
    pub async fn turn(&mut self) -> Result<Option<R>, ChannelError> {
        Ok(self.frames.turn().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each side has more to say than a socket takes, and neither stops to listen before it has said it.
    #[tokio::test]
    async fn two_that_both_have_much_to_say_do_not_wait_for_each_other() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let side = async |stream: UnixStream, own: &str| {
            let mut channel: Channel<String, String> = Channel::new(stream);
            for number in 0..4 {
                channel.put(&format!("{number}{}", own.repeat(1 << 20))).unwrap();
            }
            let mut heard = Vec::new();
            while channel.waiting() > 0 {
                heard.extend(channel.turn().await.unwrap());
            }
            while heard.len() < 4 {
                heard.push(channel.receive().await.unwrap());
            }
            heard
        };
        let (ours, theirs) = tokio::join!(side(ours, "a"), side(theirs, "b"));
        for (heard, said) in [(ours, "b"), (theirs, "a")] {
            let said: Vec<_> = (0..4).map(|number| format!("{number}{}", said.repeat(1 << 20))).collect();
            assert!(heard == said, "whole, and in order");
        }
    }

    #[tokio::test]
    async fn packed_messages_stand_among_others() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut channel: Channel<Option<String>, String> = Channel::new(ours);
        let mut other: Channel<String, Option<String>> = Channel::new(theirs);
        let said = [Some("a".to_owned()), None, Some("{}".to_owned())];
        for message in &said {
            channel.put_packed(message).unwrap();
            channel.put(message).unwrap();
        }
        channel.flush().await.unwrap();
        for message in said {
            assert_eq!(other.receive().await.unwrap(), message);
            assert_eq!(other.receive().await.unwrap(), message);
        }
    }

    #[tokio::test]
    async fn a_turn_that_is_given_up_loses_nothing() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut channel: Channel<String, String> = Channel::new(ours);
        let mut other: Channel<String, String> = Channel::new(theirs);
        let said = "a".repeat(4 << 20);
        channel.put(&said).unwrap();
        let before = channel.waiting();
        tokio::select! {
            biased;
            _ = channel.turn() => panic!("nobody reads"),
            () = std::future::ready(()) => {}
        }
        assert!(0 < channel.waiting() && channel.waiting() < before, "part of it is on its way");
        other.send(&"b".to_owned()).await.unwrap();
        assert_eq!(channel.turn().await.unwrap().as_deref(), Some("b"), "it listens meanwhile");
        let (sent, heard) = tokio::join!(channel.turn(), other.receive());
        assert!(sent.unwrap().is_none() && heard.unwrap() == said);
    }
}

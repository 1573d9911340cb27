//! Reading what the programs report.
//!
//! Promise: events come in the order in which the programs wrote them, each once. Nothing is interpreted here. A ring
//! that outlives an agent keeps what was reported meanwhile; what found it full is only counted (`LOST`).
#![allow(unsafe_code, reason = "a record of the ring is read as the type it was written as")]

use std::io;
use std::time::Duration;

use abi::Event;
use aya::maps::{Map, MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use crate::Error;

/// The one reader of the ring.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
    /// When it may be looked at again.
    next: Instant,
}

/// How long the ring is left alone when it has been emptied. The kernel wakes the reader for an event only if there was none
/// before it: a reader that would take each one at once would be woken for each new connection, and run in place of
/// those who make them. What comes after a silence is still read at once.
const PAUSE: Duration = Duration::from_millis(10);

/// So many events at most are handed over at once, that the reader's other work is not kept waiting.
const BATCH: usize = 512;

impl Events {
    /// Must be called within a tokio runtime.
    pub(crate) fn new(map: Map) -> Result<Self, Error> {
        let ring = RingBuf::try_from(map).map_err(|source| {
            Error::Map(maps::Error { map: abi::map::EVENTS, operation: "opening", source })
        })?;
        // SAFETY: the ring owns its descriptor, and both live and end with the `AsyncFd`.
        let registered = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        registered
            .map(|ring| Self { ring, next: Instant::now() })
            .map_err(|error| Error::path(abi::map::EVENTS, "waiting on the ring")(error.into()))
    }

    /// Waits until there is at least one event, then appends what there is, 512 at most. Cancelling loses nothing.
    ///
    /// # Errors
    /// The descriptor cannot be waited on.
    pub async fn read(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        loop {
            sleep_until(self.next).await;
            let mut ready = self.ring.readable_mut().await?;
            let ring = ready.get_inner_mut();
            let before = events.len();
            while events.len() < before + BATCH {
                let Some(record) = ring.next() else { break };
                events.extend(parse(&record));
            }
            if events.len() < before + BATCH {
                ready.clear_ready();
                self.next = Instant::now() + PAUSE;
            }
            if events.len() > before {
                return Ok(());
            }
        }
    }
}

/// None for a record of another size: not one of this schema.
fn parse(record: &[u8]) -> Option<Event> {
    // SAFETY: the length is checked, `Event` is plain data of which every bit pattern is valid, and the read may be
    // unaligned.
    (record.len() == size_of::<Event>()).then(|| unsafe { record.as_ptr().cast::<Event>().read_unaligned() })
}

/// Nanoseconds to add to CLOCK_BOOTTIME, the clock of the events, to get nanoseconds since 1970. Ask again now and then:
/// the wall clock can be set.
pub fn wall_clock_offset() -> i64 {
    let nanoseconds = |clock| {
        nix::time::clock_gettime(clock).map_or(0, |time| time.tv_sec() * 1_000_000_000 + time.tv_nsec())
    };
    nanoseconds(nix::time::ClockId::CLOCK_REALTIME) - nanoseconds(nix::time::ClockId::CLOCK_BOOTTIME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_another_size_is_no_event() {
        assert!(parse(&[0; size_of::<Event>() - 1]).is_none());
        assert!(parse(&[0; size_of::<Event>()]).is_some());
    }

    #[test]
    fn boot_was_after_1970_and_before_now() {
        assert!(wall_clock_offset() > 1_600_000_000_000_000_000);
    }
}

//! The kernel's events as they come, for any number of readers.
//!
//! Promise: a push never waits, and costs next to nothing while nobody reads. There is no past. A reader that falls more
//! than [`BEHIND`] events behind loses the oldest and is told how many, in their place.

use abi::{DropReason, EventFlags, EventKind};
use node_api::{EventType, EventView, MonitorQuery};
use tokio::sync::broadcast::{self, error::RecvError};

/// Events that wait for a reader at most.
pub const BEHIND: usize = 4096;

/// What a reader gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Monitored {
    /// An event.
    Event(EventView),
    /// So many events are missing here; whether they were asked for is not known.
    Lost(u64),
}

/// Where events are handed to their readers.
#[derive(Debug)]
pub struct Monitor(broadcast::Sender<Monitored>);

impl Default for Monitor {
    fn default() -> Self {
        Self(broadcast::Sender::new(BEHIND))
    }
}

impl Monitor {
    /// Whether anybody reads: else an event need not be made.
    pub fn is_read(&self) -> bool {
        self.0.receiver_count() > 0
    }

    /// Hands an event to the readers.
    pub fn push(&self, event: EventView) {
        // Without readers nobody misses it.
        let _ = self.0.send(Monitored::Event(event));
    }

    /// Tells them that `count` events were lost in the kernel.
    pub fn push_lost(&self, count: u64) {
        if count > 0 {
            let _ = self.0.send(Monitored::Lost(count));
        }
    }

    /// Starts to read what comes from now on.
    pub fn read(&self, query: MonitorQuery) -> Watch {
        Watch { query, events: self.0.subscribe() }
    }
}

/// One reader.
#[derive(Debug)]
pub struct Watch {
    query: MonitorQuery,
    events: broadcast::Receiver<Monitored>,
}

impl Watch {
    /// The next event that was asked for; `None` when nothing more can come. Cancel safe.
    pub async fn next(&mut self) -> Option<Monitored> {
        loop {
            match self.events.recv().await {
                Ok(Monitored::Event(event)) if !admits(&self.query, &event) => {}
                Ok(monitored) => return Some(monitored),
                Err(RecvError::Lagged(count)) => return Some(Monitored::Lost(count)),
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

fn admits(query: &MonitorQuery, event: &EventView) -> bool {
    let any = |wanted: &[u16], ends: &[Option<u16>]| {
        wanted.is_empty() || wanted.iter().any(|id| ends.contains(&Some(*id)))
    };
    (query.types.is_empty() || query.types.iter().any(|wanted| tells(event, *wanted)))
        && any(&query.from, &[event.from])
        && any(&query.to, &[event.to])
        && any(&query.related_to, &[event.from, event.to, event.endpoint])
}

/// Whether an event is of this type; it may be of several.
pub fn tells(event: &EventView, wanted: EventType) -> bool {
    let is = |kind: EventKind| event.kind == kind as u8;
    let denied = [DropReason::PolicyDenied as u8, DropReason::PolicyDeny as u8].contains(&event.reason);
    match wanted {
        EventType::Drop => is(EventKind::Drop),
        EventType::Trace => is(EventKind::Allowed) || is(EventKind::Trace),
        EventType::PolicyVerdict if is(EventKind::Drop) => denied,
        EventType::PolicyVerdict => is(EventKind::Allowed) && (event.cookie != 0 || is_audited(event)),
    }
}

/// Whether it passed only because of audit mode.
pub(crate) fn is_audited(event: &EventView) -> bool {
    event.flags & EventFlags::AUDITED != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dissect::tests::{allowed, dropped};

    #[test]
    fn an_event_is_of_each_type_that_it_tells_of() {
        use EventType::{Drop, PolicyVerdict, Trace};
        let cases: [(EventView, &[EventType]); 6] = [
            (dropped(), &[Drop, PolicyVerdict]),
            (EventView { reason: 134, ..dropped() }, &[Drop]),
            (allowed(), &[Trace, PolicyVerdict]),
            (EventView { cookie: 0, ..allowed() }, &[Trace]),
            (EventView { cookie: 0, flags: EventFlags::AUDITED, ..allowed() }, &[Trace, PolicyVerdict]),
            (EventView { kind: EventKind::Trace as u8, ..allowed() }, &[Trace]),
        ];
        for (event, expected) in cases {
            let told: Vec<_> =
                [Drop, Trace, PolicyVerdict].into_iter().filter(|wanted| tells(&event, *wanted)).collect();
            assert_eq!(told, expected, "{event:?}");
        }
    }

    #[test]
    fn a_query_asks_for_types_and_endpoints_and_all_must_hold() {
        let query = |types: &[EventType], from: &[u16], to: &[u16], related_to: &[u16]| MonitorQuery {
            types: types.to_vec(),
            from: from.to_vec(),
            to: to.to_vec(),
            related_to: related_to.to_vec(),
        };
        // From endpoint 7 to endpoint 3, which judged.
        let cases = [
            (query(&[], &[], &[], &[]), true),
            (query(&[EventType::Drop], &[7], &[3], &[]), true),
            (query(&[EventType::Trace, EventType::Drop], &[1, 7], &[], &[3]), true),
            (query(&[EventType::Trace], &[], &[], &[]), false),
            (query(&[], &[3], &[], &[]), false),
            (query(&[], &[], &[7], &[]), false),
            (query(&[], &[], &[], &[8]), false),
        ];
        for (query, expected) in cases {
            assert_eq!(admits(&query, &dropped()), expected, "{query:?}");
        }
    }

    #[tokio::test]
    async fn readers_see_what_comes_after_them_and_what_they_missed_is_counted() {
        let monitor = Monitor::default();
        assert!(!monitor.is_read());
        monitor.push(dropped());
        let mut watch = monitor.read(MonitorQuery { from: vec![7], ..MonitorQuery::default() });
        assert!(monitor.is_read());
        monitor.push(EventView { from: None, ..dropped() });
        monitor.push(dropped());
        monitor.push_lost(0);
        monitor.push_lost(9);
        assert_eq!(watch.next().await, Some(Monitored::Event(dropped())), "only what was asked for");
        assert_eq!(watch.next().await, Some(Monitored::Lost(9)));
        for _ in 0..BEHIND + 5 {
            monitor.push(dropped());
        }
        assert_eq!(watch.next().await, Some(Monitored::Lost(5)));
        assert_eq!(watch.next().await, Some(Monitored::Event(dropped())));
        drop(monitor);
        let mut left = 0;
        while watch.next().await.is_some() {
            left += 1;
        }
        assert_eq!(left, BEHIND - 1);
    }
}

//! The flow ring: the newest events of the node, for any number of readers.
//!
//! Promise: a push never waits for a reader. Each reader has a cursor of its own and copies at most [`BATCH`] pointers
//! while it holds the lock; filtering and sending happen outside. What was overwritten before a reader came to it is
//! reported as [`Observed::Lost`], in the place where it is missing.
//!
//! Why not `tokio::sync::broadcast`: a late subscriber cannot see the past.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;

use mesh::flow::Flow;
use node_api::{ObserveQuery, Past};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::filter::{Filter, FilterError};

/// Events kept, as many as Hubble's default.
pub const CAPACITY: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4094);

/// Events a reader copies at once.
const BATCH: usize = 64;

/// What a reader gets.
#[derive(Clone, PartialEq, Debug)]
pub enum Observed {
    /// An event.
    Flow(Arc<Flow>),
    /// So many events are missing here; whether the filter would have let them pass is not known.
    Lost(u64),
}

/// The ring. Each flow has a number, never reused; a loss has as many as flows it stands for.
#[derive(Debug)]
pub struct FlowRing {
    events: Mutex<Events>,
    /// Number of the next event; readers wait for it to change.
    next: watch::Sender<u64>,
    capacity: usize,
}

#[derive(Debug)]
struct Events {
    /// Events and their (first) number.
    kept: VecDeque<(u64, Observed)>,
    /// Number of the next event.
    next: u64,
}

impl FlowRing {
    /// An empty ring that keeps `capacity` events.
    pub fn new(capacity: NonZeroUsize) -> Arc<Self> {
        let kept = VecDeque::with_capacity(capacity.get());
        Arc::new(Self {
            events: Mutex::new(Events { kept, next: 0 }),
            next: watch::Sender::new(0),
            capacity: capacity.get(),
        })
    }

    /// Keeps one more event, in place of the oldest if the ring is full.
    pub fn push(&self, flow: Flow) {
        self.keep(Observed::Flow(Arc::new(flow)), 1);
    }

    /// Records that `count` events never reached the ring (the kernel's buffer was full).
    pub fn push_lost(&self, count: u64) {
        if count > 0 {
            self.keep(Observed::Lost(count), count);
        }
    }

    fn keep(&self, event: Observed, weight: u64) {
        let mut events = self.events.lock();
        if events.kept.len() == self.capacity {
            events.kept.pop_front();
        }
        let number = events.next;
        events.kept.push_back((number, event));
        events.next += weight;
        // Under the lock, so that the number never runs backwards.
        self.next.send_replace(events.next);
    }

    /// Starts to read: first so much of the past as was asked for and the filter lets pass, then, if it follows, what comes.
    pub fn read(self: &Arc<Self>, query: &ObserveQuery) -> Result<Reader, FilterError> {
        let filter = Filter::compile(query)?;
        let (past, cursor) = {
            let events = self.events.lock();
            (events.kept.iter().map(|(_, event)| event.clone()).collect::<Vec<_>>(), events.next)
        };
        Ok(Reader {
            pending: match query.past {
                Past::First(count) => oldest(past, &filter, count),
                Past::Last(count) => newest(past, &filter, count),
            },
            filter,
            cursor,
            news: query.follow.then(|| self.next.subscribe()),
            ring: Arc::clone(self),
        })
    }
}

/// The oldest `count` flows that pass, oldest first, and the gaps between them.
fn oldest(past: Vec<Observed>, filter: &Filter, count: usize) -> VecDeque<Observed> {
    first(past.into_iter(), filter, count).collect()
}

/// The newest `count` flows that pass, oldest first, and the gaps between them.
fn newest(past: Vec<Observed>, filter: &Filter, count: usize) -> VecDeque<Observed> {
    let mut found: VecDeque<_> = first(past.into_iter().rev(), filter, count).collect();
    found.make_contiguous().reverse();
    found
}

fn first(
    events: impl Iterator<Item = Observed>,
    filter: &Filter,
    mut count: usize,
) -> impl Iterator<Item = Observed> {
    let passing = events.filter(|event| match event {
        Observed::Flow(flow) => filter.admits(flow),
        Observed::Lost(_) => true,
    });
    passing.take_while(move |event| {
        let wanted = count > 0;
        count = count.saturating_sub(usize::from(matches!(event, Observed::Flow(_))));
        wanted
    })
}

/// One reader of a [`FlowRing`].
#[derive(Debug)]
pub struct Reader {
    ring: Arc<FlowRing>,
    filter: Filter,
    pending: VecDeque<Observed>,
    /// Number of the first event not read yet.
    cursor: u64,
    /// Absent if the reader wants only the past.
    news: Option<watch::Receiver<u64>>,
}

impl Reader {
    /// The next event; `None` when nothing more can come: the past is told and the reader does not follow, or the
    /// present is later than the filter's `until`. Cancel safe.
    pub async fn next(&mut self) -> Option<Observed> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                match &event {
                    Observed::Flow(flow) if self.filter.is_over(flow) => return None,
                    Observed::Flow(flow) if !self.filter.admits(flow) => continue,
                    Observed::Flow(_) | Observed::Lost(_) => return Some(event),
                }
            }
            let news = self.news.as_mut()?;
            let cursor = self.cursor;
            news.wait_for(|next| *next > cursor).await.ok()?;
            self.copy();
        }
    }

    fn copy(&mut self) {
        let events = self.ring.events.lock();
        let oldest = events.kept.front().map_or(events.next, |(number, _)| *number);
        if self.cursor < oldest {
            self.pending.push_back(Observed::Lost(oldest - self.cursor));
            self.cursor = oldest;
        }
        let unread = events.kept.partition_point(|(number, _)| *number < self.cursor);
        self.pending.extend(events.kept.iter().skip(unread).take(BATCH).map(|(_, event)| event.clone()));
        self.cursor = events.kept.get(unread + BATCH).map_or(events.next, |(number, _)| *number);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::{Context, Poll, Waker};

    use node_api::FlowFilter;

    use super::*;
    use crate::compact::tests::{dropped, forwarded};

    fn ring(capacity: usize) -> Arc<FlowRing> {
        FlowRing::new(NonZeroUsize::new(capacity).unwrap())
    }

    fn at(time: i64) -> Flow {
        Flow { time, ..dropped() }
    }

    fn query(last: usize, follow: bool) -> ObserveQuery {
        ObserveQuery { past: Past::Last(last), follow, ..ObserveQuery::default() }
    }

    /// What the reader has to say now: flows as their time, losses as negative numbers; and whether it has ended.
    fn drain(reader: &mut Reader) -> (Vec<i64>, bool) {
        let mut told = Vec::new();
        loop {
            let mut next = std::pin::pin!(reader.next());
            match next.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => return (told, false),
                Poll::Ready(None) => return (told, true),
                Poll::Ready(Some(Observed::Flow(flow))) => told.push(flow.time),
                Poll::Ready(Some(Observed::Lost(count))) => told.push(-i64::try_from(count).unwrap()),
            }
        }
    }

    #[test]
    fn the_newest_are_told_oldest_first_and_then_it_ends() {
        let ring = ring(4);
        (1..=6).for_each(|time| ring.push(at(time)));
        assert_eq!(drain(&mut ring.read(&query(2, false)).unwrap()), (vec![5, 6], true));
        assert_eq!(drain(&mut ring.read(&query(usize::MAX, false)).unwrap()), (vec![3, 4, 5, 6], true));
        assert_eq!(drain(&mut ring.read(&query(0, false)).unwrap()), (vec![], true));
        let first = ObserveQuery { past: Past::First(2), ..ObserveQuery::default() };
        assert_eq!(drain(&mut ring.read(&first).unwrap()), (vec![3, 4], true), "or those kept longest");
    }

    #[test]
    fn last_counts_what_the_filter_lets_pass() {
        let ring = ring(8);
        for time in 1..=6 {
            let flow = if time % 2 == 0 { dropped() } else { forwarded() };
            ring.push(Flow { time, ..flow });
        }
        let filter = FlowFilter { verdicts: vec!["DROPPED".to_owned()], ..FlowFilter::default() };
        let query = ObserveQuery { filter, past: Past::Last(2), ..ObserveQuery::default() };
        assert_eq!(drain(&mut ring.read(&query).unwrap()), (vec![4, 6], true));
    }

    #[test]
    fn a_follower_sees_the_past_it_asked_for_then_all_that_comes() {
        let ring = ring(8);
        (1..=3).for_each(|time| ring.push(at(time)));
        let mut reader = ring.read(&query(1, true)).unwrap();
        assert_eq!(drain(&mut reader), (vec![3], false));
        (4..=5).for_each(|time| ring.push(at(time)));
        assert_eq!(drain(&mut reader), (vec![4, 5], false));
    }

    #[test]
    fn a_follower_that_lags_is_told_how_many_it_lost_where_they_are_missing() {
        let ring = ring(4);
        let mut reader = ring.read(&query(0, true)).unwrap();
        (1..=10).for_each(|time| ring.push(at(time)));
        assert_eq!(drain(&mut reader), (vec![-6, 7, 8, 9, 10], false));
    }

    #[test]
    fn a_loss_within_the_kernel_stands_where_it_happened() {
        let ring = ring(4);
        ring.push(at(1));
        ring.push_lost(9);
        ring.push(at(2));
        assert_eq!(drain(&mut ring.read(&query(2, false)).unwrap()), (vec![1, -9, 2], true));
    }

    #[test]
    fn a_loss_that_is_overwritten_still_counts_whole() {
        let ring = ring(2);
        let mut reader = ring.read(&query(0, true)).unwrap();
        ring.push_lost(9);
        (1..=3).for_each(|time| ring.push(at(time)));
        assert_eq!(drain(&mut reader), (vec![-10, 2, 3], false));
    }

    #[test]
    fn following_ends_with_the_first_flow_after_until() {
        let ring = ring(8);
        let query = ObserveQuery { since: Some(2), until: Some(3), ..query(10, true) };
        let mut reader = ring.read(&query).unwrap();
        (1..=4).for_each(|time| ring.push(at(time)));
        assert_eq!(drain(&mut reader), (vec![2, 3], true));
    }

    #[test]
    fn a_filter_that_means_nothing_is_refused() {
        let filter = FlowFilter { verdicts: vec!["MAYBE".to_owned()], ..FlowFilter::default() };
        assert!(ring(1).read(&ObserveQuery { filter, ..ObserveQuery::default() }).is_err());
    }

    proptest::proptest! {
        /// However reading and writing interleave: each event is told once, in order, or counted as lost.
        #[test]
        fn told_and_lost_add_up(steps in proptest::collection::vec((1usize..200, proptest::bool::ANY), 1..20)) {
            let ring = ring(100);
            let mut reader = ring.read(&query(0, true)).unwrap();
            let (mut pushed, mut accounted) = (0, 0);
            for (count, read) in steps {
                for _ in 0..count {
                    pushed += 1;
                    ring.push(at(pushed));
                }
                if read {
                    for told in drain(&mut reader).0 {
                        accounted += if told < 0 { -told } else { 1 };
                        proptest::prop_assert!(told < 0 || told == accounted);
                    }
                    proptest::prop_assert_eq!(accounted, pushed);
                }
            }
        }
    }
}

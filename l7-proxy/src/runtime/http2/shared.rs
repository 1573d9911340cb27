//! What the streams of a connection share: who its ends are, which streams are open, what has been refused.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use mesh::flow::Verdict;
use tokio::time::Instant;

use super::budget::Budget;
use super::guard::{Answer, Watch};
use super::head::Head;
use super::upstream::Upstream;
use crate::runtime::connection::Called;
use crate::runtime::ends::{Ends, Identities};
use crate::runtime::log::{Described, Over, Said};
use crate::runtime::verdict::is_still_allowed;
use crate::runtime::worker::{Entered, Worker};
use crate::stage::admit::Place;

/// Streams that end before they are answered, by the client's doing: at once, and a second.
const RESETS: u32 = 200;
const RESET_RATE: u32 = 20;
/// Streams that have ended last, whose answers may still be on their way out: those of at most as many streams as may be open.
const ENDED: usize = 256;

/// A connection of a client.
pub(super) struct Shared<'w, I> {
    pub(super) worker: &'w Worker<I>,
    pub(super) called: Called,
    pub(super) entered: Entered,
    pub(super) place: Place,
    pub(super) ends: RefCell<Ends>,
    pub(super) upstream: Upstream,
    live: RefCell<BTreeMap<u32, Rc<Live>>>,
    ended: RefCell<VecDeque<u32>>,
    resets: RefCell<Budget>,
    offence: Cell<Option<&'static str>>,
}

/// An open stream, as the connection sees it.
#[derive(Debug)]
pub(super) struct Live {
    /// What was judged and let through.
    pub(super) head: RefCell<Option<Head>>,
    /// When something has moved last.
    pub(super) moved: Cell<Instant>,
    /// How long nothing may move; `None`: for ever.
    pub(super) patience: Cell<Option<Duration>>,
    order: Cell<Option<Order>>,
    waker: RefCell<Option<Waker>>,
}

/// What the connection tells a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    /// It may not be any more.
    Withdrawn,
    /// Nothing has moved for too long.
    Late,
    /// The proxy ends.
    Ended,
}

impl Live {
    /// What it has been told; if nothing, it is woken when it is.
    pub(super) fn order(&self, cx: &Context<'_>) -> Option<Order> {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        self.order.get()
    }

    fn tell(&self, order: Order) {
        self.order.set(Some(order));
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

impl<'w, I: Identities> Shared<'w, I> {
    pub(super) fn new(
        worker: &'w Worker<I>,
        called: Called,
        (entered, place): (Entered, Place),
        ends: Ends,
    ) -> Self {
        Self {
            worker,
            called,
            entered,
            place,
            ends: RefCell::new(ends),
            upstream: Upstream::default(),
            live: RefCell::default(),
            ended: RefCell::default(),
            resets: RefCell::new(Budget::new(RESETS, RESET_RATE)),
            offence: Cell::default(),
        }
    }

    /// Looks again at who the ends are, if anything has changed; streams that may not be any more are told so.
    pub(super) fn refresh(&self) {
        let Called { client, server } = self.called;
        let mut ends = self.ends.borrow_mut();
        if !ends.refresh(client, server, &self.worker.published, &self.worker.identities) {
            return;
        }
        for live in self.live.borrow().values() {
            let head = live.head.borrow();
            let is_allowed =
                |head: &Head| is_still_allowed(&head, crate::runtime::verdict::Judged::path(head), &ends);
            if !head.as_ref().is_none_or(is_allowed) {
                live.tell(Order::Withdrawn);
            }
        }
    }

    /// A stream begins.
    pub(super) fn open(&self, id: u32, patience: Duration) -> Rc<Live> {
        let live = Rc::new(Live {
            head: RefCell::default(),
            moved: Cell::new(Instant::now()),
            patience: Cell::new(Some(patience)),
            order: Cell::default(),
            waker: RefCell::default(),
        });
        self.live.borrow_mut().insert(id, Rc::clone(&live));
        live
    }

    /// A stream has ended.
    pub(super) fn end(&self, id: u32) {
        self.live.borrow_mut().remove(&id);
        let mut ended = self.ended.borrow_mut();
        if ended.len() == ENDED {
            ended.pop_front();
        }
        ended.push_back(id);
    }

    /// Whether no stream is open.
    pub(super) fn is_idle(&self) -> bool {
        self.live.borrow().is_empty()
    }

    /// Tells all streams that the proxy ends.
    pub(super) fn end_all(&self) {
        self.live.borrow().values().for_each(|live| live.tell(Order::Ended));
    }

    /// Tells streams on which nothing moves.
    pub(super) fn tick(&self, now: Instant) {
        for live in self.live.borrow().values() {
            if live.patience.get().is_some_and(|patience| live.moved.get() + patience <= now) {
                live.tell(Order::Late);
            }
        }
    }

    /// A stream was answered.
    pub(super) fn answered(&self) {
        self.resets.borrow_mut().earn(1);
    }

    /// A stream came to nothing by the client's doing.
    pub(super) fn wasted(&self) {
        if !self.resets.borrow_mut().spend() {
            self.offence.set(Some("flood of streams that come to nothing"));
        }
    }

    /// What the client has done too much of.
    pub(super) fn offence(&self) -> Option<&'static str> {
        self.offence.get()
    }

    /// Records what h2 has refused before it became a request: what was answered on a stream that never was one.
    pub(super) fn note(&self, watch: &Watch) {
        watch.answers(|Answer { stream, reason }| {
            let is_known = self.live.borrow().contains_key(&stream) || self.ended.borrow().contains(&stream);
            if !is_known {
                self.end(stream);
                self.dropped(reason);
                self.wasted();
            }
        });
    }

    /// Records that something did not pass that is no request.
    pub(super) fn dropped(&self, reason: &'static str) {
        let by = self
            .ends
            .borrow()
            .judges
            .iter()
            .position(|judge| judge.as_ref().is_some_and(|judge| !judge.is_plain()));
        self.record(&Described::default(), by, Verdict::Dropped, Some(reason), None);
    }

    /// An exchange is over.
    pub(super) fn finish(&self, request: &Described, arrived: Instant) {
        let ends = [self.called.client, self.called.server];
        let who = &*self.ends.borrow();
        self.worker.log.finish(&Over { ends, who, request, since: Some(arrived) });
    }

    /// Records a request or an answer.
    pub(super) fn record(
        &self,
        request: &Described,
        by: Option<usize>,
        verdict: Verdict,
        reason: Option<&'static str>,
        answer: Option<(u16, u64)>,
    ) {
        let who = &*self.ends.borrow();
        let judge = by.and_then(|by| who.judges.get(by)?.as_ref()).or(who.speaker());
        let ends = [self.called.client, self.called.server];
        self.worker.log.record(&Said { ends, who, judge, request, verdict, reason, answer });
    }
}

//! What the streams of a connection share: who its ends are, which streams are open, what has been refused.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use mesh::flow::Verdict;
use rustls::pki_types::ServerName;
use tokio::time::Instant;

use super::budget::Budget;
use super::guard::{Answer, Watch};
use super::head::Head;
use super::places::Places;
use super::upstream::Upstream;
use crate::index::Originating;
use crate::runtime::connection::Called;
use crate::runtime::ends::{Ends, INHERITED, Identities};
use crate::runtime::log::{Described, Over, Said};
use crate::runtime::open::server_name;
use crate::runtime::transfer::STALL;
use crate::runtime::verdict::{Judged, is_still_allowed};
use crate::runtime::worker::{Entered, Worker};
use crate::stage::admit::{Kind, Place};

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
    places: RefCell<Places>,
    /// When something of a body was sent to the client last.
    moved: Cell<Instant>,
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
    /// Rules or identities have changed since it was judged.
    is_overdue: Cell<bool>,
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
    fn tell(&self, order: Order) {
        self.order.set(Some(order));
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Woken by the next change.
    fn wait(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Whether rules or identities have changed since it was judged.
    pub(super) fn is_overdue(&self) -> bool {
        self.is_overdue.get()
    }

    /// It is judged now.
    pub(super) fn judged(&self) {
        self.is_overdue.set(false);
    }

    /// Whether what was let through may not pass any more.
    fn is_withdrawn(&self, ends: &Ends) -> bool {
        let head = self.head.borrow();
        head.as_ref().is_some_and(|head| !is_still_allowed(&head, Judged::path(head), ends))
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
            places: RefCell::default(),
            moved: Cell::new(Instant::now()),
            resets: RefCell::new(Budget::new(RESETS, RESET_RATE)),
            offence: Cell::default(),
        }
    }

    /// Looks again at who the ends are, if anything has changed. Streams are judged again as they are polled, before anything
    /// of them is moved: all in one go, many would outlast their turn. Only those whose heads h2 has and has not sent are judged
    /// at once: nobody polls them before they leave. The connection ends with an end that is another by now.
    pub(super) fn refresh(&self) {
        let Called { client, server } = self.called;
        let mut ends = self.ends.borrow_mut();
        if !ends.refresh(client, server, &self.worker.published, &self.worker.identities) {
            return;
        }
        for live in self.live.borrow().values() {
            live.is_overdue.set(true);
            live.wake();
        }
        self.upstream.recall(|live| live.is_withdrawn(&ends));
        if ends.are_inherited() {
            self.offence.set(Some(INHERITED));
        }
    }

    /// How the server is known and who it must be, if TLS is spoken to it.
    pub(super) fn begins(&self) -> Option<(Arc<Originating>, ServerName<'static>)> {
        let ends = self.ends.borrow();
        let originating = Arc::clone(ends.originating()?);
        let asked = self.upstream.asked().unwrap_or_default();
        Some((originating, server_name(ends.said(), asked.as_bytes(), self.called.server)))
    }

    /// What a stream has been told; if nothing, it is woken when it is.
    pub(super) fn order(&self, live: &Live, cx: &Context<'_>) -> Option<Order> {
        live.wait(cx);
        if live.is_overdue.take() && live.order.get().is_none() && live.is_withdrawn(&self.ends.borrow()) {
            live.order.set(Some(Order::Withdrawn));
        }
        live.order.get()
    }

    /// A stream begins.
    pub(super) fn open(&self, id: u32, patience: Duration) -> Rc<Live> {
        self.places.borrow_mut().open(id);
        let live = Rc::new(Live {
            head: RefCell::default(),
            moved: Cell::new(Instant::now()),
            patience: Cell::new(Some(patience)),
            order: Cell::default(),
            is_overdue: Cell::default(),
            waker: RefCell::default(),
        });
        self.live.borrow_mut().insert(id, Rc::clone(&live));
        live
    }

    /// Takes a place for it in the workload's budget, until its answer has left; `false`: there is none.
    pub(super) fn hold(&self, id: u32) -> bool {
        let Some(held) = self.place.account.hold(Kind::Streams) else { return false };
        self.places.borrow_mut().hold(id, held);
        true
    }

    /// A stream has ended; its answer may be on its way out.
    pub(super) fn end(&self, id: u32) {
        self.live.borrow_mut().remove(&id);
        self.places.borrow_mut().leave(id, Instant::now());
        let mut ended = self.ended.borrow_mut();
        if ended.len() == ENDED {
            ended.pop_front();
        }
        ended.push_back(id);
    }

    /// Whether no stream is open, and all answers have left.
    pub(super) fn is_idle(&self) -> bool {
        self.live.borrow().is_empty() && self.places.borrow().is_empty()
    }

    /// Tells all streams that the proxy ends.
    pub(super) fn end_all(&self) {
        self.live.borrow().values().for_each(|live| live.tell(Order::Ended));
    }

    /// Tells streams on which nothing moves, and looks for answers that nobody reads.
    pub(super) fn tick(&self, now: Instant) {
        if self.places.borrow().is_stuck(now, self.moved.get(), STALL) {
            self.offence.set(Some("answers that nobody reads"));
        }
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

    /// What the client has done too much of, or why else the connection ends at once.
    pub(super) fn offence(&self) -> Option<&'static str> {
        self.offence.get()
    }

    /// Notes which answers have left, and records what h2 has refused before it became a request: what was answered on a
    /// stream that never was one.
    pub(super) fn note(&self, watch: &Watch) {
        watch.over(|stream| self.places.borrow_mut().over(stream));
        if watch.has_moved() {
            self.moved.set(Instant::now());
        }
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

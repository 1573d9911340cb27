//! Futures that belong together and are polled in the order in which they were woken, for as long as may be.
//!
//! Promise: one that was woken is polled before any is polled that was woken after it, also over several turns; one that is
//! not woken costs nothing. `FuturesUnordered` cannot be stopped in the middle, and who is skipped there loses its place.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

/// A set of futures.
pub(super) struct Set<F> {
    members: Vec<Option<Member<F>>>,
    vacant: Vec<usize>,
    count: usize,
    /// Who is polled next, before whoever has been woken since.
    batch: VecDeque<usize>,
    queue: Arc<Queue>,
}

struct Member<F> {
    future: F,
    place: Arc<Place>,
    waker: Waker,
}

/// A member, as wakers know it. It may be another one's by the time it is woken, which is then polled for nothing.
struct Place {
    queue: Arc<Queue>,
    number: usize,
    is_woken: AtomicBool,
}

#[derive(Default)]
struct Queue(Mutex<Woken>);

#[derive(Default)]
struct Woken {
    numbers: VecDeque<usize>,
    /// Who polls the set, while nobody does.
    sleeper: Option<Waker>,
}

impl Wake for Place {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_woken.swap(true, Ordering::AcqRel) {
            return;
        }
        let sleeper = {
            let mut woken = self.queue.0.lock();
            woken.numbers.push_back(self.number);
            woken.sleeper.take()
        };
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
    }
}

impl<F> Default for Set<F> {
    fn default() -> Self {
        Self {
            members: Vec::new(),
            vacant: Vec::new(),
            count: 0,
            batch: VecDeque::new(),
            queue: Arc::default(),
        }
    }
}

impl<F: Future<Output = ()> + Unpin> Set<F> {
    /// Adds one, which is woken.
    pub(super) fn insert(&mut self, future: F) -> usize {
        let number = self.vacant.pop().unwrap_or(self.members.len());
        let place =
            Arc::new(Place { queue: Arc::clone(&self.queue), number, is_woken: AtomicBool::new(false) });
        let waker = Waker::from(Arc::clone(&place));
        let member = Some(Member { future, place, waker });
        match self.members.get_mut(number) {
            Some(vacant) => *vacant = member,
            None => self.members.push(member),
        }
        self.count += 1;
        self.wake(number);
        number
    }

    /// The one of a number that [`Set::insert`] gave, if it has not ended.
    pub(super) fn get(&mut self, number: usize) -> Option<&mut F> {
        Some(&mut self.members.get_mut(number)?.as_mut()?.future)
    }

    /// Has one polled.
    pub(super) fn wake(&self, number: usize) {
        if let Some(Some(member)) = self.members.get(number) {
            member.waker.wake_by_ref();
        }
    }

    /// Has all polled.
    pub(super) fn wake_all(&self) {
        self.members.iter().flatten().for_each(|member| member.waker.wake_by_ref());
    }

    /// All that are there.
    pub(super) fn iter(&self) -> impl Iterator<Item = &F> {
        self.members.iter().flatten().map(|member| &member.future)
    }

    /// Polls those that were woken: one, and more for as long as `goes_on` says so, which is asked after each. Ready when
    /// there is none left in the set. Each that ends is given to `ended`.
    pub(super) fn poll(
        &mut self,
        cx: &Context<'_>,
        mut goes_on: impl FnMut() -> bool,
        mut ended: impl FnMut(F),
    ) -> Poll<()> {
        while self.is_woken(cx) {
            let Some(number) = self.batch.pop_front() else { break };
            if let Some(future) = self.poll_one(number) {
                ended(future);
            }
            if !goes_on() {
                if self.is_woken(cx) {
                    cx.waker().wake_by_ref();
                }
                break;
            }
        }
        if self.count == 0 { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Whether anybody waits to be polled; if not, the next who is woken wakes who polls.
    fn is_woken(&mut self, cx: &Context<'_>) -> bool {
        if !self.batch.is_empty() {
            return true;
        }
        let mut woken = self.queue.0.lock();
        std::mem::swap(&mut self.batch, &mut woken.numbers);
        if self.batch.is_empty() {
            woken.sleeper = Some(cx.waker().clone());
        }
        !self.batch.is_empty()
    }

    /// Polls one; what is returned has ended.
    fn poll_one(&mut self, number: usize) -> Option<F> {
        let place = self.members.get_mut(number)?;
        let member = place.as_mut()?;
        // Before it is polled: what wakes it meanwhile has it polled again.
        member.place.is_woken.store(false, Ordering::Release);
        let polled = Pin::new(&mut member.future).poll(&mut Context::from_waker(&member.waker));
        if polled.is_pending() {
            return None;
        }
        self.vacant.push(number);
        self.count -= 1;
        place.take().map(|member| member.future)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::poll_fn;
    use std::rc::Rc;

    use super::*;

    type Boxed = Pin<Box<dyn Future<Output = ()>>>;

    /// Writes down its name whenever it is polled, wakes itself so often, then waits or ends.
    fn member(name: char, mut wakes: u32, ends: bool, seen: &Rc<RefCell<String>>) -> Boxed {
        let seen = Rc::clone(seen);
        Box::pin(poll_fn(move |cx| {
            seen.borrow_mut().push(name);
            if wakes == 0 {
                return if ends { Poll::Ready(()) } else { Poll::Pending };
            }
            wakes -= 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        }))
    }

    #[test]
    fn they_are_polled_in_the_order_they_were_woken_however_often_they_are_stopped() {
        let seen = Rc::new(RefCell::new(String::new()));
        let mut set = Set::default();
        for name in ['a', 'b', 'c'] {
            set.insert(member(name, 2, true, &seen));
        }
        let cx = Context::from_waker(Waker::noop());
        let mut polls = 0;
        while set.poll(&cx, || false, drop).is_pending() {
            polls += 1;
            assert!(polls < 10);
        }
        assert_eq!(seen.take(), "abcabcabc");
        // Nobody is polled who was not woken.
        let b = set.insert(member('b', 0, false, &seen));
        set.insert(member('c', 0, false, &seen));
        assert!(set.poll(&cx, || true, drop).is_pending());
        assert!(set.poll(&cx, || true, drop).is_pending());
        set.wake(b);
        set.wake(b);
        assert!(set.poll(&cx, || true, drop).is_pending());
        assert_eq!(seen.take(), "bcb");
    }

    #[derive(Default)]
    struct Count(std::sync::atomic::AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_polls_is_woken_once_for_all_that_are_and_a_stale_waker_harms_nobody() {
        let count = Arc::new(Count::default());
        let woken = || count.0.swap(0, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&count));
        let cx = Context::from_waker(&waker);
        let seen = Rc::new(RefCell::new(String::new()));
        let mut set = Set::default();
        let stale: Rc<RefCell<Option<Waker>>> = Rc::default();
        let kept = Rc::clone(&stale);
        set.insert(Box::pin(poll_fn(move |cx| {
            *kept.borrow_mut() = Some(cx.waker().clone());
            Poll::Ready(())
        })) as Boxed);
        assert!(set.poll(&cx, || true, drop).is_ready());
        let numbers = ['a', 'b'].map(|name| set.insert(member(name, 0, false, &seen)));
        assert!(set.poll(&cx, || true, drop).is_pending());
        let _ = woken();
        numbers.iter().for_each(|number| set.wake(*number));
        stale.take().unwrap().wake();
        assert_eq!(woken(), 1);
        assert!(set.poll(&cx, || true, drop).is_pending());
        assert_eq!(seen.take(), "ababa", "the first has the place of the one that ended");
        // Stopped while more are woken, it is to be polled again.
        numbers.iter().for_each(|number| set.wake(*number));
        let _ = woken();
        assert!(set.poll(&cx, || false, drop).is_pending());
        assert_eq!(woken(), 1);
    }
}

//! The workloads of a worker, in turn: each owns the futures of all its connections and streams.
//!
//! Promise: with n workloads that want the worker, each gets every n-th turn, however many connections it has and whatever
//! comes on them; a turn has a bound ([`super::turn`]). Between two turns the worker looks for what has arrived. On the data
//! path nothing is spawned beside this.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::time::Instant;

use super::set::Set;
use super::turn;
use crate::stage::admit::Tenant;

/// A connection, until it has ended. One that panics, be it while it is dropped, ends and takes nobody with it.
struct Connection(Option<Pin<Box<dyn Future<Output = ()>>>>);

impl Future for Connection {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let connection = &mut self.0;
        // Nothing of it is looked at again but by those that drop it.
        let polled = caught(|| connection.as_mut().map_or(Poll::Ready(()), |it| it.as_mut().poll(cx)));
        if polled == Some(Poll::Pending) {
            return Poll::Pending;
        }
        let _ = caught(|| drop(connection.take()));
        Poll::Ready(())
    }
}

/// None if it has panicked.
fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    let result = catch_unwind(AssertUnwindSafe(work));
    result.inspect_err(|_| tracing::error!("a connection has met an error of the program and is closed")).ok()
}

/// Runs all that a worker does; never ready. To be driven beside nothing else, and without tokio's own budget
/// ([`tokio::task::unconstrained`]): that would end turns early.
pub struct Tenants {
    ring: Set<Workload>,
    numbers: BTreeMap<Tenant, usize>,
    arrivals: Rc<Arrivals>,
    clock: fn() -> Instant,
}

/// Adds connections to those that [`Tenants`] runs.
#[derive(Clone)]
pub struct Spawner(Rc<Arrivals>);

#[derive(Default)]
struct Arrivals {
    waiting: RefCell<Vec<(Tenant, Connection)>>,
    /// All are to be polled.
    are_woken: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Arrivals {
    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// The connections of one workload.
struct Workload {
    tenant: Tenant,
    connections: Set<Connection>,
    clock: fn() -> Instant,
}

impl Default for Tenants {
    fn default() -> Self {
        Self::by(Instant::now)
    }
}

impl Tenants {
    fn by(clock: fn() -> Instant) -> Self {
        Self { ring: Set::default(), numbers: BTreeMap::new(), arrivals: Rc::default(), clock }
    }

    /// What adds connections.
    pub fn spawner(&self) -> Spawner {
        Spawner(Rc::clone(&self.arrivals))
    }

    /// Gives those that have arrived to their workloads.
    fn settle(&mut self) {
        for (tenant, connection) in self.arrivals.waiting.take() {
            let known = self.numbers.get(&tenant).copied();
            if let Some(number) = known
                && let Some(workload) = self.ring.get(number)
            {
                workload.connections.insert(connection);
                continue;
            }
            let mut connections = Set::default();
            connections.insert(connection);
            let number = self.ring.insert(Workload { tenant, connections, clock: self.clock });
            self.numbers.insert(tenant, number);
        }
        if self.arrivals.are_woken.take() {
            self.ring.iter().for_each(|workload| workload.connections.wake_all());
        }
    }
}

impl Spawner {
    /// Adds a connection of a workload.
    pub fn spawn(&self, tenant: Tenant, connection: impl Future<Output = ()> + 'static) {
        self.0.waiting.borrow_mut().push((tenant, Connection(Some(Box::pin(connection)))));
        self.0.wake();
    }

    /// Has every connection polled once more, whatever it waits for.
    pub fn wake_all(&self) {
        self.0.are_woken.set(true);
        self.0.wake();
    }
}

impl Future for Tenants {
    type Output = std::convert::Infallible;

    /// One turn of one workload.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let all = self.get_mut();
        all.settle();
        *all.arrivals.waker.borrow_mut() = Some(cx.waker().clone());
        let numbers = &mut all.numbers;
        let _ = all.ring.poll(
            cx,
            || false,
            |workload| {
                numbers.remove(&workload.tenant);
            },
        );
        Poll::Pending
    }
}

impl Future for Workload {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { connections, clock, .. } = self.get_mut();
        turn::run(*clock, || connections.poll(cx, || turn::goes_on(turn::LOOK), drop))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    thread_local! {
        static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
        static BEGIN: Instant = Instant::now();
    }

    fn clock() -> Instant {
        BEGIN.with(|begin| *begin) + NOW.get()
    }

    fn work(micros: u64) {
        NOW.set(NOW.get() + Duration::from_micros(micros));
    }

    /// Works for so long whenever it is polled, counts, and wants to again at once.
    fn busy(micros: u64, polled: &Rc<Cell<u32>>) -> impl Future<Output = ()> + use<> {
        let polled = Rc::clone(polled);
        poll_fn(move |cx| {
            work(micros);
            polled.set(polled.get() + 1);
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }

    fn poll(tenants: &mut Tenants) {
        assert!(Pin::new(tenants).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }

    #[test]
    fn who_has_500_busy_connections_gets_no_more_than_who_has_one() {
        let mut tenants = Tenants::by(clock);
        let spawner = tenants.spawner();
        let [greedy, modest] = [(); 2].map(|()| Rc::new(Cell::new(0)));
        for _ in 0..500 {
            spawner.spawn(Tenant::Endpoint(1), busy(50, &greedy));
        }
        spawner.spawn(Tenant::Endpoint(2), busy(50, &modest));
        let mut longest = Duration::ZERO;
        for _ in 0..1000 {
            let before = NOW.get();
            poll(&mut tenants);
            longest = longest.max(NOW.get() - before);
        }
        // 500 turns each, of two polls of 50 us.
        assert_eq!((greedy.get(), modest.get()), (1000, 1000));
        assert_eq!(longest, turn::SLICE);
    }

    /// The wait of one that is woken now and then: not by how many connections others have, but by how many others there are.
    #[test]
    fn who_is_woken_waits_for_one_turn_of_each_other() {
        let mut tenants = Tenants::by(clock);
        let spawner = tenants.spawner();
        let greedy = Rc::new(Cell::new(0));
        for tenant in 1..=3 {
            (0..100).for_each(|_| spawner.spawn(Tenant::Endpoint(tenant), busy(30, &greedy)));
        }
        let (waker, served) = (Rc::new(RefCell::new(None::<Waker>)), Rc::new(Cell::new(None)));
        let (sleeps, at) = (Rc::clone(&waker), Rc::clone(&served));
        spawner.spawn(
            Tenant::Endpoint(4),
            poll_fn(move |cx| {
                at.set(Some(NOW.get()));
                *sleeps.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }),
        );
        for _ in 0..8 {
            poll(&mut tenants);
        }
        for _ in 0..100 {
            let woken = NOW.get();
            served.set(None);
            waker.take().unwrap().wake();
            let turns = (1..=4).find(|_| {
                poll(&mut tenants);
                served.get().is_some()
            });
            assert!(turns.is_some(), "it has not been served after a turn of everybody");
            assert!(served.get().unwrap() - woken <= 3 * Duration::from_micros(120));
            poll(&mut tenants);
        }
    }

    #[test]
    fn all_can_be_woken_whatever_they_wait_for() {
        let mut tenants = Tenants::by(clock);
        let spawner = tenants.spawner();
        let polled = Rc::new(Cell::new(0));
        for tenant in [1, 1, 2] {
            let count = Rc::clone(&polled);
            spawner.spawn(
                Tenant::Endpoint(tenant),
                poll_fn(move |_| {
                    count.set(count.get() + 1);
                    Poll::Pending
                }),
            );
        }
        (0..4).for_each(|_| poll(&mut tenants));
        assert_eq!(polled.get(), 3);
        spawner.wake_all();
        (0..4).for_each(|_| poll(&mut tenants));
        assert_eq!(polled.get(), 6);
    }

    /// What reads within one poll for as long as there is something to be read.
    #[test]
    fn a_single_connection_does_not_outlast_its_turn() {
        let mut tenants = Tenants::by(clock);
        let spawner = tenants.spawner();
        let reads = Rc::new(Cell::new(0));
        let read = Rc::clone(&reads);
        spawner.spawn(
            Tenant::Endpoint(1),
            poll_fn(move |cx| {
                while turn::step(1, cx).is_ready() {
                    work(10);
                    read.set(read.get() + 1);
                }
                Poll::Pending
            }),
        );
        let modest = Rc::new(Cell::new(0));
        spawner.spawn(Tenant::Endpoint(2), busy(200, &modest));
        for _ in 0..100 {
            poll(&mut tenants);
        }
        assert_eq!(modest.get(), 50, "one look before the clock is read");
        assert!((50 * 10..=50 * 14).contains(&reads.get()), "{}", reads.get());
    }

    #[test]
    fn a_connection_that_panics_takes_no_other_with_it() {
        let mut tenants = Tenants::by(clock);
        let spawner = tenants.spawner();
        let other = Rc::new(Cell::new(0));
        spawner.spawn(Tenant::Endpoint(1), async { panic!("on purpose") });
        spawner.spawn(Tenant::Endpoint(1), busy(10, &other));
        poll(&mut tenants);
        poll(&mut tenants);
        assert!(other.get() > 10);
    }

    struct Grudge;

    impl Drop for Grudge {
        fn drop(&mut self) {
            panic!("on purpose");
        }
    }

    /// What a future has besides what it runs is dropped only after it has ended.
    #[test]
    fn a_connection_that_panics_as_it_is_dropped_takes_no_other_with_it() {
        let mut tenants = Tenants::by(clock);
        let spawner = tenants.spawner();
        let other = Rc::new(Cell::new(0));
        let grudge = Grudge;
        spawner.spawn(
            Tenant::Endpoint(1),
            poll_fn(move |_| {
                let _ = &grudge;
                Poll::Ready(())
            }),
        );
        spawner.spawn(Tenant::Endpoint(1), busy(10, &other));
        poll(&mut tenants);
        poll(&mut tenants);
        assert!(other.get() > 10);
    }

    #[test]
    fn a_workload_whose_connections_have_ended_is_forgotten_and_may_come_again() {
        let mut tenants = Tenants::by(clock);
        let spawner = tenants.spawner();
        for _ in 0..3 {
            let inner = spawner.clone();
            let polled = Rc::new(Cell::new(0));
            let count = Rc::clone(&polled);
            // The first of them brings the second while its own turn goes on.
            spawner.spawn(Tenant::Endpoint(1), async move {
                inner.spawn(Tenant::Endpoint(1), async move { count.set(1) });
            });
            poll(&mut tenants);
            poll(&mut tenants);
            assert_eq!(polled.get(), 1);
            assert!(tenants.numbers.is_empty());
        }
    }
}

//! What the agent orders, carried out beside the control socket: rules are compiled on a thread of their own.
//!
//! Promise: orders about one endpoint are answered in their order; those about others wait for a slice of its compilation and
//! not for all of it; what is ready after a slice is put in force together. Rules that have not been begun when others of the same
//! endpoint come are not compiled any more, and answered with those. [`ToProxy::Synced`] is answered when all before it has
//! been. What an agent that has come does not speak of goes when it says that it has told all; what one before it has ordered and
//! not been answered is forgotten.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvError, Sender, TryRecvError, channel};

use mesh::workload::EndpointId;
use node_api::proxy::{FromProxy, ToProxy};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::rules::Outcome;
pub(super) use super::rules::Rules;
use crate::index::{Preparation, Refused, SLICE};

/// Orders that may wait; more are not read from the socket.
const MAX_WAITING: usize = 4096;

/// What the thread is told.
enum Told {
    /// An agent has come: the first, second, … one.
    Begin(u64),
    /// It orders something.
    Order(ToProxy),
}

/// The thread that carries out orders, from outside.
pub(super) struct Orders {
    told: Sender<Told>,
    /// Each with the number of the agent that it is for.
    answers: UnboundedReceiver<(u64, FromProxy)>,
    agent: u64,
    waiting: usize,
    /// How many slices the thread has done, and had when it was asked last.
    done: Arc<AtomicU64>,
    seen: u64,
}

impl Orders {
    /// Starts it; it ends with what is returned.
    pub(super) fn start(rules: Rules) -> io::Result<Self> {
        let (told, tells) = channel();
        let (answer, answers) = unbounded_channel();
        let queue = Queue::new(rules);
        let done = Arc::clone(&queue.done);
        std::thread::Builder::new().name("rules".to_owned()).spawn(move || queue.work(&tells, &answer))?;
        Ok(Self { told, answers, agent: 0, waiting: 0, done, seen: 0 })
    }

    /// Whether the thread has done anything, since this was asked last, of what it was told and has not answered.
    pub(super) fn has_advanced(&mut self) -> bool {
        let done = self.done.load(Ordering::Relaxed);
        std::mem::replace(&mut self.seen, done) != done && self.waiting > 0
    }

    /// Without a thread: what one would have told and done is left to who has what is returned.
    #[cfg(test)]
    pub(super) fn without_thread() -> (Self, Arc<AtomicU64>, impl Sized) {
        let (told, tells) = channel();
        let (answer, answers) = unbounded_channel::<(u64, FromProxy)>();
        let done = Arc::<AtomicU64>::default();
        (
            Self { told, answers, agent: 0, waiting: 0, done: Arc::clone(&done), seen: 0 },
            done,
            (tells, answer),
        )
    }

    /// Another agent has come.
    pub(super) fn begin(&mut self) {
        self.agent += 1;
        self.waiting = 0;
        self.tell(Told::Begin(self.agent));
    }

    /// Whether another order may be given.
    pub(super) fn has_room(&self) -> bool {
        self.waiting < MAX_WAITING
    }

    /// Takes an order.
    pub(super) fn give(&mut self, order: ToProxy) {
        self.waiting += 1;
        self.tell(Told::Order(order));
    }

    fn tell(&self, told: Told) {
        // If it has ended, that is what the next answer says.
        let _ = self.told.send(told);
    }

    /// The next answer to the agent that is there. Cancel safe.
    pub(super) async fn answer(&mut self) -> io::Result<FromProxy> {
        loop {
            let answer = self.answers.recv().await;
            let (agent, answer) =
                answer.ok_or_else(|| io::Error::other("the thread of the rules has ended"))?;
            if agent == self.agent {
                self.waiting = self.waiting.saturating_sub(1);
                return Ok(answer);
            }
        }
    }
}

/// Orders on their way.
struct Queue {
    rules: Rules,
    agent: u64,
    /// By endpoint, its orders with their numbers. The first has the next slice.
    lanes: VecDeque<(EndpointId, VecDeque<(u64, Job)>)>,
    /// Number and generation of each [`ToProxy::Synced`].
    synced: VecDeque<(u64, u64)>,
    /// Of the next order.
    number: u64,
    /// How many slices have been done.
    done: Arc<AtomicU64>,
}

/// An order about an endpoint.
struct Job {
    generation: u64,
    /// Orders before it that it has overtaken.
    overtaken: Vec<u64>,
    task: Task,
}

enum Task {
    Set(Box<Preparation>),
    Remove,
}

impl Job {
    fn new(generation: u64, task: Task) -> Self {
        Self { generation, overtaken: Vec::new(), task }
    }

    /// Whether another takes its place: it is one of rules, and nothing of it has been done.
    fn can_be_overtaken(&self) -> bool {
        matches!(&self.task, Task::Set(preparation) if !preparation.has_begun())
    }
}

impl Queue {
    fn new(rules: Rules) -> Self {
        let (lanes, synced) = (VecDeque::new(), VecDeque::new());
        Self { rules, agent: 0, lanes, synced, number: 0, done: Arc::default() }
    }

    /// Works until nobody orders or listens any more.
    fn work(mut self, tells: &Receiver<Told>, answers: &UnboundedSender<(u64, FromProxy)>) {
        loop {
            let next = match self.is_idle() {
                true => tells.recv().map_err(|RecvError| TryRecvError::Disconnected),
                false => tells.try_recv(),
            };
            match next {
                Ok(told) => {
                    self.take(told);
                    continue;
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return,
            }
            for answer in self.round() {
                if answers.send((self.agent, answer)).is_err() {
                    return;
                }
            }
            // A worker that waits for this core is not to wait for the kernel's next tick.
            std::thread::yield_now();
            // Nobody waits for that.
            if self.is_idle() || self.rules.compiler.is_littered() {
                self.rules.compiler.collect();
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.lanes.is_empty() && self.synced.is_empty()
    }

    fn take(&mut self, told: Told) {
        self.number += 1;
        match told {
            Told::Begin(agent) => {
                self.agent = agent;
                self.lanes.clear();
                self.synced.clear();
                self.rules.begin();
            }
            Told::Order(ToProxy::Set { generation, endpoint }) => {
                let (id, preparation) = (endpoint.id, Box::new(Preparation::new(endpoint)));
                self.enter(id, Job::new(generation, Task::Set(preparation)));
            }
            Told::Order(ToProxy::Remove { generation, endpoint }) => {
                self.enter(endpoint, Job::new(generation, Task::Remove));
            }
            Told::Order(ToProxy::Synced { generation }) => self.synced.push_back((self.number, generation)),
            // No orders about rules.
            Told::Order(
                ToProxy::Ask { .. }
                | ToProxy::Drain { .. }
                | ToProxy::Pack
                | ToProxy::Taken
                | ToProxy::Record(_),
            ) => {}
        }
    }

    fn enter(&mut self, id: EndpointId, mut job: Job) {
        let Some((_, lane)) = self.lanes.iter_mut().find(|(other, _)| *other == id) else {
            return self.lanes.push_back((id, [(self.number, job)].into()));
        };
        let mut number = self.number;
        if let Some((earlier, last)) = lane.pop_back_if(|(_, last)| last.can_be_overtaken()) {
            job.overtaken = last.overtaken;
            job.overtaken.push(last.generation);
            // Who waits for the earlier one waits for this.
            number = earlier;
        }
        lane.push_back((number, job));
    }

    /// Does a slice of what is next, puts in force what has become ready by that, and answers.
    fn round(&mut self) -> Vec<FromProxy> {
        let (mut effort, mut answers) = (SLICE, Vec::new());
        while effort > 0 && !self.is_idle() {
            self.turn(&mut effort, &mut answers);
        }
        self.rules.publish();
        self.done.fetch_add(1, Ordering::Relaxed);
        answers
    }

    /// Goes on with what is next.
    fn turn(&mut self, effort: &mut usize, answers: &mut Vec<FromProxy>) {
        *effort = effort.saturating_sub(1);
        if let Some((number, generation)) = self.synced.front().copied()
            && self.lanes.iter().filter_map(|(_, lane)| lane.front()).all(|(first, _)| *first > number)
        {
            self.synced.pop_front();
            return answers.push(self.rules.synced(generation));
        }
        let Some((id, mut lane)) = self.lanes.pop_front() else { return };
        let done = match lane.front_mut().map(|(_, job)| &mut job.task) {
            Some(Task::Set(preparation)) => {
                let compiled = self.rules.compiler.advance(preparation, effort);
                compiled.map(|compiled| self.rules.set(compiled, preparation.endpoint()))
            }
            Some(Task::Remove) => Some(self.rules.remove(id)),
            None => None,
        };
        if let Some(outcome) = done
            && let Some((_, job)) = lane.pop_front()
        {
            let generations = job.overtaken.into_iter().chain([job.generation]);
            answers.extend(generations.map(|generation| answer(generation, id, &outcome)));
        }
        if !lane.is_empty() {
            self.lanes.push_back((id, lane));
        }
    }
}

fn answer(generation: u64, endpoint: EndpointId, outcome: &Outcome) -> FromProxy {
    match outcome {
        Ok(()) => FromProxy::Accepted { generation, endpoint },
        Err(Refused { field, why }) => {
            FromProxy::Refused { generation, endpoint, field: field.clone(), why: why.clone() }
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh::flow::TrafficDirection::Ingress;
    use mesh::identity::Identity;
    use mesh::l7::{Expression, HttpRule, L7Access, L7Ports, L7Rules};
    use std::net::{Ipv4Addr, Ipv6Addr};

    use mesh::l7::L7Endpoint;

    use super::*;
    use crate::index::Grant;

    fn queue() -> Queue {
        Queue::new(Rules::new(Arc::default()))
    }

    impl Queue {
        /// Takes an order and carries it out.
        fn obey(&mut self, order: ToProxy) -> FromProxy {
            self.take(Told::Order(order));
            let mut answers: Vec<_> =
                std::iter::repeat_with(|| self.round()).find(|it| !it.is_empty()).unwrap();
            assert_eq!(answers.len(), 1);
            answers.remove(0)
        }
    }

    /// Endpoint 1, with a path for each port.
    fn set(ports: &[(u16, &str)]) -> ToProxy {
        let ports = ports.iter().map(|(port, path)| {
            let path = Some(Expression((*path).to_owned()));
            let http = Some([HttpRule { path, ..HttpRule::default() }].into());
            L7Ports {
                first: *port,
                last: *port,
                access: [L7Access { peers: None, http }].into(),
                tls: Arc::default(),
                inspected: Arc::default(),
            }
        });
        let endpoint = Box::new(L7Endpoint {
            id: EndpointId::new(1).unwrap(),
            instance: 1,
            workload: "default/w".parse().unwrap(),
            ipv4: Ipv4Addr::LOCALHOST,
            ipv6: Ipv6Addr::LOCALHOST,
            identity: Identity::new(256).unwrap(),
            ingress: Some(Arc::new(L7Rules { ports: ports.collect() })),
            egress: None,
            audit: false,
            secrets: Vec::new(),
        });
        ToProxy::Set { generation: 1, endpoint }
    }

    /// What anybody may do at a port of it.
    fn grant(queue: &Queue, port: u16) -> Grant {
        let snapshot = queue.rules.published.snapshot();
        let endpoint = snapshot.get(EndpointId::new(1).unwrap()).unwrap();
        endpoint.side(Ingress).unwrap().grant(port, Identity::new(300)).0
    }

    #[test]
    fn a_refused_edit_opens_no_port() {
        let mut rules = queue();
        assert!(matches!(rules.obey(set(&[(80, "/a")])), FromProxy::Accepted { .. }));
        let refused = rules.obey(set(&[(80, "/b"), (8080, "(a|b)*a(a|b){30}")]));
        assert!(matches!(refused, FromProxy::Refused { .. }), "{refused:?}");
        assert!(matches!(grant(&rules, 80), Grant::Http(_)), "as before");
        assert!(matches!(grant(&rules, 8080), Grant::Nothing(_)));
        assert!(matches!(rules.obey(set(&[(8080, "/b")])), FromProxy::Accepted { .. }));
        assert!(matches!(grant(&rules, 8080), Grant::Http(_)));
    }
    /// Synced comes when the kernel has the plan of the agent that says it.
    #[test]
    fn another_agent_takes_nothing_away_before_it_has_told_all() {
        let mut rules = queue();
        rules.obey(set(&[(80, "/a"), (8080, "/a")]));
        rules.obey(ToProxy::Synced { generation: 1 });
        rules.take(Told::Begin(1));
        rules.obey(set(&[(81, "/b"), (8080, "/b")]));
        for port in [80, 81, 8080] {
            assert!(matches!(grant(&rules, port), Grant::Http(_)), "{port}");
        }
        rules.obey(ToProxy::Synced { generation: 2 });
        assert!(matches!(grant(&rules, 80), Grant::Open), "the kernel sends nobody here for that any more");
        assert!(matches!(grant(&rules, 81), Grant::Http(_)));
        // From now on the agent keeps what is to be kept.
        rules.obey(set(&[(80, "/b")]));
        assert!(matches!(grant(&rules, 81), Grant::Open));
        // What is refused meanwhile stays closed.
        rules.take(Told::Begin(1));
        rules.obey(set(&[(80, "/c")]));
        rules.obey(set(&[(80, "/c"), (82, "(")]));
        rules.obey(ToProxy::Synced { generation: 3 });
        assert!(matches!(grant(&rules, 82), Grant::Nothing(_)));
    }

    /// Rules of an endpoint that need so many automata.
    fn large(id: u16, generation: u64, automata: usize) -> ToProxy {
        let ToProxy::Set { endpoint, .. } = set(&[(80, "/a")]) else { unreachable!() };
        let path = |number| Some(Expression(format!("/{number}/[a-z]{{{}}}(a|b){number}", 1 + number % 50)));
        let rules = (0..automata).map(|number| HttpRule { path: path(number), ..HttpRule::default() });
        let access = [L7Access { peers: None, http: Some(rules.collect()) }].into();
        let ports = L7Ports { first: 80, last: 80, access, tls: Arc::default(), inspected: Arc::default() };
        let ingress = Some(Arc::new(L7Rules { ports: vec![ports] }));
        let endpoint = Box::new(L7Endpoint { id: EndpointId::new(id).unwrap(), ingress, ..*endpoint });
        ToProxy::Set { generation, endpoint }
    }

    fn brief(answer: &FromProxy) -> (&'static str, u64, u16) {
        match answer {
            FromProxy::Accepted { generation, endpoint } => ("accepted", *generation, endpoint.number()),
            FromProxy::Refused { generation, endpoint, .. } => ("refused", *generation, endpoint.number()),
            FromProxy::Synced { generation } => ("synced", *generation, 0),
            other => panic!("{other:?}"),
        }
    }

    /// Rounds, with what is answered in each, until nothing is left to do.
    fn rounds(queue: &mut Queue) -> Vec<Vec<(&'static str, u64, u16)>> {
        let mut rounds = Vec::new();
        while !queue.is_idle() {
            rounds.push(queue.round().iter().map(brief).collect());
        }
        rounds
    }

    #[test]
    fn others_wait_for_a_slice_and_orders_about_one_stay_in_their_order() {
        let mut queue = queue();
        let id = |number| EndpointId::new(number).unwrap();
        queue.take(Told::Order(large(1, 1, 600)));
        assert!(queue.round().is_empty(), "a slice of the large one comes first");
        assert_eq!(queue.done.load(Ordering::Relaxed), 1, "which is seen though nothing is answered");
        for order in [
            ToProxy::Remove { generation: 2, endpoint: id(1) },
            large(2, 3, 1),
            ToProxy::Remove { generation: 4, endpoint: id(2) },
            large(2, 5, 2),
            ToProxy::Synced { generation: 5 },
            large(3, 6, 1),
        ] {
            queue.take(Told::Order(order));
        }
        let rounds = rounds(&mut queue);
        let answers = rounds.concat();
        let of = |id| answers.iter().filter(move |answer| answer.2 == id).map(|answer| answer.1);
        assert_eq!(of(2).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(answers[4..], [("accepted", 1, 1), ("accepted", 2, 1), ("synced", 5, 0)], "{answers:?}");
        let answered = |answer| rounds.iter().position(|round| round.contains(&answers[answer])).unwrap();
        assert!(answered(4) > answered(3) + 3, "the large one takes several: {rounds:?}");
        assert!(queue.rules.published.snapshot().get(id(1)).is_none());
    }

    /// However many there are: an edit storm costs what has been begun and the last.
    #[test]
    fn rules_that_others_have_overtaken_are_not_compiled() {
        let mut queue = queue();
        queue.take(Told::Order(large(1, 1, 300)));
        assert!(
            queue.round().is_empty(),
            "it has been begun, and goes on: else a storm would end only with itself"
        );
        for generation in 2..100 {
            queue.take(Told::Order(large(1, generation, 300 + generation as usize)));
        }
        queue.take(Told::Order(ToProxy::Synced { generation: 99 }));
        queue.take(Told::Order(large(1, 100, 1)));
        let made = queue.rules.compiler.count().1;
        let answers: Vec<_> = rounds(&mut queue).concat();
        assert!(queue.rules.compiler.count().1 <= 302 && made < 300, "expressions of two of them at most");
        let numbers: Vec<u64> = answers.iter().map(|(_, generation, _)| *generation).collect();
        assert_eq!(numbers[..100], (1..=100).collect::<Vec<_>>());
        assert_eq!(answers[100], ("synced", 99, 0), "after what is before it, and what has overtaken that");
        // What is taken away, however soon it is there again, is taken away.
        queue.take(Told::Order(ToProxy::Remove { generation: 101, endpoint: EndpointId::new(1).unwrap() }));
        queue.take(Told::Order(large(1, 102, 1)));
        assert_eq!(rounds(&mut queue).concat(), [("accepted", 101, 1), ("accepted", 102, 1)]);
    }

    #[test]
    fn what_is_ready_at_once_is_put_in_force_at_once() {
        let mut queue = queue();
        let mut changes = queue.rules.published.subscribe();
        for id in 1..=50 {
            queue.take(Told::Order(large(id, 1, 1)));
        }
        queue.take(Told::Order(ToProxy::Synced { generation: 1 }));
        let mut published = 0;
        let mut answered = 0;
        while !queue.is_idle() {
            let answers = queue.round().len();
            let is_changed = changes.has_changed().unwrap();
            changes.mark_unchanged();
            assert_eq!(
                is_changed,
                answers > 0,
                "what is answered is in force, and nothing else wakes anybody"
            );
            published += usize::from(is_changed);
            answered += answers;
        }
        assert_eq!(answered, 51);
        assert!(published < 5, "{published}");
        assert_eq!(queue.rules.published.snapshot().ids().len(), 50);
    }

    /// A list at two thousand ranges, between which others hold: nothing of it is done for each of them.
    #[test]
    fn ranges_that_share_rules_cost_no_more_than_one() {
        let ToProxy::Set { mut endpoint, .. } = set(&[(80, "/a")]) else { unreachable!() };
        let rule = |number| HttpRule {
            path: Some(Expression(format!("/v1/resource-{number}"))),
            ..HttpRule::default()
        };
        let list: mesh::l7::HttpRules = (0..10_000).map(rule).collect();
        let peer = |number| Identity::new(number).map(|peer| [peer].into());
        let wide: Vec<L7Access> = vec![L7Access { peers: peer(300), http: Some(list) }];
        let mut both = wide.clone();
        both.push(L7Access { peers: peer(301), http: None });
        let kinds: [Arc<[L7Access]>; 2] = [wide.into(), both.into()];
        let range = |port: u16| L7Ports {
            first: port,
            last: port,
            access: Arc::clone(&kinds[usize::from(port % 2)]),
            tls: Arc::default(),
            inspected: Arc::default(),
        };
        let mut taken = |ports: u16| {
            let mut queue = queue();
            endpoint.ingress = Some(Arc::new(L7Rules { ports: (1..=ports).map(range).collect() }));
            queue.take(Told::Order(ToProxy::Set { generation: 1, endpoint: endpoint.clone() }));
            let rounds = rounds(&mut queue).len();
            assert!(matches!(grant(&queue, ports), Grant::Http(_)));
            (rounds, queue.rules.compiler.count())
        };
        let ((two, counted), (many, same)) = (taken(2), taken(2000));
        assert_eq!((counted, same), ((1, 10_000, 0), (1, 10_000, 0)));
        assert!(two > 10 && many <= two + 1, "{two} {many}");
    }

    #[test]
    fn what_an_agent_before_has_ordered_is_forgotten() {
        let mut queue = queue();
        queue.take(Told::Order(large(1, 1, 1)));
        queue.take(Told::Order(ToProxy::Synced { generation: 1 }));
        queue.take(Told::Begin(2));
        assert!(queue.round().is_empty() && queue.is_idle());
        assert_eq!(brief(&queue.obey(large(2, 2, 1))), ("accepted", 2, 2));
        assert!(queue.rules.published.snapshot().get(EndpointId::new(1).unwrap()).is_none());
    }

    #[tokio::test]
    async fn the_thread_answers_who_is_there() {
        let mut orders = Orders::start(Rules::new(Arc::default())).unwrap();
        orders.begin();
        orders.give(large(1, 1, 1));
        assert_eq!(brief(&orders.answer().await.unwrap()), ("accepted", 1, 1));
        orders.give(large(1, 2, 300));
        orders.begin();
        orders.give(ToProxy::Synced { generation: 3 });
        assert_eq!(brief(&orders.answer().await.unwrap()), ("synced", 3, 0), "nothing for the one before");
        assert!(orders.has_room());
    }
}

//! What the agent orders, carried out beside the control socket: rules are compiled on a thread of their own.
//!
//! Promise: orders about one endpoint are answered in their order; those about others wait for a slice of its compilation and
//! not for all of it; [`ToProxy::Synced`] is answered when all before it has been. An object that cannot be used leaves the one
//! before it in force; where that says nothing and the new one does, nothing passes. What an agent that has come does not speak
//! of goes when it says that it has told all; what one before it has ordered and not been answered is forgotten.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvError, Sender, TryRecvError, channel};

use mesh::l7::L7Endpoint;
use mesh::workload::EndpointId;
use node_api::proxy::{FromProxy, ToProxy};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::index::{Compiler, Endpoint, Preparation};
use crate::runtime::{Published, Snapshot};

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
}

impl Orders {
    /// Starts it; it ends with what is returned.
    pub(super) fn start(rules: Rules) -> io::Result<Self> {
        let (told, tells) = channel();
        let (answer, answers) = unbounded_channel();
        std::thread::Builder::new()
            .name("rules".to_owned())
            .spawn(move || Queue::new(rules).work(&tells, &answer))?;
        Ok(Self { told, answers, agent: 0, waiting: 0 })
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
}

/// An order about an endpoint.
enum Job {
    Set { generation: u64, endpoint: Box<L7Endpoint>, preparation: Preparation },
    Remove { generation: u64, endpoint: EndpointId },
}

impl Queue {
    fn new(rules: Rules) -> Self {
        Self { rules, agent: 0, lanes: VecDeque::new(), synced: VecDeque::new(), number: 0 }
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
            if let Some(answer) = self.turn()
                && answers.send((self.agent, answer)).is_err()
            {
                return;
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
                let (id, preparation) = (endpoint.id, Preparation::new(&endpoint));
                self.enter(id, Job::Set { generation, endpoint, preparation });
            }
            Told::Order(ToProxy::Remove { generation, endpoint }) => {
                self.enter(endpoint, Job::Remove { generation, endpoint });
            }
            Told::Order(ToProxy::Synced { generation }) => self.synced.push_back((self.number, generation)),
            // No orders about rules.
            Told::Order(
                ToProxy::Ask { .. } | ToProxy::Drain { .. } | ToProxy::Taken | ToProxy::Record(_),
            ) => {}
        }
    }

    fn enter(&mut self, id: EndpointId, job: Job) {
        let entry = (self.number, job);
        match self.lanes.iter_mut().find(|(other, _)| *other == id) {
            Some((_, lane)) => lane.push_back(entry),
            None => self.lanes.push_back((id, [entry].into())),
        }
    }

    /// Does a slice of what is next, and answers if that was the last of it.
    fn turn(&mut self) -> Option<FromProxy> {
        if let Some((number, generation)) = self.synced.front().copied()
            && self.lanes.iter().filter_map(|(_, lane)| lane.front()).all(|(first, _)| *first > number)
        {
            self.synced.pop_front();
            return Some(self.rules.synced(generation));
        }
        let (id, mut lane) = self.lanes.pop_front()?;
        let answer = match lane.front_mut() {
            Some((_, Job::Set { generation, endpoint, preparation })) => {
                let is_prepared = self.rules.compiler.prepare(preparation);
                is_prepared.then(|| self.rules.set(*generation, endpoint))
            }
            Some((_, Job::Remove { generation, endpoint })) => {
                Some(self.rules.remove(*generation, *endpoint))
            }
            None => None,
        };
        if answer.is_some() {
            lane.pop_front();
        }
        if !lane.is_empty() {
            self.lanes.push_back((id, lane));
        }
        answer
    }
}

/// The rules in force, as they are told.
pub(super) struct Rules {
    published: Arc<Published>,
    compiler: Compiler,
    /// What has been told since the agent came.
    told: BTreeSet<EndpointId>,
    /// Whether it has told all. Until then the kernel may send connections by what an agent before it has told.
    is_synced: bool,
    /// What of the told is in force together with what was before it, as it is to be from then on.
    alone: BTreeMap<EndpointId, Endpoint>,
}

impl Rules {
    pub(super) fn new(published: Arc<Published>) -> Self {
        let (told, alone) = (BTreeSet::new(), BTreeMap::new());
        Self { published, compiler: Compiler::default(), told, is_synced: false, alone }
    }

    /// Another agent has come.
    fn begin(&mut self) {
        self.told.clear();
        self.alone.clear();
        self.is_synced = false;
    }

    fn remove(&mut self, generation: u64, endpoint: EndpointId) -> FromProxy {
        self.told.remove(&endpoint);
        self.alone.remove(&endpoint);
        self.change(|snapshot| snapshot.remove(endpoint));
        self.compiler.collect();
        FromProxy::Accepted { generation, endpoint }
    }

    fn synced(&mut self, generation: u64) -> FromProxy {
        let told = &self.told;
        let mut snapshot = Snapshot::clone(&self.published.snapshot());
        for id in snapshot.ids().into_iter().filter(|id| !told.contains(id)) {
            snapshot.remove(id);
        }
        std::mem::take(&mut self.alone).into_values().for_each(|alone| snapshot.insert(alone));
        snapshot.is_synced = true;
        self.is_synced = true;
        self.published.set(snapshot);
        self.compiler.collect();
        FromProxy::Synced { generation }
    }

    fn set(&mut self, generation: u64, endpoint: &L7Endpoint) -> FromProxy {
        let id = endpoint.id;
        self.told.insert(id);
        self.alone.remove(&id);
        match self.compiler.endpoint(endpoint) {
            Ok(compiled) => {
                self.put(compiled);
                self.compiler.collect();
                FromProxy::Accepted { generation, endpoint: id }
            }
            Err(refused) => {
                self.change(|snapshot| {
                    let before = snapshot.get(id).filter(|before| before.instance == endpoint.instance);
                    let kept = before.map(|before| Compiler::kept(before, endpoint));
                    snapshot.insert(kept.unwrap_or_else(|| Compiler::nothing(endpoint)));
                });
                self.compiler.collect();
                let (field, why) = (refused.field, refused.why);
                FromProxy::Refused { generation, endpoint: id, field, why }
            }
        }
    }

    /// Puts an endpoint in force, beside what the agent before this one has told of it until this one has told all.
    fn put(&mut self, endpoint: Endpoint) {
        let snapshot = self.published.snapshot();
        let before = snapshot.get(endpoint.id).filter(|before| before.instance == endpoint.instance);
        let now = match before {
            Some(before) if !self.is_synced => {
                self.alone.insert(endpoint.id, endpoint.clone());
                Compiler::joined(endpoint, before)
            }
            _ => endpoint,
        };
        self.change(|snapshot| snapshot.insert(now));
    }

    fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut snapshot = Snapshot::clone(&self.published.snapshot());
        change(&mut snapshot);
        self.published.set(snapshot);
    }
}

#[cfg(test)]
mod tests {
    use mesh::flow::TrafficDirection::Ingress;
    use mesh::identity::Identity;
    use mesh::l7::{Expression, HttpRule, L7Access, L7Ports, L7Rules};
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::index::Grant;

    fn queue() -> Queue {
        Queue::new(Rules::new(Arc::default()))
    }

    impl Queue {
        /// Takes an order and carries it out.
        fn obey(&mut self, order: ToProxy) -> FromProxy {
            self.take(Told::Order(order));
            std::iter::repeat_with(|| self.turn()).flatten().next().unwrap()
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
                access: vec![L7Access { peers: None, http }],
                tls: Vec::new(),
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
        let access = vec![L7Access { peers: None, http: Some(rules.collect()) }];
        let ingress =
            Some(Arc::new(L7Rules { ports: vec![L7Ports { first: 80, last: 80, access, tls: Vec::new() }] }));
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

    #[test]
    fn others_wait_for_a_slice_and_orders_about_one_stay_in_their_order() {
        let mut queue = queue();
        let id = |number| EndpointId::new(number).unwrap();
        for order in [
            large(1, 1, 600),
            ToProxy::Remove { generation: 2, endpoint: id(1) },
            large(2, 3, 1),
            large(2, 4, 2),
            ToProxy::Synced { generation: 4 },
            large(3, 5, 1),
        ] {
            queue.take(Told::Order(order));
        }
        let mut turns = Vec::new();
        let mut answers = Vec::new();
        for turn in 1.. {
            if let Some(answer) = queue.turn() {
                turns.push(turn);
                answers.push(brief(&answer));
            }
            if queue.is_idle() {
                break;
            }
        }
        let expected = [
            ("accepted", 3, 2),
            ("accepted", 5, 3),
            ("accepted", 4, 2),
            ("accepted", 1, 1),
            ("accepted", 2, 1),
            ("synced", 4, 0),
        ];
        assert_eq!(answers, expected);
        assert_eq!(turns[..2], [2, 3], "a slice of the large one came first");
        assert!(turns[3] > turns[2] + 3, "the large one takes several: {turns:?}");
        assert!(queue.rules.published.snapshot().get(id(1)).is_none());
    }

    #[test]
    fn what_an_agent_before_has_ordered_is_forgotten() {
        let mut queue = queue();
        queue.take(Told::Order(large(1, 1, 1)));
        queue.take(Told::Order(ToProxy::Synced { generation: 1 }));
        queue.take(Told::Begin(2));
        assert!(queue.turn().is_none() && queue.is_idle());
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

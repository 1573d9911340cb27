//! The course of events: what comes next happens, messages arrive in their order, and what a machine wants is done.

use auth_agent::event::{Input, Output, SessionId, Time};

use crate::world::{Event, Link, MS, RETRANSMISSION, World};

impl World {
    /// One event. False: nothing is to happen any more.
    pub(crate) fn step(&mut self, until: Time) -> bool {
        let Some((&(at, _), _)) = self.events.first_key_value() else {
            return false;
        };
        if at > until {
            self.now = until;
            return false;
        }
        let Some((_, event)) = self.events.pop_first() else {
            return false;
        };
        self.now = self.now.max(at);
        // A node that sleeps does it when it wakes.
        let of = match &event {
            Event::Tick(node) | Event::Plan(node, ..) | Event::Issue(node, _) => Some(*node),
            Event::Local(node, ..) | Event::Handshake(node, ..) | Event::Start(node) => Some(*node),
            Event::Second(node) | Event::Broken(node, ..) => Some(*node),
            Event::Revoke(node) | Event::ForgetRoots(node) => Some(*node),
            Event::Deliver(id, side) => self.links.get(id).map(|link| link.ends[1 - side]),
            _ => None,
        };
        if let Some(asleep) = of.map(|node| self.nodes[node].asleep).filter(|asleep| *asleep > self.now) {
            self.later(asleep - self.now, event);
            return true;
        }
        self.happen(event);
        self.check_step(of);
        true
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick(node) => {
                if self.nodes[node].tick <= self.now {
                    self.give(node, Input::Tick);
                }
            }
            Event::Deliver(id, side) => self.deliver(id, side),
            Event::Plan(node, number, plan) => {
                self.note(|| format!("{node}: plan {number}, endpoints {:?}", plan.endpoints.keys()));
                // Sleep puts off some and not others; the agent's channel has an order.
                if number > self.nodes[node].given {
                    self.nodes[node].given = number;
                    if self.nodes[node].plan.is_none() {
                        self.mean_anew(node, &plan);
                    }
                    self.give(node, Input::Plan(number, plan));
                }
            }
            Event::Connect(from, to, starts) => self.connect(from, to, starts),
            Event::Issue(node, id) => self.issue(node, id),
            Event::Local(node, starts, a, b) => self.prove_locally(node, starts, a, b),
            Event::Handshake(node, proof, bytes) => self.feed(node, proof, &bytes),
            Event::Start(node) => self.start(node),
            Event::Second(node) => {
                if self.nodes[node].machine.is_some() {
                    self.later(1_000 * MS, Event::Second(node));
                    let is_set = std::mem::take(&mut self.nodes[node].is_set);
                    self.second(node, is_set);
                }
            }
            Event::Broken(node, id, peer) => {
                let (session, peer) = (Some(SessionId(id)), self.truth.names[peer].clone());
                let problem = Some("reset".to_owned());
                self.give(node, Input::Disconnected { session, node: peer, problem });
            }
            Event::Revoke(node) => self.revoke(node),
            Event::ForgetRoots(node) => self.forget_roots(node),
            Event::Arrive(from, to, addresses, memory) => self.arrive(&from, &to, addresses, memory),
            Event::Chaos => self.chaos(),
            Event::Traffic => self.traffic(),
        }
    }

    fn deliver(&mut self, id: u64, side: usize) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let [from, to] = [link.ends[side], link.ends[1 - side]];
        if self.cut.contains(&Self::pair(from, to)) {
            // TCP sends it again until it gets through.
            return self.later(RETRANSMISSION, Event::Deliver(id, side));
        }
        let item = link.streams[side].pop_front();
        let open = link.open[1 - side];
        match item {
            Some(Some(message)) if open => {
                self.note(|| format!("{from} to {to} ({id}): {message:?}"));
                self.give(to, Input::Received(SessionId(id), message));
            }
            Some(None) => {
                let link = self.links.remove(&id);
                if link.is_some_and(|link| link.open[1 - side]) {
                    self.disturb(from, to);
                    let node = self.truth.names[from].clone();
                    self.give(to, Input::Disconnected { session: Some(SessionId(id)), node, problem: None });
                }
            }
            _ => {}
        }
    }

    fn connect(&mut self, from: usize, to: usize, starts: u64) {
        if self.nodes[from].starts != starts || self.nodes[from].machine.is_none() {
            return;
        }
        let names = [self.truth.names[from].clone(), self.truth.names[to].clone()];
        let reachable = !self.cut.contains(&Self::pair(from, to))
            && self.nodes[to].machine.is_some()
            && self.nodes[to].asleep <= self.now;
        if !reachable {
            let problem = Some("refused".to_owned());
            return self.give(from, Input::Disconnected { session: None, node: names[1].clone(), problem });
        }
        self.serial += 1;
        let (id, link) = (
            self.serial,
            Link { ends: [from, to], open: [true; 2], streams: Default::default(), last: [self.now; 2] },
        );
        self.links.insert(id, link);
        self.disturb(from, to);
        let life = self.random.between(8_000, 60_000) * MS;
        for (node, peer) in [(from, 1), (to, 0)] {
            let expiry = self.clock(node, self.now + life);
            let node_name = names[peer].clone();
            self.give(node, Input::Connected { session: SessionId(id), node: node_name, expiry });
        }
    }

    /// What a machine wants done.
    pub(crate) fn act(&mut self, node: usize, cause: &Input, output: Output) {
        self.note(|| format!("{node}: {output:?}"));
        self.nodes[node].kernel.apply(&output);
        self.check_output(node, cause, &output);
        match output {
            Output::Connect(name) => {
                let (to, starts) = (self.truth.index(&name), self.nodes[node].starts);
                let wait = self.random.between(MS, self.delay * 3);
                self.later(wait, Event::Connect(node, to, starts));
            }
            Output::Close(session) => {
                self.nodes[node].shakes.retain(|proof, _| proof.session != session);
                self.end_link(session.0, node);
            }
            Output::Send(session, message) => {
                let Some(link) = self.links.get_mut(&session.0) else {
                    return;
                };
                let side = usize::from(link.ends[1] == node);
                if link.open[side] {
                    link.streams[side].push_back(Some(message));
                    self.schedule(session.0, side);
                }
            }
            Output::Want(id) => {
                self.nodes[node].wanted.insert(id.clone());
                let wait = self.random.between(MS, 50 * MS);
                self.later(wait, Event::Issue(node, id));
            }
            Output::Unwant(id) => {
                self.nodes[node].wanted.remove(&id);
                self.nodes[node].certificates.remove(&id);
            }
            other => self.act_on_proof(node, other),
        }
    }
}

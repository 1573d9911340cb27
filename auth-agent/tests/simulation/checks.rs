//! What must be so, at each step and at the end.

use auth_agent::event::{Input, Output, Time};
use auth_agent::message::Message;
use mesh::auth::{AuthEndpoint, InstanceName};

use crate::kernel::Memory;
use crate::truth::GRACE;
use crate::world::{Connection, MS, Meant, Proven, World};

/// What a clock that is wrong by 2 %, and a driver that is late, may add.
const SLACK: Time = GRACE / 20 + 150 * MS;

impl World {
    /// No mark without its grounds.
    pub(crate) fn check_output(&mut self, node: usize, cause: &Input, output: &Output) {
        match output {
            Output::SetMark { number, mark, .. } => {
                let meant = self.meaning(node, mark);
                self.check_grounds(node, &meant, mark.expiry);
                let lease = self.nodes[node].kernel.leases.get(&mark.lease).copied().unwrap_or(0);
                assert!(lease > self.clock(node, self.now), "a mark on a word that has ended");
                self.check_order(node, cause, &meant);
                let [local, remote] = meant.ends.clone();
                self.marked_pairs.insert((node, local, remote));
                self.nodes[node].numbers.insert(*number, mark.epoch);
                self.nodes[node].meant.insert(mark.epoch, meant);
            }
            Output::RenewMark { number, expiry } => {
                let meant = self.nodes[node].meant[&self.nodes[node].numbers[number]].clone();
                self.check_grounds(node, &meant, *expiry);
            }
            _ => {}
        }
    }

    /// Which pair a mark is for, by the plan that its machine has.
    fn meaning(&self, node: usize, mark: &abi::Mark) -> Meant {
        let plan = self.nodes[node].plan.as_ref().expect("no mark without a plan");
        let here = |half: u32| {
            let (instance, end) =
                plan.endpoints.iter().find(|(i, _)| **i as u32 == half).expect("in the plan");
            (InstanceName { node: plan.node.clone(), instance: *instance }, end.clone())
        };
        let local = here(mark.instances[0]);
        let remote = if mark.instances[1] != 0 {
            assert_eq!(mark.lease, 0);
            here(mark.instances[1])
        } else {
            assert_ne!(mark.lease, 0);
            let same = |end: &AuthEndpoint| end.ipv4.octets() == mark.ipv4 && end.ipv6.octets() == mark.ipv6;
            let (name, end) = plan.remotes.iter().find(|(_, end)| same(end)).expect("in the plan");
            (name.clone(), end.clone())
        };
        assert!(plan.requires(local.1.identity, remote.1.identity), "a mark that no policy asks for");
        let since = self.now;
        Meant { since, ends: [local.0, remote.0], endpoints: [local.1, remote.1] }
    }

    /// The driver of this node has seen both certificates, and none ends before the mark.
    fn check_grounds(&self, node: usize, meant: &Meant, expiry: Time) {
        let key = self.proof_of(node, meant);
        let proven = self.nodes[node].proven.get(&key);
        let kept = proven.unwrap_or_else(|| panic!("a mark without a proof of {key:?}"));
        assert!(kept.until >= expiry, "a mark outlives its proof");
        assert!(expiry > self.clock(node, self.now), "a mark that has ended already");
    }

    /// What a mark of a node rests on.
    fn proof_of(&self, node: usize, meant: &Meant) -> Proven {
        let peer = self.truth.index(&meant.ends[1].node);
        let [local, remote] = [meant.endpoints[0].id.clone(), meant.endpoints[1].id.clone()];
        ((peer != node).then_some(peer), local, remote)
    }

    /// The responder marks before the initiator.
    fn check_order(&self, node: usize, cause: &Input, meant: &Meant) {
        let [local, remote] = &meant.ends;
        let peer = self.truth.index(&remote.node);
        if peer == node {
            return;
        }
        match cause {
            Input::Received(_, Message::Bind { .. }) => {}
            // One that came before this side had verified who asks.
            Input::ProofDone(proof, Ok(_)) if !proof.ours => {}
            Input::Received(_, Message::Bound { .. }) => assert!(
                self.traitor == Some(peer)
                    || self.marked_pairs.contains(&(peer, remote.clone(), local.clone())),
                "the initiator marks, the responder never has"
            ),
            other => panic!("a mark across nodes because of {other:?}"),
        }
    }

    /// A packet has passed both kernels.
    pub(crate) fn delivered(&mut self, ends: [InstanceName; 2], memory: [Option<Memory>; 2]) {
        let connection = Connection { ends, memory };
        if self.check_connection(&connection) {
            self.delivered += 1;
            if self.connections.len() > 64 {
                self.connections.remove(0);
            }
            self.connections.push(connection);
        }
    }

    /// True if another packet of it would be delivered; then both ends are still those that were proven.
    fn check_connection(&self, connection: &Connection) -> bool {
        let nodes = connection.ends.clone().map(|end| self.truth.index(&end.node));
        let alive = (0..2).all(|side| {
            let (now, node) = (self.clock(nodes[side], self.now), &self.nodes[nodes[side]]);
            let memory = connection.memory[side];
            node.asleep <= self.now && memory.is_none_or(|memory| node.kernel.alive(now, memory))
        });
        if !alive || connection.ends.iter().any(|end| !self.truth.endpoints.contains_key(end)) {
            return false;
        }
        assert!(connection.memory.iter().any(Option::is_some), "nobody has asked for a mark");
        for (node, memory) in nodes.iter().zip(connection.memory) {
            let Some(memory) = memory else { continue };
            let meant = &self.nodes[*node].meant[&memory.epoch].ends;
            let same = connection.ends.iter().all(|end| meant.contains(end));
            assert!(same, "{:?} was delivered by the mark of {meant:?}", connection.ends);
        }
        true
    }

    /// What must be so at every moment.
    pub(crate) fn check(&self) {
        for connection in &self.connections {
            self.check_connection(connection);
        }
        (0..self.nodes.len()).for_each(|node| self.check_marks(node));
    }

    /// After each event, where it was: nothing else has changed. After one of the world: everywhere.
    pub(crate) fn check_step(&self, of: Option<usize>) {
        match of {
            Some(node) => self.check_marks(node),
            None => self.check(),
        }
    }

    fn check_marks(&self, node: usize) {
        let now = self.clock(node, self.now);
        let kernel = &self.nodes[node].kernel;
        for (number, mark) in &kernel.marks {
            if kernel.alive(now, Memory { mark: *number, epoch: mark.epoch }) {
                let meant = &self.nodes[node].meant[&mark.epoch];
                self.check_mark(node, meant);
                self.check_basis(node, mark.epoch, meant);
            }
        }
    }

    /// What a mark rests on still stands: its proof, by the roots and the clock of its node, and the certificates.
    fn check_basis(&self, node: usize, epoch: u64, meant: &Meant) {
        let state = &self.nodes[node];
        if state.asleep > self.now || state.machine.is_none() {
            // Nobody could know; the lease ends it.
            return;
        }
        let key = self.proof_of(node, meant);
        let lost = state.lost.get(&key).is_some_and(|before| epoch <= *before);
        assert!(!lost, "node {node} has said that {key:?} is proven no more, and has a mark of before");
        if let Some(kept) = state.proven.get(&key) {
            let roots = kept.roots.iter().all(|root| state.roots.contains(root));
            assert!(roots, "a mark of node {node} by a root that it trusts no more");
            // Its driver looks each second, and at least as often as it sleeps.
            let late = 1_200 * MS;
            let awake = self.now.saturating_sub(state.set.max(state.asleep).max(state.down)) > late;
            let over = kept.end.saturating_add(late) < self.wall(node);
            assert!(!(awake && over), "a mark of node {node} outlives its certificates by its clock");
        }
        for (name, end) in meant.ends.iter().zip(&meant.endpoints) {
            let owner = self.truth.index(&name.node);
            if owner == node {
                let gone = state.revoked.get(&end.id).is_some_and(|before| epoch <= *before);
                assert!(!gone, "{} was taken away, and node {node} has a mark of before", end.id);
            } else {
                self.check_revoked(node, owner, meant, end);
            }
        }
    }

    /// Another node's workload has lost its certificate after it was proven here: this node has heard of it, or believes
    /// nothing of that node any more, unless that vouches for it again.
    fn check_revoked(&self, node: usize, owner: usize, meant: &Meant, end: &AuthEndpoint) {
        let Some(&at) = self.revoked.get(&(owner, end.id.clone())).filter(|at| meant.since < **at) else {
            return;
        };
        let calm = self.calm_since(node, owner) < at;
        let again = self.nodes[owner].certificates.contains_key(&end.id);
        let restarted = self.nodes[owner].down >= at;
        if self.traitor == Some(owner) || self.traitor == Some(node) || (!calm && (again || restarted)) {
            return;
        }
        let until = self.bound(node, owner, at);
        assert!(
            self.now <= until,
            "the certificate of {} was taken away on node {owner} {} ms ago, and node {node} has a mark of before",
            end.id,
            (self.now - at) / MS
        );
    }

    fn check_mark(&self, node: usize, meant: &Meant) {
        for (name, end) in meant.ends.iter().zip(&meant.endpoints) {
            let owner = self.truth.index(&name.node);
            // What a traitor says of its own, and what it says it has cleared, is on its own head.
            if owner != node && self.traitor.is_some_and(|traitor| [owner, node].contains(&traitor)) {
                continue;
            }
            let now = self.truth.endpoints.get(name);
            let reused =
                now.is_none() && self.truth.endpoints.values().any(|other| other.end.ipv4 == end.ipv4);
            assert!(!reused, "{name:?} is gone, its address another's, and node {node} has a mark of it");
            if self.nodes[node].asleep > self.now || now.is_some_and(|now| now.end == *end) {
                continue;
            }
            let stopped = now.map_or_else(|| self.truth.past[name], |now| now.since);
            // A node attests addresses and ID; what identity another's endpoint has is the authority's word alone.
            let attested =
                now.is_some_and(|now| now.end.id == end.id && now.end.addresses() == end.addresses());
            let until = match (owner == node, attested) {
                (false, true) if self.nodes[node].stale.is_some() => Time::MAX,
                (false, true) => self.own_bound(node, stopped.max(self.nodes[node].fresh)),
                (true, _) => self.own_bound(node, stopped),
                (false, false) => self.bound(node, owner, stopped),
            };
            assert!(
                self.now <= until,
                "{name:?} changed {} ms ago, and node {node} has a mark of it (delays of {} and {} ms)",
                (self.now - stopped) / MS,
                self.lag / MS,
                self.delay / MS
            );
        }
        if self.nodes[node].asleep > self.now {
            return;
        }
        let [a, b] = [meant.endpoints[0].identity, meant.endpoints[1].identity];
        if !self.truth.required.contains(&mesh::auth::IdentityPair::new(a, b)) {
            let until = self.own_bound(node, self.truth.required_since);
            assert!(self.now <= until, "no policy asks for a mark that node {node} has");
        }
    }

    /// By when a node has heard from its own agent.
    fn own_bound(&self, node: usize, stopped: Time) -> Time {
        let state = &self.nodes[node];
        let broken = state.down.max(state.asleep);
        if state.machine.is_some() && broken < stopped {
            return stopped + self.lag + 5 * MS;
        }
        broken.max(stopped) + GRACE + self.lag + SLACK
    }

    /// By when a node has heard from another that something of that one is gone, or believes nothing of it any more.
    fn bound(&self, node: usize, owner: usize, stopped: Time) -> Time {
        if self.calm_since(node, owner) < stopped {
            return stopped + self.lag + self.delay + 5 * MS;
        }
        stopped + self.lag + GRACE + SLACK
    }

    /// No packet waits for longer than its time.
    pub(crate) fn check_held(&self) {
        for state in self.nodes.iter().filter(|state| state.machine.is_some() && state.asleep <= self.now) {
            let since = |held: &crate::world::Held| held.since.max(state.down).max(state.asleep);
            let oldest = state.held.values().map(since).min();
            assert!(oldest.is_none_or(|since| self.now <= since + 1_100 * MS), "a packet is forgotten");
        }
    }

    /// Everything that is required is proven, at both ends.
    pub(crate) fn check_all_proven(&self) {
        let names: Vec<_> = self.truth.endpoints.keys().cloned().collect();
        for a in &names {
            for b in names.iter().filter(|b| *b != a && self.truth.requires(a, b)) {
                let node = self.truth.index(&a.node);
                let now = self.clock(node, self.now);
                let beside = (a.node == b.node).then_some(b.instance);
                for remote in self.truth.endpoints[b].end.addresses() {
                    let found = self.nodes[node].kernel.find(now, a.instance, remote, beside);
                    assert!(found.is_some(), "{a:?} and {b:?} are not proven on node {node}");
                }
            }
        }
    }
}

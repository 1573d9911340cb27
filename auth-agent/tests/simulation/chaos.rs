//! Everything that can go wrong, at random.

use auth_agent::message::{Attestation, Message};
use mesh::auth::{IdentityPair, InstanceName, Refusal};

use crate::truth::identity;
use crate::world::{Event, MS, World};

/// Accounts, and labels, that endpoints have.
pub(crate) const KINDS: u64 = 3;

impl World {
    /// One thing goes wrong, or is put right.
    pub(crate) fn chaos(&mut self) {
        if self.quiet {
            return;
        }
        let wait = self.random.between(1, 400) * MS;
        self.later(wait, Event::Chaos);
        let node = self.random.between(0, self.nodes.len() as u64) as usize;
        match self.random.between(0, 24) {
            0..=4 => self.start_endpoint(node),
            5..=8 => self.stop_endpoint(),
            9 => self.relabel(),
            10 => self.toggle_policy(),
            11 | 12 => self.toggle_cut(node),
            13 => self.crash(node),
            14 => self.sleep(node),
            15 => self.break_link(),
            16 => self.toggle_stale(node),
            17 => self.no_ca = !self.no_ca && self.random.one_in(2),
            18 => self.later(0, Event::Revoke(node)),
            19 => self.rotate(node),
            20..=22 => self.forge(),
            23 => self.set_clock(node),
            _ => {}
        }
    }

    pub(crate) fn start_endpoint(&mut self, node: usize) {
        let (account, label) = (self.random.between(0, KINDS), self.random.between(0, KINDS));
        self.quarantine();
        if self.nodes[node].asleep > self.now {
            return;
        }
        if let Some(name) = self.truth.start(self.now, node, account, label) {
            let address = self.truth.endpoints[&name].end.ipv4;
            self.note(|| format!("start {name:?} {address}"));
            self.tell_plans();
        }
    }

    /// An agent gives out an address after the quarantine, too; but not before its auth-agent, if it has one, has
    /// applied a plan without the instance that had it.
    fn quarantine(&mut self) {
        for name in self.truth.after_quarantine(self.now) {
            let node = &self.nodes[self.truth.index(&name.node)];
            let applied = node.plan.as_ref().is_none_or(|plan| !plan.endpoints.contains_key(&name.instance));
            if node.asleep <= self.now && applied {
                self.truth.give_out(&name);
                self.note(|| format!("quarantine of {name:?} is over"));
            }
        }
    }

    fn some_endpoint(&mut self) -> Option<InstanceName> {
        let names: Vec<_> = self.truth.endpoints.keys().cloned().collect();
        self.random.pick(&names)
    }

    fn stop_endpoint(&mut self) {
        if let Some(name) = self.some_endpoint() {
            self.note(|| format!("stop {name:?}"));
            self.truth.stop(self.now, &name);
            self.tell_plans();
            // A hurried allocator gives the address out again at the first moment.
            let node = self.truth.index(&name.node);
            if self.random.one_in(2) {
                self.start_endpoint(node);
            }
        }
    }

    fn relabel(&mut self) {
        let Some(name) = self.some_endpoint() else {
            return;
        };
        let (account, label) = (self.random.between(0, KINDS), self.random.between(0, KINDS));
        let (both, id) = (self.random.one_in(2), self.truth.id(account));
        self.truth.change(self.now, &name, |end| {
            end.identity = identity(label);
            if both {
                end.id = id;
            }
        });
        self.tell_plans();
    }

    pub(crate) fn toggle_policy(&mut self) {
        let (a, b) = (self.random.between(0, KINDS), self.random.between(0, KINDS));
        let pair = IdentityPair::new(identity(a), identity(b));
        if !self.truth.required.remove(&pair) {
            self.truth.required.insert(pair);
        }
        self.truth.required_since = self.now;
        self.tell_plans();
    }

    fn toggle_cut(&mut self, node: usize) {
        let other = self.random.between(0, self.nodes.len() as u64) as usize;
        let pair = Self::pair(node, other);
        if node != other {
            self.disturb(node, other);
            if !self.cut.remove(&pair) {
                self.note(|| format!("cut {pair:?}"));
                self.cut.insert(pair);
            }
        }
    }

    fn crash(&mut self, node: usize) {
        self.kill(node);
        let wait = if self.random.one_in(3) { 8_000 } else { 1_000 };
        let wait = self.random.between(1, wait) * MS;
        self.later(wait, Event::Start(node));
    }

    fn sleep(&mut self, node: usize) {
        let wait = self.random.between(10, 10_000) * MS;
        self.nodes[node].asleep = self.nodes[node].asleep.max(self.now + wait);
        self.note(|| format!("{node} sleeps for {} ms", wait / MS));
        for other in 0..self.nodes.len() {
            self.disturb(node, other);
        }
    }

    fn break_link(&mut self) {
        let links: Vec<_> = self.links.keys().copied().collect();
        if let Some(id) = self.random.pick(&links) {
            let ends = self.links[&id].ends;
            self.disturb(ends[0], ends[1]);
            self.links.remove(&id);
            self.later(0, Event::Broken(ends[0], id, ends[1]));
            self.later(0, Event::Broken(ends[1], id, ends[0]));
        }
    }

    /// A node no longer hears from the authority about the others, or does again.
    fn toggle_stale(&mut self, node: usize) {
        let plan = self.truth.plan(node);
        let state = &mut self.nodes[node];
        state.fresh = self.now;
        state.stale = if state.stale.is_some() { None } else { Some(plan.remotes.clone()) };
        self.tell_plan(node);
    }

    pub(crate) fn revoke(&mut self, node: usize) {
        let ids: Vec<_> = self.nodes[node].certificates.keys().cloned().collect();
        if let Some(id) = self.random.pick(&ids) {
            self.lose_certificate(node, &id, Refusal::NoCertificate);
            let wait = self.random.between(100, 3_000) * MS;
            self.later(wait, Event::Issue(node, id));
        }
    }

    /// The wall clock of a node is set: a little, past many certificates' ends, before their beginnings, or right.
    fn set_clock(&mut self, node: usize) {
        let offsets = [0, 0, 2_000, -2_000, 20_000, -20_000, 300_000, -300_000];
        let offset = self.random.pick(&offsets).expect("there are some");
        self.set_wall(node, offset * MS as i64);
    }

    pub(crate) fn set_wall(&mut self, node: usize, offset: i64) {
        self.note(|| format!("the clock of {node} is off by {} ms", offset / MS as i64));
        self.nodes[node].wall = offset;
        self.nodes[node].set = self.now;
        self.nodes[node].is_set = true;
    }

    /// A new root comes, or a node forgets the old ones.
    fn rotate(&mut self, node: usize) {
        if self.random.one_in(3) {
            self.root += 1;
            let root = self.root;
            for state in &mut self.nodes {
                state.roots.push(root);
            }
        }
        self.later(0, Event::ForgetRoots(node));
    }

    pub(crate) fn forget_roots(&mut self, node: usize) {
        let old: Vec<u32> =
            self.nodes[node].roots.iter().copied().filter(|root| *root != self.root).collect();
        for root in old {
            self.remove_root(node, root);
        }
        let ids: Vec<_> = self.nodes[node].wanted.iter().cloned().collect();
        for id in ids {
            self.later(MS, Event::Issue(node, id));
        }
    }

    /// A node that is not true to the protocol says something.
    fn forge(&mut self) {
        let Some(traitor) = self.traitor else {
            return;
        };
        let links: Vec<_> =
            self.links.iter().filter(|(_, link)| link.ends.contains(&traitor)).map(|(id, _)| *id).collect();
        let Some(id) = self.random.pick(&links) else {
            return;
        };
        let message = self.forgery();
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let side = usize::from(link.ends[1] == traitor);
        if link.open[side] {
            link.streams[side].push_back(Some(message));
            self.schedule(id, side);
        }
    }

    fn forgery(&mut self) -> Message {
        let small = self.random.between(0, 6);
        let other = self.some_endpoint().and_then(|name| {
            let end = self.truth.endpoints.get(&name)?.end.clone();
            Some((name.instance, end))
        });
        let id = self.truth.id(small % KINDS);
        match (self.random.between(0, 12), other) {
            (0..=2, Some((instance, end))) => {
                Message::Attest(vec![Attestation { instance, addresses: end.addresses(), id: end.id }])
            }
            (3, Some((instance, _))) => {
                Message::Bind { bind: small, initiator: instance, responder: instance }
            }
            (4, _) => Message::Accept { proof: small },
            (5, _) => Message::Bound { bind: small },
            (6, _) => Message::Prove { proof: small, initiator: id.clone(), responder: id },
            (7, _) => Message::Echo { nonce: small, withdrawal: small, grace: small },
            (8, _) => Message::Withdrawn { number: small },
            (9, _) => Message::Handshake { ours: true, proof: small, bytes: b"client".to_vec() },
            (10, _) => Message::Handshake { ours: false, proof: small, bytes: b"server".to_vec() },
            (_, Some((instance, _))) => {
                Message::Withdraw { number: small, instance, why: Refusal::Withdrawn }
            }
            _ => Message::Complete,
        }
    }

    /// Packets are sent, and everything is looked at.
    pub(crate) fn traffic(&mut self) {
        let wait = self.random.between(1, 40) * MS;
        self.later(wait, Event::Traffic);
        self.quarantine();
        for _ in 0..2 {
            if let (Some(from), Some(to)) = (self.some_endpoint(), self.some_endpoint())
                && from != to
                && self.truth.requires(&from, &to)
            {
                let six = self.random.one_in(2);
                self.send(&from, &to, six);
            }
        }
        self.check();
        self.check_held();
    }

    /// Everything is put right, and nothing changes any more.
    pub(crate) fn heal(&mut self) {
        self.quiet = true;
        self.no_ca = false;
        let cut: Vec<_> = std::mem::take(&mut self.cut).into_iter().collect();
        for [a, b] in cut {
            self.disturb(a, b);
        }
        for node in 0..self.nodes.len() {
            self.nodes[node].stale = None;
            self.nodes[node].fresh = self.now;
            self.set_wall(node, 0);
            self.later(0, Event::Start(node));
            self.later(0, Event::ForgetRoots(node));
        }
        self.tell_plans();
    }
}

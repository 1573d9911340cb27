//! Sessions with other nodes: who dials, how often, which of two is kept, when a new one is made, when one is given up.

use std::collections::{BTreeMap, BTreeSet};

use mesh::auth::{AuthPlan, Refusal};
use mesh::spiffe::SpiffeId;

use super::Machine;
use super::ahead::Bucket;
use super::attestations::Attested;
use super::leases::Lease;
use super::pairs::PairName;
use super::timers::Timer;
use crate::event::{Output, SessionId, Time};
use crate::message::{Message, VERSION};

/// Another node.
#[derive(Debug)]
pub(super) struct Node {
    /// The ID that the plan gives it.
    pub(super) id: SpiffeId,
    /// The session whose full set is there; the one that is used.
    pub(super) current: Option<SessionId>,
    /// One that is to take its place, not complete yet.
    pub(super) coming: Option<SessionId>,
    pub(super) lease: Lease,
    /// What went wrong last.
    pub(super) problem: Option<String>,
    /// When a session that knew our instances was lost last.
    pub(super) lost: Option<Time>,
    /// Since when connecting is under way.
    connecting: Option<Time>,
    /// Not before this is it tried again.
    not_before: Time,
    failures: u32,
}

/// What a session's peer may say next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    Hello,
    FullSet,
    Open,
}

/// A session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) node: String,
    pub(super) stage: Stage,
    since: Time,
    expiry: Time,
    renew: Time,
    /// The latest sign of life.
    pub(super) heard: Time,
    probed: Time,
    /// Probes that have not come back, and when they were sent.
    pub(super) probes: BTreeMap<u64, Time>,
    /// What the peer attests.
    pub(super) attested: BTreeMap<u64, Attested>,
    /// Number of the peer's last withdrawal.
    pub(super) withdrawal: u64,
    /// Which of our instances the peer has been told of.
    pub(super) told: BTreeSet<u64>,
    /// Number of our last withdrawal.
    pub(super) withdrawn: u64,
    /// The latest that the peer has acknowledged; 0 is the full set itself.
    pub(super) acknowledged: Option<u64>,
    /// Instances that are to be free once the peer has acknowledged this number.
    pub(super) freeing: Vec<(u64, u64)>,
    /// Numbers of what we have begun.
    pub(super) last_proof: u64,
    pub(super) last_bind: u64,
    /// The same of the peer.
    pub(super) peer_proof: u64,
    pub(super) peer_bind: u64,
    /// Our binds that have no answer yet.
    pub(super) binds: BTreeMap<u64, PairName>,
    /// The peer's handshakes under way.
    pub(super) proofs: usize,
    /// The rate at which it may begin them.
    pub(super) bucket: Bucket,
}

/// A session whose peer has not even said all it attests by then is closed.
const OPENING: Time = 5 * super::SECOND;
/// Probes without an answer that are remembered.
const PROBES: usize = 16;

impl Machine {
    /// Nodes have come or gone.
    pub(super) fn apply_nodes(&mut self, old: Option<&AuthPlan>) {
        let Some(plan) = self.plan.clone() else {
            return;
        };
        let renamed = old.is_some_and(|old| old.node != plan.node);
        let gone: Vec<_> = self
            .nodes
            .iter()
            .filter(|(name, node)| renamed || plan.nodes.get(*name).is_none_or(|now| now.id != node.id))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            self.clear_node(&name, Refusal::Withdrawn);
            self.close_all(&name);
            if let Some(node) = self.nodes.remove(&name) {
                self.end_lease(node.lease);
            }
            self.proofs.retain(|key, _| key.node != name);
        }
        for (name, node) in plan.nodes.iter().filter(|(name, _)| **name != plan.node) {
            if !self.nodes.contains_key(name) {
                self.nodes.insert(name.clone(), Node::new(node.id.clone(), Lease::default()));
            }
            self.tend(name);
        }
    }

    fn close_all(&mut self, name: &str) {
        let sessions = self.nodes.get(name).map(|node| [node.current, node.coming]);
        for session in sessions.into_iter().flatten().flatten() {
            self.close(session, None);
        }
    }

    /// The session that is in use with a node.
    pub(super) fn current(&self, node: &str) -> Option<SessionId> {
        self.nodes.get(node)?.current
    }

    /// A session is up.
    pub(super) fn connected(&mut self, session: SessionId, name: &str, expiry: Time) {
        let renew = self.now + self.random.shorten(expiry.saturating_sub(self.now) / 2);
        let Some(node) = self.nodes.get_mut(name).filter(|_| expiry > self.now) else {
            return self.out.push(Output::Close(session));
        };
        node.connecting = None;
        // The latest is the one that the peer knows to be alive; at most one waits to take the current one's place.
        if let Some(older) = node.coming.replace(session) {
            self.close(older, None);
        }
        let bucket = Bucket::new(self.settings.peer_per_second);
        self.sessions.insert(session, Session::new(name, self.now, expiry, renew, bucket));
        let hello = Message::Hello { version: VERSION, incarnation: self.settings.incarnation };
        self.out.push(Output::Send(session, hello));
        self.attest_all(session);
        self.probe(session);
        self.tend(name);
    }

    /// A session is gone, or could not be made.
    pub(super) fn disconnected(&mut self, session: Option<SessionId>, name: &str, problem: Option<String>) {
        if let Some(session) = session {
            if self.sessions.contains_key(&session) {
                self.lose_session(session, problem);
            }
            return;
        }
        let (first, last) = self.settings.backoff;
        let Some(node) = self.nodes.get_mut(name) else {
            return;
        };
        node.connecting = None;
        let wait = first.saturating_mul(1 << node.failures.min(16)).min(last);
        node.failures = node.failures.saturating_add(1);
        node.not_before = self.now + self.random.shorten(wait);
        node.problem = problem.or(Some("it cannot be reached".to_owned()));
        self.tend(name);
    }

    /// Closes a session of our own accord.
    pub(super) fn close(&mut self, session: SessionId, problem: Option<&str>) {
        self.out.push(Output::Close(session));
        self.lose_session(session, problem.map(str::to_owned));
    }

    fn lose_session(&mut self, session: SessionId, problem: Option<String>) {
        let Some(state) = self.sessions.remove(&session) else {
            return;
        };
        let name = state.node;
        let Some(node) = self.nodes.get_mut(&name) else {
            return;
        };
        let was_current = node.current == Some(session);
        if was_current {
            node.current = None;
        }
        if node.coming == Some(session) {
            node.coming = None;
        }
        node.lost = Some(self.now);
        if problem.is_some() {
            node.problem = problem;
            node.failures = node.failures.saturating_add(1);
        }
        let (first, last) = self.settings.backoff;
        let wait = first.saturating_mul(1 << node.failures.min(16)).min(last);
        node.not_before = node.not_before.max(self.now + self.random.shorten(wait));
        self.drop_proofs(session, &name, was_current);
        for bind in state.binds.into_values() {
            self.fail(&bind, Refusal::NodeUnreachable);
        }
        if was_current {
            self.unconfirm(&name);
        }
        self.tend(&name);
    }

    /// Marks stay until their lease or proof ends, but the next session has to prove them again.
    fn unconfirm(&mut self, name: &str) {
        for pair in self.pairs_of(name) {
            if let Some(marked) = self.pairs.get_mut(&pair).and_then(|pair| pair.mark.as_mut()) {
                marked.confirmed = false;
            }
        }
    }

    /// A session's full set is there: it is the one in use now. What it does not attest is gone.
    pub(super) fn completed(&mut self, session: SessionId) {
        let Some(name) = self.sessions.get(&session).map(|state| state.node.clone()) else {
            return;
        };
        // Troubles of before are over; what is wrong with this very set is not.
        let problem = self.foreign_of(session);
        let Some(node) = self.nodes.get_mut(&name) else {
            return;
        };
        let older = node.current.replace(session);
        node.coming = None;
        node.problem.clone_from(&problem);
        node.failures = 0;
        if let Some(older) = older {
            if let Some(node) = self.nodes.get_mut(&name) {
                node.current = None;
            }
            self.drop_proofs(older, &name, true);
            self.unconfirm(&name);
            self.close(older, None);
            if let Some(node) = self.nodes.get_mut(&name) {
                node.current = Some(session);
                node.problem = problem;
            }
        }
        self.clear_unattested(session, &name);
        self.out.push(Output::Send(session, Message::Withdrawn { number: 0 }));
        self.try_node(&name);
        self.tend(&name);
    }

    /// Looks at what a node needs now: connecting, probing, a new session, an end.
    pub(super) fn tend(&mut self, name: &str) {
        let Some(node) = self.nodes.get(name) else {
            return;
        };
        let sessions = [node.current, node.coming];
        for session in sessions.into_iter().flatten() {
            self.tend_session(session);
        }
        self.connect(name);
        if let Some(at) = self.next_look(name) {
            self.timers.add(at.max(self.now + 1), Timer::Node(name.to_owned()));
        }
    }

    fn tend_session(&mut self, session: SessionId) {
        let (now, silence, probe) = (self.now, self.settings.silence, self.settings.probe);
        let Some(state) = self.sessions.get(&session) else {
            return;
        };
        if state.expiry <= now {
            self.close(session, Some("a node certificate has expired"));
        } else if state.stage != Stage::Open && state.since + OPENING <= now {
            self.close(session, Some("it has not said what it attests"));
        } else if state.heard + silence <= now {
            self.close(session, Some("it no longer answers"));
        } else if state.stage == Stage::Open && state.probed + probe <= now {
            self.probe(session);
        }
    }

    fn connect(&mut self, name: &str) {
        let (now, dials) = (self.now, self.own_node() < name);
        let wanted = self.session_wanted(name);
        let Some(node) = self.nodes.get_mut(name) else {
            return;
        };
        let stuck = node.connecting.is_none_or(|since| since + 2 * OPENING <= now);
        if dials && wanted <= now && node.coming.is_none() && stuck && node.not_before <= now {
            node.connecting = Some(now);
            self.out.push(Output::Connect(name.to_owned()));
        }
    }

    /// When a (new) session is wanted.
    fn session_wanted(&self, name: &str) -> Time {
        self.current(name).and_then(|id| self.sessions.get(&id)).map_or(0, |state| state.renew)
    }

    fn next_look(&self, name: &str) -> Option<Time> {
        let node = self.nodes.get(name)?;
        let of_session = |id: SessionId| {
            let state = self.sessions.get(&id)?;
            let due = match state.stage {
                Stage::Open => state.probed + self.settings.probe,
                _ => state.since + OPENING,
            };
            Some(due.min(state.expiry).min(state.heard + self.settings.silence))
        };
        let sessions = [node.current, node.coming].into_iter().flatten().filter_map(of_session).min();
        let dial = (self.own_node() < name && node.coming.is_none()).then(|| {
            let stuck = node.connecting.map_or(0, |since| since + 2 * OPENING);
            stuck.max(node.not_before).max(self.session_wanted(name))
        });
        sessions.into_iter().chain(dial).min()
    }

    /// Asks a peer whether it is there.
    fn probe(&mut self, session: SessionId) {
        self.tally.nonce += 1;
        let (nonce, now) = (self.tally.nonce, self.now);
        let Some(state) = self.sessions.get_mut(&session) else {
            return;
        };
        state.probed = now;
        state.probes.insert(nonce, now);
        if state.probes.len() > PROBES {
            state.probes.pop_first();
        }
        self.out.push(Output::Send(session, Message::Probe { nonce }));
    }
}

impl Node {
    pub(super) fn new(id: SpiffeId, lease: Lease) -> Self {
        Self {
            id,
            current: None,
            coming: None,
            lease,
            problem: None,
            lost: None,
            connecting: None,
            not_before: 0,
            failures: 0,
        }
    }
}

impl Session {
    /// Whether the peer has nothing left of what it was told is gone.
    pub(super) fn all_acknowledged(&self) -> bool {
        self.acknowledged.is_some_and(|number| number >= self.withdrawn)
    }

    fn new(node: &str, now: Time, expiry: Time, renew: Time, bucket: Bucket) -> Self {
        Self {
            node: node.to_owned(),
            stage: Stage::Hello,
            since: now,
            expiry,
            renew,
            heard: now,
            probed: now,
            probes: BTreeMap::new(),
            attested: BTreeMap::new(),
            withdrawal: 0,
            told: BTreeSet::new(),
            withdrawn: 0,
            acknowledged: None,
            freeing: Vec::new(),
            last_proof: 0,
            last_bind: 0,
            peer_proof: 0,
            peer_bind: 0,
            binds: BTreeMap::new(),
            proofs: 0,
            bucket,
        }
    }
}

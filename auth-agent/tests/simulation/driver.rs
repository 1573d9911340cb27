//! What the driver would do about certificates, handshakes and held packets.

use std::net::IpAddr;

use abi::HoldKind;
use auth_agent::event::{Failure, Input, Output, Packet, ProofId, Time};
use mesh::auth::{InstanceName, Refusal};
use mesh::spiffe::SpiffeId;
use node_api::auth::FromAuthAgent;

use crate::tls::{Certificate, Flight, judge};
use crate::world::{Event, Held, Kept, MS, Proven, Shake, World};

/// How long before it is issued a certificate is valid already.
const BACKDATED: Time = 30_000 * MS;

/// What is fed to a handshake that is to begin.
const BEGIN: &[u8] = b"begin";

impl World {
    pub(crate) fn act_on_proof(&mut self, node: usize, output: Output) {
        match output {
            Output::StartProof { proof, local, remote } => {
                let shake = Shake { local, remote, over: false };
                self.nodes[node].shakes.insert(proof, shake);
                if proof.ours {
                    self.later(MS / 10, Event::Handshake(node, proof, BEGIN.to_vec()));
                }
            }
            Output::FeedProof(proof, bytes) => {
                let wait = self.random.between(MS / 10, MS);
                self.later(wait, Event::Handshake(node, proof, bytes));
            }
            Output::DropProof(proof) => {
                self.nodes[node].shakes.remove(&proof);
            }
            Output::ProveLocally(a, b) => {
                let (wait, starts) = (self.random.between(MS / 10, 2 * MS), self.nodes[node].starts);
                self.later(wait, Event::Local(node, starts, a, b));
            }
            Output::Release(packet) => self.go_on(node, packet, true),
            Output::Return(packet) => self.go_on(node, packet, false),
            Output::Lose(packet) => {
                self.nodes[node].held.remove(&packet);
            }
            Output::Tell(FromAuthAgent::Free { instance }) => {
                let name = InstanceName { node: self.truth.names[node].clone(), instance };
                assert!(!self.truth.endpoints.contains_key(&name), "{name:?} is free, and runs");
                self.truth.give_out(&name);
            }
            _ => {}
        }
    }

    /// The CA, or the absence of it.
    pub(crate) fn issue(&mut self, node: usize, id: SpiffeId) {
        if !self.nodes[node].wanted.contains(&id) {
            return;
        }
        let own = self.truth.names[node].clone();
        let placed = self.truth.endpoints.iter().any(|(name, end)| name.node == own && end.end.id == id);
        if self.no_ca || !placed {
            return self.later(100 * MS, Event::Issue(node, id));
        }
        let life = self.random.between(4_000, 30_000) * MS;
        let (from, until) = (self.now.saturating_sub(BACKDATED), self.now + life);
        let wall = self.wall(node);
        if wall < from || wall >= until {
            // By the clock of who has asked it is none.
            return self.later(500 * MS, Event::Issue(node, id));
        }
        let certificate = Certificate { id: id.clone(), root: self.root, from, until };
        self.nodes[node].certificates.insert(id.clone(), certificate);
        self.later(life / 2, Event::Issue(node, id.clone()));
        let until = self.end(node, until);
        self.give(node, Input::Certificate(id, Ok(until)));
    }

    /// What a driver does each second: what has ended by the wall clock, has; and where that was set, all is told anew.
    pub(crate) fn second(&mut self, node: usize, is_set: bool) {
        let wall = self.wall(node);
        let is_over = |from: Time, end: Time| end <= wall || (is_set && from > wall);
        let certificates = self.nodes[node].certificates.clone();
        for (id, certificate) in certificates {
            if is_over(certificate.from, certificate.until) {
                self.lose_certificate(node, &id, Refusal::Expired);
                self.later(500 * MS, Event::Issue(node, id));
            } else if is_set {
                let until = self.end(node, certificate.until);
                self.give(node, Input::Certificate(id, Ok(until)));
            }
        }
        let proven = self.nodes[node].proven.iter();
        let over = proven.filter(|(_, kept)| is_over(kept.from, kept.end));
        let over: Vec<_> = over.map(|(key, _)| key.clone()).collect();
        for key in over {
            self.lose_proof(node, key, Refusal::Expired);
        }
    }

    /// A certificate of a node's workloads is taken away, and there is no other.
    pub(crate) fn lose_certificate(&mut self, node: usize, id: &SpiffeId, why: Refusal) {
        if self.nodes[node].certificates.remove(id).is_none() || self.nodes[node].machine.is_none() {
            return;
        }
        self.note(|| format!("{node} has lost the certificate of {id}"));
        self.revoked.insert((node, id.clone()), self.now);
        let epoch = self.nodes[node].kernel.epoch;
        self.nodes[node].revoked.insert(id.clone(), epoch);
        self.give(node, Input::Certificate(id.clone(), Err(why)));
    }

    /// What was verified is verified no more.
    fn lose_proof(&mut self, node: usize, key: Proven, why: Refusal) {
        let epoch = self.nodes[node].kernel.epoch;
        self.nodes[node].proven.remove(&key);
        self.nodes[node].lost.insert(key.clone(), epoch);
        let (peer, local, remote) = key;
        let peer = peer.map(|peer| self.truth.names[peer].clone());
        self.give(node, Input::ProofLost { node: peer, local, remote, why: why.into() });
    }

    /// Chains that a node shows: its own, except where it is being wicked.
    fn chain(&mut self, node: usize, id: &SpiffeId) -> Option<Vec<Certificate>> {
        let now = self.wall(node);
        let mut own = self.nodes[node].certificates.get(id).filter(|own| own.until > now)?.clone();
        if self.quiet || !self.random.one_in(12) {
            return Some(vec![own]);
        }
        let other = self.truth.id(9);
        Some(match self.random.between(0, 4) {
            0 => vec![Certificate { id: other, ..own.clone() }, own],
            1 => vec![Certificate { id: other, ..own }],
            2 => {
                own.root = 99;
                vec![own]
            }
            _ => {
                own.until = 0;
                vec![own]
            }
        })
    }

    /// Bytes for a handshake.
    pub(crate) fn feed(&mut self, node: usize, proof: ProofId, bytes: &[u8]) {
        let Some(shake) = self.nodes[node].shakes.get(&proof).filter(|shake| !shake.over).cloned() else {
            return;
        };
        if bytes == BEGIN {
            return self.give(node, Input::ProofBytes(proof, Flight::ClientHello.bytes()));
        }
        let flight = Flight::parse(bytes);
        let fits = matches!(
            (&flight, proof.ours),
            (Some(Flight::Server(_)), true) | (Some(Flight::Client(_) | Flight::ClientHello), false)
        );
        let Some(own) = self.chain(node, &shake.local) else {
            return self.over(node, proof, Err(Refusal::NoCertificate));
        };
        match flight.filter(|_| fits) {
            None => self.over(node, proof, Err(Refusal::BadCertificate)),
            Some(Flight::ClientHello) => {
                self.give(node, Input::ProofBytes(proof, Flight::Server(own).bytes()));
            }
            Some(Flight::Server(chain)) => {
                match judge(&chain, &shake.remote, &self.nodes[node].roots, self.wall(node)) {
                    Err(why) => self.over(node, proof, Err(why)),
                    Ok(until) => {
                        let until = until.min(own[0].until.max(self.wall(node) + 1));
                        let from = own[0].from;
                        let bytes = Flight::Client(own).bytes();
                        self.note_proven(node, proof, &shake, (from, until), &chain);
                        self.give(node, Input::ProofBytes(proof, bytes));
                        self.over(node, proof, Ok(until));
                    }
                }
            }
            Some(Flight::Client(chain)) => {
                match judge(&chain, &shake.remote, &self.nodes[node].roots, self.wall(node)) {
                    Err(why) => self.over(node, proof, Err(why)),
                    Ok(until) => {
                        let until = until.min(own[0].until.max(self.wall(node) + 1));
                        self.note_proven(node, proof, &shake, (own[0].from, until), &chain);
                        self.over(node, proof, Ok(until));
                    }
                }
            }
        }
    }

    fn note_proven(
        &mut self,
        node: usize,
        proof: ProofId,
        shake: &Shake,
        (from, end): (Time, Time),
        chain: &[Certificate],
    ) {
        let Some(link) = self.links.get(&proof.session.0) else {
            return;
        };
        let peer = link.ends[usize::from(link.ends[0] == node)];
        let until = self.end(node, end);
        let key = (Some(peer), shake.local.clone(), shake.remote.clone());
        let from = chain.iter().map(|certificate| certificate.from).fold(from, Time::max);
        let roots = chain.iter().map(|certificate| certificate.root).collect();
        self.keep_proven(node, key, Kept { until, from, end, roots });
    }

    /// What was kept before is replaced; marks may have an earlier one's longer life.
    fn keep_proven(&mut self, node: usize, key: Proven, mut kept: Kept) {
        if let Some(before) = self.nodes[node].proven.get(&key) {
            kept.until = kept.until.max(before.until);
        }
        self.nodes[node].proven.insert(key, kept);
    }

    fn over(&mut self, node: usize, proof: ProofId, result: Result<Time, Refusal>) {
        if let Some(shake) = self.nodes[node].shakes.get_mut(&proof) {
            shake.over = true;
            let result = result.map(|until| self.end(node, until)).map_err(Failure::from);
            self.give(node, Input::ProofDone(proof, result));
        }
    }

    pub(crate) fn prove_locally(&mut self, node: usize, starts: u64, a: SpiffeId, b: SpiffeId) {
        if self.nodes[node].starts != starts || self.nodes[node].machine.is_none() {
            return;
        }
        let chains = (self.chain(node, &a), self.chain(node, &b));
        let roots = self.nodes[node].roots.clone();
        let result = match chains {
            (Some(of_a), Some(of_b)) => judge(&of_a, &a, &roots, self.wall(node))
                .and_then(|first| Ok(first.min(judge(&of_b, &b, &roots, self.wall(node))?)))
                .map(|end| (end, of_a[0].from.max(of_b[0].from), vec![of_a[0].root, of_b[0].root])),
            _ => Err(Refusal::NoCertificate),
        };
        let result = result.map(|(end, from, roots)| {
            let until = self.end(node, end);
            for key in [(None, a.clone(), b.clone()), (None, b.clone(), a.clone())] {
                self.keep_proven(node, key, Kept { until, from, end, roots: roots.clone() });
            }
            until
        });
        let result = result.map_err(Failure::from);
        self.give(node, Input::LocalProofDone { a, b, result });
    }

    /// A root is no longer trusted on a node: what was verified with it is verified no more.
    pub(crate) fn remove_root(&mut self, node: usize, root: u32) {
        self.nodes[node].roots.retain(|other| *other != root);
        let proven = self.nodes[node].proven.iter();
        let lost: Vec<_> =
            proven.filter(|(_, kept)| kept.roots.contains(&root)).map(|(key, _)| key.clone()).collect();
        for key in lost {
            self.lose_proof(node, key, Refusal::Untrusted);
        }
    }

    /// A packet of one endpoint to another that has no connection yet.
    pub(crate) fn send(&mut self, from: &InstanceName, to: &InstanceName, six: bool) {
        let (Some(source), Some(destination)) =
            (self.truth.endpoints.get(from), self.truth.endpoints.get(to))
        else {
            return;
        };
        let family = usize::from(six);
        let addresses = [source.end.addresses()[family], destination.end.addresses()[family]];
        let node = self.truth.index(&from.node);
        let now = self.clock(node, self.now);
        let beside = (from.node == to.node).then_some(to.instance);
        if !self.truth.asks(from, to)[0] {
            return self.arrive(from, to, addresses, None);
        }
        match self.nodes[node].kernel.find(now, from.instance, addresses[1], beside) {
            Some(memory) => self.arrive(from, to, addresses, Some(memory)),
            None => self.hold(node, HoldKind::Egress, from, to, addresses, None),
        }
    }

    pub(crate) fn arrive(
        &mut self,
        from: &InstanceName,
        to: &InstanceName,
        addresses: [IpAddr; 2],
        memory: Option<crate::kernel::Memory>,
    ) {
        if !self.truth.endpoints.contains_key(to) {
            return;
        }
        if !self.truth.asks(from, to)[1] {
            // Neither asks any more, by labels of now: no authenticated packet.
            if memory.is_some() {
                self.delivered([from.clone(), to.clone()], [memory, None]);
            }
            return;
        }
        let node = self.truth.index(&to.node);
        let now = self.clock(node, self.now);
        let beside = (from.node == to.node).then_some(from.instance);
        match self.nodes[node].kernel.find(now, to.instance, addresses[0], beside) {
            Some(there) => self.delivered([from.clone(), to.clone()], [memory, Some(there)]),
            None => self.hold(node, HoldKind::Ingress, from, to, addresses, memory),
        }
    }

    fn hold(
        &mut self,
        node: usize,
        kind: HoldKind,
        from: &InstanceName,
        to: &InstanceName,
        addresses: [IpAddr; 2],
        source_memory: Option<crate::kernel::Memory>,
    ) {
        if self.nodes[node].machine.is_none() || self.nodes[node].asleep > self.now {
            return;
        }
        self.serial += 1;
        let packet = Packet(self.serial);
        let (from, to, since) = (from.clone(), to.clone(), self.now);
        self.nodes[node].held.insert(packet, Held { since, kind, from, to, addresses, source_memory });
        self.give(node, Input::Held { packet, kind, source: addresses[0], destination: addresses[1] });
    }

    /// The machine lets a packet go on: there has to be a mark. Or it gives one back: the hook judges it as any other.
    fn go_on(&mut self, node: usize, packet: Packet, is_proven: bool) {
        let held = self.nodes[node].held.remove(&packet).expect("a packet goes back once");
        self.released += u64::from(is_proven);
        let Held { from, to, kind, addresses, source_memory, .. } = held;
        let now = self.clock(node, self.now);
        let (here, there, remote) = match kind {
            HoldKind::Egress => (&from, &to, addresses[1]),
            _ => (&to, &from, addresses[0]),
        };
        if [here, there].iter().any(|end| !self.truth.endpoints.contains_key(*end)) {
            return;
        }
        let beside = (here.node == there.node).then_some(there.instance);
        let memory = self.nodes[node].kernel.find(now, here.instance, remote, beside);
        assert!(memory.is_some() || !is_proven, "a packet is released only where there is a mark");
        let Some(memory) = memory else { return };
        match kind {
            HoldKind::Egress => self.later(MS / 10, Event::Arrive(from, to, addresses, Some(memory))),
            _ => self.delivered([from, to], [source_memory, Some(memory)]),
        }
    }
}

//! Handshakes of workloads: mutual TLS without a socket, its bytes carried in messages.
//!
//! Promise: each side checks the one ID it expects, nothing is resumed, and a handshake that takes too long or too much
//! has failed. The work, which is a signature and two key agreements each time, is done in small portions: who waits for
//! a packet or an echo does not wait for a hundred handshakes. What was shown is kept, so that it can be judged again
//! when trust or time changes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use certs::CertificateDer;
use certs::svid::Svid;
use certs::tls::{client_config, server_config, server_name};
use certs::verify::{Expected, VerifyError, earliest_end, refusal};
use mesh::auth::{Refusal, Side};
use mesh::spiffe::SpiffeId;
use rustls::{ClientConnection, Connection, ServerConnection};
use tracing::warn;

use super::clock::{Clock, seconds};
use super::sparing::Sparing;
use super::trust::Trust;
use crate::event::{Failure, Input, ProofId, Time};

/// How long a handshake may take.
const PATIENCE: Time = 5_000_000_000;
/// Bytes the other side may send in one.
const MAX_BYTES: usize = 64 << 10;
/// Bytes that go in one message; the rest of it is less than a KiB.
const MAX_CHUNK: usize = 32 << 10;
/// Handshakes under way at once.
const MAX_RUNNING: usize = 2048;

/// Where certificates of workloads of this node are found.
pub(super) trait Own {
    /// The one for an ID.
    fn svid(&self, id: &SpiffeId) -> Result<Arc<Svid>, Refusal>;
}

/// All of them, and what came of those before.
#[derive(Default)]
pub(super) struct Proofs {
    running: BTreeMap<ProofId, Running>,
    work: VecDeque<Work>,
    kept: BTreeMap<Proven, Shown>,
    log: Sparing,
}

struct Running {
    proven: Proven,
    /// None: it waits for its first turn.
    connection: Option<Connection>,
    own: Option<Arc<Svid>>,
    deadline: Time,
    received: usize,
}

/// Who was proven to whom.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Proven {
    /// The peer's node; none: in memory.
    node: Option<String>,
    local: SpiffeId,
    remote: SpiffeId,
}

/// The certificates a proof rests on.
struct Shown {
    peer: Vec<CertificateDer<'static>>,
    own: Arc<Svid>,
    /// The earliest end of any of them, seconds since 1970.
    end: i64,
}

enum Work {
    Start(ProofId),
    Feed(ProofId, Vec<u8>),
    Locally(SpiffeId, SpiffeId),
}

impl Work {
    fn proof(&self) -> Option<ProofId> {
        match self {
            Self::Start(proof) | Self::Feed(proof, _) => Some(*proof),
            Self::Locally(..) => None,
        }
    }
}

impl Proofs {
    /// [`crate::event::Output::StartProof`]. An input, if it is over before it has begun.
    pub(super) fn start(
        &mut self,
        proof: ProofId,
        node: String,
        local: SpiffeId,
        remote: SpiffeId,
        now: Time,
    ) -> Option<Input> {
        if self.running.len() >= MAX_RUNNING {
            return Some(Input::ProofDone(proof, Err(Refusal::Overloaded.into())));
        }
        let proven = Proven { node: Some(node), local, remote };
        let deadline = now.saturating_add(PATIENCE);
        let running = Running { proven, connection: None, own: None, deadline, received: 0 };
        self.running.insert(proof, running);
        self.work.push_back(Work::Start(proof));
        None
    }

    /// [`crate::event::Output::FeedProof`].
    pub(super) fn feed(&mut self, proof: ProofId, bytes: Vec<u8>) -> Option<Input> {
        let running = self.running.get_mut(&proof)?;
        running.received = running.received.saturating_add(bytes.len());
        if running.received > MAX_BYTES {
            self.drop(proof);
            return Some(Input::ProofDone(proof, Err(Refusal::Protocol.into())));
        }
        self.work.push_back(Work::Feed(proof, bytes));
        None
    }

    /// [`crate::event::Output::DropProof`].
    pub(super) fn drop(&mut self, proof: ProofId) {
        self.running.remove(&proof);
        self.work.retain(|work| work.proof() != Some(proof));
    }

    /// [`crate::event::Output::ProveLocally`].
    pub(super) fn prove_locally(&mut self, a: SpiffeId, b: SpiffeId) {
        self.work.push_back(Work::Locally(a, b));
    }

    /// Whether [`Self::work`] has something to do.
    pub(super) fn has_work(&self) -> bool {
        !self.work.is_empty()
    }

    /// Does one piece of what there is to do.
    pub(super) fn work(&mut self, own: &impl Own, trust: &Trust, clock: Clock) -> Vec<Input> {
        match self.work.pop_front() {
            None => Vec::new(),
            Some(Work::Start(proof)) => {
                let Some(running) = self.running.get_mut(&proof) else { return Vec::new() };
                let started = running.start(proof.ours, own, trust);
                self.turn(proof, started, clock)
            }
            Some(Work::Feed(proof, bytes)) => {
                let Some(connection) = self.running.get_mut(&proof).and_then(|it| it.connection.as_mut())
                else {
                    return Vec::new();
                };
                let read = read(connection, &bytes);
                self.turn(proof, read, clock)
            }
            Some(Work::Locally(a, b)) => {
                let result = self.locally(&a, &b, own, trust, clock);
                let result = result.map_err(|fault| {
                    self.log.fault(&Proven { node: None, local: a.clone(), remote: b.clone() }, &fault);
                    fault.failure
                });
                vec![Input::LocalProofDone { a, b, result }]
            }
        }
    }

    /// What follows from a step of a handshake: bytes for the other side (an alert, if it failed), perhaps its end.
    fn turn(&mut self, proof: ProofId, step: Result<(), Fault>, clock: Clock) -> Vec<Input> {
        let Some(Running { connection, proven, .. }) = self.running.get_mut(&proof) else {
            return Vec::new();
        };
        let bytes = connection.as_mut().map(written).unwrap_or_default();
        let mut inputs: Vec<_> =
            bytes.chunks(MAX_CHUNK).map(|chunk| Input::ProofBytes(proof, chunk.to_vec())).collect();
        let is_over = step.is_err() || connection.as_ref().is_some_and(|it| !it.is_handshaking());
        if is_over {
            let proven = proven.clone();
            let result = step.and_then(|()| self.finish(proof, clock));
            let result = result.map_err(|fault| {
                self.log.fault(&proven, &fault);
                fault.failure
            });
            self.drop(proof);
            inputs.push(Input::ProofDone(proof, result));
        }
        inputs
    }

    fn finish(&mut self, proof: ProofId, clock: Clock) -> Result<Time, Fault> {
        let running = self.running.remove(&proof).ok_or_else(Fault::protocol)?;
        let (Some(connection), Some(own)) = (running.connection, running.own) else {
            return Err(Fault::protocol());
        };
        let peer = connection.peer_certificates().ok_or_else(Fault::protocol)?.to_vec();
        self.keep(running.proven, peer, own, clock)
    }

    fn keep(
        &mut self,
        proven: Proven,
        peer: Vec<CertificateDer<'static>>,
        own: Arc<Svid>,
        clock: Clock,
    ) -> Result<Time, Fault> {
        let peers = earliest_end(&peer).map_err(|error| Fault::judged(&error, Side::Peer))?;
        let end = seconds(peers.min(own.not_after()));
        self.kept.insert(proven, Shown { peer, own, end });
        Ok(clock.end(end))
    }

    fn locally(
        &mut self,
        a: &SpiffeId,
        b: &SpiffeId,
        own: &impl Own,
        trust: &Trust,
        clock: Clock,
    ) -> Result<Time, Fault> {
        let first = own.svid(a).map_err(Fault::missing)?;
        let second = own.svid(b).map_err(Fault::missing).map_err(Fault::turned)?;
        let mut client = client(&first, b, trust)?;
        let mut server = server(&second, a, trust).map_err(Fault::turned)?;
        while client.is_handshaking() || server.is_handshaking() {
            let (there, back) = (written(&mut client), written(&mut server));
            if there.is_empty() && back.is_empty() {
                return Err(Fault::protocol());
            }
            read(&mut server, &there).map_err(Fault::turned)?;
            read(&mut client, &back)?;
        }
        let peer = client.peer_certificates().ok_or_else(Fault::protocol)?.to_vec();
        let proven = Proven { node: None, local: a.clone(), remote: b.clone() };
        self.keep(proven, peer, first, clock)
    }

    /// Ends those that take too long.
    pub(super) fn expire(&mut self, now: Time) -> Vec<Input> {
        let late: Vec<_> =
            self.running.iter().filter(|(_, it)| it.deadline <= now).map(|(proof, _)| *proof).collect();
        late.into_iter()
            .map(|proof| {
                self.drop(proof);
                Input::ProofDone(proof, Err(Refusal::TimedOut.into()))
            })
            .collect()
    }

    /// Forgets what has ended by the wall clock, and says that it has: marks that rest on it should have ended before,
    /// unless the clock was stepped.
    pub(super) fn lose_ended(&mut self, wall: i64) -> Vec<Input> {
        self.lose(|proven, shown| {
            if shown.end > wall {
                return Ok(());
            }
            let is_own = seconds(shown.own.not_after()) <= wall;
            let (side, id) = if is_own { (Side::Own, &proven.local) } else { (Side::Peer, &proven.remote) };
            Err(Fault::judged(&VerifyError::Expired { id: id.clone() }, side))
        })
    }

    /// Judges all that was shown again.
    pub(super) fn judge_again(&mut self, trust: &Trust) -> Vec<Input> {
        self.lose(|proven, shown| {
            let judge = |chain, id: &SpiffeId| trust.judge(chain, &Expected::Id(id.clone()));
            judge(&shown.peer, &proven.remote).map_err(|error| Fault::judged(&error, Side::Peer))?;
            judge(shown.own.chain(), &proven.local).map_err(|error| Fault::judged(&error, Side::Own))?;
            Ok(())
        })
    }

    fn lose(&mut self, judge: impl Fn(&Proven, &Shown) -> Result<(), Fault>) -> Vec<Input> {
        let (mut lost, log) = (Vec::new(), &mut self.log);
        self.kept.retain(|proven, shown| match judge(proven, shown) {
            Ok(()) => true,
            Err(fault) => {
                log.fault(proven, &fault);
                let Proven { node, local, remote } = proven.clone();
                lost.push(Input::ProofLost { node, local, remote, why: fault.failure });
                false
            }
        });
        lost
    }
}

impl Running {
    fn start(&mut self, ours: bool, own: &impl Own, trust: &Trust) -> Result<(), Fault> {
        let svid = own.svid(&self.proven.local).map_err(Fault::missing)?;
        let remote = &self.proven.remote;
        self.connection =
            Some(if ours { client(&svid, remote, trust) } else { server(&svid, remote, trust) }?);
        self.own = Some(svid);
        Ok(())
    }
}

/// Why a handshake has failed, seen from one end of it, and in whose words.
struct Fault {
    failure: Failure,
    words: String,
}

impl Fault {
    /// What one end's TLS says.
    fn of(error: &rustls::Error) -> Self {
        if let Some(verdict) = VerifyError::of(error) {
            return Self::judged(verdict, Side::Peer);
        }
        let why = refusal(error);
        let failure = Failure::from(why);
        // A signature that the certificate's key did not make.
        let side = if why == Refusal::BadCertificate { Some(Side::Peer) } else { failure.side };
        Self { failure: Failure { side, ..failure }, words: error.to_string() }
    }

    /// What the verifier says of a certificate.
    fn judged(error: &VerifyError, side: Side) -> Self {
        let shown = error.shown().cloned();
        let failure = Failure { side: Some(side), shown, ..error.refusal().into() };
        Self { failure, words: error.to_string() }
    }

    /// This end has nothing to show.
    fn missing(why: Refusal) -> Self {
        Self { failure: Failure { side: Some(Side::Own), ..why.into() }, words: why.text().to_owned() }
    }

    fn protocol() -> Self {
        Self { failure: Refusal::Protocol.into(), words: Refusal::Protocol.text().to_owned() }
    }

    /// Seen from the other end.
    fn turned(self) -> Self {
        let Failure { why, side, .. } = self.failure;
        Self { failure: Failure { why: why.turned(), side: side.map(Side::turned), ..self.failure }, ..self }
    }
}

impl Sparing {
    fn fault(&mut self, proven: &Proven, fault: &Fault) {
        let Some(unsaid) = self.may() else { return };
        let Proven { node, local, remote } = proven;
        let node = node.as_deref().unwrap_or("here");
        warn!(%local, %remote, node, unsaid, "no proof: {}", fault.words);
    }
}

fn client(own: &Svid, remote: &SpiffeId, trust: &Trust) -> Result<Connection, Fault> {
    client_config(own, Expected::Id(remote.clone()), &trust.bundles, &trust.clock)
        .and_then(|config| ClientConnection::new(config, server_name()))
        .map(Connection::from)
        .map_err(|error| Fault::of(&error))
}

fn server(own: &Svid, remote: &SpiffeId, trust: &Trust) -> Result<Connection, Fault> {
    server_config(own, Expected::Id(remote.clone()), &trust.bundles, &trust.clock)
        .and_then(ServerConnection::new)
        .map(Connection::from)
        .map_err(|error| Fault::of(&error))
}

fn read(connection: &mut Connection, mut bytes: &[u8]) -> Result<(), Fault> {
    while !bytes.is_empty() {
        connection.read_tls(&mut bytes).map_err(|_| Fault::protocol())?;
        connection.process_new_packets().map_err(|error| Fault::of(&error))?;
    }
    Ok(())
}

/// What is to be sent now.
fn written(connection: &mut Connection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while connection.wants_write() {
        // Into memory: neither fails nor stops half-way.
        if connection.write_tls(&mut bytes).is_err() {
            break;
        }
    }
    bytes
}

#[cfg(test)]
mod tests;

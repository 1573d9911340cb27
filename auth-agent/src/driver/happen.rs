//! What happened, as the machine is told it.

use std::net::SocketAddr;
use std::sync::Arc;

use certs::bundle::Bundle;
use certs::tls::server_config;
use certs::verify::Expected;
use linux::clock::boottime;
use mesh::auth::Refusal;
use node_api::auth::{AuthAnswer, AuthQuestion, FromAuthAgent, Step, ToAuthAgent};
use tokio::net::TcpStream;
use tracing::{error, info, warn};

use super::Driver;
use super::certificates::Change;
use super::clock::seconds;
use super::door::{Arrival, Met};
use super::sessions::Event;
use crate::event::{Input, SessionId};

/// Peers whose session waits for this node's certificates.
const MAX_MET: usize = 1024;

impl Driver {
    pub(super) fn obey(&mut self, message: ToAuthAgent) {
        match message {
            ToAuthAgent::Plan { plan, .. } if plan.node != self.node => {
                error!("the agent has sent the plan of node {}, this is node {}", plan.node, self.node);
            }
            ToAuthAgent::Plan { number, plan } => {
                self.peers = Arc::new(plan.nodes.values().map(|node| node.id.clone()).collect());
                self.plan = Some(Arc::clone(&plan));
                self.refresh_trust();
                self.certificates.belong(&plan, &self.trust, self.clock, boottime());
                self.inputs.push_back(Input::Plan(number, plan));
            }
            ToAuthAgent::Ask { number, question } => {
                let answer = Box::new(self.answer(&question));
                self.control.tell(FromAuthAgent::Answer { number, answer });
            }
            ToAuthAgent::Bundle { pem } => self.hear_of_roots(&pem),
            // Ended the loop.
            ToAuthAgent::Stop => {}
        }
    }

    fn answer(&self, question: &AuthQuestion) -> AuthAnswer {
        match question {
            AuthQuestion::Certificates => {
                AuthAnswer::Certificates(self.certificates.views(self.plan.as_deref()))
            }
            AuthQuestion::Pairs => AuthAnswer::Pairs(self.machine.pairs()),
            AuthQuestion::Nodes => {
                let mut nodes = self.machine.nodes();
                for node in &mut nodes {
                    let session = self.sessions.iter().find(|(_, session)| session.node == node.name);
                    node.address = session.map(|(_, session)| session.address);
                }
                AuthAnswer::Nodes(nodes)
            }
            AuthQuestion::Counters => {
                let mut counters = self.machine.counters();
                if self.hold.lost() > 0 {
                    *counters.lost.entry(Refusal::Overloaded).or_default() += self.hold.lost();
                }
                if !self.turned_away.is_empty() {
                    counters.refusals.insert(Step::Caller, self.turned_away.clone());
                }
                let left = |end: i64| u64::try_from(end.saturating_sub(self.clock.wall())).unwrap_or(0);
                counters.first_expiry = self.certificates.first_end().map(left);
                AuthAnswer::Counters(counters)
            }
        }
    }

    pub(super) fn heard(&mut self, event: Event) {
        match event {
            Event::Message(session, message) => self.inputs.push_back(Input::Received(session, message)),
            Event::Over(session, problem) => self.over(session, problem),
        }
    }

    pub(super) fn over(&mut self, id: SessionId, problem: String) {
        if let Some(session) = self.sessions.close(id) {
            info!("session with node {} ({}) is over: {problem}", session.node, session.address);
            let (node, problem) = (session.node, Some(problem));
            self.inputs.push_back(Input::Disconnected { session: Some(id), node, problem });
        }
    }

    pub(super) fn arrived(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Stranger(stream, address) => self.admit(stream, address),
            Arrival::TurnedAway { address, why, problem } => self.turn_away(address, why, &problem),
            Arrival::Failed { node, problem } => self.inputs.push_back(unconnected(node, problem)),
            Arrival::Met(met) => {
                if self.met.len() < MAX_MET {
                    self.met.push(*met);
                } else if let Some(node) = met.called {
                    self.inputs.push_back(unconnected(node, "too many sessions begin".to_owned()));
                }
                self.meet_all();
            }
        }
    }

    /// Begins the sessions that may begin.
    fn meet_all(&mut self) {
        if !self.certificates.are_settled(boottime()) {
            return;
        }
        for met in std::mem::take(&mut self.met) {
            let (address, called) = (met.address, met.called.clone());
            match (self.meet(met), called) {
                (Ok(input), _) => self.inputs.push_back(input),
                (Err((_, problem)), Some(node)) => self.inputs.push_back(unconnected(node, problem)),
                (Err((why, problem)), None) => self.turn_away(address, why, &problem),
            }
        }
    }

    /// Somebody connects: he must show the certificate of a node of the plan.
    fn admit(&mut self, stream: TcpStream, address: SocketAddr) {
        let config = self.certificates.node().and_then(|own| {
            let nodes = Expected::AnyOf(Arc::clone(&self.peers));
            let config = server_config(own, nodes, &self.trust.bundles, &self.trust.clock);
            config.map_err(|error| error.to_string())
        });
        match config {
            Ok(config) => {
                if let Some(pushed_out) = self.door.admit(stream, address, config) {
                    let problem = "too many others show no certificate either";
                    self.turn_away(pushed_out, Refusal::Overloaded, problem);
                }
            }
            Err(problem) => self.turn_away(address, Refusal::NoCertificate, &problem),
        }
    }

    /// Somebody who connected gets no session.
    fn turn_away(&mut self, address: SocketAddr, why: Refusal, problem: &str) {
        *self.turned_away.entry(why).or_default() += 1;
        if let Some(unsaid) = self.log.may() {
            warn!(%address, unsaid, "a caller is turned away: {problem}");
        }
    }

    /// A handshake of nodes has ended well. The plan may have changed since it began, so it is asked again.
    fn meet(&mut self, met: Met) -> Result<Input, (Refusal, String)> {
        let chain = met.chain();
        let because = |why: Refusal, problem: &str| (why, problem.to_owned());
        let plan = self.plan.as_ref().ok_or_else(|| because(Refusal::UnknownPeer, "there is no plan"))?;
        let verified = self.trust.judge(&chain, &Expected::AnyOf(Arc::clone(&self.peers)));
        let verified = verified.map_err(|error| (error.refusal(), error.to_string()))?;
        let node = plan.nodes.iter().find(|(name, node)| {
            node.id == verified.id && met.called.as_ref().is_none_or(|called| called == *name)
        });
        let (node, _) =
            node.ok_or_else(|| because(Refusal::WrongId, "its certificate is no longer that node's"))?;
        let own = self.certificates.node().map_err(|problem| (Refusal::NoCertificate, problem))?;
        let ours = own.not_after();
        let expiry = self.clock.end(seconds(verified.not_after.min(ours)));
        info!("session with node {node} ({})", met.address);
        let node = node.clone();
        let session = self.sessions.begin(met.stream, node.clone(), met.address, chain);
        Ok(Input::Connected { session, node, expiry })
    }

    /// Each second: what has ended, what is due, what has changed.
    pub(super) fn second(&mut self) {
        let now = boottime();
        let is_stepped = self.clock.read_again(&self.wall);
        self.inputs.push_back(Input::Tick);
        self.inputs.extend(self.proofs.expire(now));
        self.inputs.extend(self.proofs.lose_ended(self.clock.wall()));
        self.inputs.extend(self.certificates.lose_ended(self.clock, now));
        self.refresh_trust();
        if is_stepped {
            info!("the wall clock was set; every certificate is judged again");
            self.judge_again();
            self.inputs.extend(self.certificates.tell_again(self.clock, now));
        }
        self.certificates.ask(&self.trust, now);
        self.meet_all();
    }

    pub(super) fn change(&mut self, change: Change) {
        if change.trust {
            self.judge_again();
        }
        self.inputs.extend(change.inputs);
        self.certificates.ask(&self.trust, boottime());
        self.meet_all();
    }

    fn refresh_trust(&mut self) {
        let is_new = self.plan.as_ref().is_some_and(|plan| self.trust.refresh(&plan.trust_domain));
        if is_new {
            self.certificates.outdate_bundles(boottime());
            self.judge_again();
        }
    }

    fn hear_of_roots(&mut self, pem: &str) {
        let Some(plan) = &self.plan else { return error!("the agent tells a bundle before any plan") };
        match Bundle::from_pem(plan.trust_domain.clone(), pem) {
            Ok(bundle) => {
                self.certificates.outdate_bundles(boottime());
                if self.trust.learn(bundle) {
                    self.judge_again();
                }
            }
            Err(problem) => error!("the agent's bundle: {problem}; what was trusted before still is"),
        }
    }

    /// Everything that was verified, by the trust and the time that are in force now.
    fn judge_again(&mut self) {
        self.inputs.extend(self.certificates.judge_again(&self.trust, self.clock, boottime()));
        self.inputs.extend(self.proofs.judge_again(&self.trust));
        let Some(plan) = self.plan.clone() else { return };
        let judge = |node: &str, chain: &[certs::CertificateDer<'_>]| {
            let node = plan.nodes.get(node).ok_or("the plan has no such node")?;
            self.trust
                .judge(chain, &Expected::Id(node.id.clone()))
                .map_err(|error| error.to_string())
                .map(drop)
        };
        let lost: Vec<_> = self
            .sessions
            .iter()
            .filter_map(|(id, session)| Some((id, judge(&session.node, &session.chain).err()?)))
            .collect();
        for (id, problem) in lost {
            self.over(id, problem);
        }
    }
}

/// A node that was to be called is not to be had.
pub(super) fn unconnected(node: String, problem: String) -> Input {
    info!("no session with node {node}: {problem}");
    Input::Disconnected { session: None, node, problem: Some(problem) }
}

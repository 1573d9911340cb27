//! The control socket: what the agent wants, object by object, and what it is told.
//!
//! Promise: only root or this process's own user is listened to; a new connection replaces the one before; that there is
//! none changes nothing but that flows are kept, the latest few. An object that cannot be used leaves the one before it in
//! force; where that says nothing and the new one does, nothing passes. What an agent that has come does not speak of goes
//! when it says that it has told all.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as Listener;
use std::time::Duration;

use mesh::l7::L7Endpoint;
use mesh::workload::EndpointId;
use node_api::channel::Channel;
use node_api::proxy::{FromProxy, ProxyAnswer, ProxyFlow, ProxyQuestion, ToProxy};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use super::reports::Reports;
use super::workers::Workers;
use crate::index::{Compiler, Endpoint};
use crate::runtime::Snapshot;

/// How often flows are told.
const TICK: Duration = Duration::from_millis(100);
/// Flows that wait for an agent.
const MAX_FLOWS: usize = 16_384;
/// Flows in one message.
const BATCH: usize = 1024;
/// Connections in one answer.
const MAX_CONNECTIONS: usize = 10_000;
/// How long an agent may take to take a message.
const PATIENCE: Duration = Duration::from_secs(5);

type Agent = Channel<FromProxy, ToProxy>;

/// Speaks with the agent until it says that the end is there.
pub async fn run(listener: OwnedFd, workers: Workers) -> io::Result<()> {
    let listener = Listener::from(listener);
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    // Both ends of a pair are this process.
    let uid = UnixStream::pair()?.0.peer_cred()?.uid();
    let mut rules = Rules::new(workers);
    let mut flows = Flows::default();
    let mut agent: Option<Agent> = None;
    let mut end: Option<Instant> = None;
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    info!("the L7 proxy is up");
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted.and_then(|(stream, _)| {
                let peer = stream.peer_cred()?.uid();
                Ok((stream, peer))
            }) {
                Ok((stream, peer)) if peer == 0 || peer == uid => {
                    rules.begin();
                    flows.is_told = false;
                    flows.reports.again();
                    agent = Some(Channel::new(stream));
                }
                Ok((_, peer)) => warn!(peer, "control socket: only root is listened to"),
                Err(error) => {
                    warn!(%error, "control socket");
                    tokio::time::sleep(TICK).await;
                }
            },
            message = receive(&mut agent) => match message {
                ToProxy::Drain { within } => {
                    rules.workers.published.drain();
                    end = Some(Instant::now() + Duration::from_millis(within));
                }
                ToProxy::Taken => {
                    flows.is_told = false;
                    flows.reports.taken();
                    flows.tell(&mut agent).await;
                }
                ToProxy::Record(record) => {
                    rules.workers.shared.iter().for_each(|worker| worker.log.set_record(record.clone()));
                }
                message => tell(&mut agent, &rules.obey(message)).await,
            },
            _ = tick.tick() => {
                flows.collect(&rules.workers);
                flows.tell(&mut agent).await;
                let is_idle = || rules.workers.shared.iter().all(|worker| worker.connections.lock().is_empty());
                if end.is_some_and(|end| end <= Instant::now() || is_idle()) && (agent.is_none() || flows.is_empty()) {
                    return Ok(());
                }
            }
        }
    }
}

/// The agent's next message. Cancel safe.
async fn receive(agent: &mut Option<Agent>) -> ToProxy {
    let Some(channel) = agent else { return std::future::pending().await };
    match channel.receive().await {
        Ok(message) => message,
        Err(error) => {
            if error.is_closed() {
                info!("the agent has gone; its rules stay");
            } else {
                warn!(%error, "control socket: the agent is not understood");
            }
            *agent = None;
            std::future::pending().await
        }
    }
}

async fn tell(agent: &mut Option<Agent>, message: &FromProxy) {
    let Some(channel) = agent else { return };
    if !matches!(timeout(PATIENCE, channel.send(message)).await, Ok(Ok(()))) {
        info!("the agent has gone or does not read");
        *agent = None;
    }
}

/// The rules in force, as they are told.
struct Rules {
    workers: Workers,
    compiler: Compiler,
    /// What has been told since the agent came.
    told: BTreeSet<EndpointId>,
    /// Whether it has told all. Until then the kernel may send connections by what an agent before it has told.
    is_synced: bool,
    /// What of the told is in force together with what was before it, as it is to be from then on.
    alone: BTreeMap<EndpointId, Endpoint>,
}

impl Rules {
    fn new(workers: Workers) -> Self {
        let (told, alone) = (BTreeSet::new(), BTreeMap::new());
        Self { workers, compiler: Compiler::default(), told, is_synced: false, alone }
    }

    /// Another agent has come.
    fn begin(&mut self) {
        self.told.clear();
        self.alone.clear();
        self.is_synced = false;
    }

    fn obey(&mut self, message: ToProxy) -> FromProxy {
        match message {
            ToProxy::Set { generation, endpoint } => self.set(generation, &endpoint),
            ToProxy::Remove { generation, endpoint } => {
                self.told.remove(&endpoint);
                self.alone.remove(&endpoint);
                self.change(|snapshot| snapshot.remove(endpoint));
                self.compiler.collect();
                FromProxy::Accepted { generation, endpoint }
            }
            ToProxy::Synced { generation } => {
                let told = &self.told;
                let mut snapshot = Snapshot::clone(&self.workers.published.snapshot());
                for id in snapshot.ids().into_iter().filter(|id| !told.contains(id)) {
                    snapshot.remove(id);
                }
                std::mem::take(&mut self.alone).into_values().for_each(|alone| snapshot.insert(alone));
                snapshot.is_synced = true;
                self.is_synced = true;
                self.workers.published.set(snapshot);
                self.compiler.collect();
                FromProxy::Synced { generation }
            }
            ToProxy::Ask { number, question: ProxyQuestion::Connections } => {
                let workers = self.workers.shared.iter();
                let connections = workers
                    .flat_map(|worker| worker.connections.lock().values().cloned().collect::<Vec<_>>());
                let views = connections.take(MAX_CONNECTIONS).map(|connection| connection.view());
                let answer = Box::new(ProxyAnswer::Connections(views.collect()));
                FromProxy::Answer { number, answer }
            }
            // `run` has done it.
            ToProxy::Drain { .. } | ToProxy::Taken | ToProxy::Record(_) => FromProxy::Flows(Vec::new()),
        }
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
        let snapshot = self.workers.published.snapshot();
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
        let mut snapshot = Snapshot::clone(&self.workers.published.snapshot());
        change(&mut snapshot);
        self.workers.published.set(snapshot);
    }
}

/// Flows that the agent has not been told.
#[derive(Default)]
struct Flows {
    waiting: VecDeque<ProxyFlow>,
    lost: u64,
    reports: Reports,
    /// The last message was flows: the next is a report, if there is one.
    was_flows: bool,
    /// The agent has not yet taken what it was told last.
    is_told: bool,
}

impl Flows {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.reports.is_empty()
    }

    fn collect(&mut self, workers: &Workers) {
        self.reports.collect(workers);
        for worker in &workers.shared {
            let (flows, lost) = worker.log.take();
            self.waiting.extend(flows);
            self.lost += lost;
        }
        let excess = self.waiting.len().saturating_sub(MAX_FLOWS);
        self.waiting.drain(..excess);
        self.lost += excess as u64;
        if self.lost > 0 {
            warn!(lost = self.lost, "flows were not told in time");
            self.lost = 0;
        }
    }

    /// One message at a time: an answer to the agent waits behind it.
    async fn tell(&mut self, agent: &mut Option<Agent>) {
        if agent.is_none() || self.is_told {
            return;
        }
        if let Some(message) = self.next() {
            self.is_told = true;
            tell(agent, &message).await;
        }
    }

    /// Flows and reports in turn.
    fn next(&mut self) -> Option<FromProxy> {
        let is_reports_turn = std::mem::replace(&mut self.was_flows, true) || self.waiting.is_empty();
        if is_reports_turn && let Some(report) = self.reports.next() {
            self.was_flows = false;
            return Some(report);
        }
        let count = self.waiting.len().min(BATCH);
        (count > 0).then(|| FromProxy::Flows(self.waiting.drain(..count).collect()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::sync::Arc;

    use mesh::flow::TrafficDirection::Ingress;
    use mesh::identity::Identity;
    use mesh::l7::{Expression, HttpRule, L7Access, L7Ports, L7Rules};

    use super::*;
    use crate::index::Grant;

    fn rules() -> Rules {
        let workers = Workers { published: Arc::default(), shared: Vec::new() };
        Rules::new(workers)
    }

    /// Endpoint 1, with a path for each port.
    fn set(ports: &[(u16, &str)]) -> ToProxy {
        let ports = ports.iter().map(|(port, path)| {
            let path = Some(Expression((*path).to_owned()));
            let http = Some([HttpRule { path, ..HttpRule::default() }].into());
            L7Ports { first: *port, last: *port, access: vec![L7Access { peers: None, http }] }
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
    fn grant(rules: &Rules, port: u16) -> Grant {
        let snapshot = rules.workers.published.snapshot();
        let endpoint = snapshot.get(EndpointId::new(1).unwrap()).unwrap();
        endpoint.side(Ingress).unwrap().grant(port, Identity::new(300)).0
    }

    #[test]
    fn a_refused_edit_opens_no_port() {
        let mut rules = rules();
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
        let mut rules = rules();
        rules.obey(set(&[(80, "/a"), (8080, "/a")]));
        rules.obey(ToProxy::Synced { generation: 1 });
        rules.begin();
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
        rules.begin();
        rules.obey(set(&[(80, "/c")]));
        rules.obey(set(&[(80, "/c"), (82, "(")]));
        rules.obey(ToProxy::Synced { generation: 3 });
        assert!(matches!(grant(&rules, 82), Grant::Nothing(_)));
    }
}

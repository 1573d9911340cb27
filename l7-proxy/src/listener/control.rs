//! The control socket: what the agent wants, object by object, and what it is told.
//!
//! Promise: only root or this process's own user is listened to; a new connection replaces the one before; that there is
//! none changes nothing but that flows are kept, the latest few. Nothing is compiled here: what takes long is done beside it
//! (`orders`), and answered when it is done.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as Listener;
use std::sync::Arc;
use std::time::Duration;

use mesh::l7::L7Flow;
use node_api::channel::Channel;
use node_api::proxy::{FromProxy, ProxyAnswer, ProxyConnection, ProxyFlow, ProxyQuestion, ToProxy};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use super::orders::{Orders, Rules};
use super::reports::Reports;
use super::workers::Workers;
use crate::runtime::explain;

/// How often flows are told.
const TICK: Duration = Duration::from_millis(100);
/// Flows that wait for an agent.
const MAX_FLOWS: usize = 16_384;
/// About how many bytes of flows are in one message: less than a socket takes at once, so that who is told can be writing.
const BATCH: usize = 64 << 10;
/// What a flow takes of that, beside its text.
const FLOW: usize = 512;
/// Connections in one answer.
const MAX_CONNECTIONS: usize = 10_000;
/// How long an agent may take to take a message.
const PATIENCE: Duration = Duration::from_secs(5);

/// Milliseconds that draining may take at most: a day.
const MAX_DRAIN: u64 = 24 * 3600 * 1000;

type Agent = Channel<FromProxy, ToProxy>;

/// Speaks with the agent until it says that the end is there.
pub async fn run(listener: OwnedFd, workers: Workers) -> io::Result<()> {
    let listener = Listener::from(listener);
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    // Both ends of a pair are this process.
    let uid = UnixStream::pair()?.0.peer_cred()?.uid();
    let mut orders = Orders::start(Rules::new(Arc::clone(&workers.published)))?;
    let mut flows = Flows::default();
    let mut agent: Option<Agent> = None;
    let mut drain: Option<Drain> = None;
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
                    orders.begin();
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
            message = receive(&mut agent), if orders.has_room() => match message {
                ToProxy::Drain { within, idle } => {
                    workers.published.drain();
                    drain = Some(Drain::begin(within, idle));
                }
                ToProxy::Taken => {
                    flows.is_told = false;
                    flows.reports.taken();
                    flows.tell(&mut agent).await;
                }
                ToProxy::Record(record) => {
                    workers.shared.iter().for_each(|worker| worker.log.set_record(record.clone()));
                }
                ToProxy::Ask { number, question } => tell(&mut agent, &answer(&workers, number, question)).await,
                order => orders.give(order),
            },
            answer = orders.answer() => tell(&mut agent, &answer?).await,
            _ = tick.tick() => {
                // Before the flows: what ends after this is told at the next turn.
                let is_idle = workers.is_idle();
                flows.collect(&workers);
                flows.tell(&mut agent).await;
                if let Some(drain) = &drain {
                    drain.look(&workers);
                    let is_told = agent.is_none() || flows.is_empty();
                    if drain.is_over() || is_idle && is_told {
                        info!("the L7 proxy has been drained");
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// How the end is approached.
struct Drain {
    /// Until then connections on which nothing is under way are left to their clients.
    idle: Instant,
    /// Then all end.
    end: Instant,
}

impl Drain {
    /// In so many milliseconds from now.
    fn begin(within: u64, idle: u64) -> Self {
        let after = |milliseconds: u64| Instant::now() + Duration::from_millis(milliseconds.min(MAX_DRAIN));
        Self { idle: after(idle), end: after(within) }
    }

    fn look(&self, workers: &Workers) {
        if self.idle <= Instant::now() {
            workers.published.end_idle();
        }
    }

    fn is_over(&self) -> bool {
        self.end <= Instant::now()
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

fn answer(workers: &Workers, number: u64, question: ProxyQuestion) -> FromProxy {
    let answer = match question {
        ProxyQuestion::Connections => ProxyAnswer::Connections(connections(workers)),
        ProxyQuestion::Budgets => ProxyAnswer::Budgets(workers.budgets()),
        ProxyQuestion::Explain(supposed) => {
            let explained = explain(&supposed, &workers.published, &workers.identities);
            ProxyAnswer::Explained(Box::new(explained))
        }
    };
    FromProxy::Answer { number, answer: Box::new(answer) }
}

fn connections(workers: &Workers) -> Vec<ProxyConnection> {
    let draining = workers.published.is_draining();
    let workers = workers.shared.iter();
    let connections =
        workers.flat_map(|worker| worker.connections.lock().values().cloned().collect::<Vec<_>>());
    let views =
        connections.take(MAX_CONNECTIONS).map(|connection| ProxyConnection { draining, ..connection.view() });
    views.collect()
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
        (!self.waiting.is_empty()).then(|| FromProxy::Flows(self.batch()))
    }

    /// The first of those that wait: one, or as many as a message has room for.
    fn batch(&mut self) -> Vec<ProxyFlow> {
        let mut room = BATCH;
        let fits = self.waiting.iter().take_while(|flow| {
            let size = FLOW + text(flow);
            let fits = size <= room;
            room = room.saturating_sub(size);
            fits
        });
        let count = fits.count().clamp(1, self.waiting.len());
        self.waiting.drain(..count).collect()
    }
}

fn text(flow: &ProxyFlow) -> usize {
    match &flow.l7 {
        L7Flow::Http(http) => http.method.len() + http.url.len(),
        L7Flow::Tls(tls) => tls.server_name.as_ref().map_or(0, String::len),
    }
}

#[cfg(test)]
mod tests {
    use mesh::flow::{TrafficDirection, Verdict};
    use mesh::l7::TlsFlow;
    use mesh::workload::EndpointId;

    use super::*;

    #[test]
    fn a_message_has_as_many_flows_as_a_socket_takes_at_once() {
        let flow = |length: usize| ProxyFlow {
            time: 0,
            client: ([10, 0, 0, 1], 1).into(),
            server: ([10, 0, 0, 2], 80).into(),
            client_identity: None,
            server_identity: None,
            endpoint: EndpointId::new(1).unwrap(),
            direction: TrafficDirection::Ingress,
            verdict: Verdict::Forwarded,
            reason: None,
            l7: L7Flow::Tls(TlsFlow { server_name: Some("n".repeat(length)) }),
        };
        let mut flows = Flows::default();
        flows.waiting.extend((0..1000).map(|_| flow(2000)));
        let batch = flows.batch();
        assert!(batch.len() > 20 && batch.len() < 30, "{}", batch.len());
        assert_eq!(flows.waiting.len() + batch.len(), 1000);
        flows.waiting.push_front(flow(1 << 20));
        assert_eq!(flows.batch().len(), 1, "what is too long goes alone");
    }
}

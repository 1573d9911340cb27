//! The control socket: what the agent wants, object by object, and what it is told.
//!
//! Promise: only root or this process's own user is listened to; a new connection replaces the one before; that there is
//! none changes nothing but that flows are kept, the latest few. Nothing is compiled here: what takes long is done beside it
//! (`orders`), and answered when it is done. Nobody is waited for: what the agent is to be told waits, about
//! [`MAX_UNTOLD`] and one message at most, until it listens, and it is listened to meanwhile.

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
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{info, warn};

use super::orders::{Orders, Rules};
use super::reports::Reports;
use super::workers::Workers;
use crate::runtime::explain;

/// How often flows are told.
const TICK: Duration = Duration::from_millis(100);
/// Flows that wait for an agent.
const MAX_FLOWS: usize = 16_384;
/// About how many bytes of flows are in one message, packed (as JSON some times that): answers wait behind it.
const BATCH: usize = 64 << 10;
/// What a flow takes of that, beside its text.
const FLOW: usize = 96;
/// Flows between which the core is left to a worker that waits for it.
const STRETCH: usize = 64;
/// Connections in one answer.
const MAX_CONNECTIONS: usize = 10_000;
/// Bytes that may wait for the agent. Beyond that it is not listened to, for it would be answered: it listens always.
const MAX_UNTOLD: usize = 1 << 20;
/// How often the agent is told, at most, that what it waits for is being done.
const LIFE: Duration = Duration::from_secs(1);
/// How long what was open at the end may take to be cut, and the agent to be told of it.
const LAST: Duration = Duration::from_secs(2);
/// Milliseconds that draining may take at most: a day.
const MAX_DRAIN: u64 = 24 * 3600 * 1000;

/// The agent that is connected.
struct Agent {
    channel: Channel<FromProxy, ToProxy>,
    /// It takes what comes with requests packed: it is of this build.
    packs: bool,
}

/// Speaks with the agent until it says that the end is there.
pub async fn run(listener: OwnedFd, workers: Workers) -> io::Result<()> {
    let listener = Listener::from(listener);
    listener.set_nonblocking(true)?;
    Control::new(workers)?.serve(UnixListener::from_std(listener)?).await
}

/// One who speaks with the agent, if there is one.
struct Control {
    workers: Workers,
    orders: Orders,
    flows: Flows,
    agent: Option<Agent>,
    drain: Option<Drain>,
    /// When the agent may be told next that its orders are being carried out.
    life: Instant,
}

impl Control {
    fn new(workers: Workers) -> io::Result<Self> {
        let orders = Orders::start(Rules::new(Arc::clone(&workers.published)))?;
        Ok(Self::with(workers, orders))
    }

    fn with(workers: Workers, orders: Orders) -> Self {
        let life = Instant::now() + LIFE;
        Self { workers, orders, flows: Flows::default(), agent: None, drain: None, life }
    }

    async fn serve(mut self, listener: UnixListener) -> io::Result<()> {
        // Both ends of a pair are this process.
        let uid = UnixStream::pair()?.0.peer_cred()?.uid();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        info!("the L7 proxy is up");
        loop {
            let (has_room, listens) = (self.has_room(), self.listens());
            tokio::select! {
                accepted = listener.accept() => match accepted.and_then(|(stream, _)| {
                    let peer = stream.peer_cred()?.uid();
                    Ok((stream, peer))
                }) {
                    Ok((stream, peer)) if peer == 0 || peer == uid => self.begin(stream),
                    Ok((_, peer)) => warn!(peer, "control socket: only root is listened to"),
                    Err(error) => {
                        warn!(%error, "control socket");
                        tokio::time::sleep(TICK).await;
                    }
                },
                message = converse(&mut self.agent, listens) => {
                    if let Some(message) = message {
                        self.obey(message);
                    }
                }
                answer = self.orders.answer(), if has_room => tell(&mut self.agent, &answer?),
                _ = tick.tick() => {
                    if self.look() {
                        info!("the L7 proxy has been drained");
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Whether more may wait for the agent.
    fn has_room(&self) -> bool {
        untold(&self.agent) < MAX_UNTOLD
    }

    fn listens(&self) -> bool {
        self.has_room() && self.orders.has_room()
    }

    /// An agent has come.
    fn begin(&mut self, stream: UnixStream) {
        self.orders.begin();
        self.flows.is_told = false;
        self.flows.reports.again();
        self.agent = Some(Agent { channel: Channel::new(stream), packs: false });
    }

    fn obey(&mut self, message: ToProxy) {
        match message {
            ToProxy::Drain { within, idle } => {
                self.workers.published.drain();
                // An agent that finds it draining says it again.
                self.drain.get_or_insert_with(|| Drain::begin(within, idle));
            }
            ToProxy::Pack => self.agent.iter_mut().for_each(|agent| agent.packs = true),
            ToProxy::Taken => {
                self.flows.is_told = false;
                self.flows.reports.taken();
                self.flows.tell(&mut self.agent);
            }
            ToProxy::Record(record) => {
                self.workers.shared.iter().for_each(|worker| worker.log.set_record(record.clone()));
            }
            ToProxy::Ask { number, question } => {
                tell(&mut self.agent, &answer(&self.workers, number, question));
            }
            order => self.orders.give(order),
        }
    }

    /// Tells what has come since; whether the end is there.
    fn look(&mut self) -> bool {
        // Before the flows: what ends after this is told at the next turn.
        let is_idle = self.workers.is_idle();
        self.flows.collect(&self.workers);
        self.show_life();
        self.flows.tell(&mut self.agent);
        let Some(drain) = &self.drain else { return false };
        drain.look(&self.workers);
        let is_told = self.agent.is_none() || self.flows.is_empty() && untold(&self.agent) == 0;
        drain.is_over() || is_idle && is_told
    }

    /// Rules may take long, on a node whose cores others want: without a word the agent would think that this process hangs,
    /// and end it with all its connections.
    fn show_life(&mut self) {
        let knows_it = self.agent.as_ref().is_some_and(|agent| agent.packs && agent.channel.waiting() == 0);
        if self.life <= Instant::now() && knows_it && self.orders.has_advanced() {
            self.life = Instant::now() + LIFE;
            tell(&mut self.agent, &FromProxy::Working);
        }
    }
}

/// How the end is approached.
struct Drain {
    /// Until then connections on which nothing is under way are left to their clients.
    idle: Instant,
    /// Then all are cut.
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
        if self.end <= Instant::now() {
            workers.published.end_all();
        }
    }

    /// Nobody is waited for any more.
    fn is_over(&self) -> bool {
        self.end + LAST <= Instant::now()
    }
}

/// Sends what the agent is to be told; its next message, if it comes before all is sent and is to be listened to. Cancel safe.
async fn converse(agent: &mut Option<Agent>, listens: bool) -> Option<ToProxy> {
    let Some(Agent { channel, .. }) = agent else { return std::future::pending().await };
    let turn = match listens {
        true => channel.turn().await,
        false if channel.waiting() == 0 => return std::future::pending().await,
        false => channel.flush().await.map(|()| None),
    };
    turn.unwrap_or_else(|error| {
        if error.is_closed() {
            info!("the agent has gone; its rules stay");
        } else {
            warn!(%error, "control socket: the agent is not understood");
        }
        *agent = None;
        None
    })
}

/// Bytes that the agent has not been sent yet.
fn untold(agent: &Option<Agent>) -> usize {
    agent.as_ref().map_or(0, |agent| agent.channel.waiting())
}

fn tell(agent: &mut Option<Agent>, message: &FromProxy) {
    let Some(Agent { channel, packs }) = agent else { return };
    let put = match *packs && message.can_be_packed() {
        true => channel.put_packed(message),
        false => channel.put(message),
    };
    if let Err(error) = put {
        warn!(%error, "control socket: the agent cannot be told; it has to come again");
        *agent = None;
    }
}

fn answer(workers: &Workers, number: u64, question: ProxyQuestion) -> FromProxy {
    let answer = match question {
        ProxyQuestion::Connections => ProxyAnswer::Connections(connections(workers)),
        ProxyQuestion::Budgets => ProxyAnswer::Budgets(workers.budgets()),
        ProxyQuestion::Explain(supposed) => {
            let explained = explain(&supposed, &workers.published, &*workers.identities);
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
            let taken = worker.log.take();
            self.lost += taken.lost;
            for (number, flow) in taken.flows().enumerate() {
                self.waiting.push_back(flow);
                // A kernel that ticks every 4 ms would let it wait so long.
                if number % STRETCH == STRETCH - 1 {
                    std::thread::yield_now();
                }
            }
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
    fn tell(&mut self, agent: &mut Option<Agent>) {
        if agent.is_none() || self.is_told {
            return;
        }
        if let Some(message) = self.next() {
            self.is_told = true;
            tell(agent, &message);
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
    use std::net::IpAddr;
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::SocketAddr;

    use mesh::flow::{TrafficDirection, Verdict};
    use mesh::identity::Identity;
    use mesh::l7::{Expression, HttpRule, L7Access, L7Endpoint, L7Ports, L7Rules, TlsFlow};
    use mesh::workload::EndpointId;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::runtime::{Found, Identities};

    fn flow(length: usize) -> ProxyFlow {
        ProxyFlow {
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
        }
    }

    /// With a rule whose path has that length.
    fn set(number: u16, length: usize) -> ToProxy {
        let path = Some(Expression("a".repeat(length)));
        let http = Some([HttpRule { path, ..HttpRule::default() }].into());
        let access = vec![L7Access { peers: None, http }];
        let ports = L7Ports {
            first: 80,
            last: 80,
            access: access.into(),
            tls: Arc::default(),
            inspected: Arc::default(),
        };
        let rules = L7Rules { ports: vec![ports] };
        let endpoint = Box::new(L7Endpoint {
            id: EndpointId::new(number).unwrap(),
            instance: 1,
            workload: "default/w".parse().unwrap(),
            ipv4: [10, 0, 0, 1].into(),
            ipv6: std::net::Ipv6Addr::LOCALHOST,
            identity: Identity::new(300).unwrap(),
            ingress: Some(Arc::new(rules)),
            egress: None,
            audit: false,
            secrets: Vec::new(),
        });
        ToProxy::Set { generation: 1, endpoint }
    }

    /// No address is anybody's.
    struct Nobody;

    impl Identities for Nobody {
        fn generation(&self) -> u64 {
            0
        }

        fn find(&self, _: IpAddr) -> Found {
            Found::default()
        }
    }

    fn workers() -> Workers {
        Workers { published: Arc::default(), identities: Arc::new(Nobody), shared: Vec::new() }
    }

    fn control() -> Control {
        Control::new(workers()).unwrap()
    }

    /// Not that the process is there, but that it is at work on what it was told.
    #[tokio::test(start_paused = true)]
    async fn an_agent_whose_orders_take_long_is_told_each_second_that_something_of_them_is_done() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut agent: Channel<ToProxy, FromProxy> = Channel::new(theirs);
        let (orders, done, _thread) = Orders::without_thread();
        let mut control = Control::with(workers(), orders);
        control.begin(ours);
        let serving = tokio::spawn(control.serve(listener("life")));
        let works = async |seconds: u32| {
            for _ in 0..seconds * 10 {
                tokio::time::sleep(TICK).await;
                done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        };
        agent.send(&set(1, 1)).await.unwrap();
        let hears = async |agent: &mut Channel<ToProxy, FromProxy>, seconds| {
            let mut count = 0;
            let end = Instant::now() + Duration::from_secs(seconds);
            while let Ok(message) = tokio::time::timeout_at(end, agent.receive()).await {
                assert_eq!(message.unwrap(), FromProxy::Working);
                count += 1;
            }
            count
        };
        let (heard, ()) = tokio::join!(hears(&mut agent, 5), works(5));
        assert_eq!(heard, 0, "it might not know the word");
        agent.send(&ToProxy::Pack).await.unwrap();
        assert!(hears(&mut agent, 5).await <= 1, "what was done before was seen");
        let (heard, ()) = tokio::join!(hears(&mut agent, 10), works(10));
        assert!((8..=11).contains(&heard), "{heard}");
        assert!(hears(&mut agent, 5).await <= 1, "nothing is done any more");
        serving.abort();
    }

    /// It is told more than a megabyte, and many things, by an agent that listens only after that: the proxy has as much to
    /// say by then. Both have more to say than the socket takes.
    #[tokio::test]
    async fn an_agent_that_does_not_listen_before_it_is_heard_is_heard() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut agent: Channel<ToProxy, FromProxy> = Channel::new(theirs);
        let mut control = control();
        control.begin(ours);
        control.flows.waiting.extend((0..1024).map(|_| flow(2000)));
        let serving = tokio::spawn(control.serve(listener("test")));
        let (large, small) = (300, 3000);
        for number in 1..=large {
            agent.send(&set(number, 4000)).await.unwrap();
        }
        for number in 1..=small {
            let endpoint = EndpointId::new(number).unwrap();
            agent.send(&ToProxy::Remove { generation: 2, endpoint }).await.unwrap();
        }
        agent.send(&ToProxy::Pack).await.unwrap();
        let (mut answers, mut flows) = (0, 0);
        while answers < large + small || flows < 1024 {
            match agent.receive().await.unwrap() {
                FromProxy::Accepted { .. } => answers += 1,
                FromProxy::Flows(told) => {
                    flows += told.len();
                    agent.send(&ToProxy::Taken).await.unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
        agent.send(&ToProxy::Drain { within: 0, idle: 0 }).await.unwrap();
        serving.await.unwrap().unwrap();
    }

    /// Where nobody else comes.
    fn listener(name: &str) -> UnixListener {
        let address = SocketAddr::from_abstract_name(format!("ferromesh-{name}-{}", std::process::id()));
        let listener = Listener::bind_addr(&address.unwrap()).unwrap();
        listener.set_nonblocking(true).unwrap();
        UnixListener::from_std(listener).unwrap()
    }

    /// One whose end is there, with so many flows untold; the agent has told it to end.
    async fn ends(name: &str, flows: usize) -> (Channel<ToProxy, FromProxy>, JoinHandle<io::Result<()>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut agent: Channel<ToProxy, FromProxy> = Channel::new(theirs);
        let mut control = control();
        control.begin(ours);
        control.flows.waiting.extend((0..flows).map(|_| flow(2000)));
        let serving = tokio::spawn(control.serve(listener(name)));
        agent.send(&ToProxy::Drain { within: 0, idle: 0 }).await.unwrap();
        (agent, serving)
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_at_the_end_is_told_before_it() {
        let (mut agent, serving) = ends("end", 1024).await;
        // It is busy at first.
        tokio::time::sleep(LAST / 2).await;
        let mut flows = 0;
        while let Ok(FromProxy::Flows(told)) = agent.receive().await {
            flows += told.len();
            agent.send(&ToProxy::Taken).await.unwrap();
        }
        serving.await.unwrap().unwrap();
        assert_eq!(flows, 1024);
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_takes_nothing_does_not_put_off_the_end() {
        let begin = Instant::now();
        let (_agent, serving) = ends("late", 1024).await;
        serving.await.unwrap().unwrap();
        assert!((LAST..LAST + 2 * TICK).contains(&begin.elapsed()), "{:?}", begin.elapsed());
    }

    #[tokio::test]
    async fn an_agent_that_does_not_listen_is_not_listened_to_beyond_a_bound() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut agent: Channel<ToProxy, FromProxy> = Channel::new(theirs);
        let mut control = control();
        control.begin(ours);
        agent.send(&ToProxy::Taken).await.unwrap();
        let mut told = 0;
        while control.has_room() {
            tell(&mut control.agent, &FromProxy::Synced { generation: 1 });
            told += 1;
        }
        assert!(untold(&control.agent) < MAX_UNTOLD + 100 && !control.listens());
        let hears = async {
            for _ in 0..told {
                agent.receive().await.unwrap();
            }
        };
        let (message, ()) = tokio::join!(converse(&mut control.agent, false), hears);
        assert_eq!(message, None);
        assert!(control.listens());
        assert_eq!(converse(&mut control.agent, true).await, Some(ToProxy::Taken));
    }

    #[test]
    fn a_message_of_flows_has_a_bound() {
        let mut flows = Flows::default();
        flows.waiting.extend((0..1000).map(|_| flow(2000)));
        let batch = flows.batch();
        assert!(batch.len() > 25 && batch.len() < 35, "{}", batch.len());
        assert_eq!(flows.waiting.len() + batch.len(), 1000);
        flows.waiting.push_front(flow(1 << 20));
        assert_eq!(flows.batch().len(), 1, "what is too long goes alone");
    }
}

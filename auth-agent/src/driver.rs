//! The acting half: sockets, handshakes, certificates, maps and the hold device, around the machine that decides.
//!
//! Promise: one place feeds the machine and does what it wants, in its order; what it wants of the maps is done before
//! anything later of it is sent. Nothing here waits for one peer while others wait, and nothing that a peer or a packet
//! does ends the process. It needs no capability after [`Handed::open`].

mod act;
mod calls;
mod certificates;
mod clock;
mod control;
mod door;
mod happen;
mod hold;
mod kernel;
mod proofs;
mod sessions;
mod sparing;
#[cfg(test)]
mod testing;
mod trust;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use certs::svid::Svid;
use linux::clock::boottime;
use maps::Triggers;
use mesh::auth::{AuthPlan, Refusal};
use mesh::spiffe::SpiffeId;
use node_api::auth::ToAuthAgent;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::info;

use crate::event::Input;
use crate::machine::{Adopted, Machine, Settings};
use calls::Calls;
use certificates::{Certificates, Heard, Source};
use clock::Clock;
pub use clock::WallClock;
use control::Control;
use door::{Arrival, Door, Met};
use hold::Hold;
use kernel::Kernel;
use proofs::{Own, Proofs};
use sessions::{Event, Sessions};
use sparing::Sparing;
use trust::Trust;

/// The trust anchors, in the directory.
const BUNDLE: &str = "bundle.pem";

/// Why the auth-agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The maps.
    #[error(transparent)]
    Maps(#[from] maps::Error),
    /// Something else of what was handed over, or of the operating system.
    #[error("{what}: {source}")]
    Io {
        /// Which.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no randomness.
    #[error("no random number: {0}")]
    Random(String),
}

impl DriverError {
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// What the agent hands over.
#[derive(Debug)]
pub struct Handed {
    /// The control socket, listening.
    pub control: OwnedFd,
    /// The hold device, not blocking.
    pub hold: OwnedFd,
    /// Map `AUTH`.
    pub pairs: OwnedFd,
    /// Map `MARKS`.
    pub marks: OwnedFd,
    /// Map `LEASES`.
    pub leases: OwnedFd,
    /// Map `TRIGGERS`.
    pub triggers: OwnedFd,
    /// TCP sockets, listening for other nodes.
    pub listeners: Vec<OwnedFd>,
}

/// The same, open: from here on no right is needed that a plain user does not have.
pub struct Opened {
    kernel: Kernel,
    adopted: Adopted,
    control: OwnedFd,
    hold: OwnedFd,
    triggers: Triggers,
    listeners: Vec<OwnedFd>,
}

/// What it is told at its start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of this node.
    pub node: String,
    /// Where its CA is.
    pub ca: SocketAddr,
    /// Its directory, as it sees it then.
    pub directory: PathBuf,
    /// What certificates are valid by.
    pub wall: WallClock,
}

impl Handed {
    /// Opens the maps and reads what an earlier auth-agent has left in them.
    pub fn open(self) -> Result<Opened, DriverError> {
        let Self { control, hold, pairs, marks, leases, triggers, listeners } = self;
        let (kernel, adopted) = Kernel::open(pairs, marks, leases)?;
        let triggers = Triggers::new(maps::handed_over(abi::map::TRIGGERS, triggers)?)?;
        Ok(Opened { kernel, adopted, control, hold, triggers, listeners })
    }
}

impl Opened {
    /// Every descriptor that is needed.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let maps = self.kernel.descriptors().into_iter();
        let others = [&self.control, &self.hold].into_iter().chain(&self.listeners);
        maps.chain(others.map(AsFd::as_fd)).chain([self.triggers.as_fd()]).collect()
    }

    /// Runs until the agent says stop, or what was handed over is of no use any more. Within a runtime of one thread.
    pub async fn run(self, options: Options) -> Result<(), DriverError> {
        let now = boottime();
        let incarnation = getrandom::u64().map_err(|error| DriverError::Random(error.to_string()))?;
        let machine = Machine::new(Settings::new(incarnation), self.adopted, now);
        let listeners = self.listeners.into_iter().map(TcpListener::from).collect();
        let bundle = options.directory.join(BUNDLE);
        let source = Source { node: options.node, ca: options.ca, directory: options.directory };
        let driver = Driver {
            node: source.node.clone(),
            machine,
            kernel: self.kernel,
            hold: Hold::new(self.hold).map_err(DriverError::io("hold device"))?,
            calls: Calls::new(self.triggers).map_err(DriverError::io("ring of calls"))?,
            control: Control::new(self.control).map_err(DriverError::io("control socket"))?,
            door: Door::new(listeners).map_err(DriverError::io("listening for nodes"))?,
            sessions: Sessions::new(),
            proofs: Proofs::default(),
            certificates: Certificates::new(source),
            trust: Trust::new(bundle, Arc::new(options.wall.clone())),
            clock: Clock::read(&options.wall),
            wall: options.wall,
            plan: None,
            peers: Arc::default(),
            met: Vec::new(),
            inputs: VecDeque::from([Input::Tick]),
            is_unmarked: false,
            turned_away: BTreeMap::new(),
            log: Sparing::default(),
        };
        driver.run().await
    }
}

struct Driver {
    node: String,
    machine: Machine,
    kernel: Kernel,
    hold: Hold,
    calls: Calls,
    control: Control,
    door: Door,
    sessions: Sessions,
    proofs: Proofs,
    certificates: Certificates,
    trust: Trust,
    wall: WallClock,
    /// What it showed last.
    clock: Clock,
    plan: Option<Arc<AuthPlan>>,
    /// IDs of the nodes in it.
    peers: Arc<BTreeSet<SpiffeId>>,
    /// Who has shown a node's certificate; their sessions have not begun.
    met: Vec<Met>,
    /// What the machine has not been told yet.
    inputs: VecDeque<Input>,
    /// A mark of what is being done just now could not be set.
    is_unmarked: bool,
    /// Who was turned away, by why.
    turned_away: BTreeMap<Refusal, u64>,
    log: Sparing,
}

/// One thing that happened.
enum Happened {
    Agent(ToAuthAgent),
    Session(Event),
    Door(Arrival),
    Packets,
    Calls(Vec<Input>),
    Certificates(Heard),
    Second,
    Wake,
    Work,
}

impl Own for Certificates {
    fn svid(&self, id: &SpiffeId) -> Result<Arc<Svid>, Refusal> {
        Self::svid(self, id)
    }
}

impl Driver {
    async fn run(mut self) -> Result<(), DriverError> {
        let mut second = interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        info!("auth-agent of node {} is up", self.node);
        loop {
            self.settle();
            let wake = self.wake();
            let has_work = self.proofs.has_work();
            let happened = tokio::select! {
                message = self.control.receive() => Happened::Agent(message),
                event = self.sessions.happens() => Happened::Session(event),
                arrival = self.door.arrives() => Happened::Door(arrival),
                readable = self.hold.readable() => {
                    readable.map_err(DriverError::io("hold device"))?;
                    Happened::Packets
                }
                calls = self.calls.happen() => Happened::Calls(calls.map_err(DriverError::io("ring of calls"))?),
                answer = self.certificates.answers() => Happened::Certificates(answer),
                _ = second.tick() => Happened::Second,
                () = sleep_until(wake) => Happened::Wake,
                () = std::future::ready(()), if has_work => Happened::Work,
            };
            match happened {
                Happened::Agent(ToAuthAgent::Stop) => return Ok(()),
                Happened::Agent(message) => self.obey(message),
                Happened::Session(event) => self.heard(event),
                Happened::Door(arrival) => self.arrived(arrival),
                Happened::Packets => {
                    let held = self.hold.read().map_err(DriverError::io("hold device"))?;
                    self.inputs.extend(held);
                }
                Happened::Calls(calls) => self.inputs.extend(calls),
                Happened::Certificates(heard) => {
                    let change = self.certificates.take(heard, &mut self.trust, self.clock, boottime());
                    self.change(change);
                }
                Happened::Second => self.second(),
                Happened::Wake => self.inputs.push_back(Input::Tick),
                Happened::Work => {}
            }
            if has_work {
                self.inputs.extend(self.proofs.work(&self.certificates, &self.trust, self.clock));
                // Others of this thread have their turn between two handshakes.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Tells the machine all that has happened, and does what it wants.
    fn settle(&mut self) {
        let mut is_planned = false;
        while let Some(input) = self.inputs.pop_front() {
            is_planned |= matches!(input, Input::Plan(..));
            self.is_unmarked = false;
            for output in self.machine.handle(boottime(), input) {
                self.act(output);
            }
        }
        if is_planned {
            self.certificates.ask(&self.trust, boottime());
        }
    }

    fn wake(&self) -> Instant {
        // Whoever sleeps through it is told by the second that passes.
        let wake = self.machine.next_wake().map_or(u64::MAX, |time| time.saturating_sub(boottime()));
        Instant::now() + Duration::from_nanos(wake.min(3_600_000_000_000))
    }
}

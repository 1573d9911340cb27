//! The embedded CA, kept running: who may have which certificate is told it whole, and it is asked for join tokens.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use node_api::auth::{FromCa, Placements, ToCa};
use observe::auth::CaMetrics;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::Problem;
use super::hierarchy::Hierarchy;
use super::place::{Place, Process};
use super::process::{Backoff, Link, Start, obtain};
use super::settings::Settings;

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is asked what it has refused.
const COUNTING: Duration = Duration::from_secs(5);
/// Askers for tokens that may wait.
const ASKERS: usize = 16;

/// What a node can show who it is with, or why there is none.
type Token = Result<String, String>;

/// Placements and their number, from 1.
type Numbered = (u64, Placements);

/// Speaks to it.
#[derive(Clone)]
pub(in crate::agent) struct Authority {
    wanted: Arc<watch::Sender<Numbered>>,
    askers: mpsc::Sender<(String, oneshot::Sender<Token>)>,
    /// Number of the latest placements that it knows; 0 before the first.
    knows: watch::Receiver<u64>,
}

/// The task that keeps it running.
pub(super) struct Keeper {
    pub(super) authority: Authority,
    task: JoinHandle<()>,
}

impl Keeper {
    /// Keeps a CA running from now on.
    pub(super) fn start(
        place: Place,
        settings: Settings,
        listen: SocketAddr,
        placements: Placements,
        metrics: CaMetrics,
        problem: Problem,
    ) -> Self {
        let (wanted, wants) = watch::channel((1, placements));
        let (askers, asked) = mpsc::channel(ASKERS);
        let (tells, knows) = watch::channel(0);
        let kept = Kept { place, settings, listen, tells, metrics, problem };
        let task = tokio::spawn(kept.keep(wants, asked));
        Self { authority: Authority { wanted: Arc::new(wanted), askers, knows }, task }
    }

    pub(super) fn into_task(self) -> JoinHandle<()> {
        self.task
    }
}

impl Authority {
    /// From now on these may have certificates.
    pub(super) fn place(&self, placements: Placements) {
        self.wanted.send_if_modified(|(number, wanted)| {
            let differs = *wanted != placements;
            if differs {
                (*number, *wanted) = (*number + 1, placements);
            }
            differs
        });
    }

    /// Waits until root and intermediate have been made, but not for ever.
    pub(in crate::agent) async fn ready(&self) -> Result<(), String> {
        let mut knows = self.knows.clone();
        match timeout(PATIENCE, knows.wait_for(|known| *known != 0)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err("the CA is not there; see `ferromesh status` and its log".to_owned()),
        }
    }

    /// A token for a node; waits until the CA is there, but not for ever.
    pub(in crate::agent) async fn token(&self, node: &str) -> Token {
        let (asker, answer) = oneshot::channel();
        let ask = async {
            self.askers.send((node.to_owned(), asker)).await.ok()?;
            answer.await.ok()
        };
        let silent = || "the CA does not answer; see `ferromesh status` and its log".to_owned();
        timeout(PATIENCE, ask).await.ok().flatten().unwrap_or_else(|| Err(silent()))
    }
}

/// What it is started with.
struct Kept {
    place: Place,
    settings: Settings,
    listen: SocketAddr,
    tells: watch::Sender<u64>,
    metrics: CaMetrics,
    problem: Problem,
}

impl Kept {
    async fn keep(
        self,
        mut wanted: watch::Receiver<Numbered>,
        mut asked: mpsc::Receiver<(String, oneshot::Sender<Token>)>,
    ) {
        let mut backoff = Backoff::new();
        let mut hierarchy = Hierarchy::default();
        loop {
            let Self { place, settings, .. } = &self;
            let obtained = obtain(Process::Ca, place, settings, async || self.prepare(&mut hierarchy)).await;
            let result = match obtained {
                Ok(link) => self.serve(link, &mut hierarchy, &mut wanted, &mut asked).await,
                Err(error) => Err(error),
            };
            // Unknown is not what it was.
            self.metrics.set(None);
            match result {
                // Nobody holds the handle any more.
                Ok(()) => return,
                Err(error) => self.problem.set(format!("the embedded CA: {error}")),
            }
            backoff.wait().await;
        }
    }

    /// Root and intermediate, made at most once, and where it listens.
    fn prepare(&self, hierarchy: &mut Hierarchy) -> Result<Start, String> {
        hierarchy.make(&self.place, &self.settings)?;
        let listener = super::listen::tcp(self.listen)?;
        let lifetime = self.settings.svid_lifetime.as_secs().to_string();
        let arguments = vec!["--svid-lifetime".to_owned(), lifetime];
        Ok(Start { arguments, descriptors: vec![OwnedFd::from(listener)], cgroup: None })
    }

    async fn serve(
        &self,
        mut link: Link<ToCa, FromCa>,
        hierarchy: &mut Hierarchy,
        wanted: &mut watch::Receiver<Numbered>,
        asked: &mut mpsc::Receiver<(String, oneshot::Sender<Token>)>,
    ) -> Result<(), String> {
        let adopted = link.adopted;
        self.put(&mut link, wanted).await?;
        tracing::info!(adopted, "the embedded CA is there");
        self.problem.clear();
        // At once for one that was taken over, which may have run for long.
        let mut due = Instant::now();
        let mut counting = interval(COUNTING);
        counting.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = counting.tick() => match ask(&mut link, ToCa::Count).await? {
                    FromCa::Refused(counts) => self.metrics.set(Some(counts)),
                    _ => return Err("it answered something else than was asked".to_owned()),
                },
                () = sleep_until(due) => due = Instant::now() + self.renew(hierarchy),
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.put(&mut link, wanted).await?;
                }
                Some((node, asker)) = asked.recv() => {
                    let answer = match ask(&mut link, ToCa::Token { node }).await? {
                        FromCa::Token(token) => Ok(token),
                        FromCa::Error(text) => Err(text),
                        FromCa::Placed | FromCa::Refused(_) => return Err("it answered something else than was asked".to_owned()),
                    };
                    // Who asked may be gone.
                    let _ = asker.send(answer);
                }
                unasked = link.channel.receive() => return Err(match unasked {
                    Ok(_) => "it answered without being asked".to_owned(),
                    Err(error) => format!("it has ended: {error}"),
                }),
            }
        }
    }

    /// For a CA that runs; how long to wait before the next time.
    fn renew(&self, hierarchy: &mut Hierarchy) -> Duration {
        match hierarchy.make(&self.place, &self.settings) {
            Ok(period) => {
                self.problem.clear();
                period
            }
            Err(error) => {
                self.problem.set(format!("the embedded CA: {error}"));
                Hierarchy::again()
            }
        }
    }

    async fn put(
        &self,
        link: &mut Link<ToCa, FromCa>,
        wanted: &mut watch::Receiver<Numbered>,
    ) -> Result<(), String> {
        let (number, placements) = wanted.borrow_and_update().clone();
        match ask(link, ToCa::Place(placements)).await? {
            FromCa::Placed => {
                self.tells.send_replace(number);
                Ok(())
            }
            FromCa::Error(text) => Err(text),
            FromCa::Token(_) | FromCa::Refused(_) => {
                Err("it answered something else than was asked".to_owned())
            }
        }
    }
}

async fn ask(link: &mut Link<ToCa, FromCa>, question: ToCa) -> Result<FromCa, String> {
    let answer = async {
        link.channel.send(&question).await?;
        link.channel.receive().await
    };
    match timeout(PATIENCE, answer).await {
        Ok(answer) => answer.map_err(|error| format!("it has ended: {error}")),
        Err(_) => Err("it does not answer".to_owned()),
    }
}

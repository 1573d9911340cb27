//! The proxy, as the agent has it: told what to enforce, asked, and kept running by a task of its own ([`House`]).

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use mesh::l7::L7Plan;
use node_api::proxy::{ProxyAnswer, ProxyQuestion, ProxyRestarted};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::house::House;
use super::standing::Standing;
use super::talk::{Asked, Kernel, Numbered};
use super::{Event, Refusals, Settings, Sink};
use crate::agent::auth::place::Place;

/// For how long it may say neither an answer nor that it is at work on one; and how long it may take to take a message, or to
/// answer who asks.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Questions that may wait.
pub(super) const ASKERS: usize = 64;

/// Who wants another process to take the proxy's place.
pub(super) type Restart = oneshot::Sender<Result<ProxyRestarted, String>>;

/// The task that keeps it running, and what it is told.
pub(super) struct Keeper {
    task: JoinHandle<()>,
    wanted: watch::Sender<Numbered>,
    standing: watch::Receiver<Standing>,
    pub(super) kernel: watch::Sender<Kernel>,
    pub(super) askers: Askers,
}

/// Asks it.
#[derive(Clone)]
pub(in crate::agent) struct Askers {
    questions: mpsc::Sender<Asked>,
    restarts: mpsc::Sender<Restart>,
}

/// What it is started and kept with.
pub(super) struct Surroundings {
    pub(super) place: Place,
    pub(super) cgroup: PathBuf,
    pub(super) settings: Settings,
    /// Read-only: `NODE`, `ENDPOINTS`, `ASSIGNMENTS`, `IPCACHE`.
    pub(super) maps: Vec<OwnedFd>,
    pub(super) sink: Sink,
    pub(super) refusals: Refusals,
    pub(super) problem: Arc<Mutex<Option<String>>>,
    /// What it has too little of; it works all the same.
    pub(super) shortage: Arc<Mutex<Option<String>>>,
    pub(super) events: mpsc::Sender<Event>,
    /// The kernel was told that there is none; when it has answered, [`Event::Ready`] is due once more.
    pub(super) doubted: Arc<AtomicBool>,
    /// As [`PATIENCE`].
    pub(super) patience: Duration,
}

impl Keeper {
    /// Keeps a proxy running from now on.
    pub(super) fn start(surroundings: Surroundings, plan: Arc<L7Plan>) -> Self {
        // Higher than all that an earlier agent has told one that lives on.
        let (wanted, wants) = watch::channel((linux::clock::boottime(), plan));
        let (kernel, goes_by) = watch::channel(Kernel::Unsettled);
        let (questions, asked) = mpsc::channel(ASKERS);
        let (restarts, restarted) = mpsc::channel(1);
        let (house, standing) = House::new(surroundings, wants, goes_by);
        let task = tokio::spawn(house.keep(asked, restarted));
        Self { task, wanted, standing, kernel, askers: Askers { questions, restarts } }
    }

    /// Keeps it no more; it goes on. What is returned ends.
    pub(super) fn close(self) -> JoinHandle<()> {
        // Before what it is told by is gone: a process that is not talked to any more would be ended.
        self.task.abort();
        self.task
    }

    /// From now on this is to be enforced.
    pub(super) fn tell(&self, plan: Arc<L7Plan>) {
        self.wanted.send_if_modified(|(number, wanted)| {
            let differs = !Arc::ptr_eq(wanted, &plan) && *wanted != plan;
            if differs {
                *number += 1;
                *wanted = plan;
            }
            differs
        });
    }

    /// The kernel has what was told last, and goes by no plan of an earlier agent.
    pub(super) fn follow(&self) {
        self.kernel.send_replace(Kernel::Latest);
    }

    /// No plan of this agent's is in force; the kernel goes by an earlier one's.
    pub(super) fn stay(&self) {
        self.kernel.send_replace(Kernel::Earlier);
    }

    /// Waits until it has answered all of the latest plan; false: that takes longer.
    pub(super) fn settle(&self, until: Instant) -> impl Future<Output = bool> + use<> {
        let (number, mut standing) = (self.wanted.borrow().0, self.standing.clone());
        async move {
            let settled = standing.wait_for(|standing| standing.is_settled(number));
            matches!(timeout_at(until, settled).await, Ok(Ok(_)))
        }
    }

    /// Whether it has.
    pub(super) fn is_settled(&self) -> bool {
        self.standing.borrow().is_settled(self.wanted.borrow().0)
    }

    /// Whether there is one that has its rules.
    pub(super) fn is_ready(&self) -> bool {
        self.standing.borrow().is_ready()
    }

    /// Processes that another has followed and that still have connections.
    pub(super) fn draining(&self) -> usize {
        self.standing.borrow().draining()
    }

    /// One that says nothing.
    #[cfg(test)]
    pub(super) fn silent(plan: Arc<L7Plan>) -> (Self, watch::Receiver<Numbered>, watch::Sender<Standing>) {
        let (wanted, wants) = watch::channel((1, plan));
        let answered = [(1, super::standing::Answered::default())].into();
        let (stands, standing) = watch::channel(Standing { serving: Some(1), next: None, answered });
        let task = tokio::spawn(std::future::pending());
        let (kernel, questions, restarts) =
            (watch::Sender::new(Kernel::Unsettled), mpsc::channel(1).0, mpsc::channel(1).0);
        (Self { task, wanted, standing, kernel, askers: Askers { questions, restarts } }, wants, stands)
    }
}

impl Askers {
    /// None if it does not answer.
    pub(in crate::agent) async fn ask(&self, question: ProxyQuestion) -> Option<ProxyAnswer> {
        let (asker, answer) = oneshot::channel();
        let ask = async {
            self.questions.send((question, asker)).await.ok()?;
            answer.await.ok()
        };
        timeout(PATIENCE, ask).await.ok().flatten()
    }

    /// Has another process take its place; returns when that one takes connections.
    pub(in crate::agent) async fn restart(&self) -> Result<ProxyRestarted, String> {
        let (asker, answer) = oneshot::channel();
        let gone = || "the agent ends".to_owned();
        self.restarts.send(asker).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

//! The processes of the proxy, and what they are told: one takes connections; when it ends another is started with the same
//! listening sockets. On request, and where it is of another build, another is started beside it, told everything, and then
//! takes its place: both have the same sockets, so nobody who connects meanwhile is lost; the one before ends with its
//! connections.
//!
//! Promise: a process that runs is talked to, or is ended; where that fails it is tried again, each second.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use node_api::proxy::{FromProxy, ProxyAnswer, ProxyQuestion, ProxyRestarted, ToProxy};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{Id, JoinError, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use super::Event;
use super::digest::Digest;
use super::escort::escort;
use super::incarnations::{Incarnation, Incarnations};
use super::keeper::{ASKERS, Restart, Surroundings};
use super::listeners::Listeners;
use super::questions::ask_all;
use super::standing::{Answered, Standing};
use super::talk::{Asked, IDLE, Kernel, Listening, Lost, Numbered, Talk, Told, WITHIN};
use crate::agent::auth::process::{Backoff, Link, Start};

/// For so long without a proxy connections wait for the next one.
const ABSENCE: Duration = Duration::from_secs(1);
/// After so long it is tried again to end what could not be ended.
const AGAIN: Duration = Duration::from_secs(1);

/// One process that is talked to.
struct Attended {
    asks: mpsc::Sender<Asked>,
    drain: watch::Sender<bool>,
    /// It is of this build.
    answers: bool,
}

/// The processes, and what they are told.
pub(super) struct House {
    surroundings: Surroundings,
    wanted: watch::Receiver<Numbered>,
    kernel: watch::Receiver<Kernel>,
    incarnations: Incarnations,
    attended: BTreeMap<u32, Attended>,
    talks: JoinSet<Lost>,
    /// With whom each is.
    partners: BTreeMap<Id, u32>,
    /// Some process may run that is neither talked to nor ended: then that is tried.
    tidies: Option<Instant>,
    standing: Arc<watch::Sender<Standing>>,
    /// Who waits for the next one.
    restart: Option<Restart>,
    listeners: Option<Listeners>,
    /// The kernel is to be told that there is one.
    untold: bool,
    absence: Option<JoinHandle<()>>,
}

impl Drop for House {
    fn drop(&mut self) {
        self.present();
    }
}

impl House {
    pub(super) fn new(
        surroundings: Surroundings,
        wanted: watch::Receiver<Numbered>,
        kernel: watch::Receiver<Kernel>,
    ) -> (Self, watch::Receiver<Standing>) {
        let (standing, stands) = watch::channel(Standing::default());
        let house = Self {
            incarnations: Incarnations::new(surroundings.place.clone()),
            surroundings,
            wanted,
            kernel,
            attended: BTreeMap::new(),
            talks: JoinSet::new(),
            partners: BTreeMap::new(),
            tidies: None,
            standing: Arc::new(standing),
            restart: None,
            listeners: None,
            untold: false,
            absence: None,
        };
        (house, stands)
    }

    /// Until nobody wants it any more.
    pub(super) async fn keep(
        mut self,
        mut asked: mpsc::Receiver<Asked>,
        mut restarts: mpsc::Receiver<Restart>,
    ) {
        let mut backoff = Backoff::new();
        let mut stands = self.standing.subscribe();
        let mut wanted = self.wanted.clone();
        loop {
            if self.serving().is_none()
                && let Err(error) = self.begin().await
            {
                self.report(error);
                self.absent();
                backoff.wait().await;
                continue;
            }
            tokio::select! {
                Some(ended) = self.talks.join_next_with_id() => {
                    if self.ended(ended).await {
                        backoff.wait().await;
                    }
                }
                () = at(self.tidies) => self.tidy().await,
                Ok(()) = stands.changed() => self.look().await,
                Some((question, asker)) = asked.recv() => self.ask(question, asker),
                Some(asker) = restarts.recv() => self.restart(asker).await,
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn serving(&self) -> Option<u32> {
        self.standing.borrow().serving
    }

    /// Said once, however often it happens.
    fn report(&self, error: String) {
        let mut problem = self.surroundings.problem.lock();
        if problem.as_ref() != Some(&error) {
            tracing::error!("the L7 proxy: {error}");
            *problem = Some(error);
        }
    }

    /// The same, of what has to be tried again.
    fn untidy(&mut self, error: String) {
        self.report(error);
        self.tidies = Some(Instant::now() + AGAIN);
    }

    /// Ends whoever runs and is not talked to.
    async fn tidy(&mut self) {
        self.tidies = None;
        let known = self.incarnations.known();
        for Incarnation { number, pid, .. } in known {
            if !self.attended.contains_key(&number)
                && let Err(error) = self.incarnations.end(number).await
            {
                self.untidy(format!("process {pid} is not talked to and cannot be ended: {error}"));
            }
        }
        if let Err(error) = self.incarnations.end_unknown().await {
            self.untidy(error);
        }
    }

    /// Nobody takes connections: if that lasts, the kernel is told.
    fn absent(&mut self) {
        if self.absence.is_none() {
            let events = self.surroundings.events.clone();
            self.absence = Some(tokio::spawn(async move {
                sleep(ABSENCE).await;
                // Who listens may be gone with the agent.
                let _ = events.send(Event::Gone).await;
            }));
        }
    }

    fn present(&mut self) {
        if let Some(absence) = self.absence.take() {
            absence.abort();
        }
    }

    /// Finds those that run; if none of them can go on serving, starts one.
    async fn begin(&mut self) -> Result<(), String> {
        self.incarnations.find().await?;
        for one in self.incarnations.known().iter().rev() {
            if !self.attended.contains_key(&one.number)
                && let Err(error) = self.adopt(one).await
            {
                // Another one may serve all the same.
                self.untidy(error);
            }
        }
        let serving = match self.serving() {
            Some(serving) => serving,
            None => self.start(false).await?,
        };
        self.untold = true;
        self.standing.send_modify(|standing| standing.serving = Some(serving));
        Ok(())
    }

    /// Talks to one that another agent has started, or that was lost sight of.
    async fn adopt(&mut self, one: &Incarnation) -> Result<(), String> {
        let Incarnation { number, pid, ref settings, drains, ref rules } = *one;
        let Ok(stream) = UnixStream::connect(self.incarnations.socket(number)).await else {
            return self.incarnations.end(number).await;
        };
        let own = &self.surroundings.settings;
        if !drains && self.listeners.is_none() && settings.workers == own.workers {
            let found = Listeners::of(pid, settings.workers);
            self.listeners = found.inspect_err(|error| tracing::error!("the L7 proxy: {error}")).ok();
        }
        let serves = settings == own && !drains && self.serving().is_none();
        if serves && self.listeners.is_none() {
            return self.incarnations.end(number).await;
        }
        if settings.build == own.build {
            self.talk(number, Link::adopted(stream), drains, false);
        } else {
            let (plan, wanted) = self.wanted.borrow().clone();
            if rules.is_none() || *rules != Digest::of(&wanted.endpoints) {
                tracing::info!(
                    pid,
                    "an L7 proxy of another build has other rules than those of now, and is ended"
                );
                return self.incarnations.end(number).await;
            }
            self.escort(number, plan, stream, drains);
        }
        if serves {
            self.standing.send_modify(|standing| standing.serving = Some(number));
        }
        Ok(())
    }

    /// Starts one more, with the listening sockets of those before: at once to serve, or first beside the one that does.
    async fn start(&mut self, is_next: bool) -> Result<u32, String> {
        let Surroundings { cgroup, settings, maps, .. } = &self.surroundings;
        if self.listeners.is_none() {
            self.listeners = Some(Listeners::open(cgroup, settings.workers)?);
        }
        let mut descriptors = Vec::new();
        for map in maps {
            descriptors.push(map.try_clone().map_err(|error| format!("copying a descriptor: {error}"))?);
        }
        if let Some(listeners) = &self.listeners {
            descriptors.extend(listeners.copies()?);
        }
        let arguments = ["--workers".to_owned(), settings.workers.to_string()].into();
        let start = Start { arguments, descriptors, cgroup: Some(cgroup.clone()) };
        let (number, child) = self.incarnations.start(settings, start)?;
        let socket = self.incarnations.socket(number);
        match UnixStream::connect(&socket).await {
            Ok(stream) => self.talk(number, Link::started(stream, child), false, is_next),
            Err(error) => {
                self.incarnations.end(number).await?;
                return Err(format!("{}: {error}", socket.display()));
            }
        }
        Ok(number)
    }

    fn talk(&mut self, number: u32, link: Link<ToProxy, FromProxy>, drains: bool, is_next: bool) {
        let Surroundings { sink, refusals, patience, .. } = &self.surroundings;
        let (sink, refusals, standing) = (sink.clone(), Arc::clone(refusals), Arc::clone(&self.standing));
        let note = self.incarnations.note(number);
        let talk = Talk::new(number, link, Listening { sink, refusals, standing, note }, *patience);
        let told = self.attend(number, drains, true);
        // At once: nobody waits for its answers.
        self.standing.send_modify(|standing| {
            standing.answered.insert(number, Answered::default());
            standing.next = if is_next { Some(number) } else { standing.next };
        });
        let talk = self.talks.spawn(talk.run(told));
        self.partners.insert(talk.id(), number);
    }

    /// It has the rules of the plan of this number.
    fn escort(&mut self, number: u32, plan: u64, stream: UnixStream, drains: bool) {
        let (sink, patience) = (self.surroundings.sink.clone(), self.surroundings.patience);
        let told = self.attend(number, drains, false);
        // It stands where it stands until something else is wanted, which ends it.
        self.standing.send_modify(|standing| {
            standing.answered.insert(number, Answered { plan, synced: false, takes: true });
        });
        let talk = self.talks.spawn(escort(Link::adopted(stream), told, plan, sink, patience));
        self.partners.insert(talk.id(), number);
    }

    fn attend(&mut self, number: u32, drains: bool, answers: bool) -> Told {
        let (asks, asked) = mpsc::channel(ASKERS);
        let (drain, due) = watch::channel(drains);
        self.attended.insert(number, Attended { asks, drain, answers });
        let (wanted, kernel) = (self.wanted.clone(), self.kernel.clone());
        Told { wanted, kernel, asked, drain: due }
    }

    /// A talk is over; whether nobody serves by that.
    async fn ended(&mut self, ended: Result<(Id, Lost), JoinError>) -> bool {
        let (talk, lost) = ended.unwrap_or_else(|error| {
            (error.id(), Lost::Hangs("an error of the program has ended the talk with it".to_owned()))
        });
        match self.partners.remove(&talk) {
            Some(number) => self.lost(number, lost).await,
            None => false,
        }
    }

    /// One is not talked to any more; whether it was the one that served, and none follows it.
    async fn lost(&mut self, number: u32, lost: Lost) -> bool {
        self.attended.remove(&number);
        let (served, was_next, is_followed) = {
            let standing = self.standing.borrow();
            let (served, was_next) = (standing.serving == Some(number), standing.next == Some(number));
            (served, was_next, served && standing.next.is_some())
        };
        // One that still serves may be talked to again, unless it hangs, or another does in its place.
        let may_go_on = served && !is_followed && matches!(lost, Lost::Ended(_));
        if !may_go_on && let Err(error) = self.incarnations.end(number).await {
            self.untidy(format!("it is not talked to and cannot be ended: {error}"));
        }
        // Now that it is not there it holds up nothing.
        self.standing.send_modify(|standing| {
            standing.answered.remove(&number);
            standing.next.take_if(|next| *next == number);
            if served {
                standing.serving = standing.next.take();
            }
        });
        let why = lost.why();
        match (served, self.restart.take_if(|_| was_next || is_followed)) {
            (true, asker) => {
                self.untold = true;
                self.absent();
                if let Some(asker) = asker {
                    // Who asked may be gone.
                    let _ = asker.send(Err(format!("the L7 proxy ended before another could follow: {why}")));
                }
                self.report(why);
            }
            (false, Some(asker)) => {
                let why = format!(
                    "the new L7 proxy does not come up, and the one before goes on: {why}; see proxy.log"
                );
                // Who asked may be gone.
                let _ = asker.send(Err(why));
            }
            (false, None) => tracing::info!(number, why, "an L7 proxy that another has followed has ended"),
        }
        served && !is_followed
    }

    /// Somebody has come further.
    async fn look(&mut self) {
        let standing = self.standing.borrow().clone();
        if let Some(next) = standing.next.filter(|next| standing.is_synced(*next)) {
            self.standing.send_modify(|standing| (standing.serving, standing.next) = (Some(next), None));
            self.follow(next, standing.serving);
            return;
        }
        let Some(serving) = standing.serving.filter(|serving| standing.is_synced(*serving)) else { return };
        self.present();
        *self.surroundings.problem.lock() = None;
        *self.surroundings.shortage.lock() = self.shortage(serving);
        if standing.is_settled(self.wanted.borrow().0) {
            let is_due = self.surroundings.doubted.swap(false, Ordering::SeqCst);
            if std::mem::take(&mut self.untold) | is_due
                && let Err(error) = self.ready().await
            {
                self.untold = true;
                return self.report(error);
            }
        }
        // After the kernel knows of the one that serves: then nobody is led to others.
        if !self.untold {
            self.drain_others(serving);
        }
    }

    /// The next one has taken the place of the one before.
    fn follow(&mut self, next: u32, before: Option<u32>) {
        let pid = |number: u32| self.incarnations.pid(number);
        let pids = before.and_then(pid).zip(pid(next));
        if let Some(asker) = self.restart.take() {
            let done = pids.map(|(from, to)| ProxyRestarted {
                from,
                to,
                idle: IDLE.as_secs(),
                within: WITHIN.as_secs(),
            });
            // Who asked may be gone.
            let _ =
                asker.send(done.ok_or_else(|| "the L7 proxy had ended by itself, and is back".to_owned()));
        }
    }

    /// All but the one that serves, and one that is to follow it.
    fn drain_others(&mut self, serving: u32) {
        let next = self.standing.borrow().next;
        let others: Vec<u32> =
            self.attended.keys().copied().filter(|it| *it != serving && Some(*it) != next).collect();
        for number in others {
            let Some(attended) = self.attended.get(&number) else { continue };
            if *attended.drain.borrow() {
                continue;
            }
            if let Err(error) = self.incarnations.drains(number) {
                self.report(error);
            }
            // Whatever becomes of the note: two that take connections are one too many.
            attended.drain.send_replace(true);
        }
    }

    /// Another process is to take the place of the one that serves.
    async fn restart(&mut self, asker: Restart) {
        let started = match self.hindrance() {
            Some(why) => Err(why),
            None => self.start(true).await,
        };
        match started {
            Ok(_) => self.restart = Some(asker),
            Err(why) => {
                // What was begun of it may run.
                self.tidies = Some(Instant::now() + AGAIN);
                // Who asked may be gone.
                drop(asker.send(Err(why)));
            }
        }
    }

    fn hindrance(&self) -> Option<String> {
        let standing = self.standing.borrow();
        let is_old = |number: &&u32| Some(**number) != standing.serving;
        match standing.serving {
            None => Some("the L7 proxy is being started already".to_owned()),
            Some(_) if self.restart.is_some() || standing.next.is_some() => {
                Some("the L7 proxy is being restarted already".to_owned())
            }
            Some(serving) if !standing.is_synced(serving) => {
                Some("the L7 proxy has not got its rules yet; try again when `ferromesh status` shows it".to_owned())
            }
            Some(_) => standing.answered.keys().find(is_old).map(|old| {
                let pid = self.incarnations.pid(*old).unwrap_or_default();
                format!(
                    "process {pid}, which was followed by another before, still has connections (`ferromesh proxy \
                     connections`); try again when it has ended: {} s after that at the latest",
                    WITHIN.as_secs()
                )
            }),
        }
    }

    /// Asks all that have connections, and answers for all of them; what would become of a request, the one that takes
    /// connections alone.
    fn ask(&self, question: ProxyQuestion, asker: oneshot::Sender<ProxyAnswer>) {
        let Some(serving) = self.serving() else { return };
        let next = self.standing.borrow().next;
        let is_of_all = !matches!(question, ProxyQuestion::Explain(_));
        let those = self.attended.iter().filter(|(number, it)| {
            it.answers && Some(**number) != next && (is_of_all || **number == serving)
        });
        let all: Vec<_> = those.map(|(number, it)| (*number == serving, it.asks.clone())).collect();
        tokio::spawn(ask_all(all, question, asker));
    }

    /// What it has too little of for all that it may do.
    fn shortage(&self, serving: u32) -> Option<String> {
        let pid = self.incarnations.pid(serving)?;
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
        too_few_files(&limits, self.surroundings.settings.workers)
    }

    /// The kernel may send connections to it.
    async fn ready(&self) -> Result<(), String> {
        let path = &self.surroundings.cgroup;
        // The number of a cgroup is that of its directory.
        let cgroup = std::fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?.ino();
        let listeners = self.listeners.as_ref().map(Listeners::copies).transpose()?.unwrap_or_default();
        // Who listens may be gone with the agent.
        let _ = self.surroundings.events.send(Event::Ready { cgroup, listeners }).await;
        Ok(())
    }
}

/// Never, if there is none.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// By `/proc/PID/limits`.
pub(super) fn too_few_files(limits: &str, workers: usize) -> Option<String> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let files: u64 = line.split_whitespace().next()?.parse().ok()?;
    let needed = l7_proxy::listener::descriptors(workers);
    (files < needed).then(|| {
        format!(
            "it may open {files} files, and its {workers} workers up to {needed}: connections beyond that wait; start the \
             agent with a higher limit (LimitNOFILE={needed})"
        )
    })
}

#[cfg(test)]
mod tests;

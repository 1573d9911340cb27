//! The access log: exchanges that the proxy has told, as lines in a file.
//!
//! Promise: whoever tells never waits for the disk: what a thread of its own has not written yet has a bound, and what is
//! beyond it is counted as dropped. A file that was moved or deleted, as log rotation does it, is opened anew.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use control::kind::configuration::AccessLog as Settings;
use l4_datapath::flow::Context;
use mesh::access_log::Layout;
use mesh::exchange::Exchange;
use observe::access_log::{Seen, write};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// The agent's own output.
const STDOUT: &str = "/dev/stdout";
/// Batches that wait to be written; each takes some hundred kilobytes at most.
const WAITING: usize = 64;
/// How often it is looked whether the file is still there, and tried again if it cannot be written.
const LOOK: Duration = Duration::from_secs(1);

type Batch = (Arc<Context>, Vec<Exchange>);

/// Counts of lines; a clone counts into the same series.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    written: Counter,
    dropped: Counter,
}

impl Metrics {
    /// Registers `ferromesh_access_log_lines_total` and `ferromesh_access_log_dropped_total`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("access_log_lines", "Lines of the access log", metrics.written.clone());
        registry.register(
            "access_log_dropped",
            "Requests that are not in the access log: the proxy or the disk had no room for more",
            metrics.dropped.clone(),
        );
        metrics
    }
}

/// Where exchanges go that are to be logged; a clone goes there too.
#[derive(Clone)]
pub(crate) struct AccessLog {
    metrics: Metrics,
    /// None: nothing is logged.
    queue: Option<SyncSender<Batch>>,
    problem: Arc<Mutex<Option<String>>>,
}

impl AccessLog {
    /// Writes from now on, until all clones are gone.
    pub(crate) fn start(settings: Option<&Settings>, registry: &mut Registry) -> io::Result<Self> {
        let (metrics, problem) = (Metrics::register(registry), Arc::default());
        let Some(settings) = settings else { return Ok(Self { metrics, queue: None, problem }) };
        let (queue, batches) = sync_channel(WAITING);
        let writer = Writer {
            path: settings.path.clone(),
            layout: settings.layout.clone(),
            metrics: metrics.clone(),
            problem: Arc::clone(&problem),
            file: None,
            looked: None,
            is_torn: false,
        };
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || writer.run(&batches))?;
        Ok(Self { metrics, queue: Some(queue), problem })
    }

    /// What is over, and how many are missing.
    pub(super) fn take(&self, context: &Arc<Context>, exchanges: Vec<Exchange>, lost: u64) {
        self.metrics.dropped.inc_by(lost);
        let Some(queue) = self.queue.as_ref().filter(|_| !exchanges.is_empty()) else { return };
        if let Err(TrySendError::Full((_, exchanges)) | TrySendError::Disconnected((_, exchanges))) =
            queue.try_send((Arc::clone(context), exchanges))
        {
            self.metrics.dropped.inc_by(exchanges.len() as u64);
        }
    }

    /// Why it cannot be written, if it cannot.
    pub(crate) fn problem(&self) -> Option<String> {
        self.problem.lock().clone()
    }
}

/// The thread's.
struct Writer {
    path: PathBuf,
    layout: Layout,
    metrics: Metrics,
    problem: Arc<Mutex<Option<String>>>,
    file: Option<File>,
    looked: Option<Instant>,
    /// The last write may have stopped within a line.
    is_torn: bool,
}

impl Writer {
    fn run(mut self, batches: &Receiver<Batch>) {
        let mut lines = String::new();
        loop {
            match batches.recv_timeout(LOOK) {
                Ok((context, exchanges)) => {
                    lines.clear();
                    for exchange in &exchanges {
                        line(&self.layout, &context, exchange, &mut lines);
                    }
                    self.put(&lines, exchanges.len() as u64);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn put(&mut self, lines: &str, count: u64) {
        let end = if self.is_torn { "\n" } else { "" };
        let lines = [end.as_bytes(), lines.as_bytes()];
        let written = self.reopen().and_then(|()| match &mut self.file {
            Some(file) => lines.iter().try_for_each(|part| file.write_all(part)),
            None => lines.iter().try_for_each(|part| io::stdout().lock().write_all(part)),
        });
        match written {
            Ok(()) => {
                self.is_torn = false;
                self.metrics.written.inc_by(count);
                *self.problem.lock() = None;
            }
            Err(error) => {
                self.is_torn |= self.file.take().is_some();
                self.metrics.dropped.inc_by(count);
                let text = format!("the access log {} cannot be written: {error}", self.path.display());
                let mut problem = self.problem.lock();
                if problem.as_ref() != Some(&text) {
                    tracing::error!("{text}");
                    *problem = Some(text);
                }
            }
        }
    }

    /// Opens the file if it is not the one that has the path.
    fn reopen(&mut self) -> io::Result<()> {
        if self.path == Path::new(STDOUT) {
            return Ok(());
        }
        let is_fresh = self.looked.is_some_and(|looked| looked.elapsed() < LOOK);
        if let Some(file) = &self.file {
            if is_fresh {
                return Ok(());
            }
            let (ours, there) = (file.metadata()?, std::fs::metadata(&self.path));
            if there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
                self.looked = Some(Instant::now());
                return Ok(());
            }
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o640)
            // Whoever may write in that directory chooses neither another file for root, nor that this waits for ever.
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&self.path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        self.file = Some(file);
        self.looked = Some(Instant::now());
        Ok(())
    }
}

fn line(layout: &Layout, context: &Context, exchange: &Exchange, lines: &mut String) {
    let source = context.at(exchange.client, exchange.client_identity);
    let destination = context.at(exchange.server, exchange.server_identity);
    let node = context.node();
    write(layout, &Seen { exchange, source: &source, destination: &destination, node }, lines);
}

#[cfg(test)]
mod tests {
    use mesh::flow::Verdict;

    use super::*;

    fn exchange(path: &str) -> Exchange {
        Exchange {
            start: 0,
            client: "10.0.0.1:1000".parse().unwrap(),
            server: "10.0.0.2:80".parse().unwrap(),
            client_identity: None,
            server_identity: None,
            is_passed: true,
            is_https: false,
            method: "GET".to_owned(),
            authority: String::new(),
            path: path.to_owned(),
            protocol: "HTTP/1.1".to_owned(),
            server_name: None,
            code: Some(200),
            verdict: Verdict::Forwarded,
            reason: None,
            flag: None,
            received: 0,
            sent: 0,
            duration: 0,
            answered: None,
            served: None,
            request_headers: Vec::new(),
            response_headers: Vec::new(),
        }
    }

    fn context() -> Arc<Context> {
        Arc::new(Context::new("node".to_owned(), Arc::default(), Arc::default()))
    }

    fn writer(path: &Path) -> Writer {
        Writer {
            path: path.to_owned(),
            layout: Layout::Text("%REQ(:PATH)% %HOSTNAME%".parse().unwrap()),
            metrics: Metrics::default(),
            problem: Arc::default(),
            file: None,
            looked: None,
            is_torn: false,
        }
    }

    #[test]
    fn lines_are_written_and_a_file_that_was_moved_is_opened_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let mut writer = writer(&path);
        let mut lines = String::new();
        line(&writer.layout, &context(), &exchange("/a"), &mut lines);
        writer.put(&lines, 1);
        let moved = directory.path().join("access.log.1");
        std::fs::rename(&path, &moved).unwrap();
        // As if a second had gone by.
        writer.looked = None;
        writer.put("second\n", 1);
        assert_eq!(std::fs::read_to_string(&moved).unwrap(), "/a node\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "second\n");
        assert_eq!(writer.metrics.written.get(), 2);
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_said() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none/access.log");
        let mut writer = writer(&path);
        writer.put("a\nb\n", 2);
        assert_eq!(writer.metrics.dropped.get(), 2);
        assert!(writer.problem.lock().as_ref().unwrap().contains("cannot be written"));
        std::fs::create_dir(directory.path().join("none")).unwrap();
        writer.put("c\n", 1);
        assert_eq!((writer.metrics.written.get(), writer.problem.lock().clone()), (1, None));
    }

    #[test]
    fn who_tells_never_waits_and_what_has_no_room_is_counted() {
        let (queue, _batches) = sync_channel(1);
        let log = AccessLog { metrics: Metrics::default(), queue: Some(queue), problem: Arc::default() };
        log.take(&context(), vec![exchange("/a")], 5);
        log.take(&context(), vec![exchange("/b"), exchange("/c")], 0);
        assert_eq!(log.metrics.dropped.get(), 7);
    }

    #[test]
    fn what_is_taken_is_in_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let layout = Layout::Text("%REQ(:PATH)%".parse().unwrap());
        let mut registry = Registry::default();
        let settings = Settings { path: path.clone(), layout };
        let log = AccessLog::start(Some(&settings), &mut registry).unwrap();
        log.take(&context(), vec![exchange("/a"), exchange("/b")], 0);
        while log.metrics.written.get() < 2 {
            std::thread::yield_now();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "/a\n/b\n");
    }
}

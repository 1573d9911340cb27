//! How many instructions the L7 proxy executes for a request, counted by valgrind.
//!
//! There are no hardware counters in most virtual machines, and time says little on a busy one; valgrind executes each
//! instruction in user space itself and counts it. The example `allow_all` of the proxy's crate serves one connection on
//! loopback, one request after the other; client and server say nothing before it sleeps, so that it never finds an answer
//! that it has not waited for, or always would. Two runs of different length are compared: what happens once cancels out.
//! What the kernel does is not counted.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::binary;

/// Requests of the two runs.
const RUNS: [u64; 2] = [300, 1300];
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

const REQUEST: &[u8] =
    b"GET /bench/x HTTP/1.1\r\nHost: server.default.svc.cluster.local\r\nUser-Agent: l7load\r\nAccept: */*\r\n\r\n";

/// For a request whose answer has a body of this length.
pub fn of_a_request(body: usize) -> Result<u64, String> {
    let count = || -> io::Result<u64> {
        let proxy = Arc::new(AtomicI32::new(0));
        let server = serve(body, Arc::clone(&proxy))?;
        let run = |requests| run(server, body, requests, &proxy);
        let [few, many] = RUNS;
        Ok(run(many)?.saturating_sub(run(few)?) / (many - few))
    };
    count().map_err(|error| error.to_string())
}

/// All that is executed for so many requests, from the start to the end of the process.
fn run(server: SocketAddr, body: usize, requests: u64, proxy: &AtomicI32) -> io::Result<u64> {
    let (mut counted, at) = Counted::start(server)?;
    proxy.store(counted.0.id().cast_signed(), Ordering::SeqCst);
    let mut stream = TcpStream::connect(at)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    for _ in 0..requests {
        rest(proxy)?;
        ask(&mut stream, body)?;
    }
    rest(proxy)?;
    counted.end()
}

/// Waits until the process sleeps.
fn rest(proxy: &AtomicI32) -> io::Result<()> {
    let file = format!("/proc/{}/stat", proxy.load(Ordering::SeqCst));
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        // The state stands behind the name.
        if std::fs::read_to_string(&file)?.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S')) {
            return Ok(());
        }
        std::thread::yield_now();
    }
    Err(io::Error::other("the proxy never rests"))
}

fn ask(stream: &mut TcpStream, body: usize) -> io::Result<()> {
    stream.write_all(REQUEST)?;
    let (mut got, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut buffer)?;
        got.extend_from_slice(&buffer[..count]);
        let head = got.windows(4).position(|window| window == b"\r\n\r\n");
        if count == 0 || head.is_some_and(|head| got.len() >= head + 4 + body) {
            break;
        }
    }
    if got.starts_with(b"HTTP/1.1 200 ") {
        Ok(())
    } else {
        Err(io::Error::other("a request was not answered"))
    }
}

/// A server that answers every request alike, for as long as this process lives.
fn serve(body: usize, proxy: Arc<AtomicI32>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let at = listener.local_addr()?;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {body}\r\n\r\n");
    let answer = [head.into_bytes(), vec![b'x'; body]].concat();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            // Whoever counts says what was not answered.
            let _ = answer_all(stream, &answer, &proxy);
        }
    });
    Ok(at)
}

fn answer_all(mut stream: TcpStream, answer: &[u8], proxy: &AtomicI32) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut asked, mut buffer) = (Vec::new(), [0; 4096]);
    while let count @ 1.. = stream.read(&mut buffer)? {
        asked.extend_from_slice(&buffer[..count]);
        if asked.ends_with(b"\r\n\r\n") {
            asked.clear();
            rest(proxy)?;
            stream.write_all(answer)?;
        }
    }
    Ok(())
}

/// The proxy in valgrind. Ended when dropped.
struct Counted(Child);

impl Counted {
    fn start(server: SocketAddr) -> io::Result<(Self, SocketAddr)> {
        let mut command = Command::new("valgrind");
        command.args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]);
        command.arg(binary("examples/allow_all")).args(["127.0.0.1:0", &server.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| io::Error::other(format!("valgrind: {error}")))?;
        let mut counted = Self(child);
        let output = counted.0.stdout.take().ok_or_else(|| io::Error::other("no output"))?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let port: u16 = line.trim().parse().map_err(|_| io::Error::other("valgrind: it has not started"))?;
        Ok((counted, (Ipv4Addr::LOCALHOST, port).into()))
    }

    /// Ends it; it says how many there were: `I refs: 1,234`.
    fn end(&mut self) -> io::Result<u64> {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM)?;
        let mut said = String::new();
        if let Some(mut errors) = self.0.stderr.take() {
            errors.read_to_string(&mut said)?;
        }
        let count = said
            .lines()
            .find_map(|line| line.split_once("refs:"))
            .map(|(_, count)| count.replace([',', ' '], ""));
        let count = count.and_then(|digits| digits.parse().ok());
        count.ok_or_else(|| io::Error::other(format!("valgrind says nothing of instructions: {said}")))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

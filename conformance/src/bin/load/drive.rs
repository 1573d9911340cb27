//! The client: does what each line of standard input orders, and says what came of it.
//!
//! The client ends each connection of `crr` by a reset (`SO_LINGER` 0): no end is left in `TIME_WAIT`, so neither ports nor
//! sockets run out however many connections a run makes, and a run does not bear what the one before left. Every path is
//! measured so. Making and ending the connection counts as part of the operation.

use std::fs;
use std::io::{self, BufRead, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use conformance::bench::load::{Mode, Order, Sample, percentile};
use nix::sys::prctl::set_timerslack;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};
use nix::unistd::{SysconfVar, sysconf};
use socket2::{Domain, Protocol, Socket, Type};

/// First bytes of connections, and all there is of requests and answers.
pub(crate) const CRR: [u8; 1] = *b"c";
pub(crate) const RR: [u8; 1] = *b"r";
pub(crate) const STREAM: [u8; 1] = *b"s";
/// What one call writes or reads of a stream.
pub(crate) const BLOCK: usize = 128 << 10;

/// Obeys until standard input ends.
pub(crate) fn drive() -> io::Result<()> {
    // Who waits until something is due wakes up then, not 50 µs later.
    set_timerslack(1)?;
    println!("open");
    for line in io::stdin().lock().lines() {
        match line?.parse().map_err(io::Error::other).and_then(|order| run(&order)) {
            Ok(sample) => println!("{}", serde_json::to_string(&sample)?),
            Err(error) => println!("failed: {error}"),
        }
    }
    Ok(())
}

fn run(order: &Order) -> io::Result<Sample> {
    let (begin, idle) = (now()?, idle()?);
    let (operations, mut latencies) = match order.mode {
        Mode::Rr => {
            let mut stream = TcpStream::connect(order.to)?;
            stream.set_nodelay(true)?;
            counted(repeat(order, || exchange(&mut stream, RR))?)
        }
        Mode::Crr => counted(repeat(order, || exchange(&mut connect(order.to)?, CRR))?),
        Mode::Stream => (stream(order)?, Vec::new()),
    };
    let seconds = (now()? - begin).as_secs_f64();
    latencies.sort_unstable();
    let at = |share| percentile(&latencies, share) as f64 / 1000.0;
    let [p50, p90, p99] = [0.5, 0.9, 0.99].map(at);
    let busy_seconds = (seconds * processors()? - (self::idle()? - idle)).max(0.0);
    Ok(Sample { operations, seconds, busy_seconds, p50, p90, p99 })
}

fn counted(latencies: Vec<u64>) -> (u64, Vec<u64>) {
    (latencies.len() as u64, latencies)
}

/// Latencies in nanoseconds of all that fell due until the time was over.
fn repeat(order: &Order, mut operation: impl FnMut() -> io::Result<()>) -> io::Result<Vec<u64>> {
    let begin = now()?;
    let end = begin + Duration::from_secs_f64(order.seconds);
    let interval = order.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
    let (mut due, mut latencies) = (begin, Vec::new());
    while due < end {
        operation()?;
        let done = now()?;
        latencies.push((done - due).as_nanos() as u64);
        due = interval.map_or(done, |interval| due + interval);
        if done < due {
            sleep_until(due)?;
        }
    }
    Ok(latencies)
}

fn exchange(stream: &mut (impl Read + Write), word: [u8; 1]) -> io::Result<()> {
    let mut answer = [0];
    stream.write_all(&word)?;
    stream.read_exact(&mut answer)?;
    if answer == word { Ok(()) } else { Err(io::Error::other("another answer than the request")) }
}

fn connect(to: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.connect(&to.into())?;
    Ok(socket)
}

/// How many bytes the server counted.
fn stream(order: &Order) -> io::Result<u64> {
    if order.rate.is_some() {
        return Err(io::Error::other("a stream has no rate"));
    }
    let mut stream = TcpStream::connect(order.to)?;
    let end = now()? + Duration::from_secs_f64(order.seconds);
    let block = vec![0; BLOCK];
    stream.write_all(&STREAM)?;
    while now()? < end {
        stream.write_all(&block)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut count = [0; 8];
    stream.read_exact(&mut count)?;
    Ok(u64::from_be_bytes(count))
}

fn now() -> io::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC)?.into())
}

fn sleep_until(moment: Duration) -> io::Result<()> {
    let absolute = ClockNanosleepFlags::TIMER_ABSTIME;
    clock_nanosleep(ClockId::CLOCK_MONOTONIC, absolute, &moment.into())?;
    Ok(())
}

/// Seconds in which no CPU of the machine did anything, all together. The kernel measures these to the microsecond, while it
/// only samples, a few hundred times a second, who is at work otherwise.
fn idle() -> io::Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let ticks = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100) as f64;
    // user nice system idle iowait irq softirq steal …; what another machine took is no work of ours either.
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let fields: Vec<f64> = fields.map_while(|field| field.parse().ok()).collect();
    let at = |index: usize| fields.get(index).ok_or_else(|| io::Error::other("/proc/stat: too few columns"));
    Ok((at(3)? + at(4)? + at(7)?) / ticks)
}

/// How many CPUs there are.
fn processors() -> io::Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let rows = stat.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "));
    Ok(rows.count() as f64)
}

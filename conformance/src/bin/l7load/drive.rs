//! The client: does what each line of standard input orders, and says what came of it.

use std::collections::VecDeque;
use std::io::{self, BufRead};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use conformance::bench::l7::load::{Order, Pace, Sample};
use conformance::bench::load::percentile;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::timer::TimerSetTimeFlags;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags};
use nix::time::clock_gettime;
use tokio_rustls::rustls::ClientConfig;

use super::client::{Answer, Client, Fault, client};
use super::tls;
use super::watch::Times;
use super::wire::Wire;

/// How long what is under way at the end may take.
const DRAIN: u64 = 1_000_000_000;
/// How long `Pace::Once` may take.
const ONCE: u64 = 20_000_000_000;
/// Number of the timer among the connections'.
const TIMER: u64 = u64::MAX;
/// What is read at once.
const BLOCK: usize = 64 << 10;

/// Obeys until standard input ends.
pub(crate) fn drive() -> io::Result<()> {
    nix::sys::prctl::set_timerslack(1)?;
    println!("open");
    let mut kept = None;
    for line in io::stdin().lock().lines() {
        drop(kept.take());
        let order: Result<Order, _> = serde_json::from_str(&line?);
        match order.map_err(io::Error::other).and_then(|order| Run::new(order)?.run()) {
            Ok((sample, run)) => {
                println!("{}", serde_json::to_string(&sample)?);
                kept = (run.order.pace == Pace::Once).then_some(run);
            }
            Err(error) => println!("failed: {error}"),
        }
    }
    Ok(())
}

/// A connection and who speaks on it.
struct Line {
    wire: Wire,
    client: Box<dyn Client>,
}

struct Run {
    order: Order,
    tls: Option<Arc<ClientConfig>>,
    poll: Epoll,
    timer: TimerFd,
    lines: Vec<Line>,
    /// Connections that may take a request, where one is due now and then.
    idle: VecDeque<usize>,
    /// When requests were due that no connection was free for.
    due: VecDeque<u64>,
    next_due: u64,
    asks: bool,
    latencies: Vec<u64>,
    failed: u64,
    answers: Vec<Answer>,
}

impl Run {
    fn new(order: Order) -> io::Result<Self> {
        if matches!(order.pace, Pace::Open(_)) && order.streams != 1 {
            return Err(io::Error::other("a rate needs one stream on each connection"));
        }
        if matches!(order.pace, Pace::Open(rate) if !rate.is_normal() || rate < 0.0) {
            return Err(io::Error::other("a rate of nothing"));
        }
        let poll = Epoll::new(EpollCreateFlags::empty())?;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)?;
        poll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
        let tls = order.tls.then(|| tls::config(order.protocol)).transpose()?;
        let mut run = Self {
            order,
            tls,
            poll,
            timer,
            lines: Vec::new(),
            idle: VecDeque::new(),
            due: VecDeque::new(),
            next_due: 0,
            asks: false,
            latencies: Vec::new(),
            failed: 0,
            answers: Vec::new(),
        };
        for number in 0..run.order.connections {
            let line = run.line(number)?;
            run.lines.push(line);
            run.speak(number);
        }
        Ok(run)
    }

    fn line(&self, number: usize) -> io::Result<Line> {
        let mut wire = match &self.tls {
            None => Wire::connect(self.order.to)?,
            Some(config) => Wire::secure(self.order.to, config)?,
        };
        let mut client = client(&self.order);
        client.begin(&mut wire.out);
        wire.enter(&self.poll, number as u64)?;
        Ok(Line { wire, client })
    }

    fn run(mut self) -> io::Result<(Sample, Self)> {
        if self.order.pace == Pace::Once {
            return self.once();
        }
        let seconds = |part: f64| (self.order.seconds * part * 1e9) as u64;
        let (before, counted) = (seconds(0.25), seconds(1.0));
        let begin = now()?;
        self.start(begin)?;
        self.turn(begin + before)?;
        self.latencies.clear();
        let (from, times) = (now()?, Times::of(self.order.cpu)?);
        self.turn(from + counted)?;
        let (to, times) = (now()?, Times::of(self.order.cpu)? - times);
        let (requests, latencies) = (self.latencies.len() as u64, std::mem::take(&mut self.latencies));
        self.asks = false;
        let end = now()? + DRAIN;
        while self.asked() > 0 && now()? < end {
            self.turn(now()? + 1_000_000)?;
        }
        // Those of the first quarter and of the end count as well: nothing may fail.
        let failed = self.failed + self.asked() as u64 + self.due.len() as u64;
        let elapsed = (to - from) as f64 / 1e9;
        Ok((sample(requests, failed, elapsed, times, latencies), self))
    }

    /// One request on each connection.
    fn once(mut self) -> io::Result<(Sample, Self)> {
        let (from, times) = (now()?, Times::of(self.order.cpu)?);
        let wanted = self.lines.len() as u64;
        let mut asked = vec![false; self.lines.len()];
        while (self.latencies.len() as u64) + self.failed < wanted && now()? < from + ONCE {
            let began = now()?;
            for (number, asked) in asked.iter_mut().enumerate() {
                let Line { client, wire } = &mut self.lines[number];
                if !*asked {
                    *asked = client.ask(began, &mut wire.out);
                    wire.flush(&self.poll, number as u64)?;
                }
            }
            self.turn(now()? + 5_000_000)?;
        }
        self.failed = wanted - (self.latencies.len() as u64).min(wanted);
        let (to, times) = (now()?, Times::of(self.order.cpu)? - times);
        let latencies = std::mem::take(&mut self.latencies);
        let elapsed = (to - from) as f64 / 1e9;
        Ok((sample(wanted - self.failed, self.failed, elapsed, times, latencies), self))
    }

    /// The first requests.
    fn start(&mut self, begin: u64) -> io::Result<()> {
        self.asks = true;
        if let Pace::Open(rate) = self.order.pace {
            let interval = Duration::from_secs_f64(1.0 / rate);
            let interval = Expiration::IntervalDelayed(Duration::from_nanos(begin).into(), interval.into());
            self.timer.set(interval, TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
            self.idle = (0..self.lines.len()).collect();
            self.next_due = begin;
            return Ok(());
        }
        for number in 0..self.lines.len() {
            self.speak(number);
        }
        Ok(())
    }

    /// Goes on until then.
    fn turn(&mut self, until: u64) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 256];
        let mut buffer = vec![0; BLOCK];
        loop {
            let now = now()?;
            if now >= until {
                return Ok(());
            }
            let left = ((until - now) / 1_000_000 + 1).min(1000) as u16;
            let count = self.poll.wait(&mut events, EpollTimeout::from(left))?;
            for event in &events[..count] {
                if event.data() == TIMER {
                    self.fall_due()?;
                } else {
                    self.hear(event.data() as usize, &mut buffer)?;
                }
            }
        }
    }

    /// Requests that are due by now.
    fn fall_due(&mut self) -> io::Result<()> {
        let mut count = [0; 8];
        let Ok(8) = nix::unistd::read(self.timer.as_fd(), &mut count) else { return Ok(()) };
        let Pace::Open(rate) = self.order.pace else { return Ok(()) };
        for _ in 0..u64::from_ne_bytes(count) {
            if self.asks {
                self.due.push_back(self.next_due);
            }
            self.next_due += (1e9 / rate) as u64;
        }
        self.serve_due();
        Ok(())
    }

    fn serve_due(&mut self) {
        while !self.due.is_empty()
            && let Some(number) = self.idle.pop_front()
            && let Some(due) = self.due.pop_front()
        {
            let Line { wire, client } = &mut self.lines[number];
            client.ask(due, &mut wire.out);
            // What cannot be written is told when it is read.
            let _ = wire.flush(&self.poll, number as u64);
        }
    }

    /// Reads what has come on a connection; opens another in place of one that has ended.
    fn hear(&mut self, number: usize, buffer: &mut [u8]) -> io::Result<()> {
        let Err(why) = self.read(number, buffer) else { return Ok(()) };
        self.failed += self.lines[number].client.asked().max(1) as u64;
        if self.is_enough() {
            return Err(io::Error::other(format!("{} failures, the last: {why}", self.failed)));
        }
        match self.line(number) {
            Ok(line) => self.lines[number] = line,
            // The old one tells of its end again, and then there is another try.
            Err(_) if self.order.failures.is_none() => return Ok(()),
            Err(error) => return Err(error),
        }
        self.free(number);
        self.speak(number);
        Ok(())
    }

    fn read(&mut self, number: usize, buffer: &mut [u8]) -> Result<(), Fault> {
        let Line { wire, client } = &mut self.lines[number];
        match wire.read(buffer).map_err(|error| error.to_string())? {
            Some(0) => return Err("the other side has ended the connection".to_owned()),
            Some(count) => client.take(&buffer[..count], &mut wire.out, &mut self.answers)?,
            None => {}
        }
        let now = now().map_err(|error| error.to_string())?;
        let is_answered = !self.answers.is_empty();
        for answer in self.answers.drain(..) {
            if answer.is_good {
                self.latencies.push(now.saturating_sub(answer.began));
            } else {
                self.failed += 1;
            }
        }
        if self.is_enough() {
            return Err("other answers than expected".to_owned());
        }
        if is_answered {
            self.free(number);
        }
        self.speak(number);
        Ok(())
    }

    fn is_enough(&self) -> bool {
        self.order.failures.is_some_and(|most| self.failed > most)
    }

    /// A connection may take a request that is due.
    fn free(&mut self, number: usize) {
        if matches!(self.order.pace, Pace::Open(_)) && !self.idle.contains(&number) {
            self.idle.push_back(number);
            self.serve_due();
        }
    }

    /// Makes as many requests as there is room for, and writes what is to be written.
    fn speak(&mut self, number: usize) {
        let Line { wire, client } = &mut self.lines[number];
        if self.asks && self.order.pace == Pace::Closed {
            let now = now().unwrap_or_default();
            while client.ask(now, &mut wire.out) {}
        }
        // What cannot be written is told when it is read.
        let _ = wire.flush(&self.poll, number as u64);
    }

    fn asked(&self) -> usize {
        self.lines.iter().map(|line| line.client.asked()).sum()
    }
}

fn sample(requests: u64, failed: u64, seconds: f64, times: Times, mut latencies: Vec<u64>) -> Sample {
    latencies.sort_unstable();
    let at = |share| percentile(&latencies, share) as f64 / 1000.0;
    Sample {
        requests,
        failed,
        seconds,
        busy: (seconds - times.away).max(0.0),
        user: times.user,
        system: times.system,
        interrupts: times.interrupts,
        p50: at(0.5),
        p99: at(0.99),
    }
}

/// Nanoseconds of the monotonic clock.
pub(crate) fn now() -> io::Result<u64> {
    Ok(Duration::from(clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?).as_nanos() as u64)
}

//! What the load tool is asked, and what it answers: the words between a benchmark and the `load` program.
//!
//! A question is a line of words, an answer a line of JSON. See `conformance/src/bin/load` for what the modes do.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What one operation is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// One byte there and one back, on a connection that stays.
    Rr,
    /// A connection of its own for one byte there and one back.
    Crr,
    /// As many bytes as the way takes, in one direction; an operation is a byte.
    Stream,
}

impl Mode {
    /// The word of the command line and of rows' ids.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Rr => "rr",
            Self::Crr => "crr",
            Self::Stream => "stream",
        }
    }
}

/// One run of load.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Order {
    /// What to do.
    pub mode: Mode,
    /// The server, or who leads there.
    pub to: SocketAddr,
    /// How long, about.
    pub seconds: f64,
    /// Operations a second whatever the server does (open loop); else one after the other, back to back.
    pub rate: Option<f64>,
}

impl fmt::Display for Order {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "{} {} {}", self.mode.word(), self.to, self.seconds)?;
        self.rate.map_or(Ok(()), |rate| write!(out, " {rate}"))
    }
}

impl FromStr for Order {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        fn read<T: FromStr>(word: &str) -> Result<T, String> {
            word.parse().map_err(|_| format!("{word:?} does not fit: MODE ADDRESS:PORT SECONDS [RATE]"))
        }
        let mut words = line.split_whitespace();
        let mut next = || words.next().ok_or_else(|| format!("{line:?} is too short"));
        let mode = match next()? {
            "rr" => Mode::Rr,
            "crr" => Mode::Crr,
            "stream" => Mode::Stream,
            other => return Err(format!("no mode {other:?}: rr, crr or stream")),
        };
        let (to, seconds) = (read(next()?)?, read(next()?)?);
        Ok(Self { mode, to, seconds, rate: words.next().map(read).transpose()? })
    }
}

/// What came of one run.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// How many were done; of `stream`, bytes that arrived.
    pub operations: u64,
    /// From the first one's start to the last one's end.
    pub seconds: f64,
    /// CPU time of the whole machine meanwhile, the kernel's included.
    pub busy_seconds: f64,
    /// Latencies in microseconds; zero for `stream`. In an open loop they count from when the operation was due.
    pub p50: f64,
    /// Likewise.
    pub p90: f64,
    /// Likewise.
    pub p99: f64,
}

/// The value at this share of the sorted values, by nearest rank; zero of none.
#[must_use]
pub fn percentile(sorted: &[u64], share: f64) -> u64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_as_it_was_written() {
        let to = "[fd00::1]:80".parse().unwrap();
        for rate in [None, Some(1500.0)] {
            let order = Order { mode: Mode::Crr, to, seconds: 0.25, rate };
            assert_eq!(order.to_string().parse(), Ok(order));
        }
        for wrong in ["", "rr", "rr 10.0.0.1 1", "ping 10.0.0.1:1 1", "rr 10.0.0.1:1 1 fast"] {
            assert!(wrong.parse::<Order>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_percentile_is_a_value_that_was_seen() {
        let values: Vec<u64> = (1..=200).collect();
        assert_eq!([0.5, 0.9, 0.99, 1.0].map(|share| percentile(&values, share)), [100, 180, 198, 200]);
        assert_eq!((percentile(&[7], 0.5), percentile(&[], 0.99)), (7, 0));
    }
}

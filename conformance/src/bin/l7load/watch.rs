//! How busy a CPU was.

use std::fs;
use std::io;
use std::ops::Sub;

use nix::unistd::{SysconfVar, sysconf};

/// Seconds since the machine has started.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    pub(crate) user: f64,
    pub(crate) system: f64,
    pub(crate) interrupts: f64,
    /// Nothing was done, or not here: idle, waiting for a disk, stolen by another machine.
    pub(crate) away: f64,
}

impl Times {
    /// Of this CPU, until now.
    pub(crate) fn of(cpu: usize) -> io::Result<Self> {
        let ticks = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100) as f64;
        let stat = fs::read_to_string("/proc/stat")?;
        let name = format!("cpu{cpu} ");
        let row = stat.lines().find_map(|line| line.strip_prefix(&name));
        let row = row.ok_or_else(|| io::Error::other(format!("/proc/stat has no CPU {cpu}")))?;
        // user nice system idle iowait irq softirq steal …
        let values: Vec<f64> = row.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let [user, nice, system, idle, waiting, hard, soft, stolen, ..] = values.as_slice() else {
            return Err(io::Error::other("/proc/stat: too few columns"));
        };
        Ok(Self {
            user: (user + nice) / ticks,
            system: system / ticks,
            interrupts: (hard + soft) / ticks,
            away: (idle + waiting + stolen) / ticks,
        })
    }
}

impl Sub for Times {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            user: self.user - earlier.user,
            system: self.system - earlier.system,
            interrupts: self.interrupts - earlier.interrupts,
            away: self.away - earlier.away,
        }
    }
}

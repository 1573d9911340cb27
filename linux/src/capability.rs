//! Capabilities by name, and the reduction of a process's own.

#![allow(unsafe_code, reason = "capset(2) and prctl(2) have no typed wrapper")]

use std::fmt;
use std::io;

use crate::error::{Context, Result};

/// Names without `CAP_`, by number (`linux/capability.h`).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A set of capabilities.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capabilities(u64);

impl Capabilities {
    /// Those of these names, with or without `CAP_`, in any case. The name that is none, otherwise.
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> std::result::Result<Self, &'a str> {
        names.into_iter().try_fold(Self::default(), |set, name| {
            let plain = name.to_ascii_uppercase();
            let plain = plain.strip_prefix("CAP_").unwrap_or(&plain);
            NAMES.iter().position(|known| *known == plain).map(|bit| Self(set.0 | 1 << bit)).ok_or(name)
        })
    }

    /// Those in either.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those that are not in the other.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether it has none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Capabilities {
    /// Names separated by blanks.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names =
            NAMES.iter().enumerate().filter(|(bit, _)| self.0 >> bit & 1 == 1).map(|(_, name)| name);
        if let Some(first) = names.next() {
            f.write_str(first)?;
        }
        names.try_for_each(|name| write!(f, " {name}"))
    }
}

/// Drops all others from the bounding set: no program that is started can gain them.
pub fn bound(kept: Capabilities) -> Result<()> {
    for bit in 0..u64::BITS {
        if kept.0 >> bit & 1 == 0 && prctl(libc::PR_CAPBSET_READ, bit.into(), 0) == 1 {
            check(prctl(libc::PR_CAPBSET_DROP, bit.into(), 0)).context("drop capability", bit)?;
        }
    }
    Ok(())
}

/// Lets a change of user keep what is permitted, until a program is executed.
pub fn keep_across_user_change() -> Result<()> {
    check(prctl(libc::PR_SET_KEEPCAPS, 1, 0)).context("keep", "capabilities")
}

/// Sets what this thread holds: permitted and effective, and what unprivileged programs it starts inherit.
pub fn set(held: Capabilities, inherited: Capabilities) -> Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Half {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    // _LINUX_CAPABILITY_VERSION_3: two halves of 32 bits.
    let header = Header { version: 0x2008_0522, pid: 0 };
    let half = |shift: u32| {
        let [held, inherited] = [held.0, inherited.0].map(|set| (set >> shift & u64::from(u32::MAX)) as u32);
        Half { effective: held, permitted: held, inheritable: inherited }
    };
    let halves = [half(0), half(32)];
    check(prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0))
        .context("clear", "ambient capabilities")?;
    // SAFETY: header and both halves have the layout of capset(2) and live through the call, which only reads them.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, halves.as_ptr()) };
    check(result).context("set capabilities", held)?;
    for bit in (0..u64::BITS).filter(|bit| inherited.0 >> bit & 1 == 1) {
        check(prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, bit.into()))
            .context("make ambient capability", bit)?;
    }
    Ok(())
}

fn prctl(option: i32, first: u64, second: u64) -> libc::c_long {
    // SAFETY: the options used here take numbers, not addresses.
    unsafe { libc::syscall(libc::SYS_prctl, option, first, second, 0u64, 0u64) }
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_any_form_and_written_in_one() {
        let set = Capabilities::named(["cap_net_raw", "CHOWN", "Kill"]).unwrap();
        assert_eq!(set.to_string(), "CHOWN KILL NET_RAW");
        assert_eq!(Capabilities::named(["CHOWN", "NET_ROW"]), Err("NET_ROW"));
        assert_eq!(set.without(Capabilities::named(["KILL"]).unwrap()).to_string(), "CHOWN NET_RAW");
    }

    #[test]
    fn numbers_are_the_kernels() {
        for (name, number) in [("NET_ADMIN", 12), ("SYS_ADMIN", 21), ("BPF", 39), ("CHECKPOINT_RESTORE", 40)]
        {
            assert_eq!(Capabilities::named([name]), Ok(Capabilities(1 << number)));
        }
    }
}

//! The clocks, in nanoseconds.

use nix::time::{ClockId, clock_gettime};

/// CLOCK_BOOTTIME: never stepped, goes on while the machine sleeps. What the programs compare with.
pub fn boottime() -> u64 {
    u64::try_from(read(ClockId::CLOCK_BOOTTIME)).unwrap_or(u64::MAX)
}

/// CLOCK_REALTIME since 1970: what certificates are valid by. It can be stepped either way.
pub fn realtime() -> i128 {
    read(ClockId::CLOCK_REALTIME)
}

fn read(clock: ClockId) -> i128 {
    // Neither can fail: both clocks are there since 2.6.39, and the place for the answer is ours. If one did, everything
    // would have ended.
    clock_gettime(clock).map_or(u64::MAX.into(), |time| {
        i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec())
    })
}

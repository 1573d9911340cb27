//! Bytes of kernel memory behind each map, as the kernel accounts for them.
//!
//! Of maps that grow with their entries it is what they hold now, since Linux 6.4 (`map_mem_usage`); before that it is an
//! estimate of what they can grow to.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use aya::maps::MapInfo;

use crate::Error;

/// Of the map pinned there.
pub(crate) fn bytes(pin: &Path) -> Result<u64, Error> {
    let map = MapInfo::from_pin(pin)
        .and_then(|info| info.fd())
        .map_err(|error| Error::path(pin, "opening the pinned map")(std::io::Error::other(error)))?;
    let path = format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd());
    let text = fs::read_to_string(&path).map_err(Error::path(&path, "reading"))?;
    parse(&text).ok_or_else(|| Error::path(path, "reading memlock")(std::io::ErrorKind::InvalidData.into()))
}

fn parse(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("memlock:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_found_among_others() {
        assert_eq!(parse("pos:\t0\nmap_type:\t2\nmemlock:\t4096\nmap_id:\t7\n"), Some(4096));
        assert_eq!(parse("pos:\t0\n"), None);
        assert_eq!(parse("memlock:\tmuch\n"), None);
    }
}

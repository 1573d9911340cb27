//! Ports that the kernel must not give out by itself: they stand for workloads' own when those are masqueraded.
//!
//! `ip_local_reserved_ports` belongs to the whole host; what others reserved there is kept, and only what we added goes.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use linux::sysctl;

use crate::error::{Error, Result};

const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";
/// What the kernel gives out by itself, both families: first and last.
const AUTOMATIC: &str = "net/ipv4/ip_local_port_range";

/// What is reserved now, as the kernel writes it.
pub(crate) fn reserved() -> Result<String> {
    Ok(sysctl::get(RESERVED)?)
}

/// Reserves `ports`, beside what is reserved already.
pub(crate) fn reserve(ports: RangeInclusive<u16>) -> Result<()> {
    write(parse(&reserved()?).into_iter().chain(ports).collect())
}

/// Takes the reservation of `ports` back, but not of those that `others` had reserved before.
pub(crate) fn release(ports: RangeInclusive<u16>, others: &str) -> Result<()> {
    let others = parse(others);
    let ours = |port: &u16| ports.contains(port) && !others.contains(port);
    write(parse(&reserved()?).into_iter().filter(|port| !ours(port)).collect())
}

/// Refuses ports without which the host itself, with what `others` have reserved, could open no connection.
pub(crate) fn check(ports: &RangeInclusive<u16>, others: &str) -> Result<()> {
    let automatic = sysctl::get(AUTOMATIC)?;
    let mut ends = automatic.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(first)), Some(Ok(last))) = (ends.next(), ends.next()) else { return Ok(()) };
    let taken: BTreeSet<u16> = parse(others).into_iter().chain(ports.clone()).collect();
    if (first..=last).all(|port| taken.contains(&port)) {
        return Err(Error::NoPortsLeft { ports: ports.clone(), automatic: first..=last });
    }
    Ok(())
}

fn write(ports: BTreeSet<u16>) -> Result<()> {
    // Nothing at all would not be written; an empty line is.
    let text = if ports.is_empty() { "\n".to_owned() } else { format(&ports) };
    if text.trim_end() != reserved()? {
        sysctl::set(RESERVED, &text)?;
    }
    Ok(())
}

/// `8080,9148-9150`; what is no port is left out.
fn parse(text: &str) -> BTreeSet<u16> {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.trim().parse::<u16>().ok()?..=last.trim().parse().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

fn format(ports: &BTreeSet<u16>) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some((_, last)) if port.checked_sub(1) == Some(*last) => *last = *port,
            _ => ranges.push((*port, *port)),
        }
    }
    let text = |(first, last): &(u16, u16)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    ranges.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    //! Need root: they write settings of a namespace of their own.

    use linux::scratch;

    use super::*;

    #[test]
    fn what_is_read_is_what_was_written() {
        for text in ["", "8080", "1,3", "8080,9148-9150,65535", "0-65535"] {
            assert_eq!(format(&parse(text)), text);
        }
        assert_eq!(format(&parse("1-2,3,nonsense,2-5")), "1-5");
    }

    #[test]
    fn only_what_others_had_not_reserved_is_released() {
        let scratch = scratch::Namespace::new("endpoint").unwrap();
        let inside = || {
            assert_eq!(reserved().unwrap(), "");
            sysctl::set(RESERVED, "8080,50000").unwrap();
            let before = reserved().unwrap();
            reserve(49_152..=65_535).unwrap();
            assert_eq!(reserved().unwrap(), "8080,49152-65535");
            // Somebody adds another meanwhile.
            sysctl::set(RESERVED, "8080,9000,49152-65535").unwrap();
            release(49_152..=65_535, &before).unwrap();
            assert_eq!(reserved().unwrap(), "8080,9000,50000");
            sysctl::set(RESERVED, "\n").unwrap();
            reserve(60_000..=60_000).unwrap();
            release(60_000..=60_000, "").unwrap();
            assert_eq!(reserved().unwrap(), "");
        };
        scratch.namespace().inside(inside).unwrap();
    }

    #[test]
    fn the_hosts_own_last_ports_are_refused() {
        let scratch = scratch::Namespace::new("endpoint").unwrap();
        let inside = || {
            sysctl::set(AUTOMATIC, "50000 50010").unwrap();
            check(&(50_001..=60_000), "50010").unwrap();
            check(&(50_000..=50_009), "50010").unwrap_err().to_string()
        };
        let error = scratch.namespace().inside(inside).unwrap();
        assert_eq!(
            error,
            "masqueradePorts 50000-50009: take all of net.ipv4.ip_local_port_range (50000-50010), the host itself could \
             open no connection; choose others"
        );
    }
}

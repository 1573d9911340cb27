//! The benchmark's ways exist and lead somewhere: each is taken once, shortly. How fast they are is no test's business.
//! Needs root and the kernel.
#![allow(clippy::unwrap_used, reason = "a scenario that cannot go on has failed")]

use conformance::bench::plan::{Plan, Selection};
use conformance::bench::report::Row;
use conformance::bench::{observe, socket_lb, tc};

fn quick(id: &str) -> Plan {
    Plan { rounds: 1, seconds_per_run: 0.02, selected: Selection::new([id]), quick: true }
}

/// Of the rows, as many as are judged; all of them measured, of this id, and both families alike.
#[track_caller]
fn promises(rows: &[Row], id: &str) -> usize {
    assert!(!rows.is_empty());
    for row in rows {
        assert_eq!((row.id.as_str(), row.met), (id, None), "{row:?}");
        assert!(row.value.is_finite() && row.value >= 0.0 && row.ratio.is_some(), "{row:?}");
    }
    let of = |family: &str| rows.iter().filter(|row| row.what.starts_with(family)).count();
    assert_eq!((of("IPv4") * 2, of("IPv6") * 2), (rows.len(), rows.len()));
    rows.iter().filter(|row| row.target.is_some()).count()
}

#[test]
fn workloads_are_compared_with_a_routed_and_a_direct_way() {
    for (mode, promised) in [("rr", 4), ("crr", 0), ("stream", 2)] {
        let id = format!("l4.tc.{mode}");
        assert_eq!(promises(&tc::measure(&quick(&id)), &id), promised, "{id}");
    }
    assert_eq!(tc::measure(&quick("l4.socket_lb")), [], "nothing is built for rows of others");
}

#[test]
fn a_call_of_a_service_among_many_is_compared_with_a_plain_one() {
    let id = "l4.socket_lb.crr.1k";
    let (missing, rows): (Vec<Row>, Vec<Row>) =
        socket_lb::measure(&quick(id)).into_iter().partition(|row| row.what.contains("not measured: no "));
    // The plain way and one service; nftables and iptables, as far as they are installed.
    assert_eq!(promises(&rows, id) + missing.len(), 2 * 4);
}

#[test]
fn being_watched_is_compared_with_not() {
    let rows = observe::measure(&quick("l4.observe"));
    assert_eq!(promises(&rows, "l4.observe"), 4);
}

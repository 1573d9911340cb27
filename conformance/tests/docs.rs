//! Documentation that repeats the code is compared with it.

use std::collections::BTreeMap;

#[test]
fn every_drop_reason_is_documented_under_its_number_and_name() {
    let page = include_str!("../../docs/drop-reasons.md");
    let documented: BTreeMap<u8, &str> = page
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| ")?.split(" | ");
            Some((cells.next()?.parse().ok()?, cells.next()?))
        })
        .collect();
    let defined = abi::DropReason::ALL.iter().map(|reason| (*reason as u8, reason.text())).collect();
    assert_eq!(documented, defined);
}

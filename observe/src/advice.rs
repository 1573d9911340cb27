//! What each drop reason means and what to do about it: the rows of `docs/drop-reasons.md`, so that page and command
//! line cannot differ. A test keeps the page's numbers and names equal to the code's.

use std::collections::BTreeMap;
use std::sync::LazyLock;

const PAGE: &str = include_str!("../../docs/drop-reasons.md");

static MEANINGS: LazyLock<BTreeMap<u8, String>> = LazyLock::new(|| PAGE.lines().filter_map(row).collect());

/// For a reason's number; empty for one that this version does not know.
pub fn meaning(reason: u8) -> &'static str {
    MEANINGS.get(&reason).map_or("", String::as_str)
}

/// `| number | reason | meaning |`.
fn row(line: &str) -> Option<(u8, String)> {
    let mut cells = line.strip_prefix("| ")?.strip_suffix(" |")?.splitn(3, " | ");
    let (number, _, meaning) = (cells.next()?, cells.next()?, cells.next()?);
    Some((number.parse().ok()?, without_links(meaning)))
}

/// `[text](target)` as `text`: a terminal follows no links.
fn without_links(markdown: &str) -> String {
    let mut text = String::new();
    let mut rest = markdown;
    while let Some((before, after)) = rest.split_once('[') {
        let Some((name, after)) = after.split_once("](") else { break };
        let Some((_, after)) = after.split_once(')') else { break };
        text.push_str(before);
        text.push_str(name);
        rest = after;
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_meaning_in_one_line_without_markup() {
        for reason in abi::DropReason::ALL {
            let meaning = meaning(*reason as u8);
            assert!(meaning.ends_with('.'), "{reason:?}: {meaning:?}");
            assert!(!meaning.contains("]("), "{reason:?}: {meaning:?}");
        }
        assert!(meaning(167).ends_with("See masquerading."), "{}", meaning(167));
        assert_eq!(meaning(1), "");
    }

    #[test]
    fn brackets_that_are_no_link_stay() {
        assert_eq!(without_links("a [b](c) d [e](f)."), "a b d e.");
        assert_eq!(without_links("a [b] c"), "a [b] c");
    }
}

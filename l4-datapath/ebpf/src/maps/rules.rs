//! `RULES`: rulesets, shared between endpoints.
//!
//! - Kind: LPM trie (never preallocated), kernel 4.11.
//! - Key: prefix length and [`abi::RuleKey`]. Value: [`abi::RuleValue`].
//! - Writer: the agent; a ruleset never changes once an endpoint points at it. Readers: `from_pod`, `to_pod`.

use abi::{RuleKey, RuleValue};
use aya_ebpf::{btf_maps::LpmTrie, macros::btf_map};

#[btf_map]
pub(crate) static RULES: LpmTrie<RuleKey, RuleValue, 1_048_576> = LpmTrie::new();

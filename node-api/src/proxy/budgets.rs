//! What workloads have of the L7 proxy, and what they were refused: `ferromesh proxy budgets`.

use std::net::IpAddr;

use mesh::workload::WorkloadName;
use serde::{Deserialize, Serialize};

/// Something for each thing that there is a budget of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PerBudget<T> {
    /// Connections of clients.
    pub connections: T,
    /// Heads that have begun and are not all there.
    pub heads: T,
    /// Streams of HTTP/2.
    pub streams: T,
    /// Bytes of buffers of HTTP/1.1 and relays beyond the first 4 KB of each.
    pub bytes: T,
}

impl<T> From<[T; 4]> for PerBudget<T> {
    /// In the order of the fields.
    fn from([connections, heads, streams, bytes]: [T; 4]) -> Self {
        Self { connections, heads, streams, bytes }
    }
}

impl<T> PerBudget<T> {
    /// Each with its name.
    pub fn named(&self) -> [(&'static str, &T); 4] {
        let Self { connections, heads, streams, bytes } = self;
        [("connections", connections), ("heads", heads), ("streams", streams), ("bytes", bytes)]
    }
}

/// What somebody has of one thing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct BudgetUse {
    /// So much.
    pub used: u64,
    /// As much as he could have as things are, on all workers together.
    pub bound: u64,
    /// How often he was refused more since the process began.
    pub refused: u64,
}

/// Who has it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BudgetOwner {
    /// An endpoint of this node.
    Workload,
    /// Nobody of this node: connections neither end of which is one of its endpoints by now.
    Nobody,
    /// All together.
    All,
}

/// What a workload has of one process of the proxy, all of its workers together.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProxyBudgets {
    /// Who has it.
    pub owner: BudgetOwner,
    /// The workload, where the agent knows it; one that has gone since it does not.
    pub workload: Option<WorkloadName>,
    /// An address of the workload.
    pub address: Option<IpAddr>,
    /// Number of the endpoint's creation.
    pub instance: Option<u64>,
    /// What it has.
    #[serde(flatten)]
    pub budgets: PerBudget<BudgetUse>,
    /// Of a proxy that another one has followed, and that ends with its connections.
    pub draining: bool,
}

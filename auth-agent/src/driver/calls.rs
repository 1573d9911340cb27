//! Calls that want a proof, as the kernel's programs tell of them before their first packet.
//!
//! Promise: nothing in a record is believed: its addresses say who is to be proven, as those of a packet do, and so many
//! are read at once that others have their turn. It needs no right: the ring was mapped before any was given up.

use std::io;
use std::net::IpAddr;

use abi::{Address, HoldKind, Trigger};
use maps::Triggers;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::event::Input;

/// Records read in one turn.
const BATCH: usize = 64;

/// The ring.
pub(super) struct Calls(AsyncFd<Triggers>);

impl Calls {
    /// Must be called within a runtime.
    pub(super) fn new(triggers: Triggers) -> io::Result<Self> {
        #[expect(deprecated, reason = "unsound only for types whose descriptor changes; a ring's does not")]
        AsyncFd::with_interest(triggers, Interest::READABLE).map(Self)
    }

    /// Some of the calls there are, now and then none. Cancel safe.
    pub(super) async fn happen(&mut self) -> io::Result<Vec<Input>> {
        let mut ready = self.0.readable_mut().await?;
        let ring = ready.get_inner_mut();
        let records: Vec<_> = std::iter::from_fn(|| ring.read()).take(BATCH).collect();
        // The kernel wakes a reader only of a ring that was empty.
        if records.len() < BATCH {
            ready.clear_ready();
        }
        Ok(records.iter().filter_map(input).collect())
    }
}

fn input(record: &Trigger) -> Option<Input> {
    let kind = HoldKind::from_number(record.kind)?;
    let [source, destination] = [record.source, record.destination].map(ip);
    Some(Input::Asked { kind, source, destination })
}

/// As the rest of this process has it: IPv4 is IPv4.
fn ip(address: Address) -> IpAddr {
    IpAddr::from(address.0).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_a_question_about_two_addresses_of_either_family_or_nothing() {
        let [one, other] = [Address::v4([10, 0, 0, 1]), Address::v4([10, 0, 0, 2])];
        let record = Trigger { source: one, destination: other, kind: HoldKind::Egress as u8, zero: [0; 7] };
        let [source, destination] = [1, 2].map(|host| IpAddr::from([10, 0, 0, host]));
        assert_eq!(input(&record), Some(Input::Asked { kind: HoldKind::Egress, source, destination }));
        let six = Trigger { source: Address([0xfd; 16]), kind: HoldKind::Ingress as u8, ..record };
        let source = IpAddr::from([0xfd; 16]);
        assert_eq!(input(&six), Some(Input::Asked { kind: HoldKind::Ingress, source, destination }));
        assert_eq!(input(&Trigger { kind: 9, ..record }), None);
    }
}

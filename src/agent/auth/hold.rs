//! The device on which packets wait for a proof.

use l4_datapath::Datapath;
use linux::netlink::Netlink;
use linux::tap::Tap;

use super::place::HOLD_DEVICE;
use crate::agent::error::AgentError;

/// Makes it, unless it is there: an auth-agent that lives on has it open. From then on packets are sent there.
pub(super) async fn make(datapath: &mut Datapath) -> Result<(), AgentError> {
    let netlink = Netlink::open()?;
    let there = netlink.link(HOLD_DEVICE).await?;
    let link = match there {
        Some(link) => link,
        None => {
            // It stays when this is closed; the auth-agent's start opens it again.
            drop(Tap::open(HOLD_DEVICE)?);
            let made = netlink.link(HOLD_DEVICE).await?;
            made.ok_or_else(|| AgentError::Device(HOLD_DEVICE.to_owned()))?
        }
    };
    netlink.disable_link_local(link.index).await?;
    datapath.attach_hold(HOLD_DEVICE)?;
    netlink.set_up(link.index, true).await?;
    Ok(())
}

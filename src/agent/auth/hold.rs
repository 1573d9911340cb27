//! The device on which packets wait for a proof.

use std::os::fd::OwnedFd;

use l4_datapath::Datapath;
use linux::netlink::Netlink;
use linux::tap::Tap;
use parking_lot::Mutex;

use super::place::HOLD_DEVICE;
use crate::agent::error::AgentError;

/// The device's other end. Kept open here beside the auth-agent: where nobody has it the kernel loses what is sent to
/// the device, so packets would not outlast the time until an auth-agent is started, or started again.
#[derive(Default)]
pub(super) struct OtherEnd(Mutex<Option<OwnedFd>>);

impl OtherEnd {
    /// Opens it, unless it is open here or an auth-agent of an earlier agent has it.
    fn open(&self) -> linux::Result<()> {
        let mut end = self.0.lock();
        if end.is_none() {
            match Tap::open(HOLD_DEVICE) {
                Err(error) if error.errno() == Some(libc::EBUSY) => {}
                tap => *end = Some(tap?.into()),
            }
        }
        Ok(())
    }

    /// For an auth-agent that is being started; no other lives.
    pub(super) fn hand_out(&self) -> Result<OwnedFd, String> {
        self.open().map_err(|error| error.to_string())?;
        match self.0.lock().as_ref().map(OwnedFd::try_clone) {
            Some(copy) => copy.map_err(|error| format!("copying a descriptor: {error}")),
            None => Err(format!("device {HOLD_DEVICE}: another process has it; end that")),
        }
    }
}

/// Makes the device, unless it is there. From then on packets are sent to it.
pub(super) async fn make(datapath: &mut Datapath) -> Result<OtherEnd, AgentError> {
    let other = OtherEnd::default();
    other.open()?;
    let netlink = Netlink::open()?;
    let link = netlink.link(HOLD_DEVICE).await?;
    let link = link.ok_or_else(|| AgentError::Device(HOLD_DEVICE.to_owned()))?;
    netlink.disable_link_local(link.index).await?;
    datapath.attach_hold(HOLD_DEVICE)?;
    netlink.set_up(link.index, true).await?;
    Ok(other)
}

//! A drop reason on its way up, as a plain number.
//!
//! The verifier checks a *global* function (`no_mangle`, numbers and plain memory only) once, by itself, and forgets at
//! the call which way it returned; a static one is walked again for every way that leads to it. Programs of this size
//! pass only because their parts are global, and [`Refusal`] is what such parts return.

use core::num::NonZeroU8;

use abi::DropReason;

/// Why a packet goes no further.
#[derive(Clone, Copy)]
pub(crate) struct Refusal(NonZeroU8);

impl Refusal {
    /// What a global function returns for a null pointer, which only the verifier can imagine.
    pub(crate) const ABSURD: u32 = DropReason::InvalidPacket as u32;

    /// [`DropReason`] as u8.
    #[inline(always)]
    pub(crate) fn number(self) -> u8 {
        self.0.get()
    }

    /// What a global function returned.
    #[inline(always)]
    pub(crate) fn check(returned: u32) -> Result<(), Self> {
        match NonZeroU8::new(returned as u8) {
            None => Ok(()),
            Some(reason) => Err(Self(reason)),
        }
    }

    /// What a global function returns.
    #[inline(always)]
    pub(crate) fn encode(result: Result<(), impl Into<Self>>) -> u32 {
        match result {
            Ok(()) => 0,
            Err(reason) => u32::from(reason.into().number()),
        }
    }
}

impl From<DropReason> for Refusal {
    #[inline(always)]
    fn from(reason: DropReason) -> Self {
        // No reason has number zero; were there one, the packet would still be dropped.
        Self(NonZeroU8::new(reason as u8).unwrap_or(NonZeroU8::MAX))
    }
}

//! What there is very much of, without names: to read and write it costs a fraction of what it does as JSON.

use std::borrow::Cow;

use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{FromProxy, ProxyFlow, ProxyReport};

/// Messages that can be packed.
#[derive(Serialize, Deserialize)]
enum Packed<'a> {
    Flows(Cow<'a, [ProxyFlow]>),
    Report(Cow<'a, ProxyReport>),
}

impl FromProxy {
    /// Whether it can be packed.
    pub fn can_be_packed(&self) -> bool {
        self.packed().is_some()
    }

    fn packed(&self) -> Option<Packed<'_>> {
        match self {
            Self::Flows(flows) => Some(Packed::Flows(flows.into())),
            Self::Report(report) => Some(Packed::Report(Cow::Borrowed(report))),
            _ => None,
        }
    }
}

impl Serialize for FromProxy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return Self::serialize(self, serializer);
        }
        let packed = self.packed().ok_or_else(|| S::Error::custom("a message that is not packed"))?;
        packed.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for FromProxy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return Self::deserialize(deserializer);
        }
        Ok(match Packed::deserialize(deserializer)? {
            Packed::Flows(flows) => Self::Flows(flows.into_owned()),
            Packed::Report(report) => Self::Report(Box::new(report.into_owned())),
        })
    }
}

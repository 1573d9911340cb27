//! Whether TLS may pass, by the name of the server that its client says. What is in it nobody sees.

use super::authorize::Judge;
use super::detect::Protocol;
use crate::index::Grant;

/// What a client says in its ClientHello: a server's name, in lower case, or none; or why that cannot be told.
pub type Greeting = Result<Option<Box<str>>, &'static str>;

impl Judge {
    /// Whether TLS may pass whose client says this; else why not.
    pub fn judge_tls(&self, said: &Greeting) -> Result<(), &'static str> {
        if self.is_plain() {
            return Ok(());
        }
        if self.names.is_empty() && !self.opens_tls() {
            return Err(match &self.grant {
                Grant::Nothing(why) => why,
                Grant::Http(_) | Grant::Open | Grant::Plain => Protocol::Tls.refusal(),
            });
        }
        match said {
            Err(fault) => Err(fault),
            Ok(said) if self.audit && self.opens(said.as_deref()) => Ok(()),
            Ok(None) => Err("no server name"),
            Ok(Some(name)) if self.names.iter().any(|names| names.holds(name)) => Ok(()),
            Ok(Some(_)) => Err("no rule names this server"),
        }
    }

    /// Whether nothing but TLS may pass.
    pub fn is_for_tls(&self) -> bool {
        matches!(self.grant, Grant::Nothing(_)) && (!self.names.is_empty() || self.opens_tls())
    }

    /// Whether the proxy is to end TLS whose client says this.
    pub fn opens(&self, said: Option<&str>) -> bool {
        self.inspected.iter().any(|one| one.opens(said))
    }

    /// Whether it is asked which server a client of TLS names, for the proxy to end that TLS.
    pub fn opens_tls(&self) -> bool {
        self.inspected.iter().any(|one| one.terminating.is_some())
    }
}

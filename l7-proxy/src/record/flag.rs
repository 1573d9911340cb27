//! Reasons as Envoy's response flags.

use mesh::exchange::Flag;

/// Those whose flag does not follow from the code of the answer.
const REASONS: [(&str, Option<Flag>); 26] = [
    ("server not reached", Some(Flag::Uf)),
    ("server not reached in time", Some(Flag::Uf)),
    ("TLS handshake with the server failed", Some(Flag::Uf)),
    ("certificate of the server not trusted", Some(Flag::Uf)),
    ("server without HTTP/2 in TLS", Some(Flag::Upe)),
    ("no answer in time", Some(Flag::Ut)),
    ("server closed without an answer", Some(Flag::Uc)),
    ("server reset the stream", Some(Flag::Ur)),
    ("server takes no more streams", Some(Flag::Ur)),
    ("server does not take CONNECT for other protocols", Some(Flag::Upe)),
    ("malformed HTTP/2 answer", Some(Flag::Upe)),
    ("failed within the answer", Some(Flag::Upe)),
    ("no byte for too long", Some(Flag::Si)),
    ("body not complete in time", Some(Flag::Si)),
    ("head not complete in time", Some(Flag::Si)),
    ("silent, where HTTP is required", Some(Flag::Si)),
    ("not allowed any more", Some(Flag::Lr)),
    ("proxy ended", Some(Flag::Lr)),
    ("no rules for it", Some(Flag::Nr)),
    ("rules not known yet", Some(Flag::Nr)),
    ("address of another workload than the rules are for", Some(Flag::Nr)),
    ("address of another workload by now", Some(Flag::Nr)),
    ("no rule for this peer", None),
    ("peer of no known identity", None),
    ("no rule names this server", None),
    ("rules that cannot be used", None),
];

/// What a reason is called, of an exchange that was answered with this.
pub(crate) fn flag(reason: &str, code: Option<u16>) -> Option<Flag> {
    if let Some((_, flag)) = REASONS.iter().find(|(known, _)| *known == reason) {
        return *flag;
    }
    if reason.starts_with("over the ") {
        return Some(Flag::Om);
    }
    match code {
        // A denial is no fault.
        Some(403) => None,
        Some(408) => Some(Flag::Si),
        Some(502) => Some(Flag::Upe),
        Some(503) => Some(Flag::Uf),
        Some(504) => Some(Flag::Ut),
        Some(400..500) | None => Some(Flag::Dpe),
        // The server's answer, and it broke off.
        Some(_) => Some(Flag::Uc),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Fault;

    #[test]
    fn a_fault_is_whose_message_it_was_in() {
        let fault = Fault::LengthTwice.text();
        assert_eq!(flag(fault, Some(400)), Some(Flag::Dpe));
        assert_eq!(flag(fault, Some(502)), Some(Flag::Upe));
        assert_eq!(flag(Fault::Truncated.text(), Some(200)), Some(Flag::Uc));
        assert_eq!(flag("no rule lets it through", Some(403)), None);
        assert_eq!(flag("not HTTP", None), Some(Flag::Dpe));
        assert_eq!(flag("over the workload's budget of streams", Some(429)), Some(Flag::Om));
    }
}

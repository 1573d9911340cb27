//! TLS as far as it matters: three flights that show certificates, each side judging what the other shows.

use auth_agent::event::Time;
use mesh::auth::Refusal;
use mesh::spiffe::SpiffeId;

/// A certificate. `from` and `until` are in true time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Certificate {
    pub(crate) id: SpiffeId,
    pub(crate) root: u32,
    pub(crate) from: Time,
    pub(crate) until: Time,
}

/// One of the three flights.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Flight {
    ClientHello,
    /// The server's chain; possession is proven of the first.
    Server(Vec<Certificate>),
    Client(Vec<Certificate>),
}

impl Flight {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let (kind, chain) = match self {
            Self::ClientHello => ("hello", &[][..]),
            Self::Server(chain) => ("server", &chain[..]),
            Self::Client(chain) => ("client", &chain[..]),
        };
        let shown = chain.iter().map(|c| format!(";{} {} {} {}", c.id, c.root, c.from, c.until));
        (kind.to_owned() + &shown.collect::<String>()).into_bytes()
    }

    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let text = str::from_utf8(bytes).ok()?;
        let mut parts = text.split(';');
        let kind = parts.next()?;
        let certificate = |part: &str| {
            let mut words = part.split(' ');
            let id = words.next()?.parse().ok()?;
            let root = words.next()?.parse().ok()?;
            let mut time = || words.next()?.parse().ok();
            Some(Certificate { id, root, from: time()?, until: time()? })
        };
        let chain: Option<Vec<_>> = parts.map(certificate).collect();
        match kind {
            "hello" => Some(Self::ClientHello),
            "server" => Some(Self::Server(chain?)),
            "client" => Some(Self::Client(chain?)),
            _ => None,
        }
    }
}

/// What one side makes of the other's chain, `now` by its own wall clock: until when it holds, in true time.
pub(crate) fn judge(
    chain: &[Certificate],
    expected: &SpiffeId,
    roots: &[u32],
    now: Time,
) -> Result<Time, Refusal> {
    let [leaf] = chain else {
        return Err(Refusal::BadCertificate);
    };
    if !roots.contains(&leaf.root) {
        return Err(Refusal::Untrusted);
    }
    if leaf.until <= now {
        return Err(Refusal::Expired);
    }
    if leaf.from > now {
        return Err(Refusal::NotYetValid);
    }
    if leaf.id != *expected {
        return Err(Refusal::WrongId);
    }
    Ok(leaf.until)
}

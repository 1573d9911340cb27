//! TLS of a client: it passes untouched where rules name the server that it asks for; else it is told so, and closed.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::task::Poll;

use mesh::flow::Verdict;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::Stream;
use super::buffer::SPENT;
use super::connection::{ConnectError, Mode, Session};
use super::ends::{Ends, Identities};
use super::exchange::ANSWER;
use super::waiting::holds;
use crate::codec::{HelloScan, SecondHello};
use crate::stage::admit::Kind;
use crate::stage::authorize::Judge;
use crate::stage::server_name::Greeting;

/// What a client is told, as RFC 8446 numbers it in 6.2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Alert {
    AccessDenied = 49,
    DecodeError = 50,
    InternalError = 80,
    UnrecognizedName = 112,
}

impl Alert {
    /// For who has said this, to somebody with such rules.
    fn of(said: &Greeting, judge: Option<&Judge>) -> Self {
        match said {
            _ if judge.is_none_or(|judge| judge.names.is_empty() && !judge.opens_tls()) => Self::AccessDenied,
            Ok(Some(_)) => Self::UnrecognizedName,
            Ok(None) => Self::AccessDenied,
            // It is not its fault.
            Err(reason) if [Kind::Heads, Kind::Bytes].iter().any(|kind| kind.spent() == *reason) => {
                Self::InternalError
            }
            Err(_) => Self::DecodeError,
        }
    }

    /// A record of its own, not encrypted: fatal.
    fn record(self) -> [u8; 7] {
        [21, 3, 3, 0, 2, 2, self as u8]
    }
}

impl<D, U, I, C> Session<'_, D, U, I, C>
where
    D: Stream,
    U: Stream,
    I: Identities,
    C: AsyncFn() -> Result<(U, Option<SocketAddr>), ConnectError>,
{
    /// A client that has begun to speak TLS, has said this in so many bytes, and is not opened.
    pub(super) async fn tls(mut self: Box<Self>, said: Greeting, read: usize) {
        self.ends.leave();
        self.refresh();
        self.described.set_tls(said.as_ref().ok().and_then(|name| name.as_deref()));
        if let Some((judge, reason)) = self.ends.denies_tls(&said) {
            let alert = Alert::of(&said, judge);
            self.record(judge, Verdict::Dropped, Some(reason), None);
            return self.alert(alert).await;
        }
        match self.ends.refuses_tls(&said) {
            Some((judge, reason)) => self.record(Some(judge), Verdict::Audit, Some(reason), None),
            None => self.record(self.ends.speaker(), Verdict::Forwarded, None, None),
        }
        let enforces = |judge: &Judge| !judge.is_plain() && !judge.audit;
        let gate = match &said {
            Ok(name) if self.ends.judges.iter().flatten().any(enforces) => {
                Some(Box::new(SecondHello::new(name.clone(), read)))
            }
            _ => None,
        };
        self.relay(Mode::Tls(said, gate)).await;
    }

    /// What it says, and how many bytes that took; `None`: it has gone.
    pub(super) async fn greeting(&mut self) -> Option<(Greeting, usize)> {
        self.speaks("TLS");
        let has_names = |judge: &Judge| !judge.is_plain() && (!judge.names.is_empty() || judge.opens_tls());
        let mut scan = HelloScan::default();
        let said = match self.ends.judges.iter().flatten().any(has_names) {
            true => self.hello(&mut scan).await?,
            // Whatever it says, nothing depends on it.
            false => match scan.find(self.down.input.bytes()) {
                Ok(Some(hello)) => Ok(hello.server_name),
                Ok(None) | Err(_) => Ok(None),
            },
        };
        self.head = None;
        Some((said, scan.read()))
    }

    /// What its ClientHello says, in the time that is left of that for the first bytes; `None`: it has gone.
    async fn hello(&mut self, scan: &mut HelloScan) -> Option<Greeting> {
        let Self { down, clock, head: held, place, .. } = self;
        poll_fn(|cx| {
            loop {
                match scan.find(down.input.bytes()) {
                    Ok(Some(hello)) => return Poll::Ready(Some(Ok(hello.server_name))),
                    Ok(None) => {}
                    Err(fault) => return Poll::Ready(Some(Err(fault.text()))),
                }
                if !holds(held, &down.input, &place.account) {
                    return Poll::Ready(Some(Err(Kind::Heads.spent())));
                }
                match down.input.poll_fill(&mut down.stream, cx) {
                    Poll::Ready(Err(error)) if error.kind() == SPENT => {
                        return Poll::Ready(Some(Err(Kind::Bytes.spent())));
                    }
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(None),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending => break,
                }
            }
            clock.poll(cx).map(|()| Some(Err("ClientHello not complete in time")))
        })
        .await
    }

    pub(super) async fn alert(&mut self, alert: Alert) {
        let sent = timeout(ANSWER, self.down.stream.write_all(&alert.record())).await;
        if matches!(sent, Ok(Ok(()))) {
            self.linger().await;
        }
    }
}

impl Ends {
    /// By whose word TLS that says this does not pass, and why not, audit mode aside.
    fn refuses_tls(&self, said: &Greeting) -> Option<(&Judge, &'static str)> {
        let mut refusing = self.judges.iter().flatten();
        refusing.find_map(|judge| Some((judge, judge.judge_tls(said).err()?)))
    }

    /// Why TLS that says this does not pass now, and by whose word, if it is somebody's.
    pub(super) fn denies_tls(&self, said: &Greeting) -> Option<(Option<&Judge>, &'static str)> {
        if let Some(reason) = self.refusal {
            return Some((self.speaker(), reason));
        }
        let mut enforcing = self.judges.iter().flatten().filter(|judge| !judge.audit);
        enforcing.find_map(|judge| Some((Some(judge), judge.judge_tls(said).err()?)))
    }
}

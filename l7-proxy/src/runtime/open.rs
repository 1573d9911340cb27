//! Handshakes of ours: with a client whose TLS the proxy ends, with a server to which it begins TLS.
//!
//! Promise: a handshake counts for the turn and has a bound in time; a client's has a place among the workload's unfinished
//! heads. A server
//! is who the client has named: in TLS, else in its first request, else by its address; its certificate must say so, whatever
//! else it says. Which HTTP is spoken is for the server to choose among what the client offers.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use mesh::flow::Verdict;
use rustls::pki_types::ServerName;
use rustls::server::Acceptor;
use tokio::time::timeout;
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

use super::connection::{ConnectError, Session};
use super::ends::Identities;
use super::inspection::Begun;
use super::tls::Alert;
use super::transfer::Side;
use super::wire::{Rewound, Wire};
use super::{Stream, turn};
use crate::index::{Offer, Originating, Terminating};
use crate::stage::admit::Kind;
use crate::stage::server_name::Greeting;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What has become of TLS that a client has begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Greeted {
    /// It is the proxy's own; what is inside comes next.
    Opened,
    /// It is not for the proxy to open.
    Untouched,
    /// The connection has ended.
    Over,
}

impl<D, U, I, C> Session<'_, D, U, I, C>
where
    D: Stream,
    U: Stream,
    I: Identities,
    C: AsyncFn() -> Result<(U, Option<SocketAddr>), ConnectError>,
{
    /// Ends the TLS of a client that has begun with it, if rules ask for that.
    pub(super) async fn open(&mut self, said: &Greeting) -> Greeted {
        self.refresh();
        let Ok(said) = said else { return Greeted::Untouched };
        if !self.ends.opens(said.as_deref()) {
            return Greeted::Untouched;
        }
        self.described.set_tls(said.as_deref());
        self.ends.begin(Begun::Opened(said.clone()));
        let terminating = self.ends.inspection.as_ref().and_then(|it| it.terminating.clone());
        let (Some(terminating), None) = (terminating, self.ends.refusal) else {
            let reason = self.ends.refusal.unwrap_or("TLS that nobody opens");
            self.record(self.ends.strict().or(self.ends.speaker()), Verdict::Dropped, Some(reason), None);
            self.alert(Alert::AccessDenied).await;
            return Greeted::Over;
        };
        match self.handshake(&terminating).await {
            Ok(()) => {
                self.described.opened();
                Greeted::Opened
            }
            Err(reason) => {
                self.record(self.ends.speaker(), Verdict::Dropped, Some(reason), None);
                Greeted::Over
            }
        }
    }

    async fn handshake(&mut self, terminating: &Terminating) -> Result<(), &'static str> {
        const FAILED: &str = "TLS handshake with the client failed";
        const LATE: &str = "TLS handshake with the client not complete in time";
        let _held = self.place.account.hold(Kind::Heads).ok_or(Kind::Heads.spent())?;
        let Some(stream) = self.down.stream.take() else { return Err(FAILED) };
        let rewound = Rewound::new(self.down.input.bytes(), stream);
        self.down.input.consume(self.down.input.len());
        self.down.input.rest();
        let accepting = LazyConfigAcceptor::new(Acceptor::default(), rewound);
        let start = timeout(HANDSHAKE, counted(accepting)).await.map_err(|_| LATE)?.map_err(|_| FAILED)?;
        let offered = Offer::of(start.client_hello().alpn().into_iter().flatten());
        let chosen = self.choose(offered).await;
        let stream = counted(start.into_stream(terminating.config(chosen)));
        let stream = timeout(HANDSHAKE, stream).await.map_err(|_| LATE)?.map_err(|_| FAILED)?;
        self.down.stream = Wire::tls(stream);
        Ok(())
    }

    /// Which HTTP the client is answered that offers this. Where it leaves a choice, a server that is spoken TLS to has it:
    /// it is connected to now, as it would be if nobody opened the client's TLS. Of a client that has not said who that is, it
    /// is not known yet.
    async fn choose(&mut self, offered: Offer) -> Offer {
        if offered != Offer::Both {
            return offered;
        }
        let may_ask = self.ends.originating().is_some() && self.ends.said().is_some();
        if !may_ask || self.connect_with(Offer::Both, &[]).await.is_err() {
            return Offer::Http1;
        }
        match self.up.as_ref().is_some_and(|up| up.stream.is_http2()) {
            true => Offer::Http2,
            false => Offer::Http1,
        }
    }

    /// One connection to the server, for whom is asked in the first request.
    pub(super) async fn connect_with(&mut self, offer: Offer, authority: &[u8]) -> Result<(), ConnectError> {
        if self.up.is_none() {
            let begins = self.ends.originating().map(|originating| {
                let name = server_name(self.ends.said(), authority, self.called.server);
                (Arc::clone(originating), name)
            });
            let (stream, local) = reach(&self.connect, begins, offer).await?;
            self.entered.connection.known.lock().0 = local;
            self.up = Some(Side::new(stream, Arc::clone(&self.place.account)));
        }
        Ok(())
    }
}

/// Connects to the server, and begins TLS if that is how it is known.
pub(super) async fn reach<U, C>(
    connect: &C,
    begins: Option<(Arc<Originating>, ServerName<'static>)>,
    offer: Offer,
) -> Result<(Wire<U>, Option<SocketAddr>), ConnectError>
where
    U: Stream,
    C: AsyncFn() -> Result<(U, Option<SocketAddr>), ConnectError>,
{
    let (stream, local) = connect().await?;
    let Some((originating, name)) = begins else { return Ok((Wire::Plain(stream), local)) };
    let handshake = TlsConnector::from(originating.config(offer)).connect(name, Rewound::new(&[], stream));
    let stream = timeout(HANDSHAKE, counted(handshake)).await.map_err(|_| ConnectError::Late)?;
    let stream = Wire::tls(stream.map_err(|error| fault(&error))?);
    match offer == Offer::Http2 && !stream.is_http2() {
        true => Err(ConnectError::Unsuited),
        false => Ok((stream, local)),
    }
}

/// Why a server's TLS has failed.
fn fault(error: &io::Error) -> ConnectError {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidCertificate(_)) => ConnectError::Untrusted,
        Some(rustls::Error::NoApplicationProtocol) => ConnectError::Unsuited,
        _ => ConnectError::NoTls,
    }
}

/// Who a server must be: whom the client has named in TLS, else in a request, else whoever has the address.
pub(super) fn server_name(said: Option<&str>, authority: &[u8], server: SocketAddr) -> ServerName<'static> {
    let named = || ServerName::try_from(host(std::str::from_utf8(authority).ok()?)?.to_owned()).ok();
    let said = said.and_then(|said| ServerName::try_from(said.to_owned()).ok());
    said.or_else(named).unwrap_or_else(|| ServerName::from(server.ip()))
}

/// The host of an authority, without its port; of an address of IPv6, without its brackets.
pub(super) fn host(authority: &str) -> Option<&str> {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map(|(host, _)| host),
        None => Some(authority.split_once(':').map_or(authority, |(host, _)| host)),
    }
}

/// A handshake that counts for the turn: what it computes takes long.
async fn counted<F: Future>(handshake: F) -> F::Output {
    let mut handshake = pin!(handshake);
    poll_fn(|cx| {
        if turn::step(turn::LOOK, cx).is_pending() {
            return Poll::Pending;
        }
        let polled = handshake.as_mut().poll(cx);
        turn::judged();
        polled
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_who_the_client_names() {
        let server: SocketAddr = "10.0.0.1:443".parse().unwrap();
        let name =
            |said, authority: &str| server_name(said, authority.as_bytes(), server).to_str().into_owned();
        assert_eq!(name(Some("a.example"), "b.example"), "a.example");
        assert_eq!(name(None, "b.example:8443"), "b.example");
        assert_eq!(name(None, "[fd00::1]:443"), "fd00::1");
        assert_eq!(name(None, "10.0.0.2"), "10.0.0.2");
        for other in ["", "a b", "[fd00::1", "_:"] {
            assert_eq!(name(None, other), if other == "_:" { "_" } else { "10.0.0.1" }, "{other}");
        }
    }
}

//! What the host itself receives, and the news of it.
//!
//! Not its addresses alone: a datagram to the broadcast address of one of its networks, to the anycast address that
//! every forwarding host has in every IPv6 network (RFC 4291 section 2.6.1), or to a `local` route someone has made,
//! reaches the host's own sockets just as well. The kernel keeps a route for each.
//!
//! What the host sends by is news too: an address becomes usable some time after its route is there (RFC 4862 section
//! 5.4, duplicate address detection), and default routes come and go.

use futures_util::{FutureExt, StreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteMessage, RouteType};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::{MulticastGroup, new_multicast_connection};

use crate::error::{Context, Result};

/// Told by the kernel whenever these routes, an address or a default route change, from the moment it is opened.
pub struct OwnRoutes {
    messages: Messages,
}

type Messages = futures_util::stream::BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>;

impl OwnRoutes {
    /// Listens in the calling thread's network namespace. Must be called within a tokio runtime.
    pub fn listen() -> Result<Self> {
        let groups = [
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ];
        let (connection, _, messages) =
            new_multicast_connection(&groups).context("listen on", "netlink route socket")?;
        tokio::spawn(connection);
        Ok(Self { messages: messages.map(|(message, _)| message).boxed() })
    }

    /// Waits until some have changed since the last call, or may have. Cancel safe.
    pub async fn changed(&mut self) {
        while let Some(message) = self.messages.next().await {
            if concerns(&message) {
                // What follows at once is one change: an address brings several routes.
                while self.messages.next().now_or_never().flatten().is_some() {}
                return;
            }
        }
        tracing::error!("the kernel's route messages have ended; new addresses of this host stay unknown");
        std::future::pending().await
    }
}

fn concerns(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    match &message.payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
        ) => is_own(route) || is_default(route),
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_),
        ) => true,
        // Some were lost.
        NetlinkPayload::Overrun(_) => true,
        _ => false,
    }
}

fn is_default(route: &RouteMessage) -> bool {
    route.header.kind == RouteType::Unicast && route.header.destination_prefix_length == 0
}

/// A route to the host itself. A `local` route to everywhere is none: where packets with some mark go to a transparent proxy,
/// ours or another's, no address has come to be the host's by it.
pub(super) fn is_own(route: &RouteMessage) -> bool {
    match route.header.kind {
        RouteType::Local => route.header.destination_prefix_length != 0,
        RouteType::Broadcast | RouteType::Anycast => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_a_transparent_proxy_makes_no_address_the_hosts() {
        let own = |kind, length| {
            let mut route = RouteMessage::default();
            (route.header.kind, route.header.destination_prefix_length) = (kind, length);
            is_own(&route)
        };
        assert!(own(RouteType::Local, 32) && own(RouteType::Local, 8) && own(RouteType::Broadcast, 32));
        assert!(!own(RouteType::Local, 0) && !own(RouteType::Unicast, 24));
    }
}

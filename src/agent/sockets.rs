//! Sockets of services' clients whose backend is gone.

use endpoint::Departed;

use super::node::Node;

impl Node {
    /// Ends them, beside the loop. To be called when the departed have left the kernel's tables.
    pub(super) fn end_sockets(&self, departed: Departed) {
        if departed.is_empty() {
            return;
        }
        let view = self.datapath.view();
        let pass = self.endpoints.end_sockets(departed, move |cookie, protocol, remote| {
            let called = view.called(cookie, remote, protocol);
            called.unwrap_or_else(|error| {
                tracing::warn!(%error, "what a socket called cannot be told; it is left alone");
                None
            })
        });
        tokio::spawn(async move {
            match pass.await {
                Ok(Ok(0)) => {}
                Ok(Ok(count)) => tracing::debug!(count, "sockets to backends that are gone have been ended"),
                Ok(Err(error)) => {
                    tracing::warn!("sockets to backends that are gone are not all ended: {error}")
                }
                // The runtime ends.
                Err(_) => {}
            }
        });
    }
}

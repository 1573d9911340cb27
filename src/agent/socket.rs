//! From the socket to the agent's loop: each request becomes a call with a way back.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use mesh::workload::EndpointId;
use node_api::server::{BindError, ReplySink, Server};
use node_api::{Enrol, Enrolled, MonitorQuery, ObserveQuery, Reply, Request};
use observe::{FlowRing, Monitor, Monitored, Observed};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{spawn_blocking, yield_now};

use super::rows::Rows;

/// A request on its way to the loop.
pub(super) enum Call {
    /// A question about the node.
    Ask(Request, oneshot::Sender<Answer>),
    /// A workload is to be started.
    Enrol(Enrol, oneshot::Sender<Result<Enrolled, Reply>>),
    /// Whoever started the workload is gone, or has handed it to its processes.
    LeaseEnded(EndpointId),
    /// Everything is to be undone; how that went, and something to drop once it has been told.
    Down(oneshot::Sender<(Result<(), String>, oneshot::Sender<()>)>),
}

/// The answer to a question.
pub(super) enum Answer {
    /// Whole.
    One(Box<Reply>),
    /// To be made.
    Rows(Rows),
    /// To be asked of somebody else.
    Later(Later),
}

/// All replies of an answer, once they are there.
pub(super) type Later = Pin<Box<dyn Future<Output = Vec<Reply>> + Send>>;

/// Opens the socket; the future answers until it is dropped.
pub(super) fn serve(
    socket: PathBuf,
    calls: mpsc::Sender<Call>,
    ring: Arc<FlowRing>,
    monitor: Arc<Monitor>,
) -> Result<impl Future<Output = ()>, BindError> {
    // Without the group, or without an answer to who that is, root alone may ask.
    let readers = linux::user::group(node_api::GROUP).unwrap_or_default();
    let server = Server::bind(&socket, crate::BUILD, readers)?;
    Ok(server.serve(move |_, request, sink| {
        let (calls, ring, monitor) = (calls.clone(), Arc::clone(&ring), Arc::clone(&monitor));
        async move {
            // What cannot be sent has no reader any more.
            let _ = answer(request, sink, &calls, &ring, &monitor).await;
        }
    }))
}

/// Nobody is left to answer to, or to answer.
struct Over;

impl<E: std::error::Error> From<E> for Over {
    fn from(_: E) -> Self {
        Self
    }
}

async fn answer(
    request: Request,
    mut sink: ReplySink,
    calls: &mpsc::Sender<Call>,
    ring: &Arc<FlowRing>,
    events: &Monitor,
) -> Result<(), Over> {
    match request {
        Request::Observe(query) => observe(&query, sink, ring).await,
        Request::Monitor(query) => monitor(query, sink, events).await,
        Request::Enrol(enrol) => {
            let (sender, made) = oneshot::channel();
            calls.send(Call::Enrol(enrol, sender)).await?;
            match made.await? {
                Ok(enrolled) => {
                    let id = enrolled.endpoint.id;
                    let _ = sink.send(&Reply::Enrolled(enrolled)).await;
                    sink.closed().await;
                    calls.send(Call::LeaseEnded(id)).await?;
                }
                Err(refused) => sink.send(&refused).await?,
            }
            Ok(())
        }
        Request::Down => {
            let (sender, done) = oneshot::channel();
            calls.send(Call::Down(sender)).await?;
            let (undone, _told) = done.await?;
            let reply = undone.map_or_else(Reply::Error, |()| Reply::Done);
            Ok(sink.send(&reply).await?)
        }
        question => {
            let (sender, answer) = oneshot::channel();
            calls.send(Call::Ask(question, sender)).await?;
            match answer.await? {
                Answer::One(reply) => Ok(sink.send(&reply).await?),
                Answer::Rows(rows) => tell(spawn_blocking(rows).await?, sink).await,
                Answer::Later(later) => tell(later.await, sink).await,
            }
        }
    }
}

async fn tell(replies: Vec<Reply>, mut sink: ReplySink) -> Result<(), Over> {
    for reply in replies {
        sink.send(&reply).await?;
        // A reader that is fast enough would have all pieces written without a pause.
        yield_now().await;
    }
    Ok(())
}

async fn observe(query: &ObserveQuery, mut sink: ReplySink, ring: &Arc<FlowRing>) -> Result<(), Over> {
    let mut reader = match ring.read(query) {
        Ok(reader) => reader,
        Err(error) => return Ok(sink.send(&Reply::Error(error.to_string())).await?),
    };
    loop {
        let event = tokio::select! {
            event = reader.next() => event,
            () = sink.closed() => return Err(Over),
        };
        let reply = match event {
            Some(Observed::Flow(flow)) => Reply::Flow(Box::new(Arc::unwrap_or_clone(flow))),
            Some(Observed::Lost(count)) => Reply::Lost(count),
            None => Reply::Done,
        };
        sink.send(&reply).await?;
        if reply == Reply::Done {
            return Ok(());
        }
    }
}

async fn monitor(query: MonitorQuery, mut sink: ReplySink, monitor: &Monitor) -> Result<(), Over> {
    let mut watch = monitor.read(query);
    sink.send(&Reply::Listening).await?;
    loop {
        let monitored = tokio::select! {
            monitored = watch.next() => monitored,
            () = sink.closed() => return Err(Over),
        };
        let reply = match monitored {
            Some(Monitored::Event(event)) => Reply::Event(event),
            Some(Monitored::Lost(count)) => Reply::Lost(count),
            None => return Ok(()),
        };
        sink.send(&reply).await?;
    }
}

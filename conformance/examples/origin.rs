//! An origin on hyper, for tests: says on standard output what it executes, with its `X-` headers, and which trailers it is
//! sent; answers 200. HTTP/1.1 on the first port, HTTP/2 without TLS on the second.

use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let mut ports = std::env::args().skip(1).map_while(|port| port.parse().ok());
    let [first, second] = [ports.next().unwrap_or(80), ports.next().unwrap_or(81)];
    let listen = async |port| TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await;
    let (plain, h2) = (listen(first).await?, listen(second).await?);
    println!("serving");
    loop {
        // Whatever a client does to its connection is its own business.
        tokio::select! {
            accepted = plain.accept() => {
                let stream = TokioIo::new(accepted?.0);
                tokio::spawn(async move {
                    let builder = hyper::server::conn::http1::Builder::new();
                    let _ = builder.serve_connection(stream, service_fn(execute)).await;
                });
            }
            accepted = h2.accept() => {
                let stream = TokioIo::new(accepted?.0);
                tokio::spawn(async move {
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(stream, service_fn(execute)).await;
                });
            }
        }
    }
}

async fn execute(request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let headers = request.headers();
    let roles = headers.iter().filter(|(name, _)| name.as_str().replace('_', "-") == "x-role");
    let roles: Vec<_> = roles.map(|(_, value)| String::from_utf8_lossy(value.as_bytes())).collect();
    let host = headers.get("host").map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
    let host = host.or_else(|| uri.authority().map(ToString::to_string)).unwrap_or_default();
    // What rules may have changed.
    let mut others: Vec<_> = headers.iter().filter(|(name, _)| name.as_str().starts_with("x-")).collect();
    others.sort_by_key(|(name, _)| name.as_str());
    let others =
        others.iter().map(|(name, value)| format!("{name}={}", String::from_utf8_lossy(value.as_bytes())));
    let others = others.collect::<Vec<_>>().join(" ");
    println!("seen\t{method}\t{uri}\t{}\t{host}\t{}\t{others}", uri.path(), roles.join("|"));
    // A body that breaks off is a request all the same: it has been executed.
    if let Ok(body) = request.into_body().collect().await
        && let Some(trailers) = body.trailers()
    {
        trailers.keys().for_each(|name| println!("behind\t{name}"));
    }
    Ok(Response::new(Empty::new()))
}

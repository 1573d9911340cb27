//! TLS 1.3, by rustls: who may be called is what is asked here, not who answers.

use std::io::{self, BufRead, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;

use conformance::credulous::Credulous;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use tokio_rustls::rustls::{
    self, ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned,
};

use crate::client::{connect, say};
use crate::requests::Asks;
use crate::serve::listen;
use crate::{PATIENCE, word};

/// What is said comes back.
pub(crate) fn serve(port: u16) -> io::Result<()> {
    let made = rcgen::generate_simple_self_signed(["server.example".to_owned()]).map_err(io::Error::other)?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
    let builder =
        builder.with_safe_default_protocol_versions().map_err(io::Error::other)?.with_no_client_auth();
    let config = builder.with_single_cert(vec![made.cert.der().clone()], key.into());
    let config = Arc::new(config.map_err(io::Error::other)?);
    let listener = listen(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
    println!("serving");
    for stream in listener.incoming() {
        let (stream, config) = (stream?, Arc::clone(&config));
        std::thread::spawn(move || {
            let Ok(connection) = ServerConnection::new(config) else { return };
            let mut stream = StreamOwned::new(connection, stream);
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}

type Client = StreamOwned<ClientConnection, TcpStream>;

/// `-`: no name. A name is in the first message, which ML-KEM makes longer than a segment.
fn open(address: SocketAddr, name: &str) -> io::Result<Client> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Credulous));
    let mut config = builder.with_no_client_auth();
    config.enable_sni = name != "-";
    let name = if name == "-" { "none.example" } else { name };
    let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
    let connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    let stream = connect(address)?;
    // A handshake is work at both ends.
    stream.set_read_timeout(Some(PATIENCE * 10))?;
    Ok(StreamOwned::new(connection, stream))
}

/// `answered`, or the alert.
pub(crate) fn one(address: SocketAddr, name: &str) -> io::Result<String> {
    let mut stream = open(address, name)?;
    match say(&mut stream, b"word") {
        Ok(()) => Ok("answered".to_owned()),
        Err(error) => alert(&error).ok_or(error),
    }
}

fn alert(error: &io::Error) -> Option<String> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(format!("{alert:?}")),
        _ => None,
    }
}

/// Opens a connection on which each request is a word of its own that must come back as it went.
pub(crate) fn repeat(address: SocketAddr, name: &str) -> io::Result<Asks> {
    let mut stream = open(address, name)?;
    let mut number = 0u64;
    Ok(Box::new(move |_| {
        number += 1;
        let said = number.to_be_bytes();
        stream.write_all(&said)?;
        let mut back = [0; 8];
        stream.read_exact(&mut back)?;
        if back == said {
            Ok(200)
        } else {
            Err(io::Error::other(format!("word {number} came back otherwise")))
        }
    }))
}

/// A connection that stays.
pub(crate) fn hold(address: SocketAddr, name: &str) -> io::Result<()> {
    let mut stream = open(address, name)?;
    say(&mut stream, b"word")?;
    println!("open");
    for line in io::stdin().lock().lines() {
        match say(&mut stream, line?.as_bytes()) {
            Ok(()) => println!("answered"),
            Err(error) => println!("{}", word(&error)),
        }
    }
    Ok(())
}

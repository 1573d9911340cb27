//! The properties that `../tests/properties` holds the proxy to, for libFuzzer.
#![allow(missing_docs, reason = "they are described where they are")]

#[path = "../../tests/properties/cut.rs"]
pub mod cut;
#[path = "../../tests/harness/mod.rs"]
pub mod harness;
#[path = "../../tests/properties/hello.rs"]
pub mod hello;
#[path = "../../tests/properties/http1.rs"]
pub mod http1;
#[path = "../../tests/properties/http2.rs"]
pub mod http2;
#[path = "../../tests/properties/path.rs"]
pub mod path;
#[path = "../../tests/properties/request.rs"]
pub mod request;
#[path = "../../tests/properties/response.rs"]
pub mod response;
#[path = "../../tests/properties/run.rs"]
mod run;
#[path = "../../tests/properties/stream.rs"]
pub mod stream;

use run::run;

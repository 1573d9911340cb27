//! What policy means: rule by rule in tables (`semantics`, `peers`, `ports` on the world of `given`), on random worlds
//! against the oracle (`worlds`), and as people are told (`explain`).

mod explain;
mod given;
mod peers;
mod ports;
mod semantics;
mod worlds;

//! What policy means: rule by rule in tables (`semantics`, `peers`, `ports` on the world of `given`), on random worlds
//! against the oracle (`worlds`), as people are told (`explain`), and at the size we promise (`scale`).

mod explain;
mod given;
mod l7;
mod peers;
mod ports;
mod scale;
mod semantics;
mod worlds;

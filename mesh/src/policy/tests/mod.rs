//! What policy means: rule by rule in tables (`semantics`, `peers`, `ports` on the world of `given`), and on random
//! worlds against the oracle (`worlds`).

mod given;
mod peers;
mod ports;
mod semantics;
mod worlds;

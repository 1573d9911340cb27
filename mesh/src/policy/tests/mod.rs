//! What policy means, said three times: rule by rule (`semantics`), on random worlds against the oracle (`worlds`), and
//! at the size we promise (`scale`).

mod worlds;

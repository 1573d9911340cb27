//! Certificates: who verifies them, who issues them, who holds them.
//!
//! Promise: a chain is accepted only as the SPIFFE standard has it (`X509-SVID.md`), for the one ID that was expected,
//! against the bundle of that ID's trust domain alone. Everything here is a function of values and files; who talks to
//! whom is decided elsewhere.

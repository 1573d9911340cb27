//! Ferromesh: one binary, one verb per process or question.
fn main() {}

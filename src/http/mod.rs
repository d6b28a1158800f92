//! The parts of HTTP semantics (RFC 9110) that decide how much of a representation is sent: ranges, preconditions and
//! dates. Pure: no I/O, no clock (the time is a parameter), nothing shared; a table can test it.

pub mod answer;
pub mod conditional;
pub mod date;
pub mod host;
pub mod range;

//! Process-level tests: the program as built, against real peers and against peers that misbehave.

mod accel;
mod access;
mod badinput;
mod bounds;
mod conformance;
mod crash;
mod distrust;
mod evict;
mod fanout;
mod faults;
mod harness;
mod http;
mod interop;
mod listing;
mod load;
mod operate;
mod power;
mod pull;
mod push;
mod pushcrash;
mod rights;
mod schedule;
mod shared;
mod support;
mod tags;
mod v1;

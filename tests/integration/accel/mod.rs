//! The front of applications: what it does, and what it must not do.

mod basics;

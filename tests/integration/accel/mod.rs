//! The front for applications: `X-Accel-Redirect` and `X-Sendfile` beside nginx, lighttpd and frameworks that use them,
//! and what must not happen: a file from outside of its root, a hang, a broken answer that looks whole.

mod backend;
mod backend_faults;
mod basics;
mod bodies;
mod changing;
mod escape;
mod forwarding;
mod framework;
mod front;
mod lighttpd;
mod nginx;
mod options;
mod resources;
mod sendfile;
mod table;
mod upgrade;
mod wire;

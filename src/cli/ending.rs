//! How a command that works for long is ended: the first SIGINT or SIGTERM lets it finish its step and say what it did, a
//! second one ends the process at once.

use std::future::Future;
use std::io;
use std::process;
use std::thread;

use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::maintain::Stop;

/// Waits for the signals for as long as it is polled. To be called inside of a runtime.
///
/// # Errors
/// The system's.
pub(super) fn on_signals(stop: Stop) -> io::Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stop.is_set() {
                process::exit(1);
            }
            stop.stop();
        }
    })
}

/// The same for a command that has no runtime: on a thread that nobody waits for.
///
/// # Errors
/// The system's.
pub(super) fn in_background() -> io::Result<Stop> {
    let stop = Stop::new();
    let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
    let waiting = {
        let _inside = runtime.enter();
        on_signals(stop.clone())?
    };
    thread::Builder::new().name("signals".to_owned()).spawn(move || runtime.block_on(waiting))?;
    Ok(stop)
}

//! Threads for work that nobody waits for: the lowest priority, apart from the workers and their store threads, so that
//! requests do not notice it.
//!
//! **Runs at once**: one thread with a runtime of its own, on which the schedule lives, and at most `THREADS` for work
//! that blocks. They share locks with the workers (a digest's shard, a part of the filesystem's journal) for the time of a
//! few system calls, which is why they are slow rather than idle ([`lower_priority`]).

use std::future::Future;
use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::runtime::{self, Handle};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, LocalSet};

use crate::sys::lower_priority;

/// Work that may block at once: long jobs of the schedule, scans, and what a repair writes.
const THREADS: usize = 8;
/// How long the end waits for work to come to its next step.
const END_MAX: Duration = Duration::from_secs(5);

/// Where work in the background can be put. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Background(Handle);

/// The threads. They end when this is dropped, work under way at its next step.
#[derive(Debug)]
pub struct Threads {
    background: Background,
    end: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Background {
    /// Runs `work` on a thread in the background. Dropping what is returned lets it finish unobserved.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Work<T> {
        Work(self.0.spawn_blocking(work))
    }
}

/// Work in the background, and its result.
#[derive(Debug)]
pub struct Work<T>(JoinHandle<io::Result<T>>);

impl<T> Work<T> {
    /// Waits for its end. Cancel safe.
    ///
    /// # Errors
    /// Its own; it panicked; or the threads have ended.
    pub async fn ended(&mut self) -> io::Result<T> {
        (&mut self.0).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

impl Threads {
    /// Starts them. `main` makes what the runtime's own thread does beside; it is dropped at the end.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start<F: Future<Output = ()>>(main: impl FnOnce() -> F + Send + 'static) -> io::Result<Self> {
        let (end, ended) = oneshot::channel::<()>();
        let (tell, told) = mpsc::channel();
        let work = move || {
            lower_priority();
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(THREADS)
                .thread_name("background")
                .on_thread_start(lower_priority)
                .build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => return drop(tell.send(Err(error))),
            };
            let _ = tell.send(Ok(Background(runtime.handle().clone())));
            LocalSet::new().block_on(&runtime, async {
                let main = main();
                tokio::select! {
                    () = async { main.await; std::future::pending().await } => {}
                    _ = ended => {}
                }
            });
            runtime.shutdown_timeout(END_MAX);
        };
        let thread = thread::Builder::new().name("maintenance".to_owned()).spawn(work)?;
        let background = told.recv().map_err(io::Error::other)??;
        Ok(Self { background, end: Some(end), thread: Some(thread) })
    }

    /// Where work can be put.
    pub fn background(&self) -> Background {
        self.background.clone()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the maintenance thread died: this is a bug");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    struct Flag(Arc<AtomicBool>);

    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn work_runs_behind_everything_else_and_ends_with_the_threads() {
        let dropped = Arc::new(AtomicBool::new(false));
        let flag = Flag(Arc::clone(&dropped));
        let threads = Threads::start(|| async move {
            let _flag = flag;
            std::future::pending::<()>().await;
        })
        .unwrap();
        let nice = || Ok(rustix::process::getpriority_process(None)?);
        let here = nice().unwrap();
        let mut work = threads.background().run(nice);
        let runtime = runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(runtime.block_on(work.ended()).unwrap(), 19);
        assert_eq!(nice().unwrap(), here);
        let background = threads.background();
        drop(threads);
        assert!(dropped.load(Ordering::SeqCst));
        let mut late = background.run(|| Ok(()));
        runtime.block_on(late.ended()).unwrap_err();
    }
}

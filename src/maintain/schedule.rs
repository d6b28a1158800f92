//! When the jobs of maintenance run in a server.
//!
//! **Runs at once**: on the [maintenance thread](super::background) one task per job and registry; of the jobs themselves at
//! most `TURNS`, and one of those that take days ([`Turn::Long`]), for which the others need not wait. Of the same job on
//! the same tree one runs in all processes that share it (a lock in its `locks`).
//!
//! **Survives a restart**: when a job ran last is the time of modification of its lock file. So a server that is restarted
//! every night collects garbage none the less, one that is restarted every minute does not do so every minute, and
//! processes that share a tree take turns. A tree that is seen for the first time is left alone for one interval: it may be
//! one that somebody else has just moved here. A job that was interrupted counts as not having run.
//!
//! A job that fails says why in the log and in the metrics, and is tried again when it is due the next time. Dropping the
//! schedule ends jobs at their next step.

use std::error::Error;
use std::fs::{self, File, TryLockError};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};
use tokio::task::spawn_local;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::Stop;
use crate::metrics::{MaintenanceMetrics, Outcome};
use crate::store::ingest::open_lock;
use crate::store::{Store, on_store_thread};

/// Jobs that run at once; others wait.
const TURNS: usize = 2;
/// Processes that were started together begin their jobs apart by up to this, and by a tenth of the interval at most.
const JITTER_MAX: Duration = Duration::from_secs(10);
/// How often open files are looked at that may have been removed.
const CLOSE_EVERY: Duration = Duration::from_secs(10);
/// How soon to look again when another process is at it.
const BUSY_WAIT: Duration = Duration::from_mins(1);

/// Which jobs a job waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// As many others as there are `TURNS`.
    Short,
    /// The one that takes long.
    Long,
}

/// What a run came to.
#[derive(Debug)]
pub enum Ran {
    /// It did all that it should; what, for the log, if it did anything.
    Done(Option<String>),
    /// It was told to end before it was done.
    Stopped,
    /// Another process is at it.
    Busy,
    /// It could not do what it should.
    Failed(Box<dyn Error + Send + Sync>),
}

/// A run under way, on the maintenance thread.
pub type Running = Pin<Box<dyn Future<Output = Ran>>>;

/// Something to be done again and again. A clone is the same job.
#[derive(Clone)]
pub struct Job {
    /// What it is called in logs and metrics.
    pub name: &'static str,
    /// The registry whose tree it is about, in the log.
    pub registry: String,
    /// Two jobs of the same name and registry are the same if this is: what they do, and to what.
    pub settings: String,
    /// The time from a run to the next.
    pub every: Duration,
    /// There is nothing to do while this directory does not exist.
    pub tree: PathBuf,
    /// The lock file, whose time of modification is when it ran last.
    pub lock: PathBuf,
    /// Whether the job takes that lock itself; else it is taken for it.
    pub locks_itself: bool,
    /// Which jobs it waits for.
    pub turn: Turn,
    /// Where its runs are counted.
    pub metrics: MaintenanceMetrics,
    /// Begins a run, which is to end at its next step when it is told to.
    pub run: Arc<dyn Fn(Stop) -> Running + Send + Sync>,
}

impl Job {
    fn is(&self, other: &Self) -> bool {
        let key =
            |job: &Self| (job.name, job.registry.clone(), job.every, job.settings.clone(), job.lock.clone());
        key(self) == key(other)
    }
}

/// What is to be done by a server.
#[derive(Clone, Default)]
pub struct Plan {
    /// The jobs, of all registries.
    pub jobs: Vec<Job>,
    /// The trees that it has files open of.
    pub stores: Vec<Arc<Store>>,
}

/// Does what the plan says, as it changes; jobs that are not in it any more are ended. Until the future is dropped, in a
/// `LocalSet`.
pub async fn run(plans: watch::Receiver<Plan>) {
    tokio::join!(run_jobs(plans.clone()), close_removed(plans));
}

/// Closes files that other processes removed, so that the disk gets their bytes back although nobody asks for them any more.
async fn close_removed(plans: watch::Receiver<Plan>) {
    let mut every = interval(CLOSE_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let stores = plans.borrow().stores.clone();
        let closing =
            on_store_thread(move || Ok(stores.iter().map(|store| store.forget_removed()).sum::<usize>()));
        if let Ok(closed @ 1..) = closing.await {
            tracing::debug!(closed, "closed files that others removed");
        }
    }
}

async fn run_jobs(mut plans: watch::Receiver<Plan>) {
    let turns = Rc::new(Turns { short: Semaphore::new(TURNS), long: Semaphore::new(1) });
    let mut repeated: Vec<Repeated> = Vec::new();
    loop {
        let wanted = plans.borrow_and_update().jobs.clone();
        repeated.retain(|known| wanted.iter().any(|job| job.is(&known.job)));
        for job in wanted {
            if !repeated.iter().any(|known| known.job.is(&job)) {
                repeated.push(Repeated::begin(job, &turns));
            }
        }
        if plans.changed().await.is_err() {
            // What there is goes on to the end.
            std::future::pending::<()>().await;
        }
    }
}

/// A permit for each run that may be under way.
struct Turns {
    short: Semaphore,
    long: Semaphore,
}

/// A job on its schedule, until this is dropped; then a run under way ends at its next step.
struct Repeated {
    job: Job,
    stop: Stop,
    ended: Rc<Notify>,
}

impl Repeated {
    fn begin(job: Job, turns: &Rc<Turns>) -> Self {
        let (stop, ended) = (Stop::new(), Rc::new(Notify::new()));
        spawn_local(repeat(job.clone(), stop.clone(), Rc::clone(&ended), Rc::clone(turns)));
        Self { job, stop, ended }
    }
}

impl Drop for Repeated {
    fn drop(&mut self) {
        self.stop.stop();
        self.ended.notify_one();
    }
}

/// Runs a job whenever it is due, until it is `ended`; `stop` is set then.
async fn repeat(job: Job, stop: Stop, ended: Rc<Notify>, turns: Rc<Turns>) {
    let mut last = None;
    let mut wait = JITTER_MAX.min(job.every / 10).mul_f64(fastrand::f64());
    while !stop.is_set() {
        let _turn = tokio::select! {
            () = ended.notified() => return,
            turn = turn(&job, wait, &mut last, &turns) => turn,
        };
        wait = attempt(&job, &stop).await;
    }
}

/// Waits for so long, then until the job is due, then for its turn.
async fn turn<'a>(
    job: &Job,
    wait: Duration,
    last: &mut Option<SystemTime>,
    turns: &'a Turns,
) -> Option<SemaphorePermit<'a>> {
    sleep(wait).await;
    loop {
        // Another process may have run it meanwhile.
        let wait = due(job, last).await;
        if wait.is_zero() {
            let turns = match job.turn {
                Turn::Short => &turns.short,
                Turn::Long => &turns.long,
            };
            return turns.acquire().await.ok();
        }
        sleep(wait).await;
    }
}

/// In how long the job is due. `last` is when it ran last, as it was seen before: if that has not changed since, it is due
/// whatever the clock says, which may have been set back.
async fn due(job: &Job, last: &mut Option<SystemTime>) -> Duration {
    let (tree, lock, every) = (job.tree.clone(), job.lock.clone(), job.every);
    let looked = on_store_thread(move || if tree.is_dir() { ran_last(&lock) } else { Ok(None) }).await;
    let (before, now) = (*last, SystemTime::now());
    match looked {
        Ok(Some(at)) => {
            *last = Some(at);
            let age = now.duration_since(at).unwrap_or_default();
            if before == Some(at) { Duration::ZERO } else { every.saturating_sub(age) }
        }
        // There is no tree yet.
        Ok(None) => every,
        Err(error) => {
            cannot_note(job, &error);
            every
        }
    }
}

/// When the job ran last by its lock file, which is made if it is missing: then the time counts from now.
fn ran_last(lock: &Path) -> io::Result<Option<SystemTime>> {
    if let Some(locks) = lock.parent() {
        fs::create_dir_all(locks)?;
    }
    Ok(Some(open_lock(lock)?.metadata()?.modified()?))
}

/// Runs the job once. In how long it is due again.
async fn attempt(job: &Job, stop: &Stop) -> Duration {
    let _lock = if job.locks_itself {
        None
    } else {
        let path = job.lock.clone();
        match on_store_thread(move || lock(&path)).await {
            Ok(Some(lock)) => Some(lock),
            Ok(None) => return BUSY_WAIT.min(job.every),
            Err(error) => {
                failed(job, Duration::ZERO, &error);
                return job.every;
            }
        }
    };
    let begun = Instant::now();
    let ran = (job.run)(stop.clone()).await;
    let took = begun.elapsed();
    let registry = &job.registry;
    match ran {
        Ran::Busy => return BUSY_WAIT.min(job.every),
        Ran::Stopped => {
            tracing::info!(%registry, job = job.name, "ended before it was done");
            job.metrics.ran(job.name, Outcome::Stopped, took);
            return job.every;
        }
        Ran::Failed(error) => failed(job, took, &*error),
        Ran::Done(what) => {
            if let Some(what) = what {
                let seconds = took.as_secs_f64();
                tracing::info!(%registry, job = job.name, seconds, "{what}");
            }
            job.metrics.ran(job.name, Outcome::Done, took);
        }
    }
    let path = job.lock.clone();
    if let Err(error) = on_store_thread(move || open_lock(&path)?.set_modified(SystemTime::now())).await {
        cannot_note(job, &error);
    }
    job.every
}

fn failed(job: &Job, took: Duration, error: &(dyn Error + Send + Sync)) {
    let (registry, again) = (&job.registry, humantime_serde::re::humantime::format_duration(job.every));
    tracing::error!(%registry, job = job.name, %error, "maintenance failed; it is tried again in {again}");
    job.metrics.ran(job.name, Outcome::Failed, took);
}

fn cannot_note(job: &Job, error: &io::Error) {
    let (registry, lock) = (&job.registry, job.lock.display());
    tracing::error!(
        %registry, job = job.name, %error,
        "maintenance cannot use {lock}: let the server write there, or set the job \"off\""
    );
}

fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = open_lock(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests;

//! Logins with a user's name and password, against an [`Htpasswd`] file that may change.
//!
//! **Cost.** Hashing is meant to be slow, so it is done on store threads, [`turns`](Logins::new) at a time, and what was
//! verified is remembered for [`REMEMBERED_FOR`]. What is remembered is a keyed hash of name and password with a key that
//! this process made at its start: neither a password nor something from which one could be guessed offline without the
//! key. Many who send one login at once wait for one hash.
//!
//! **The file** is looked at when somebody logs in, at most every [`LOOK_AGAIN_AFTER`], and read again when it changed;
//! then nothing is remembered any more. One that cannot be used leaves the users as they are, and the log says why.
//!
//! **At once**: logins from all workers share one [`Logins`]; its locks are held for map operations only.

use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use lru::LruCache;
use ring::hmac;
use ring::rand::SystemRandom;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::AccessError;
use super::credentials::Login;
use super::htpasswd::Htpasswd;
use super::throttle::Throttle;
use crate::fill::coalesce::Coalesce;

/// How often the file is looked at, at most.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How long a verified login is remembered.
const REMEMBERED_FOR: Duration = Duration::from_mins(5);
/// How many verified logins are remembered.
const REMEMBERED_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// How long a login waits for its turn to be hashed.
const TURN_WAIT_MAX: Duration = Duration::from_secs(10);

/// What became of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    Wrong,
    /// Too many are being verified.
    Busy,
}

/// A keyed hash of a user's name and password.
pub(in crate::registry) type Trace = [u8; 32];

/// Makes traces, with a key of its own.
pub(in crate::registry) struct Tracer(hmac::Key);

pub(super) struct Logins {
    path: PathBuf,
    users: RwLock<Users>,
    look: Mutex<Look>,
    tracer: Tracer,
    /// With the number of the file that it was verified against.
    remembered: Mutex<LruCache<Trace, (Instant, u64)>>,
    under_way: Coalesce<Trace, Verdict>,
    turns: Arc<Semaphore>,
}

#[derive(Clone)]
struct Users {
    file: Arc<Htpasswd>,
    /// Counts the files that were read.
    number: u64,
}

/// When the file was looked at last, and what it looked like.
struct Look {
    at: Instant,
    stamp: Option<Stamp>,
    /// What was wrong with it then; said once.
    problem: Option<String>,
}

/// Differs if the file does.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    changed: (i64, i64),
    inode: u64,
    len: u64,
}

impl Logins {
    /// Reads the file. Blocks.
    pub(super) fn new(path: &Path) -> Result<Self, AccessError> {
        let stamp = Stamp::of(path).ok().flatten();
        let file = Arc::new(Htpasswd::read(path)?);
        // The others serve meanwhile.
        let turns = thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
        Ok(Self {
            path: path.to_owned(),
            users: RwLock::new(Users { file, number: 0 }),
            look: Mutex::new(Look { at: Instant::now(), stamp, problem: None }),
            tracer: Tracer::new(path)?,
            remembered: Mutex::new(LruCache::new(REMEMBERED_MAX)),
            under_way: Coalesce::default(),
            turns: Arc::new(Semaphore::new(turns)),
        })
    }

    /// Whether this is a user's password. What has to be hashed takes a place from `enter`, which says whether there
    /// is one.
    ///
    /// Must be called inside a `LocalSet`. Cancel safe.
    pub(super) async fn verify(&self, login: &Login, throttle: &Throttle, peer: SocketAddr) -> Verdict {
        self.look_again().await;
        let trace = self.tracer.trace(Some(login));
        let users = self.users();
        if self.remembers(&trace, users.number) {
            return Verdict::Right;
        }
        let number = users.number;
        let ask = || {
            let place = throttle.enter(peer);
            let (turns, login) = (Arc::clone(&self.turns), login.clone());
            async move {
                let Some(_place) = place else { return Verdict::Busy };
                let Ok(Ok(turn)) = timeout(TURN_WAIT_MAX, turns.acquire_owned()).await else {
                    return Verdict::Busy;
                };
                let hashed = spawn_blocking(move || {
                    let _turn = turn;
                    users.file.verify(&login.user, &login.password)
                });
                match hashed.await {
                    Ok(true) => Verdict::Right,
                    Ok(false) => Verdict::Wrong,
                    // The worker is ending.
                    Err(_) => Verdict::Busy,
                }
            }
        };
        let verdict = self.under_way.answer(trace, ask).await.0.unwrap_or(Verdict::Busy);
        // Another one's question may have been about a file that is replaced: then the next request asks again.
        if verdict == Verdict::Right && self.users().number == number {
            self.remember(trace, number);
        }
        verdict
    }

    fn remembers(&self, trace: &Trace, number: u64) -> bool {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.get(trace).is_some_and(|&(at, of)| of == number && at.elapsed() < REMEMBERED_FOR)
    }

    fn remember(&self, trace: Trace, number: u64) {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.put(trace, (Instant::now(), number));
    }

    fn users(&self) -> Users {
        self.users.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the file again if it is time to and it changed. Only one who comes then waits for that.
    async fn look_again(&self) {
        let known = {
            let mut look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
            if look.at.elapsed() < LOOK_AGAIN_AFTER {
                return;
            }
            look.at = Instant::now();
            look.stamp
        };
        let path = self.path.clone();
        let Ok(Some((stamp, read))) = spawn_blocking(move || read_if_changed(&path, known)).await else {
            return;
        };
        let mut look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        look.stamp = stamp;
        match read {
            Ok(file) => {
                look.problem = None;
                if self.users().file.is_same(&file) {
                    return;
                }
                tracing::info!(path = %self.path.display(), users = file.users(), "users read again");
                let mut users = self.users.write().unwrap_or_else(PoisonError::into_inner);
                *users = Users { file: Arc::new(file), number: users.number + 1 };
            }
            Err(error) => {
                let problem = error.to_string();
                if look.problem.as_ref() != Some(&problem) {
                    tracing::error!(%error, "the file of users cannot be used: the users stay as they were");
                }
                look.problem = Some(problem);
            }
        }
    }
}

impl Tracer {
    /// `path` is what an error names.
    pub(in crate::registry) fn new(path: &Path) -> Result<Self, AccessError> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        let key = key.map_err(|_| {
            AccessError::new(path, "cannot be used: the system has no random numbers".to_owned())
        })?;
        Ok(Self(key))
    }

    /// The trace of a login, or of nobody.
    pub(super) fn trace(&self, login: Option<&Login>) -> Trace {
        let mut context = hmac::Context::with_key(&self.0);
        if let Some(login) = login {
            // The length, so that no two pairs are the same text.
            context.update(&(login.user.len() as u64).to_be_bytes());
            context.update(login.user.as_bytes());
            context.update(&login.password);
        }
        finished(&context)
    }

    /// The trace of credentials of any kind.
    pub(in crate::registry) fn trace_of(&self, credentials: &[&[u8]]) -> Trace {
        let mut context = hmac::Context::with_key(&self.0);
        for credential in credentials {
            context.update(&(credential.len() as u64).to_be_bytes());
            context.update(credential);
        }
        finished(&context)
    }
}

fn finished(context: &hmac::Context) -> Trace {
    let mut trace = Trace::default();
    trace.copy_from_slice(context.clone().sign().as_ref());
    trace
}

impl Stamp {
    /// `None` for a file that may change again without looking different, as its last change is not older than clocks
    /// are coarse.
    fn of(path: &Path) -> std::io::Result<Option<Self>> {
        let metadata = fs::metadata(path)?;
        let modified = metadata.modified()?;
        let settled = modified.elapsed().is_ok_and(|age| age > LOOK_AGAIN_AFTER);
        Ok(settled.then(|| Self {
            modified,
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
            len: metadata.len(),
        }))
    }
}

/// The file and its stamp, unless that is `known`. Blocks.
fn read_if_changed(
    path: &Path,
    known: Option<Stamp>,
) -> Option<(Option<Stamp>, Result<Htpasswd, AccessError>)> {
    // Before it is read: what is written meanwhile is seen the next time.
    let stamp = Stamp::of(path).ok().flatten();
    if stamp.is_some() && stamp == known {
        return None;
    }
    Some((stamp, Htpasswd::read(path)))
}

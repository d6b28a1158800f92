//! The pipes of a thread, for regions that are sent by `splice`.
//!
//! A connection borrows one while it sends a long region, and keeps it for as long as bytes are in it, however long its
//! peer stands still. So they are bounded: who finds none sends by `sendfile`.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::{Deref, DerefMut};

use crate::sys::Pipe;

/// How much of a file a pipe takes, in bytes; what an unprivileged process may set.
pub(super) const PIPE_BYTES: usize = 1 << 20;
/// A pipe that takes less than this is of no use, in bytes. An unprivileged user gets such when all his pipes together
/// exceed `fs.pipe-user-pages-soft`, 64 MiB.
const PIPE_BYTES_MIN: usize = 256 * 1024;
/// Pipes of a thread at once; each takes two descriptors.
const PIPES_MAX: usize = 64;
/// Empty pipes that a thread keeps.
const KEPT_MAX: usize = 16;

thread_local! {
    static KEPT: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
    static OPEN: Cell<usize> = const { Cell::new(0) };
}

/// A pipe on loan. Dropping it gives it back if it is empty, and closes it otherwise.
#[derive(Debug)]
pub(super) struct Loan(Option<Pipe>);

impl Loan {
    /// An empty pipe. Errors: there are enough, or no descriptors are left.
    pub(super) fn take() -> io::Result<Self> {
        if let Some(pipe) = KEPT.with_borrow_mut(Vec::pop) {
            return Ok(Self(Some(pipe)));
        }
        if OPEN.get() >= PIPES_MAX {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let pipe = Pipe::new(PIPE_BYTES)?;
        if pipe.capacity()? < PIPE_BYTES_MIN {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        OPEN.set(OPEN.get() + 1);
        Ok(Self(Some(pipe)))
    }
}

impl Deref for Loan {
    type Target = Pipe;

    fn deref(&self) -> &Pipe {
        self.0.as_ref().expect("there until it is dropped")
    }
}

impl DerefMut for Loan {
    fn deref_mut(&mut self) -> &mut Pipe {
        self.0.as_mut().expect("there until it is dropped")
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let Some(pipe) = self.0.take() else { return };
        // The thread may be on its way out, and its pool gone.
        let kept = KEPT.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            let keep = pipe.held() == 0 && kept.len() < KEPT_MAX;
            if keep {
                kept.push(pipe);
            }
            keep
        });
        if !kept.unwrap_or(false) {
            let _ = OPEN.try_with(|open| open.set(open.get().saturating_sub(1)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn pipes_are_given_back_empty_and_there_are_only_so_many() {
        // A thread of its own: the pool is the thread's.
        std::thread::spawn(|| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(4096).unwrap();
            let loans: Vec<_> = (0..PIPES_MAX).map_while(|_| Loan::take().ok()).collect();
            assert!(loans.len() > KEPT_MAX, "{}", loans.len());
            if loans.len() == PIPES_MAX {
                assert_eq!(Loan::take().unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
            }
            drop(loans);
            assert_eq!((KEPT.with_borrow(Vec::len), OPEN.get()), (KEPT_MAX, KEPT_MAX));
            let mut loan = Loan::take().unwrap();
            assert_eq!(loan.fill(file.as_fd(), 0, 100).unwrap(), 100);
            drop(loan);
            assert_eq!(
                (KEPT.with_borrow(Vec::len), OPEN.get()),
                (KEPT_MAX - 1, KEPT_MAX - 1),
                "not with bytes in it"
            );
        })
        .join()
        .unwrap();
    }
}

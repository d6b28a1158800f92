//! Threads of another user: for tests of what the files of others do not allow.

use std::io;
use std::ptr;
use std::thread;

/// Does `test` on a thread that runs as this user and group, without privileges. `None`: we are not root, who alone can.
pub(crate) fn as_another<T: Send>(user: u32, group: u32, test: impl FnOnce() -> T + Send) -> Option<T> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let become_another = || {
        // The library's functions would change all threads.
        // SAFETY: takes numbers only; the empty list is not looked at.
        let done = unsafe {
            libc::syscall(libc::SYS_setgroups, 0, ptr::null::<libc::gid_t>()) == 0
                && libc::syscall(libc::SYS_setresgid, group, group, group) == 0
                && libc::syscall(libc::SYS_setresuid, user, user, user) == 0
        };
        assert!(done, "{}", io::Error::last_os_error());
    };
    thread::scope(|scope| {
        let running = scope.spawn(|| {
            become_another();
            test()
        });
        Some(running.join().expect("the test's thread panicked, and has said why"))
    })
}

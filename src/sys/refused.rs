//! Tests of a process that may not use `io_uring`, under seccomp filters such as container runtimes put up.
//!
//! A filter binds the thread that puts it up, and those that it starts: each test has one of its own.

use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::sync::Arc;
use std::thread;

use super::{Files, probe};

/// Makes the system call fail with `errno` on this thread, for good.
fn refuse(call: libc::c_long, errno: i32) -> io::Result<()> {
    let call = u32::try_from(call).map_err(io::Error::other)?;
    let error = libc::SECCOMP_RET_ERRNO | u32::try_from(errno).map_err(io::Error::other)?;
    let number_at = u32::try_from(offset_of!(libc::seccomp_data, nr)).map_err(io::Error::other)?;
    // The codes of BPF are less than 256.
    let step = |code: u32, k, jt, jf| libc::sock_filter { code: u16::try_from(code).unwrap(), jt, jf, k };
    let mut program = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, number_at, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call, 0, 1),
        step(libc::BPF_RET | libc::BPF_K, error, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let filter = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    // SAFETY: takes numbers only.
    let privileges = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: `filter` leads to a program of the length that it says, and the kernel copies both.
    let filtered = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    if privileges != 0 || filtered != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn on_a_thread<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    thread::spawn(test).join().expect("the test's thread panicked, and has said why")
}

async fn reads(files: &Files) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "content").unwrap();
    assert_eq!(files.stat(file.path()).await.unwrap().len, 7);
    let opened = Arc::new(files.open(file.path()).await.unwrap());
    files.populate(&opened, 0, 7).await.unwrap();
    assert_eq!(files.read_at(&opened, 3, 10).await.unwrap(), "tent");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_filter_on_either_call_is_noticed_and_the_pool_serves() {
    for (call, name, errno) in [
        (libc::SYS_io_uring_setup, "io_uring_setup", libc::EPERM),
        (libc::SYS_io_uring_setup, "io_uring_setup", libc::ENOSYS),
        (libc::SYS_io_uring_register, "io_uring_register", libc::EPERM),
        (libc::SYS_io_uring_enter, "io_uring_enter", libc::EPERM),
    ] {
        let before = probe();
        let reason = on_a_thread(move || {
            refuse(call, errno).unwrap();
            let reason = probe().unwrap_err();
            runtime().block_on(async {
                if call != libc::SYS_io_uring_register {
                    assert!(Files::new(true).is_err(), "{name}");
                }
                let files = Files::new(probe().is_ok()).unwrap();
                assert!(!files.uses_ring());
                reads(&files).await;
                files.drain().await;
            });
            reason
        });
        if before.is_ok() {
            assert!(reason.starts_with(name) && reason.contains("seccomp"), "{reason}");
        }
    }
}

/// The filter comes after the ring: what was begun fails, nothing hangs, and the pool takes over.
#[test]
fn a_ring_that_is_refused_later_gives_way_to_the_pool() {
    if probe().is_err() {
        return;
    }
    on_a_thread(|| {
        runtime().block_on(async {
            let files = Files::new(true).unwrap();
            reads(&files).await;
            let file = Arc::new(File::open("/proc/self/exe").unwrap());
            refuse(libc::SYS_io_uring_enter, libc::EPERM).unwrap();
            let (first, second) = tokio::join!(files.read_at(&file, 0, 1), files.read_at(&file, 0, 1));
            assert!(first.is_err());
            assert!(second.is_ok_and(|read| read.len() == 1), "it began after the first had failed");
            assert!(!files.uses_ring());
            reads(&files).await;
            files.drain().await;
            drop(files);
            assert_eq!(Arc::strong_count(&file), 1);
        });
    });
}

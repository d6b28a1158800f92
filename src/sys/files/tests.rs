//! One table of tests for both ways, and what only dropping shows.

use std::fs;
use std::future::Future;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use futures_util::future::join_all;
use rustix::fs::{Advice, OFlags, fadvise, fcntl_getfl};
use tempfile::TempDir;

use super::*;
use crate::sys::{is_window_resident, probe};

/// Runs a test on a fresh current-thread runtime, through the pool and, where it is allowed, through a ring; both inside
/// of a `LocalSet` and not.
fn both_ways<F: Future<Output = ()>>(test: impl Fn(Files) -> F) {
    for use_ring in [false, true] {
        if let Err(reason) = probe()
            && use_ring
        {
            eprintln!("not tested through a ring: {reason}");
            continue;
        }
        for local in [false, true] {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let run = async {
                let files = Files::new(use_ring).unwrap();
                assert_eq!(files.uses_ring(), use_ring);
                test(files.clone()).await;
                files.drain().await;
            };
            if local {
                tokio::task::LocalSet::new().block_on(&runtime, run);
            } else {
                runtime.block_on(run);
            }
        }
    }
}

fn content(len: usize) -> Vec<u8> {
    // A period that is no power of two, so that a piece from the wrong place is noticed.
    (0..251).cycle().take(len).collect()
}

fn file_of(len: usize) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blob");
    fs::write(&path, content(len)).unwrap();
    (folder, path)
}

async fn opened(files: &Files, path: &Path) -> Arc<File> {
    Arc::new(files.open(path).await.unwrap())
}

/// Polls a future once, so that its operation is under way, and says whether it was done by then.
fn begin<F: Future>(future: F) -> bool {
    matches!(pin!(future).poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(_))
}

#[test]
fn paths_that_name_no_file() {
    both_ways(|files| async move {
        let (folder, path) = file_of(1);
        for (path, kind) in [
            (folder.path().join("absent"), io::ErrorKind::NotFound),
            (path.join("below-a-file"), io::ErrorKind::NotADirectory),
            (PathBuf::new(), io::ErrorKind::NotFound),
            (PathBuf::from("nul\0byte"), io::ErrorKind::InvalidInput),
            (folder.path().join("x".repeat(256)), io::ErrorKind::InvalidFilename),
        ] {
            assert_eq!(files.open(&path).await.unwrap_err().kind(), kind, "open {path:?}");
            assert_eq!(files.stat(&path).await.unwrap_err().kind(), kind, "stat {path:?}");
        }
    });
}

#[test]
fn a_directory_opens_and_does_not_read() {
    both_ways(|files| async move {
        let folder = tempfile::tempdir().unwrap();
        assert!(!files.stat(folder.path()).await.unwrap().is_file);
        let file = opened(&files, folder.path()).await;
        assert_eq!(files.read_at(&file, 0, 10).await.unwrap_err().kind(), io::ErrorKind::IsADirectory);
        assert_eq!(files.populate(&file, 0, 10).await.unwrap_err().kind(), io::ErrorKind::IsADirectory);
    });
}

#[test]
fn a_file_is_looked_at_through_links_and_without_leave_to_read_it() {
    both_ways(|files| async move {
        let (folder, path) = file_of(77);
        let before_1970 = SystemTime::UNIX_EPOCH - Duration::from_millis(1500);
        File::options().write(true).open(&path).unwrap().set_modified(before_1970).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        let link = folder.path().join("link");
        symlink("blob", &link).unwrap();
        let stat = files.stat(&link).await.unwrap();
        assert_eq!(stat, Stat::from(&fs::metadata(&path).unwrap()));
        assert_eq!((stat.len, stat.is_file, stat.mtime), (77, true, before_1970));
    });
}

#[test]
fn opening_leaves_the_access_time_alone_and_is_for_reading_only() {
    both_ways(|files| async move {
        let (_folder, path) = file_of(1);
        let file = opened(&files, &path).await;
        let flags = fcntl_getfl(&*file).unwrap();
        assert!(flags.contains(OFlags::NOATIME), "{flags:?}");
        assert_eq!(flags & OFlags::RWMODE, OFlags::RDONLY);
        let close_on_exec = rustix::io::fcntl_getfd(&*file).unwrap();
        assert_eq!(close_on_exec, rustix::io::FdFlags::CLOEXEC);
    });
}

/// `O_NOATIME` is for owners only. Without its rights over others' files this thread owns nothing below `/etc`.
#[test]
fn another_owners_file_opens_too() {
    std::thread::spawn(|| {
        // SAFETY: changes this thread's own identity towards filesystems; the thread ends with the test.
        unsafe { libc::setfsuid(65534) };
        both_ways(|files| async move {
            let file = opened(&files, Path::new("/etc/passwd")).await;
            assert!(!fcntl_getfl(&*file).unwrap().contains(OFlags::NOATIME));
            assert!(!files.read_at(&file, 0, 1).await.unwrap().is_empty());
        });
    })
    .join()
    .unwrap();
}

/// Around the page, around what one call to `Read` of the pool would take, and several MiB, at odd offsets.
#[test]
fn reads_end_with_the_range_or_the_file() {
    const LEN: usize = (9 << 20) + 1;
    both_ways(|files| async move {
        let (_folder, path) = file_of(LEN);
        let expected = content(LEN);
        let file = opened(&files, &path).await;
        for (offset, len) in [
            (0, 0),
            (0, 1),
            (4095, 1),
            (4095, 2),
            (1, 4096),
            (65535, 65537),
            (0, LEN - 1),
            (0, LEN),
            (0, LEN + 1),
            (3, LEN),
            (LEN - 1, 1),
            (LEN - 1, 2),
            (LEN, 0),
            (LEN, 1),
            (LEN + 1, 1),
            (1 << 40, 4096),
        ] {
            let read = files.read_at(&file, offset as u64, len).await.unwrap();
            let wanted = offset.min(LEN)..offset.saturating_add(len).min(LEN).max(offset.min(LEN));
            assert!(read == expected[wanted.clone()], "{len} from {offset}: {} of {wanted:?}", read.len());
        }
    });
}

/// Both sides of what is tried at once, in the page cache and not.
#[test]
fn a_small_read_gives_what_a_read_gives() {
    both_ways(|files| async move {
        let (_folder, path) = file_of(AT_ONCE_BYTES_MAX + 2);
        let expected = content(AT_ONCE_BYTES_MAX + 2);
        let file = opened(&files, &path).await;
        for len in [0, 1, 4097, AT_ONCE_BYTES_MAX, AT_ONCE_BYTES_MAX + 1, AT_ONCE_BYTES_MAX + 3] {
            for is_cold in [true, false] {
                if is_cold {
                    file.sync_all().unwrap();
                    fadvise(&*file, 0, None, Advice::DontNeed).unwrap();
                }
                let read = files.read_small(&file, len).await.unwrap();
                assert!(read == expected[..len.min(expected.len())], "{len}: {}", read.len());
            }
        }
        let written = Arc::new(File::options().write(true).open(&path).unwrap());
        assert_eq!(files.read_small(&written, 1).await.unwrap_err().raw_os_error(), Some(libc::EBADF));
    });
}

/// The ring takes `O_NONBLOCK` to mean that reads must not wait.
#[test]
fn what_is_opened_at_once_reads_like_what_is_not() {
    let (_folder, path) = file_of(1);
    let file = open_at_once(&path, OFlags::NOATIME).expect("cached: it was just made").unwrap();
    let flags = fcntl_getfl(&file).unwrap();
    assert!(!flags.contains(OFlags::NONBLOCK) && flags.contains(OFlags::NOATIME), "{flags:?}");
    let absent = path.with_file_name("absent");
    assert!(!absent.exists());
    assert_eq!(open_at_once(&absent, OFlags::PATH).unwrap().unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn ranges_that_no_file_has_are_refused() {
    both_ways(|files| async move {
        let (_folder, path) = file_of(10);
        let file = opened(&files, &path).await;
        let end = i64::MAX as u64;
        for (offset, len) in [(u64::MAX, 0), (u64::MAX, 1), (end, 1), (end + 1, 0), (1, usize::MAX)] {
            let error = files.read_at(&file, offset, len).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{len} from {offset}");
            let error = files.populate(&file, offset, len).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{len} from {offset}");
        }
        assert_eq!(files.read_at(&file, end, 0).await.unwrap(), "");
        let error = files.read_at(&file, 0, 1 << 62).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
    });
}

#[test]
fn a_file_that_cannot_be_read_says_so() {
    both_ways(|files| async move {
        let (_folder, path) = file_of(10);
        let file = Arc::new(File::options().write(true).open(&path).unwrap());
        assert_eq!(files.read_at(&file, 0, 1).await.unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(files.populate(&file, 0, 1).await.unwrap_err().raw_os_error(), Some(libc::EBADF));
    });
}

#[test]
fn a_populated_window_is_in_the_page_cache() {
    const LEN: usize = 5 << 20;
    both_ways(|files| async move {
        let (_folder, path) = file_of(LEN);
        let file = opened(&files, &path).await;
        for (offset, len) in
            [(0, LEN), (0, 1), (1, 2 << 20), ((1 << 20) + 1, (4 << 20) - 1), (4095, 2), (7, 0)]
        {
            file.sync_all().unwrap();
            fadvise(&*file, 0, None, Advice::DontNeed).unwrap();
            files.populate(&file, offset, len).await.unwrap();
            assert_ne!(is_window_resident(&file, offset, len as u64), Some(false), "{len} from {offset}");
        }
        // Behind the end there is nothing to wait for.
        files.populate(&file, 0, LEN + 1).await.unwrap();
        files.populate(&file, 1 << 40, 4096).await.unwrap();
    });
}

/// More than the ring's entries and the pool's threads, all kinds at once.
#[test]
fn a_thousand_operations_at_once() {
    both_ways(|files| async move {
        let (_folder, path) = file_of(1 << 20);
        let expected = content(1 << 20);
        let file = opened(&files, &path).await;
        let done = join_all((0_usize..1000).map(|index| {
            let (files, file, path, expected) = (&files, &file, &path, &expected);
            async move {
                let (offset, len) = (index * 1009, 1 + index * 13 % 9000);
                match index % 4 {
                    0 => assert!(files.open(path).await.unwrap().metadata().unwrap().is_file()),
                    1 => assert_eq!(files.stat(path).await.unwrap().len, 1 << 20),
                    2 => files.populate(file, offset as u64, 1 << 20).await.unwrap(),
                    _ => {
                        let read = files.read_at(file, offset as u64, len).await.unwrap();
                        assert!(read == expected[offset..offset + len], "{len} from {offset}");
                    }
                }
            }
        }));
        assert_eq!(done.await.len(), 1000);
    });
}

/// The file is closed, and with it the last thing that an operation owned, once nothing is under way.
#[test]
fn dropped_futures_leave_nothing_behind() {
    both_ways(|files| async move {
        let (_folder, path) = file_of(4 << 20);
        let file = opened(&files, &path).await;
        let mut unfinished = 0;
        for index in 0..500_usize {
            fadvise(&*file, 0, None, Advice::DontNeed).unwrap();
            let offset = (index % 4) as u64 * (1 << 20);
            let done = match index % 4 {
                0 => begin(files.open(&path)),
                1 => begin(files.read_at(&file, offset, 1 << 20)),
                2 => begin(files.stat(&path)),
                _ => begin(files.populate(&file, offset, 1 << 20)),
            };
            unfinished += usize::from(!done);
        }
        assert!(unfinished > 0, "the test drops nothing");
        files.drain().await;
        assert_eq!(Arc::strong_count(&file), 1, "an operation still owns the file");
        drop(file);
        let open =
            fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        assert_eq!(
            open.filter(|target| *target == path).count(),
            0,
            "a file that was opened for nobody is open"
        );
        assert_eq!(files.stat(&path).await.unwrap().len, 4 << 20, "it goes on");
    });
}

/// A future that was begun and is then kept without being polled: others complete all the same.
#[test]
fn a_future_that_is_kept_aside_holds_nobody_up() {
    both_ways(|files| async move {
        let (_folder, path) = file_of(1 << 20);
        let file = opened(&files, &path).await;
        for _ in 0..20 {
            let mut aside = pin!(files.populate(&file, 0, 1 << 20));
            let _ = aside.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            files.populate(&file, 0, 1 << 20).await.unwrap();
            files.read_at(&file, 0, 1 << 20).await.unwrap();
        }
    });
}

#[test]
fn files_can_go_before_their_operations() {
    both_ways(|files| async move {
        let (_folder, path) = file_of(1 << 20);
        let file = opened(&files, &path).await;
        let others = Files::new(files.uses_ring()).unwrap();
        for _ in 0..50 {
            begin(others.populate(&file, 0, 1 << 20));
            begin(others.read_at(&file, 0, 1 << 20));
        }
        let ring = others.uses_ring();
        drop(others);
        if ring {
            assert_eq!(Arc::strong_count(&file), 1, "dropping the ring waits for them");
        }
        files.populate(&file, 0, 1 << 20).await.unwrap();
    });
}

#[test]
fn a_ring_needs_a_runtime_of_its_own_thread() {
    assert!(Files::new(true).is_err());
    assert!(Files::new(false).is_ok());
}

#[test]
fn times_before_and_after_1970() {
    let epoch = SystemTime::UNIX_EPOCH;
    assert_eq!(time(0, 0), epoch);
    assert_eq!(time(1, 5), epoch + Duration::new(1, 5));
    assert_eq!(time(-2, 500_000_000), epoch - Duration::from_millis(1500));
    assert_eq!(time(i64::MIN, -1), epoch - Duration::from_secs(1 << 63));
}

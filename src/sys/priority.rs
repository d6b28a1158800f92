//! Threads that are to stand behind all others.

use rustix::process::setpriority_process;

/// The lowest priority that still gets some time on a busy machine.
const NICE: i32 = 19;

/// From now on the calling thread gets the processor after all others (nice 19), and with it the disk: the kernel derives
/// the priority of its reads and writes from that (best effort, the last level). There is no way back for a process without
/// privileges, so it is for threads of their own.
///
/// Not the idle classes of processor or disk: who holds a lock, or a part of the filesystem's journal, and is never
/// run again makes everybody wait.
pub fn lower_priority() {
    // To the kernel, 0 is the calling thread, whatever POSIX says of the process.
    if let Err(error) = setpriority_process(None, NICE) {
        tracing::debug!(%error, "cannot lower a thread's priority");
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    #[test]
    fn only_the_calling_thread_stands_behind() {
        let before = getpriority_process(None).unwrap();
        let lowered = std::thread::spawn(|| {
            lower_priority();
            getpriority_process(None).unwrap()
        });
        assert_eq!(lowered.join().unwrap(), NICE);
        assert_eq!(getpriority_process(None).unwrap(), before);
    }
}

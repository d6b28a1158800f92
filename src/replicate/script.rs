//! Runs a finder's script, within bounds of time and output.
//!
//! The script has a process group of its own. When its time is over, when it writes too much, and when the call is dropped,
//! the whole group is killed, so that nothing it began is left behind.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::finder::{TEXT_BYTES_MAX, text_of};

/// How long a script may take.
pub(super) const SCRIPT_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of what a script says on standard error is repeated, in bytes.
const COMPLAINT_BYTES_MAX: usize = 200;

/// What the program at `path` writes on standard output; it is given no arguments and no input.
///
/// # Errors
/// It cannot be run, ends with another code than 0, writes too much or no text, or takes too long. The message repeats the
/// last line of what it said on standard error.
pub(super) async fn run(path: &Path) -> Result<String, String> {
    run_within(path, SCRIPT_TIMEOUT).await
}

async fn run_within(path: &Path, limit: Duration) -> Result<String, String> {
    // A name without a slash is a file here, not a program of the search path.
    let program = std::path::absolute(path).map_err(|error| format!("is no path: {error}"))?;
    let mut child = Command::new(program)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot be run: {error}"))?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)));
    let (Some(output), Some(errors)) = (child.stdout.take(), child.stderr.take()) else {
        return Err("cannot be run: it has no output".to_owned());
    };
    let reading = async {
        let (output, complaint) = tokio::try_join!(start(output), last_line(errors))?;
        // Not before its output has ended: until it is waited for, its id, which is the group's, is nobody else's.
        Ok::<_, Ended>((output, complaint, child.wait().await.map_err(Ended::Broken)?))
    };
    let ended = timeout(limit, reading).await;
    match ended {
        Ok(Ok((output, complaint, status))) => {
            group.0 = None;
            if status.success() {
                return text_of(output);
            }
            let said = if complaint.is_empty() { String::new() } else { format!(": {complaint}") };
            Err(format!("ended with {status}{said}"))
        }
        Ok(Err(Ended::TooLong)) => Err(format!("gives more than {TEXT_BYTES_MAX} bytes")),
        Ok(Err(Ended::Broken(error))) => Err(format!("cannot be read: {error}")),
        Err(_) => Err(format!("took longer than {limit:?} and was killed")),
    }
}

/// Why a script is not waited for.
enum Ended {
    TooLong,
    Broken(io::Error),
}

/// Kills a process group when it is dropped, while it has one.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // It may have ended by itself.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// Everything that comes, if it is not too long.
async fn start(from: impl AsyncRead + Unpin) -> Result<Vec<u8>, Ended> {
    let mut bytes = Vec::new();
    from.take(TEXT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).await.map_err(Ended::Broken)?;
    if bytes.len() > TEXT_BYTES_MAX { Err(Ended::TooLong) } else { Ok(bytes) }
}

/// The last line that comes, or its start.
async fn last_line(mut from: impl AsyncRead + Unpin) -> Result<String, Ended> {
    let mut kept: Vec<u8> = Vec::new();
    let mut piece = [0; 1024];
    loop {
        let read = from.read(&mut piece).await.map_err(Ended::Broken)?;
        if read == 0 {
            break;
        }
        kept.extend_from_slice(&piece[..read]);
        // Enough for the last line, and for the end of the line before it.
        kept.drain(..kept.len().saturating_sub(4 * COMPLAINT_BYTES_MAX));
    }
    let text = String::from_utf8_lossy(&kept);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    let line: String = line.chars().filter(|c| !c.is_control()).collect();
    Ok(line.chars().take(COMPLAINT_BYTES_MAX).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    /// A script with this text after its first line.
    fn script(directory: &tempfile::TempDir, text: &str) -> PathBuf {
        let path = directory.path().join("script");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Runs it; another test's child may hold the file open for writing for a moment.
    async fn run_script(path: &Path, limit: Duration) -> Result<String, String> {
        loop {
            match run_within(path, limit).await {
                Err(why) if why.contains("Text file busy") => tokio::task::yield_now().await,
                result => return result,
            }
        }
    }

    #[tokio::test]
    async fn what_it_writes_counts_if_it_ends_well() {
        let directory = tempfile::tempdir().unwrap();
        let path = script(&directory, "echo a; echo b; echo c >&2");
        assert_eq!(run_script(&path, SCRIPT_TIMEOUT).await.unwrap(), "a\nb\n");
        let path = script(&directory, "echo a; echo first >&2; echo 'no master' >&2; exit 3");
        let why = run_script(&path, SCRIPT_TIMEOUT).await.unwrap_err();
        assert!(why.contains('3') && why.ends_with(": no master"), "{why}");
        let why = run_script(&directory.path().join("missing"), SCRIPT_TIMEOUT).await.unwrap_err();
        assert!(why.starts_with("cannot be run"), "{why}");
    }

    #[tokio::test]
    async fn one_that_writes_without_end_is_stopped() {
        let directory = tempfile::tempdir().unwrap();
        let path = script(&directory, "while :; do echo 0123456789; done");
        assert!(run_script(&path, SCRIPT_TIMEOUT).await.unwrap_err().contains("more than 65536 bytes"));
        let path = script(&directory, "head -c 1000000 /dev/zero | tr '\\0' x >&2; echo a");
        assert_eq!(run_script(&path, SCRIPT_TIMEOUT).await.unwrap(), "a\n");
    }

    #[tokio::test]
    async fn one_that_takes_too_long_is_killed_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("pid");
        let path = script(&directory, &format!("sleep 1000 & echo $! > {}; wait", pid_file.display()));
        let why = run_script(&path, Duration::from_millis(500)).await.unwrap_err();
        assert!(why.contains("took longer"), "{why}");
        let Ok(pid) = fs::read_to_string(&pid_file) else { return };
        let status = format!("/proc/{}/stat", pid.trim());
        // Gone, or a zombie that nobody has waited for yet. Without the kill it would sleep on far longer than this waits.
        for _ in 0..1000 {
            match fs::read_to_string(&status) {
                Ok(stat) if !stat.contains(") Z ") => tokio::time::sleep(Duration::from_millis(10)).await,
                _ => return,
            }
        }
        panic!("{} is still there", pid.trim());
    }
}

//! What a server does by itself: when its jobs run, also after a restart, and what they leave alone.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::support::eventually;
use crate::support::origin::Origin;
use crate::support::process::Spliceway;
use crate::support::push::Repository;

const DAY: Duration = Duration::from_hours(24);

fn age(path: &Path, by: Duration) {
    let file =
        File::options().write(true).create(true).truncate(false).open(path).expect("our own directory");
    file.set_modified(SystemTime::now() - by).expect("our own file");
}

fn runs(spliceway: &Spliceway, job: &str, outcome: &str) -> f64 {
    let labels = [format!("job=\"{job}\""), format!("outcome=\"{outcome}\"")];
    spliceway.metric("spliceway_maintenance_runs_total", &labels.each_ref().map(String::as_str))
}

#[test]
fn uploads_that_are_over_are_swept_though_nobody_pushes() {
    let spliceway = Spliceway::start(|setup| {
        setup.registry("upload_expiry", "1s").more("\n[maintenance]\nuploads = \"1s\"\n");
    });
    let local = spliceway.data().join("local");
    let repository = Repository::new(spliceway.addr(), "team/app");
    let kept = repository.push(b"a whole blob");
    let mut session = repository.begin();
    let answer = session.patch(b"some").expect(202);
    session.follow(&answer);
    let directory = session.directory(&local);
    assert!(directory.join("data").exists());
    eventually("the upload to go", || (!directory.exists()).then_some(()));
    spliceway.wait_metric(
        "spliceway_maintenance_removed_total",
        &["registry=\"main\"", "job=\"uploads\"", "kind=\"upload\""],
        |removed| removed >= 1.0,
    );
    session.status().expect(404);
    repository.head_blob(&kept).expect(200);

    // A reload changes the schedule.
    spliceway.reload_text(
        &fs::read_to_string(spliceway.home().join("spliceway.toml"))
            .expect("our own file")
            .replace("uploads = \"1s\"", "uploads = \"off\""),
    );
    spliceway.wait_log(&["configuration reloaded"]);
    let before = runs(&spliceway, "uploads", "done");
    std::thread::sleep(Duration::from_millis(2500));
    assert!(runs(&spliceway, "uploads", "done") <= before + 1.0, "it runs though it is off");
}

#[test]
fn job_that_was_due_while_the_server_was_down_runs_after_the_start() {
    let origin = Origin::start();
    let mut spliceway = Spliceway::before(&origin);
    let blob = origin.random_blob(1, 1000);
    crate::bounds::fetch(&spliceway, &blob);
    spliceway.stop();
    // Evicted long ago, and what remembers it is just as old.
    fs::remove_file(spliceway.blob_path(&blob.digest)).expect("our own file");
    let repository = spliceway.data().join("cache/docker/registry/v2/repositories/origin/team/app");
    let link = repository.join("_layers/sha256").join(crate::support::hex(&blob.digest)).join("link");
    let young = repository.join("_layers/sha256").join("0".repeat(64)).join("link");
    fs::create_dir_all(young.parent().expect("a parent")).expect("our own directory");
    fs::write(&young, format!("sha256:{}", "0".repeat(64))).expect("our own directory");
    age(&link, 31 * DAY);
    let lock = spliceway.data().join("cache/locks/stale");
    age(&lock, DAY + DAY);
    spliceway.restart(|_| ());
    eventually("the link to go", || (!link.exists()).then_some(()));
    spliceway.wait_metric(
        "spliceway_maintenance_removed_total",
        &["job=\"stale\"", "kind=\"link\""],
        |links| links >= 1.0,
    );
    assert!(young.exists());
    eventually("the run to be noted", || {
        let at = fs::metadata(&lock).and_then(|meta| meta.modified()).expect("our own file");
        (at.elapsed().unwrap_or_default() < DAY).then_some(())
    });
    assert!(runs(&spliceway, "stale", "failed") < 1.0);
}

#[test]
fn job_that_fails_says_what_to_do_and_is_counted() {
    let spliceway = Spliceway::start(|setup| {
        setup.more("\n[maintenance]\nuploads = \"1s\"\n");
    });
    let repositories = spliceway.data().join("local/docker/registry/v2/repositories");
    // A symbolic link could lead in circles, or out of the tree.
    fs::create_dir_all(&repositories).expect("our own directory");
    std::os::unix::fs::symlink("/", repositories.join("elsewhere")).expect("our own directory");
    spliceway.wait_log(&["ERROR", "maintenance failed", "job=\"uploads\"", "elsewhere", "again in 1s"]);
    spliceway.wait_metric(
        "spliceway_maintenance_runs_total",
        &["job=\"uploads\"", "outcome=\"failed\""],
        |failed| failed >= 1.0,
    );
}

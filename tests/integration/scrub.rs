//! `spliceway scrub`: what rots on disk is found, set aside and fetched again, beside a server and without one.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::support::client::get;
use crate::support::images::{Image, OCI_CONFIG, OCI_MANIFEST, descriptor};
use crate::support::origin::Origin;
use crate::support::process::{Spliceway, binary, entries};
use crate::support::push::{Repository, assert_tree_is_right, blob_path};
use crate::support::tools::{self, Finished};
use crate::support::{MIB, PATIENCE, eventually, hex, noise, sha256};

/// `spliceway scrub --json` with these arguments, and nothing of this process's environment.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.env_clear().args(["scrub", "--json"]).args(arguments);
    command
}

/// Scrubs to the end: the exit code, and what was said.
#[track_caller]
fn scrub(arguments: &[&str]) -> (i32, Vec<Value>) {
    let Finished { status, stdout, stderr } = tools::run(&mut command(arguments));
    let code = status.code().unwrap_or_else(|| panic!("killed: {stdout}{stderr}"));
    let events = stdout.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    (code, events)
}

/// Scrubs a server's trees by its configuration file, with these further arguments.
#[track_caller]
fn scrub_of(spliceway: &Spliceway, more: &[&str]) -> (i32, Vec<Value>) {
    let (config, data) = (spliceway.home().join("spliceway.toml"), spliceway.data());
    let mut arguments = vec!["--config", text(&config), "--data", text(&data)];
    arguments.extend(more);
    scrub(&arguments)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// The events of one kind: `corrupt`, `repaired`, …
fn of_kind<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == kind).collect()
}

#[track_caller]
fn only<'a>(events: &'a [Value], kind: &str) -> &'a Value {
    let found = of_kind(events, kind);
    assert_eq!(found.len(), 1, "{kind}: {events:?}");
    found[0]
}

/// Flips a bit in the middle of a file, in place.
fn flip(path: &Path) {
    let mut file = File::options().read(true).write(true).open(path).expect("a stored blob");
    let middle = file.metadata().expect("a stored blob").len() / 2;
    let mut byte = [0];
    file.seek(SeekFrom::Start(middle)).and_then(|_| file.read_exact(&mut byte)).expect("a byte");
    file.seek(SeekFrom::Start(middle)).and_then(|_| file.write_all(&[byte[0] ^ 0x10])).expect("a byte");
    // Long ago: what was just written may still be about to change.
    file.set_modified(SystemTime::now() - Duration::from_hours(1)).expect("our own file");
}

/// What was set aside of a tree under a digest.
fn set_aside(root: &Path, digest: &str) -> Vec<PathBuf> {
    let mut found = entries(&root.join("quarantine/sha256"));
    found.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(hex(digest))));
    found
}

/// A server in front of an origin, whose cache holds an image of three layers.
fn cached(origin: &Origin) -> (Spliceway, Image) {
    let image = Image::new(1, "amd64", &[100, 300_000, 3 * MIB]);
    image.hold(origin, "team/app", "v1");
    let spliceway = Spliceway::before(origin);
    Repository::new(spliceway.addr(), "team/app").assert_holds("v1", &image);
    for blob in &image.blobs {
        spliceway.wait_published(&sha256(blob));
    }
    spliceway.wait_published(&image.digest());
    (spliceway, image)
}

#[test]
fn a_sound_tree_is_all_right_and_stays_as_it_is() {
    let origin = Origin::start();
    let (mut spliceway, _) = cached(&origin);
    spliceway.stop();
    origin.forget_seen();
    // Listing a directory is an access itself.
    let list = || {
        let print = ["-type", "f", "-printf", "%p %i %s %T@ %A@\n", "-o", "-printf", "%p %i %T@\n"];
        tools::succeed(Command::new("find").arg(spliceway.data()).args(print))
    };
    let before = list();
    let data = spliceway.data();
    for arguments in [vec!["--data", text(&data)], vec!["--local", text(&data.join("cache"))]] {
        let (code, events) = scrub(&arguments);
        assert_eq!(code, 0, "{events:?}");
        let summary = events.last().expect("a summary");
        assert_eq!((&summary["event"], &summary["blobs"]), (&"summary".into(), &5.into()), "{events:?}");
    }
    assert_eq!(list(), before, "not even an access time");
    assert!(origin.all_seen().is_empty(), "nobody was asked for anything");
}

#[test]
fn what_rots_in_the_cache_is_fetched_again_with_or_without_a_server() {
    let origin = Origin::start();
    let (mut spliceway, image) = cached(&origin);
    let cache = spliceway.data().join("cache");
    // A layer, the config, and the manifest: each comes back in its own way.
    let digests = [sha256(image.layer(2)), sha256(&image.blobs[0]), image.digest()];
    for running in [true, false] {
        if !running {
            spliceway.stop();
        }
        for digest in &digests {
            flip(&spliceway.blob_path(digest));
        }
        origin.forget_seen();
        let (code, events) = scrub_of(&spliceway, &["--repair"]);
        assert_eq!(code, 0, "{events:?}");
        assert_eq!(of_kind(&events, "corrupt").len(), 3, "{events:?}");
        let repaired = of_kind(&events, "repaired");
        assert_eq!(repaired.len(), 3, "{events:?}");
        assert!(
            repaired.iter().all(|event| event["upstream"] == "origin" && event["repository"] == "team/app")
        );
        for digest in &digests {
            assert!(!set_aside(&cache, digest).is_empty());
        }
        assert_eq!(origin.all_seen().iter().filter(|seen| seen.method() == "GET").count(), 3);
        spliceway.assert_store_is_right();
        if running {
            let repository = Repository::new(spliceway.addr(), "team/app");
            // Until it looks at the disk again, a server believes what it saw.
            eventually("the right bytes", || {
                let right = |digest: &String, bytes: &[u8]| repository.blob(digest).body == bytes;
                (right(&digests[0], image.layer(2)) && right(&digests[1], &image.blobs[0])).then_some(())
            });
            repository.assert_holds("v1", &image);
        }
        let (code, events) = scrub_of(&spliceway, &[]);
        assert_eq!(code, 0, "{events:?}");
    }
}

#[test]
fn without_repair_a_cache_fetches_again_what_is_asked_for() {
    let origin = Origin::start();
    let (spliceway, image) = cached(&origin);
    let digest = sha256(image.layer(2));
    File::options()
        .write(true)
        .open(spliceway.blob_path(&digest))
        .and_then(|file| file.set_len(7))
        .expect("cut");
    let data = spliceway.data();
    let (code, events) = scrub(&["--data", text(&data)]);
    assert_eq!(code, 1);
    let corrupt = only(&events, "corrupt");
    assert_eq!((&corrupt["digest"], &corrupt["bytes"]), (&digest.clone().into(), &7.into()));
    assert_eq!(fs::read(corrupt["path"].as_str().expect("a path")).expect("set aside").len(), 7);
    let repository = Repository::new(spliceway.addr(), "team/app");
    eventually("a fill", || (repository.blob(&digest).body == image.layer(2)).then_some(()));
    spliceway.wait_published(&digest);
    assert_eq!(scrub(&["--data", text(&data)]).0, 0);
}

#[test]
fn what_was_pushed_and_rots_is_missing_until_somebody_has_it() {
    let mut origin = Origin::start();
    let spliceway = Spliceway::start(|setup| {
        setup.origin(&origin).set("retries", 0);
    });
    let image = Image::new(5, "amd64", &[5000, MIB]);
    let repository = Repository::new(spliceway.addr(), "team/own");
    repository.push_image("v1", &image);
    let (layer, local) = (sha256(image.layer(1)), spliceway.data().join("local"));
    flip(&blob_path(&local, &layer));
    // The origin does not have it.
    let (code, events) = scrub_of(&spliceway, &["--repair"]);
    assert_eq!((code, &only(&events, "not-repaired")["digest"]), (1, &layer.clone().into()), "{events:?}");
    eventually("the rotten blob to be gone", || (repository.blob(&layer).status() == 404).then_some(()));
    // It is still missing the next time, also to one who does not repair.
    let data = spliceway.data();
    let (code, events) = scrub(&["--data", text(&data)]);
    assert_eq!((code, &only(&events, "missing")["digest"]), (1, &layer.clone().into()), "{events:?}");
    origin.stop();
    assert_eq!(scrub_of(&spliceway, &["--repair"]).0, 1);
    // The upstream has it now: of the same name, as a mirror would.
    origin.restart();
    origin.blob(image.layer(1).to_vec());
    let (code, events) = scrub_of(&spliceway, &["--repair"]);
    assert_eq!((code, &only(&events, "repaired")["from"]), (0, &"upstream".into()), "{events:?}");
    repository.assert_holds("v1", &image);
    assert_tree_is_right(&local);
    assert_eq!(set_aside(&local, &layer).len(), 1, "what was pushed stays in quarantine");

    // A client that pushes it again repairs it as well.
    flip(&blob_path(&local, &layer));
    assert_eq!(scrub(&["--data", text(&data)]).0, 1);
    repository.push(image.layer(1));
    assert_eq!(scrub(&["--data", text(&data)]).0, 0);
}

#[test]
fn what_was_pushed_comes_from_the_cache_and_a_shared_file_is_wrong_in_both() {
    let origin = Origin::start();
    let (spliceway, image) = cached(&origin);
    // A push that takes a layer over from the cache: one file with two names.
    let config = br#"{"architecture":"amd64","os":"linux","ours":true}"#.to_vec();
    let mut manifest: Value = serde_json::from_slice(&image.manifest).expect("JSON");
    manifest["config"] = descriptor(OCI_CONFIG, &config);
    let repository = Repository::new(spliceway.addr(), "team/app");
    for blob in &image.blobs[1..] {
        repository.head_blob(&sha256(blob)).expect(200);
    }
    repository.push(&config);
    repository.put("ours", OCI_MANIFEST, manifest.to_string().as_bytes()).expect(201);
    let (cache, local) = (spliceway.data().join("cache"), spliceway.data().join("local"));
    let layer = sha256(image.layer(2));
    let (in_cache, in_local) = (blob_path(&cache, &layer), blob_path(&local, &layer));
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).expect("held"));
    assert_eq!(inode(&in_cache), inode(&in_local), "one file");

    flip(&in_local);
    origin.forget_seen();
    let (code, events) = scrub_of(&spliceway, &["--repair"]);
    assert_eq!(code, 0, "{events:?}");
    let fetched = origin.seen("GET", &format!("/v2/team/app/blobs/{layer}")).len();
    assert_eq!(fetched, 1, "one transfer for both: {events:?}");
    assert_eq!(inode(&in_cache), inode(&in_local), "one file again");
    assert_eq!((set_aside(&cache, &layer).len(), set_aside(&local, &layer).len()), (1, 1));

    // A copy of its own in the cache is right, whatever became of the other.
    let copy = in_cache.with_extension("copy");
    fs::copy(&in_cache, &copy).and_then(|_| fs::rename(&copy, &in_cache)).expect("our own tree");
    flip(&in_local);
    origin.forget_seen();
    let (code, events) = scrub_of(&spliceway, &["--repair"]);
    assert_eq!((code, &only(&events, "repaired")["from"]), (0, &"cache".into()), "{events:?}");
    assert!(origin.all_seen().is_empty());
    assert_tree_is_right(&local);
    spliceway.assert_store_is_right();
}

#[test]
fn a_plain_directory_is_repaired_from_an_upstream_too() {
    let origin = Origin::start();
    let image = Image::new(7, "amd64", &[4000, 200_000]);
    image.hold(&origin, "team/app", "v1");
    let mut spliceway = Spliceway::start(|_| ());
    Repository::new(spliceway.addr(), "team/app").push_image("v1", &image);
    spliceway.stop();
    let local = spliceway.data().join("local");
    for digest in [sha256(image.layer(1)), image.digest()] {
        flip(&blob_path(&local, &digest));
    }
    let (code, events) = scrub(&["--local", text(&local), "--repair", "--upstream", &origin.url()]);
    assert_eq!((code, of_kind(&events, "repaired").len()), (0, 2), "{events:?}");
    assert_tree_is_right(&local);
    // As docker-registry's variable names it.
    flip(&blob_path(&local, &image.digest()));
    let mut command = command(&[]);
    command.env("REGISTRY_DATA_DIR", local.join("docker/registry/v2"));
    let finished = tools::run(&mut command);
    assert_eq!(finished.status.code(), Some(1), "{}{}", finished.stdout, finished.stderr);
    assert!(finished.stdout.contains(&image.digest()), "{}", finished.stdout);
}

#[test]
fn killed_at_any_moment_it_leaves_a_tree_that_the_next_one_repairs() {
    let origin = Origin::start();
    let (mut spliceway, image) = cached(&origin);
    spliceway.stop();
    let config = spliceway.home().join("spliceway.toml");
    let data = spliceway.data();
    let repository_layers = [1, 2].map(|layer| sha256(image.layer(layer)));
    for round in 0..12_u64 {
        for digest in &repository_layers {
            flip(&spliceway.blob_path(digest));
        }
        let arguments = ["--config", text(&config), "--data", text(&data), "--repair", "--rate", "8MiB"];
        let mut child =
            command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
        // Somewhere between its start and the end of its repairs.
        std::thread::sleep(Duration::from_millis(round * 60));
        child.kill().expect("our own child");
        tools::wait(&mut child, PATIENCE).expect("SIGKILL ends it");
        let (code, events) = scrub_of(&spliceway, &["--repair"]);
        assert_eq!(code, 0, "{events:?}");
        spliceway.assert_store_is_right();
    }
    // What was set aside and not fetched is fetched when it is asked for.
    spliceway.restart(|_| ());
    Repository::new(spliceway.addr(), "team/app").assert_holds("v1", &image);
}

#[test]
fn what_is_removed_meanwhile_is_no_error() {
    let data = tempfile::TempDir::with_prefix("scrub-").expect("a temporary directory");
    let root = data.path().join("local");
    let blobs: Vec<_> = (0..40).map(|seed| noise(seed, 200_000)).collect();
    for blob in &blobs {
        let path = blob_path(&root, &sha256(blob));
        fs::create_dir_all(path.parent().expect("a directory"))
            .and_then(|()| fs::write(&path, blob))
            .expect("ours");
    }
    // About a second for all of it; so most are there when it begins, and not when their turn comes.
    let mut child = command(&["--data", text(data.path()), "--rate", "8MiB"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    std::thread::sleep(Duration::from_millis(300));
    for blob in &blobs {
        let path = blob_path(&root, &sha256(blob));
        fs::remove_dir_all(path.parent().expect("a directory")).expect("ours");
    }
    let status = tools::wait(&mut child, PATIENCE).expect("it ends");
    let mut said = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut said).expect("UTF-8");
    assert!(status.success(), "{said}");
    assert!(!data.path().join("local/quarantine").exists());
}

#[test]
fn what_is_in_memory_stays_there_and_nothing_joins_it() {
    let data = tempfile::TempDir::with_prefix("scrub-").expect("a temporary directory");
    let root = data.path().join("local");
    let [hot, cold] = [1, 2].map(|seed| {
        let blob = noise(seed, 3 * MIB + 5000);
        let path = blob_path(&root, &sha256(&blob));
        fs::create_dir_all(path.parent().expect("a directory"))
            .and_then(|()| fs::write(&path, blob))
            .expect("ours");
        let file = File::open(&path).expect("ours");
        file.sync_all().expect("ours");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("a regular file");
        path
    });
    fs::read(&hot).expect("ours");
    let resident = |path: &Path| {
        let listed = tools::succeed(Command::new("fincore").args(["-n", "-b", "-o", "RES"]).arg(path));
        listed.trim().parse::<u64>().expect("a number")
    };
    let before = [resident(&hot), resident(&cold)];
    assert!(before[0] >= 3 << 20, "{before:?}");
    if before[1] > 0 {
        return; // a filesystem in memory
    }
    let (code, events) = scrub(&["--data", text(data.path())]);
    assert_eq!((code, &events.last().expect("a summary")["blobs"]), (0, &2.into()), "{events:?}");
    assert_eq!([resident(&hot), resident(&cold)], before);
}

#[test]
fn what_cannot_be_asked_for_is_said() {
    let data = tempfile::TempDir::with_prefix("scrub-").expect("a temporary directory");
    fs::create_dir(data.path().join("local")).expect("ours");
    let none = data.path().join("none");
    let config = data.path().join("config.toml");
    fs::write(&config, "[server]\ndata = \"elsewhere\"\n").expect("ours");
    let cases: [(&[&str], i32, &str); 7] = [
        (&["--data", text(data.path()), "--repair"], 2, "--config FILE"),
        (&["--data", text(data.path()), "--rate", "fast"], 2, "100MiB"),
        (&["--data", text(data.path()), "--rate", "0"], 2, "100MiB"),
        (&["--data", text(data.path()), "--local", text(&none)], 2, "--local"),
        (&["--config", text(&none)], 2, "none: cannot read"),
        (&["--data", text(&none)], 1, "is not there"),
        (&["--config", text(&config)], 1, "no registry of"),
    ];
    for (arguments, code, words) in cases {
        let Finished { status, stdout, stderr } = tools::run(command(arguments).current_dir(data.path()));
        assert_eq!(status.code(), Some(code), "{arguments:?}: {stdout}{stderr}");
        assert!(stderr.contains(words), "{arguments:?}: {stderr}");
        assert_eq!(stdout, "", "{arguments:?}");
    }
    assert_eq!(scrub(&["--data", text(data.path())]).0, 0, "an empty tree");
}

#[test]
fn people_are_told_in_sentences() {
    let origin = Origin::start();
    let (spliceway, image) = cached(&origin);
    let digest = sha256(image.layer(1));
    flip(&spliceway.blob_path(&digest));
    let (config, data) = (spliceway.home().join("spliceway.toml"), spliceway.data());
    let mut command = Command::new(binary());
    command.env_clear().args(["scrub", "--repair", "--config", text(&config), "--data", text(&data)]);
    let Finished { status, stdout, stderr } = tools::run(&mut command);
    assert_eq!(status.code(), Some(0), "{stdout}{stderr}");
    for words in ["corrupt sha256:", "set aside as", "repaired sha256:", "fetched again from origin/team/app"]
    {
        assert!(stdout.contains(words), "{words} in {stdout}");
    }
    let cache = data.join("cache");
    assert!(stdout.contains(&format!("{}: 5 blobs, ", cache.display())), "{stdout}");
    assert!(stdout.trim_end().ends_with("1 corrupt, 1 repaired"), "{stdout}");
    assert_eq!(get(spliceway.admin(), "/readyz").status(), 200);
}

#[test]
fn a_server_scrubs_and_repairs_by_itself() {
    let origin = Origin::start();
    let image = Image::new(1, "amd64", &[100, 300_000]);
    image.hold(&origin, "team/app", "v1");
    let spliceway = Spliceway::start(|setup| {
        setup.origin(&origin);
        setup.more("\n[maintenance]\nscrub = \"1s\"\n");
    });
    let repository = Repository::new(spliceway.addr(), "team/app");
    repository.assert_holds("v1", &image);
    let own = Image::new(3, "amd64", &[2000]);
    repository.named("team/own").push_image("v1", &own);
    let (theirs, ours) = (sha256(image.layer(1)), sha256(own.layer(0)));
    spliceway.wait_published(&theirs);
    flip(&spliceway.blob_path(&theirs));
    flip(&blob_path(&spliceway.data().join("local"), &ours));
    let counted = |outcome: &str, least: f64| {
        let labels = ["registry=\"main\"", &format!("outcome=\"{outcome}\"")];
        spliceway.wait_metric("spliceway_maintenance_corrupt_blobs_total", &labels, |count| count >= least);
    };
    counted("found", 2.0);
    counted("repaired", 1.0);
    counted("left", 1.0);
    spliceway.wait_log(&["ERROR", "a blob is corrupt", &theirs, "quarantine"]);
    spliceway.wait_log(&["INFO", "repaired: fetched again from origin/team/app", &theirs]);
    spliceway.wait_log(&["ERROR", "cannot be repaired", &ours]);
    spliceway.wait_log(&["ERROR", "maintenance failed", "job=\"scrub\"", "local is not right"]);
    spliceway.wait_metric("spliceway_maintenance_scrubbed_bytes_total", &["registry=\"main\""], |bytes| {
        bytes > 0.0
    });
    // What the server itself has set aside it forgets at once, and what it brought back it has.
    repository.assert_holds("v1", &image);
    repository.named("team/own").blob(&ours).expect(404);
    // The client that has it brings it back, and then all is right.
    repository.named("team/own").push(own.layer(0));
    let done = || {
        let labels = ["job=\"scrub\"", "outcome=\"done\""];
        spliceway.metric("spliceway_maintenance_runs_total", &labels)
    };
    let before = done();
    // Two trees: one of three further runs began after the push, and is of `local`.
    eventually("scrubs that find nothing", || (done() >= before + 3.0).then_some(()));
    let log = spliceway.log();
    let last = log.lines().rfind(|line| line.contains("data/local again")).expect("a line for each run");
    assert!(last.contains("all right"), "{last}");
}

#[test]
fn a_server_that_is_restarted_goes_on_where_its_scrub_was() {
    let origin = Origin::start();
    let image = Image::new(1, "amd64", &[8 * MIB, 8 * MIB]);
    image.hold(&origin, "team/app", "v1");
    let mut spliceway = Spliceway::before(&origin);
    Repository::new(spliceway.addr(), "team/app").assert_holds("v1", &image);
    for blob in &image.blobs {
        spliceway.wait_published(&sha256(blob));
    }
    spliceway.stop();
    let progress = spliceway.data().join("cache/locks/scrub.json");
    // A quarter of a minute for all of it.
    spliceway.restart(|setup| {
        setup.more("\n[maintenance]\nscrub = \"1s\"\nscrub_rate = \"1MiB\"\n");
    });
    let read = |bytes| bytes > 0.0;
    spliceway.wait_metric("spliceway_maintenance_scrubbed_bytes_total", &[], read);
    spliceway.stop();
    let noted: Value = serde_json::from_slice(&fs::read(&progress).expect("a note")).expect("JSON");
    let blobs = noted["blobs"].as_u64().expect("a number");
    assert!((1..4).contains(&blobs), "{noted}");
    // What was looked at before is not looked at again: the first blob may rot.
    let last = noted["last"].as_str().expect("a digest").to_owned();
    let mut digests: Vec<_> = image.blobs.iter().map(|blob| sha256(blob)).chain([image.digest()]).collect();
    digests.sort_unstable();
    assert_eq!(digests[usize::try_from(blobs).expect("a few") - 1], last);
    flip(&spliceway.blob_path(&digests[0]));
    spliceway.restart(|_| ());
    let config = spliceway.home().join("spliceway.toml");
    let faster = fs::read_to_string(config).expect("our own file").replace("1MiB", "1GiB");
    spliceway.reload_text(&faster);
    spliceway.wait_log(&["4 blobs of", "data/cache again: all right"]);
    // The one after that begins at the beginning.
    spliceway.wait_log(&["ERROR", "a blob is corrupt", &digests[0]]);
}

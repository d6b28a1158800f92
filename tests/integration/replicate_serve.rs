//! `[[registry.replicate]]`: what a server copies into its own tree is served at once.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::support::eventually;
use crate::support::images::Image;
use crate::support::process::Spliceway;
use crate::support::push::{Repository, assert_tree_is_right};

/// A replication from `master`, over and over.
fn table(name: &str, from: &str, include: &str) -> String {
    format!(
        "[[registry.replicate]]\nname = \"{name}\"\nfrom = {from:?}\ninterval = \"1s\"\ninclude = [\"{include}\"]\n\
         scheme = \"http\"\n"
    )
}

#[track_caller]
fn wait_equal(from: &Repository, to: &Repository, tag: &str) {
    let expected = from.manifest(tag).expect(200).body;
    eventually("the image", || {
        let answer = to.manifest(tag);
        (answer.status() == 200 && answer.body == expected).then_some(())
    });
}

#[test]
fn what_a_master_has_is_here_and_stays_equal() {
    let master = Spliceway::start(|_| {});
    let app = Repository::new(master.addr(), "team/app");
    let [first, second] = [1, 2].map(|seed| Image::new(seed, "amd64", &[100, 70_000]));
    app.push_image("v1", &first);
    app.named("other/app").push_image("v1", &first);
    let from = master.addr().to_string();
    let mut site = Spliceway::start(|setup| {
        setup.more(&table("team", &from, "team/*"));
    });
    let here = app.at(site.addr());
    site.wait_metric("spliceway_replicate_runs_total", &["team", "complete"], |runs| runs >= 1.0);
    here.assert_holds("v1", &first);
    here.named("other/app").manifest("v1").expect(404);
    let copied = site.metric("spliceway_replicate_copied_bytes_total", &["team"]);
    assert!(copied >= 70_000.0, "{copied}");

    app.push_image("v1", &second);
    app.push_image("v2", &first);
    wait_equal(&app, &here, "v1");
    wait_equal(&app, &here, "v2");
    here.assert_holds("v1", &second);

    site.reload(|setup| {
        setup.more(&table("other", &from, "other/*"));
    });
    wait_equal(&app.named("other/app"), &here.named("other/app"), "v1");
    app.push_image("v3", &second);
    wait_equal(&app, &here, "v3");
    site.stop();
    assert_tree_is_right(&site.data().join("local"));
}

#[test]
fn a_master_that_is_gone_is_counted_and_does_not_keep_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("masters");
    fs::write(&script, "#!/bin/sh\necho 'nobody knows' >&2\nexit 3\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut site = Spliceway::start(|setup| {
        setup.more(&table("gone", &format!("script:{}", script.display()), "*"));
    });
    site.wait_metric("spliceway_replicate_failures_total", &["gone"], |failures| failures >= 1.0);
    site.wait_log(&["failed", "nobody knows"]);
    assert!(site.metric("spliceway_replicate_lag_seconds", &["gone"]) > 0.0);
    site.reload_text("[[registry]]\n");
    site.wait_log(&["configuration reloaded"]);
    site.stop();
}

#[test]
fn a_signal_ends_the_server_while_it_copies() {
    let master = Spliceway::start(|_| {});
    let app = Repository::new(master.addr(), "team/app");
    for seed in 0..20 {
        app.push_image(&format!("v{seed}"), &Image::new(seed, "amd64", &[2_000_000]));
    }
    let from = master.addr().to_string();
    let mut site = Spliceway::start(|setup| {
        setup.more(&table("team", &from, "*"));
    });
    site.wait_log(&["sources found"]);
    site.stop();
    assert_tree_is_right(&site.data().join("local"));
    site.restart(|_| {});
    for seed in 0..20 {
        wait_equal(&app, &app.at(site.addr()), &format!("v{seed}"));
    }
}

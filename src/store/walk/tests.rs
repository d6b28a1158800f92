use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use tempfile::TempDir;

use super::*;

const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

struct Tree {
    layout: Layout,
    _home: TempDir,
}

impl Tree {
    fn new() -> Self {
        let home = TempDir::new().expect("a directory");
        Self { layout: Layout::new(home.path()), _home: home }
    }

    fn file(&self, path: &str, content: &str) -> PathBuf {
        let path = self.layout.repositories().join(path);
        fs::create_dir_all(path.parent().expect("below")).expect("our own directory");
        fs::write(&path, content).expect("our own directory");
        path
    }

    fn repositories(&self) -> Result<BTreeSet<String>, WalkError> {
        let mut found = BTreeSet::new();
        repositories(&self.layout, |repository| -> Result<(), WalkError> {
            assert!(found.insert(repository.to_string()));
            Ok(())
        })?;
        Ok(found)
    }

    fn revisions(&self, name: &str) -> Result<Vec<(Digest, Option<Digest>)>, WalkError> {
        let mut found = Vec::new();
        let directory = self.layout.revisions(&StoredRepository::found(name));
        links(&directory, Unknown::Refused, |place| -> Result<(), WalkError> {
            found.push((place.digest, place.link()?.map(|link| link.digest)));
            Ok(())
        })?;
        Ok(found)
    }

    fn tags(&self, name: &str) -> Result<Vec<(String, Option<Digest>)>, WalkError> {
        let mut found = Vec::new();
        tags(&self.layout, &StoredRepository::found(name), |tag, link| -> Result<(), WalkError> {
            found.push((tag.to_string(), link.map(|link| link.digest)));
            Ok(())
        })?;
        Ok(found)
    }
}

fn hex(digest: &str) -> &str {
    digest.split_once(':').expect("a digest").1
}

#[test]
fn repositories_of_any_depth() {
    let tree = Tree::new();
    assert_eq!(tree.repositories().unwrap(), BTreeSet::new());
    let deep = ["d"; 127].join("/");
    for name in ["a", "a/b", "a/b/c", "team/app", &deep, "Not-A-Name"] {
        tree.file(&format!("{name}/_layers/x"), "");
    }
    tree.file("lost+found/x/_layers/x", "");
    tree.file("a/file", "");
    let expected = ["a", "a/b", "a/b/c", "team/app", &deep, "Not-A-Name"].map(str::to_owned);
    assert_eq!(tree.repositories().unwrap(), BTreeSet::from(expected));
    let misplaced = tree.file(&format!("{deep}/deeper/_layers/x"), "");
    let error = tree.repositories().unwrap_err();
    assert!(matches!(&error, WalkError::Misplaced { path } if misplaced.starts_with(path)), "{error}");
}

#[test]
fn blobs_without_repositories_are_an_error() {
    let tree = Tree::new();
    fs::create_dir_all(tree.layout.blobs()).unwrap();
    assert!(matches!(tree.repositories(), Err(WalkError::NoRepositories { .. })));
}

#[test]
fn symbolic_links_to_directories_are_errors() {
    let tree = Tree::new();
    tree.file("a/_layers/x", "");
    symlink("a/_layers/x", tree.layout.repositories().join("to-a-file")).unwrap();
    assert_eq!(tree.repositories().unwrap().len(), 1);
    symlink("a", tree.layout.repositories().join("b")).unwrap();
    assert!(matches!(tree.repositories(), Err(WalkError::Symlink { path }) if path.ends_with("b")));
}

/// Every place that leads to links, and the links.
fn places() -> [String; 9] {
    let revisions = "team/app/_manifests/revisions";
    let tags = "team/app/_manifests/tags";
    [
        "team".to_owned(),
        "team/app/_manifests".to_owned(),
        revisions.to_owned(),
        format!("{revisions}/sha256"),
        format!("{revisions}/sha256/{}", hex(EMPTY)),
        tags.to_owned(),
        format!("{tags}/1"),
        format!("{tags}/1/current"),
        format!("{tags}/1/current/link"),
    ]
}

fn found(tree: &Tree) -> Result<(), WalkError> {
    for name in tree.repositories()? {
        tree.revisions(&name)?;
        tree.tags(&name)?;
    }
    Ok(())
}

fn image() -> Tree {
    let tree = Tree::new();
    tree.file(&format!("team/app/_manifests/revisions/sha256/{}/link", hex(EMPTY)), EMPTY);
    tree.file("team/app/_manifests/tags/1/current/link", EMPTY);
    tree.file("team/app/_layers/x", "");
    found(&tree).unwrap();
    tree
}

#[test]
fn symbolic_links_that_lead_nowhere_are_not_absence() {
    for place in places() {
        let tree = image();
        let path = tree.layout.repositories().join(&place);
        let away = tree.layout.root().join("away");
        fs::rename(&path, &away).unwrap();
        found(&tree).unwrap();
        symlink("/nonexistent/mount", &path).unwrap();
        let error = found(&tree).expect_err(&place);
        assert!(matches!(&error, WalkError::Symlink { path: at } if *at == path), "{place}: {error}");
    }
    let tree = image();
    let path = tree.layout.repositories();
    fs::rename(&path, tree.layout.root().join("away")).unwrap();
    symlink("/nonexistent/mount", &path).unwrap();
    assert!(matches!(tree.repositories(), Err(WalkError::Symlink { path: at }) if at == path));
}

#[test]
fn files_in_place_of_directories_are_not_absence() {
    for place in ["_manifests", "_manifests/revisions", "_manifests/tags", "_manifests/tags/1/current"] {
        let tree = image();
        let path = tree.layout.repositories().join("team/app").join(place);
        fs::remove_dir_all(&path).unwrap();
        fs::write(&path, "").unwrap();
        let error = found(&tree).expect_err(place);
        assert!(
            matches!(&error, WalkError::Unreadable { path: at, .. } if at.starts_with(&path)),
            "{place}: {error}"
        );
    }
}

#[test]
fn links_count_by_what_they_hold() {
    let tree = Tree::new();
    let name = format!("sha512/{}", "0".repeat(128));
    tree.file(&format!("a/_manifests/revisions/{name}/link"), &format!("{EMPTY}\n"));
    let found = tree.revisions("a").unwrap();
    assert_eq!(
        found,
        [(format!("sha512:{}", "0".repeat(128)).parse().unwrap(), Some(EMPTY.parse().unwrap()))]
    );
    assert_eq!(tree.revisions("b").unwrap(), [], "absence is no error");
    fs::create_dir_all(
        tree.layout.repositories().join(format!("b/_manifests/revisions/sha256/{}", hex(EMPTY))),
    )
    .unwrap();
    assert_eq!(
        tree.revisions("b").unwrap(),
        [(EMPTY.parse().unwrap(), None)],
        "distribution leaves the directory"
    );
}

#[test]
fn what_is_no_link_is_an_error() {
    let tree = Tree::new();
    for content in ["", "sha256:0", "latest", &format!("{EMPTY}0"), &"x".repeat(10_000)] {
        let path = tree.file(&format!("a/_manifests/revisions/sha256/{}/link", hex(EMPTY)), content);
        let current = tree.file("a/_manifests/tags/1/current/link", content);
        for (error, path) in
            [(tree.revisions("a").unwrap_err(), path), (tree.tags("a").unwrap_err(), current)]
        {
            assert!(matches!(&error, WalkError::NoLink { path: at, .. } if *at == path), "{error}");
            assert!(error.to_string().len() < 500, "{error}");
        }
    }
}

#[test]
fn names_that_no_registry_gives_are_errors_where_they_could_lead_somewhere() {
    for path in [
        "a/_manifests/revisions/blake3/00/link",
        "a/_manifests/revisions/sha256/00/link",
        "a/_manifests/tags/.hidden/current/link",
    ] {
        let tree = Tree::new();
        tree.file(path, EMPTY);
        let found = tree.revisions("a").map(drop).and(tree.tags("a").map(drop));
        assert!(matches!(found, Err(WalkError::Misplaced { .. })), "{path}");
        let skipped = links(
            &tree.layout.revisions(&StoredRepository::found("a")),
            Unknown::Skipped,
            |_| -> Result<(), WalkError> { panic!("{path}") },
        );
        assert!(skipped.is_ok());
    }
}

#[test]
fn tags_may_point_nowhere() {
    let tree = Tree::new();
    tree.file("a/_manifests/tags/1/current/link", EMPTY);
    fs::create_dir_all(tree.layout.repositories().join("a/_manifests/tags/2/index")).unwrap();
    let mut found = tree.tags("a").unwrap();
    found.sort();
    assert_eq!(found, [("1".to_owned(), Some(EMPTY.parse().unwrap())), ("2".to_owned(), None)]);
}

#[test]
fn manifests_are_read_without_being_used() {
    let tree = Tree::new();
    let digest: Digest = EMPTY.parse().unwrap();
    assert!(manifest(&tree.layout, &digest).unwrap().is_none());
    let path = tree.layout.blob(&digest);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "{}").unwrap();
    let file = File::open(&path).unwrap();
    file.set_times(fs::FileTimes::new().set_accessed(SystemTime::UNIX_EPOCH)).unwrap();
    assert!(manifest(&tree.layout, &digest).unwrap().is_some());
    assert_eq!(fs::metadata(&path).unwrap().atime(), 0);
    fs::write(&path, "[]").unwrap();
    assert!(matches!(manifest(&tree.layout, &digest), Err(WalkError::NoManifest { .. })));
    File::options().write(true).open(&path).unwrap().set_len(MANIFEST_MAX + 1).unwrap();
    assert!(matches!(manifest(&tree.layout, &digest), Err(WalkError::TooLarge { .. })));
}

#[test]
fn blobs_are_told_by_their_digests() {
    let tree = Tree::new();
    for path in [
        format!("sha256/e3/{}", hex(EMPTY)),
        "sha256/e3/short".into(),
        format!("sha256/00/{}", hex(EMPTY)),
        "md5/00/00".into(),
    ] {
        fs::create_dir_all(tree.layout.blobs().join(path)).unwrap();
    }
    let mut found = Vec::new();
    blobs(&tree.layout, |digest| -> Result<(), WalkError> {
        found.push(*digest);
        Ok(())
    })
    .unwrap();
    assert_eq!(found, [EMPTY.parse().unwrap()]);
}

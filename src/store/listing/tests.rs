use std::collections::BTreeSet;
use std::fs;
use std::ops::Bound;
use std::thread;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const LINK: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

struct Tree {
    _home: TempDir,
    layout: Layout,
}

/// What a repository has.
#[derive(Clone, Copy, Debug)]
enum Has {
    Tag,
    Revision,
    EmptyTag,
    DeletedRevision,
    Layer,
    Upload,
}

impl Has {
    fn is_pullable(self) -> bool {
        matches!(self, Self::Tag | Self::Revision)
    }
}

impl Tree {
    fn new() -> Self {
        let home = TempDir::with_prefix("listing-").unwrap();
        let layout = Layout::new(home.path());
        Self { _home: home, layout }
    }

    fn directory(&self, repository: &str) -> PathBuf {
        self.layout.repositories().join(repository)
    }

    fn link(&self, repository: &str, path: &str, content: &str) {
        let path = self.directory(repository).join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn make(&self, repository: &str, has: Has) {
        let hex = &LINK[7..];
        match has {
            Has::Tag => self.tag(repository, "v1"),
            Has::Revision => self.link(repository, &format!("_manifests/revisions/sha256/{hex}/link"), LINK),
            Has::EmptyTag => self.link(repository, "_manifests/tags/v1/current/link", ""),
            Has::DeletedRevision => {
                let path = format!("_manifests/revisions/sha256/{hex}");
                fs::create_dir_all(self.directory(repository).join(path)).unwrap();
            }
            Has::Layer => self.link(repository, &format!("_layers/sha256/{hex}/link"), LINK),
            Has::Upload => self.link(repository, "_uploads/0/data", "x"),
        }
    }

    fn tag(&self, repository: &str, tag: &str) {
        self.link(repository, &format!("_manifests/tags/{tag}/current/link"), LINK);
    }

    fn repositories(&self, below: Option<&str>, last: Option<&str>, n: usize) -> Page<String> {
        Listings::default().repositories(&self.layout, below, last, n, &mut Err).unwrap()
    }
}

fn stored(repository: &str) -> StoredRepository {
    StoredRepository::local(&repository.parse().unwrap())
}

fn tags(listings: &Listings, tree: &Tree, last: Option<&str>, n: usize) -> Option<Page<String>> {
    let page = listings.tags(&tree.layout, &stored("a"), last, n).unwrap()?;
    Some(Page { entries: page.entries.iter().map(ToString::to_string).collect(), more: page.more })
}

/// Those after `last`.
fn after(names: &BTreeSet<String>, last: Option<&str>) -> Vec<String> {
    let from = last.map_or(Bound::Unbounded, Bound::Excluded);
    names.range::<str, _>((from, Bound::Unbounded)).cloned().collect()
}

/// Names in which what sorts around `/` matters.
fn repository() -> impl Strategy<Value = String> {
    let component = prop::sample::select(vec!["a", "b", "a-b", "a.b", "a_b", "a--b", "ab", "a0", "0"]);
    prop::collection::vec(component, 1..5).prop_map(|components| components.join("/"))
}

fn has() -> impl Strategy<Value = Has> {
    prop_oneof![
        6 => Just(Has::Tag),
        2 => Just(Has::Revision),
        1 => Just(Has::EmptyTag),
        1 => Just(Has::DeletedRevision),
        1 => Just(Has::Layer),
        1 => Just(Has::Upload),
    ]
}

fn last() -> impl Strategy<Value = Option<String>> {
    prop_oneof![Just(None), repository().prop_map(Some), "[ab0/.-]{0,8}".prop_map(Some)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pages_of_repositories_are_the_sorted_whole(
        made in prop::collection::btree_map(repository(), has(), 0..24),
        last in last(),
        n in 1_usize..6,
    ) {
        let tree = Tree::new();
        for (name, has) in &made {
            tree.make(name, *has);
        }
        let whole: BTreeSet<String> =
            made.iter().filter(|(_, has)| has.is_pullable()).map(|(name, _)| name.clone()).collect();
        let inside: BTreeSet<String> = whole.iter().filter(|name| name.starts_with("a/")).cloned().collect();
        for (below, whole) in [(None, whole), (Some("a"), inside)] {
            let expected = after(&whole, last.as_deref());
            let (mut got, mut at) = (Vec::new(), last.clone());
            loop {
                let page = tree.repositories(below, at.as_deref(), n);
                prop_assert!(page.entries.len() == n || !page.more, "a short page is the last: {page:?}");
                got.extend(page.entries);
                if !page.more {
                    break;
                }
                at = got.last().cloned();
            }
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn pages_of_tags_are_the_sorted_whole(
        made in prop::collection::btree_map("[A-Ca-c0_][A-Ca-c0._-]{0,2}", any::<bool>(), 1..24),
        last in prop::option::of("[A-Ca-c0._-]{0,3}"),
        n in 1_usize..6,
    ) {
        let tree = Tree::new();
        for (tag, points) in &made {
            tree.link("a", &format!("_manifests/tags/{tag}/current/link"), if *points { LINK } else { "" });
        }
        let whole = made.into_iter().filter(|(_, points)| *points).map(|(tag, _)| tag).collect();
        let expected = after(&whole, last.as_deref());
        let (mut got, mut at) = (Vec::new(), last);
        loop {
            let page = tags(&Listings::default(), &tree, at.as_deref(), n).unwrap();
            prop_assert!(page.entries.len() == n || !page.more, "a short page is the last: {page:?}");
            got.extend(page.entries);
            if !page.more {
                break;
            }
            at = got.last().cloned();
        }
        prop_assert_eq!(got, expected);
    }

    #[test]
    fn union_of_pages_is_the_page_of_the_union(
        lists in prop::collection::vec(prop::collection::btree_set("[a-e]{1,2}", 0..12), 2),
        last in prop::option::of("[a-e]{0,2}"),
        n in 0_usize..6,
    ) {
        let page = |names: &BTreeSet<String>| {
            let sorted: Vec<_> = names.iter().cloned().collect();
            Page::of(&sorted, last.as_deref(), n)
        };
        let both: BTreeSet<String> = lists.iter().flatten().cloned().collect();
        prop_assert_eq!(page(&lists[0]).union(page(&lists[1]), n), page(&both));
    }
}

#[test]
fn what_lies_in_a_tree_and_is_no_repository_is_not_listed() {
    let tree = Tree::new();
    assert_eq!(tree.repositories(None, None, 9), Page::empty(), "there is nothing at all");
    for (name, has) in
        [("a", Has::Tag), ("a/b", Has::Revision), ("UPPER", Has::Tag), ("lost+found", Has::Tag)]
    {
        tree.make(name, has);
    }
    // What a repository consists of may hold what looks like a repository.
    tree.make("a/_layers/c", Has::Tag);
    tree.make("a/_manifests/tags/d", Has::Tag);
    fs::write(tree.directory("file"), "x").unwrap();
    std::os::unix::fs::symlink(".", tree.directory("circle")).unwrap();
    let long = vec!["x".repeat(60); 5].join("/");
    tree.make(&long, Has::Tag);
    assert_eq!(
        tree.repositories(None, None, 9),
        Page { entries: vec!["a".into(), "a/b".into()], more: false }
    );
    assert_eq!(tree.repositories(None, None, 0), Page::empty());
    assert_eq!(tree.repositories(Some("none"), None, 9), Page::empty());
}

#[test]
fn a_repository_full_of_remains_is_listed_rather_than_searched() {
    let tree = Tree::new();
    for number in 0..=REMAINS_MAX {
        fs::create_dir_all(tree.directory("a").join(format!("_manifests/tags/t{number}"))).unwrap();
    }
    assert_eq!(tree.repositories(None, None, 9).entries, ["a"]);
}

#[test]
fn what_cannot_be_read_ends_the_list_unless_the_caller_goes_on() {
    let tree = Tree::new();
    for name in ["a", "b", "c"] {
        tree.make(name, Has::Tag);
    }
    let manifests = tree.directory("b").join("_manifests");
    fs::remove_dir_all(&manifests).unwrap();
    std::os::unix::fs::symlink("_manifests", &manifests).unwrap();
    let listings = Listings::default();
    let error = listings.repositories(&tree.layout, None, None, 9, &mut Err).unwrap_err();
    assert!(error.to_string().contains("/b/_manifests/"), "{error}");
    let mut told = 0;
    let mut go_on = |_| {
        told += 1;
        Ok(())
    };
    let page = listings.repositories(&tree.layout, None, None, 9, &mut go_on).unwrap();
    assert_eq!((page.entries, told), (vec!["a".to_owned(), "c".to_owned()], 1));
}

#[test]
fn an_unknown_repository_is_told_from_one_without_tags() {
    let tree = Tree::new();
    let listings = Listings::default();
    assert_eq!(tags(&listings, &tree, None, 9), None);
    tree.make("a/b", Has::Tag);
    assert_eq!(tags(&listings, &tree, None, 9), None, "a directory on the way is no repository");
    for has in [Has::Layer, Has::Revision, Has::EmptyTag] {
        let tree = Tree::new();
        tree.make("a", has);
        assert_eq!(tags(&listings, &tree, None, 9), Some(Page::empty()), "{has:?}");
    }
}

/// Names of a large directory are kept, and every change of it shows at once.
#[test]
fn what_is_kept_of_a_directory_ends_with_its_change() {
    let tree = Tree::new();
    let mut expected = BTreeSet::new();
    for number in 0..KEPT_NAMES_MIN {
        let tag = format!("t{number}");
        tree.tag("a", &tag);
        expected.insert(tag);
    }
    let listings = Listings::default();
    let kept = || lock(&listings.kept).directories.len();
    let list = || tags(&listings, &tree, None, usize::MAX).unwrap().entries;
    list();
    assert_eq!(kept(), 0, "it has just changed");
    for round in 0..2 {
        thread::sleep(SETTLED_AFTER + Duration::from_millis(100));
        assert_eq!(list(), expected.iter().cloned().collect::<Vec<_>>());
        assert_eq!(kept(), 1, "round {round}");
        assert_eq!(list(), expected.iter().cloned().collect::<Vec<_>>());
        if round == 0 {
            tree.tag("a", "new");
            expected.insert("new".into());
        } else {
            fs::remove_dir_all(tree.directory("a").join("_manifests/tags/t0")).unwrap();
            expected.remove("t0");
        }
        assert_eq!(list(), expected.iter().cloned().collect::<Vec<_>>());
        // What is below a tag is looked at each time.
        fs::write(tree.directory("a").join("_manifests/tags/t1/current/link"), "").unwrap();
        expected.remove("t1");
        assert_eq!(list(), expected.iter().cloned().collect::<Vec<_>>());
    }
}

#[test]
fn what_is_kept_stays_within_its_bound() {
    let mut kept = Kept { directories: LruCache::unbounded(), bytes: 0 };
    let names = |len: usize| Arc::new(Names { text: "x".repeat(len).into(), ends: Box::default() });
    let state = |inode| State {
        device: 1,
        inode,
        len: 0,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
    };
    for round in 0..40 {
        kept.keep(state(round % 20), names(KEPT_BYTES_MAX / 4 - usize::try_from(round).unwrap()));
        let bytes: usize = kept.directories.iter().map(|(_, (_, names))| names.bytes()).sum();
        assert_eq!(kept.bytes, bytes);
        assert!(bytes <= KEPT_BYTES_MAX && !kept.directories.is_empty());
    }
    kept.keep(state(99), names(KEPT_BYTES_MAX + 1));
    assert!(kept.get(&state(99)).is_none());
}

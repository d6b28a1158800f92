use super::super::fixture::{Tree, digest, fallback, repository};
use super::*;

/// What goes by a choice: tags and manifests, named by the letters that stand for them.
fn gone(choice: &Choice, names: &[(&str, Digest)]) -> String {
    let known = names.iter().filter(|(_, digest)| choice.revisions.contains(digest)).map(|(name, _)| *name);
    let tags =
        choice.tags.iter().map(|tag| match names.iter().find(|(_, digest)| *tag == fallback(digest)) {
            Some((name, _)) => format!("fallback-{name}"),
            None => tag.to_string(),
        });
    let mut all: Vec<_> = known.map(str::to_owned).chain(tags).collect();
    all.sort();
    all.join(" ")
}

/// In one repository: tag 1 is image A, then A2; tag 2 an index I of A2 and B; A2 is signed by S, B by T, which has a tag of
/// its own; C has no tag.
struct Repository {
    contents: Contents,
    names: Vec<(&'static str, Digest)>,
    _tree: Tree,
}

impl Repository {
    fn new() -> Self {
        let tree = Tree::new();
        let first = tree.image("r", Some("1"), &["a"]);
        let second = tree.image("r", Some("1"), &["a2"]);
        let other = tree.image("r", None, &["b"]);
        let index = tree.index("r", Some("2"), &[second, other]);
        let signature = tree.referrer("r", None, "s", &second);
        let tagged_signature = tree.referrer("r", Some("sign"), "t", &other);
        let untagged = tree.image("r", None, &["c"]);
        let names = vec![
            ("A", first),
            ("A2", second),
            ("B", other),
            ("I", index),
            ("S", signature),
            ("T", tagged_signature),
            ("C", untagged),
        ];
        let contents = Contents::read(tree.layout(), &repository("r")).expect("a repository");
        Self { contents, names, _tree: tree }
    }

    fn named(&self, name: &str) -> Digest {
        self.names.iter().find(|(known, _)| *known == name).expect("known").1
    }

    fn tag(&self, tag: &str) -> String {
        gone(&self.contents.tag(&tag.parse().unwrap()), &self.names)
    }

    fn manifest(&self, name: &str) -> String {
        gone(&self.contents.manifest(&self.named(name)), &self.names)
    }
}

#[test]
fn tag_takes_its_history_and_leaves_what_others_need() {
    let repository = Repository::new();
    assert_eq!(repository.tag("1"), "1 A", "A2 is a child of what tag 2 points at");
    // T keeps B by its tag and its subject; A2 is what tag 1 points at, so its signature stays.
    assert_eq!(repository.tag("2"), "2 I");
    assert_eq!(repository.tag("sign"), "T sign", "what it signs stays");
    assert_eq!(repository.tag("none"), "");
}

#[test]
fn manifest_takes_its_tags_and_referrers_and_is_kept_by_what_needs_it() {
    let repository = Repository::new();
    assert_eq!(repository.manifest("A"), "A", "a tag's history does not keep it");
    assert_eq!(repository.manifest("C"), "C");
    assert_eq!(repository.manifest("S"), "S");
    assert_eq!(repository.manifest("I"), "2 I");
    assert!(!repository.contents.manifest(&repository.named("B")).revisions.contains(&repository.named("B")));
    let a2 = repository.named("A2");
    assert!(!repository.contents.manifest(&a2).revisions.contains(&a2));
    assert_eq!(repository.contents.parents(&a2).count(), 2, "the index and the signature");
}

#[test]
fn untagged_is_what_no_tag_reaches() {
    let repository = Repository::new();
    assert_eq!(gone(&repository.contents.untagged(|_| false), &repository.names), "A C");
    let c = repository.named("C");
    let young = |revision: &Revision| revision.target == c;
    assert_eq!(gone(&repository.contents.untagged(young), &repository.names), "A");
}

#[test]
fn expired_stays_while_what_is_not_needs_it() {
    let repository = Repository::new();
    let expired = |names: &[&str]| {
        let old: Vec<_> = names.iter().map(|name| repository.named(name)).collect();
        let choice = repository.contents.expired(|revision| old.contains(&revision.target), None);
        gone(&choice, &repository.names)
    };
    assert_eq!(expired(&["A", "C"]), "A C");
    assert_eq!(expired(&["A2", "B"]), "", "the index is not expired");
    assert_eq!(expired(&["I"]), "2 I");
    assert_eq!(expired(&["A2", "I", "S"]), "1 2 A2 I S");
    assert_eq!(expired(&["S", "T"]), "", "they refer to what stays");
    assert_eq!(expired(&["B", "I", "T"]), "2 B I T sign");
    let choice = repository
        .contents
        .expired(|revision| revision.target == repository.named("I"), Some(&|_: &Revision| false));
    assert_eq!(gone(&choice, &repository.names), "2 A C I", "and what that leaves without a tag");
}

#[test]
fn fallback_tag_goes_with_what_it_is_about() {
    let tree = Tree::new();
    let a = tree.image("r", Some("1"), &["a"]);
    let s = tree.referrer("r", None, "s", &a);
    let f = tree.index("r", Some(fallback(&a).as_str()), &[s]);
    let names = [("A", a), ("S", s), ("F", f)];
    let contents = Contents::read(tree.layout(), &repository("r")).expect("a repository");
    assert_eq!(gone(&contents.tag(&"1".parse().unwrap()), &names), "1 A F S fallback-A");
    assert_eq!(gone(&contents.untagged(|_| false), &names), "");
    assert_eq!(gone(&contents.tag(&fallback(&a)), &names), "F fallback-A");

    let b = tree.image("r", Some("1"), &["b"]);
    let contents = Contents::read(tree.layout(), &repository("r")).expect("a repository");
    assert_eq!(gone(&contents.untagged(|_| false), &names), "A F S fallback-A");
    assert!(contents.revisions.contains_key(&b));
}

#[test]
fn those_that_need_others_go_first() {
    let repository = Repository::new();
    let all = repository.contents.everything();
    let order = repository.contents.parents_first(&all.revisions);
    assert_eq!(order.len(), 7);
    let at = |name| order.iter().position(|digest| *digest == repository.named(name)).unwrap();
    assert!(at("I") < at("A2") && at("I") < at("B") && at("S") < at("A2") && at("T") < at("B"));
}

#[test]
fn digest_without_a_manifest_is_not_known() {
    let repository = Repository::new();
    assert_eq!(repository.contents.named(&digest(b"a")), None);
}

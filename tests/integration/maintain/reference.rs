//! What a tree holds, and what must be left of it, worked out from its files in the simplest and slowest way: nothing is
//! shared with the program's own walk, its parser of manifests or its marking.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::snapshot::read_without_trace;
use crate::support::process::entries;

/// Digests as text.
pub(super) type Digests = BTreeSet<String>;

/// Everything that matters in a tree.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tree {
    pub(super) blobs: BTreeMap<String, Stored>,
    pub(super) repositories: BTreeMap<String, Kept>,
}

/// A blob's file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stored {
    pub(super) bytes: u64,
    /// If it is a JSON object, as manifests are.
    json: Option<Value>,
}

/// What a repository links. Names of links lead to what they contain.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Kept {
    pub(super) layers: BTreeMap<String, String>,
    pub(super) revisions: BTreeMap<String, String>,
    pub(super) tags: BTreeMap<String, Tag>,
    /// Subject and referrer.
    pub(super) referrers: BTreeSet<(String, String)>,
    pub(super) uploads: BTreeSet<String>,
}

/// A tag: what it points at, and what it ever pointed at.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tag {
    pub(super) current: Option<String>,
    pub(super) history: Digests,
}

/// What is to be removed from a repository.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unwanted<'a> {
    Everything,
    Tag(&'a str),
    Digest(&'a str),
    Untagged,
}

impl Tree {
    /// Of the directory that holds `docker/registry/v2`.
    pub(super) fn read(root: &Path) -> Self {
        let registry = root.join("docker/registry/v2");
        let mut tree = Self::default();
        for algorithm in entries(&registry.join("blobs")) {
            for blob in entries(&algorithm).iter().flat_map(|prefix| entries(prefix)) {
                let Ok(bytes) = read_without_trace(&blob.join("data")) else { continue };
                let json = serde_json::from_slice(&bytes).ok().filter(Value::is_object);
                let digest = format!("{}:{}", name(&algorithm), name(&blob));
                tree.blobs.insert(digest, Stored { bytes: bytes.len() as u64, json });
            }
        }
        tree.read_repositories(&registry.join("repositories"), "");
        tree
    }

    fn read_repositories(&mut self, directory: &Path, prefix: &str) {
        for path in entries(directory) {
            let name = name(&path);
            if name.starts_with('_') || !path.is_dir() {
                continue;
            }
            let repository = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            if ["_manifests", "_layers", "_uploads"].iter().any(|part| path.join(part).exists()) {
                let kept = Kept::read(&path);
                if kept != Kept::default() {
                    self.repositories.insert(repository.clone(), kept);
                }
            }
            self.read_repositories(&path, &repository);
        }
    }

    /// The repository `name`, which may be gone.
    pub(super) fn repository(&self, name: &str) -> Kept {
        self.repositories.get(name).cloned().unwrap_or_default()
    }

    /// The blob that `repository` means by `digest`: a link's name and its content may differ.
    fn held(&self, repository: &Kept, digest: &str) -> Option<String> {
        let link = repository.revisions.get(digest).or_else(|| repository.layers.get(digest));
        [link.map(String::as_str), Some(digest)]
            .into_iter()
            .flatten()
            .find(|digest| self.blobs.contains_key(*digest))
            .map(str::to_owned)
    }

    /// Every blob that these manifests of a repository need, with themselves.
    fn reached<'a>(&self, repository: &Kept, manifests: impl IntoIterator<Item = &'a String>) -> Digests {
        let mut reached = Digests::new();
        let mut open: Vec<String> = manifests.into_iter().cloned().collect();
        while let Some(digest) = open.pop() {
            let Some(blob) = self.held(repository, &digest) else { continue };
            let manifest = self.blobs[&blob].json.clone().unwrap_or_default();
            if !reached.insert(blob) {
                continue;
            }
            reached.extend(leaves(&manifest).iter().filter_map(|leaf| self.held(repository, leaf)));
            open.extend(children(&manifest));
            open.extend(subject(&manifest));
        }
        reached
    }

    /// Every blob that a revision or a tag leads to.
    pub(super) fn marked(&self) -> Digests {
        let roots = |kept: &Kept| -> Vec<String> {
            let current = kept.tags.values().filter_map(|tag| tag.current.clone());
            kept.revisions.keys().cloned().chain(current).collect()
        };
        self.repositories.values().flat_map(|kept| self.reached(kept, &roots(kept))).collect()
    }

    /// No revision or tag leads to something that is not there. `before`: what was not there at the beginning either may
    /// be absent, as the children of a sparse index are.
    #[track_caller]
    pub(super) fn assert_whole(&self, before: &Self) {
        for (name, kept) in &self.repositories {
            for (tag, state) in &kept.tags {
                let Some(current) = &state.current else { continue };
                assert!(
                    kept.revisions.contains_key(current),
                    "{name}:{tag} leads to {current}, which is no revision"
                );
            }
            for (revision, content) in &kept.revisions {
                assert!(self.blobs.contains_key(content), "{name}@{revision} leads to nothing");
                let manifest = self.blobs[content].json.clone().unwrap_or_default();
                for needed in leaves(&manifest).iter().chain(&children(&manifest)) {
                    let was =
                        before.repositories.get(name).is_none_or(|kept| before.held(kept, needed).is_some());
                    assert!(
                        self.held(kept, needed).is_some() || !was,
                        "{name}@{revision} needs {needed}, which is gone"
                    );
                }
            }
        }
    }

    /// Every manifest of every repository with the blobs that it names and that are there.
    pub(super) fn promises(&self) -> Vec<(String, String, Vec<String>)> {
        let mut promises = Vec::new();
        for (name, kept) in &self.repositories {
            for (revision, content) in &kept.revisions {
                let manifest = self.blobs.get(content).and_then(|blob| blob.json.clone()).unwrap_or_default();
                let mut blobs = leaves(&manifest);
                // Of an index that names layers too.
                blobs.extend(children(&manifest).into_iter().filter(|child| kept.layers.contains_key(child)));
                blobs.retain(|blob| self.held(kept, blob).is_some());
                promises.push((name.clone(), revision.clone(), blobs));
            }
        }
        promises
    }

    /// The indexes of a repository that have this manifest as a child.
    pub(super) fn parents(&self, name: &str, digest: &str) -> Vec<String> {
        let kept = self.repository(name);
        let has = |content: &String| {
            let index = self.blobs.get(content).and_then(|blob| blob.json.clone()).unwrap_or_default();
            children(&index).iter().any(|child| child == digest)
        };
        kept.revisions.iter().filter(|(_, content)| has(content)).map(|(index, _)| index.clone()).collect()
    }

    /// The manifests of a repository that refer to this one.
    pub(super) fn referrers_of(&self, name: &str, digest: &str) -> Vec<String> {
        let kept = self.repository(name);
        let refers = |content: &String| {
            let manifest = self.blobs.get(content).and_then(|blob| blob.json.clone()).unwrap_or_default();
            subject(&manifest).as_deref() == Some(digest)
        };
        kept.revisions
            .iter()
            .filter(|(_, content)| refers(content))
            .map(|(referrer, _)| referrer.clone())
            .collect()
    }

    /// Every tag that points at something.
    pub(super) fn tags(&self) -> Vec<(String, String)> {
        let of = |(name, kept): (&String, &Kept)| {
            let pointing = kept.tags.iter().filter(|(_, state)| state.current.is_some());
            pointing.map(|(tag, _)| (name.clone(), tag.clone())).collect::<Vec<_>>()
        };
        self.repositories.iter().flat_map(of).collect()
    }

    /// With these repositories, empty: what is absent in them was never there.
    pub(super) fn with_absent(mut self, names: &[&str]) -> Self {
        self.repositories.extend(names.iter().map(|name| ((*name).to_owned(), Kept::default())));
        self
    }

    /// What a collection leaves that takes everything without a reference, however young.
    pub(super) fn collected(&self) -> Self {
        let marked = self.marked();
        self.with_blobs(|digest| marked.contains(digest))
    }

    /// Without the blobs that are not to be kept and the links to them.
    fn with_blobs(&self, kept: impl Fn(&str) -> bool) -> Self {
        let mut tree = self.clone();
        tree.blobs.retain(|digest, _| kept(digest));
        let Self { blobs, repositories } = &mut tree;
        for repository in repositories.values_mut() {
            repository.layers.retain(|_, content| blobs.contains_key(content));
        }
        tree.tidy();
        tree
    }

    /// What is left when manifests that no tag reaches are removed from every repository, and then garbage.
    pub(super) fn collected_untagged(&self) -> Self {
        let mut tree = self.clone();
        for name in self.repositories.keys() {
            let (doomed, tags) = self.untagged(name);
            tree.forget(name, &doomed, &tags);
        }
        tree.collected()
    }

    /// What a removal leaves.
    pub(super) fn without(&self, name: &str, unwanted: Unwanted<'_>) -> Self {
        let kept = self.repository(name);
        let (doomed, tags) = match unwanted {
            Unwanted::Everything => {
                (kept.revisions.keys().cloned().collect(), kept.tags.keys().cloned().collect())
            }
            Unwanted::Untagged => self.untagged(name),
            Unwanted::Tag(tag) => {
                let state = kept.tags.get(tag).cloned().unwrap_or_default();
                let asked = state.history.iter().chain(&state.current).cloned().collect();
                self.doomed(name, &asked, &BTreeSet::from([tag.to_owned()]), false)
            }
            Unwanted::Digest(digest) => {
                let points = |state: &Tag| state.current.as_deref() == Some(digest);
                let tags =
                    kept.tags.iter().filter(|(_, state)| points(state)).map(|(tag, _)| tag.clone()).collect();
                self.doomed(name, &Digests::from([digest.to_owned()]), &tags, true)
            }
        };
        let needed = self.reached(&kept, &doomed);
        let mut tree = self.clone();
        tree.forget(name, &doomed, &tags);
        if matches!(unwanted, Unwanted::Everything)
            && let Some(kept) = tree.repositories.get_mut(name)
        {
            kept.layers.clear();
            kept.referrers.clear();
            kept.uploads.clear();
        }
        // The repository may no longer hand out what only these named.
        let staying = tree.repository(name);
        let named = tree.reached(&staying, staying.revisions.keys());
        if let Some(kept) = tree.repositories.get_mut(name) {
            kept.layers.retain(|_, content| !needed.contains(content) || named.contains(content));
        }
        let marked = tree.marked();
        tree.with_blobs(|digest| marked.contains(digest) || !needed.contains(digest))
    }

    /// Which manifests go with these, and which tags: what is reached from them and from nothing that stays.
    ///
    /// With `insist`, nothing that stays protects what was asked for itself.
    fn doomed(
        &self,
        name: &str,
        asked: &Digests,
        tags: &BTreeSet<String>,
        insist: bool,
    ) -> (Digests, BTreeSet<String>) {
        let kept = self.repository(name);
        let json = |digest: &str| {
            kept.revisions.get(digest).and_then(|content| self.blobs.get(content)?.json.clone())
        };
        let of = |digest: &str| json(digest).unwrap_or_default();
        let fallback = |digest: &str| digest.replace(':', "-");
        // Everything that hangs on it.
        let mut doomed: Digests =
            asked.iter().filter(|digest| kept.revisions.contains_key(*digest)).cloned().collect();
        loop {
            let mut more = Digests::new();
            for digest in &doomed {
                more.extend(children(&of(digest)));
                let refers = |referrer: &&String| subject(&of(referrer)).as_ref() == Some(digest);
                more.extend(kept.revisions.keys().filter(refers).cloned());
                if let Some(tag) = kept.tags.get(&fallback(digest)) {
                    more.extend(tag.current.iter().chain(&tag.history).cloned());
                }
            }
            more.retain(|digest| kept.revisions.contains_key(digest) && !doomed.contains(digest));
            if more.is_empty() {
                break;
            }
            doomed.extend(more);
        }
        // Less what stays for a reason of its own.
        loop {
            let gone: BTreeSet<String> =
                tags.iter().cloned().chain(doomed.iter().map(|digest| fallback(digest))).collect();
            let stays = |digest: &&String| {
                if insist && asked.contains(*digest) {
                    return false;
                }
                let tagged = kept.tags.iter().any(|(tag, state)| {
                    !gone.contains(tag)
                        && (state.current.as_ref() == Some(*digest) || state.history.contains(*digest))
                });
                let mut staying = kept.revisions.keys().filter(|other| !doomed.contains(*other));
                let is_needed = staying.clone().any(|other| {
                    children(&of(other)).contains(*digest) || subject(&of(other)).as_ref() == Some(*digest)
                });
                let refers_to = subject(&of(digest));
                let refers =
                    !asked.contains(*digest) && staying.any(|other| refers_to.as_ref() == Some(other));
                tagged || is_needed || refers
            };
            let saved: Vec<String> = doomed.iter().filter(stays).cloned().collect();
            if saved.is_empty() {
                return (doomed, gone);
            }
            doomed.retain(|digest| !saved.contains(digest));
        }
    }

    /// The manifests of a repository that no tag reaches, and their fallback tags: a tag reaches what it points at, and
    /// what is reached reaches its children, its subject, its referrers and its fallback tag.
    fn untagged(&self, name: &str) -> (Digests, BTreeSet<String>) {
        let kept = self.repository(name);
        let of = |digest: &String| {
            kept.revisions
                .get(digest)
                .and_then(|content| self.blobs.get(content)?.json.clone())
                .unwrap_or_default()
        };
        let fallbacks: BTreeMap<String, &String> =
            kept.revisions.keys().map(|digest| (digest.replace(':', "-"), digest)).collect();
        let pointing = |(tag, state): (&String, &Tag)| {
            if fallbacks.contains_key(tag) { None } else { state.current.clone() }
        };
        let mut reached: Digests = kept.tags.iter().filter_map(pointing).collect();
        loop {
            let known = reached.len();
            for digest in reached.clone() {
                reached.extend(children(&of(&digest)));
                reached.extend(subject(&of(&digest)));
                let fallback = kept.tags.get(&digest.replace(':', "-"));
                reached.extend(fallback.and_then(|state| state.current.clone()));
            }
            for referrer in kept.revisions.keys() {
                if subject(&of(referrer)).is_some_and(|subject| reached.contains(&subject)) {
                    reached.insert(referrer.clone());
                }
            }
            if reached.len() == known {
                break;
            }
        }
        let doomed: Digests =
            kept.revisions.keys().filter(|revision| !reached.contains(*revision)).cloned().collect();
        let tags =
            kept.tags.keys().filter(|tag| fallbacks.get(*tag).is_some_and(|digest| doomed.contains(*digest)));
        (doomed.clone(), tags.cloned().collect())
    }

    fn forget(&mut self, name: &str, doomed: &Digests, tags: &BTreeSet<String>) {
        if let Some(kept) = self.repositories.get_mut(name) {
            kept.revisions.retain(|digest, _| !doomed.contains(digest));
            kept.tags.retain(|tag, _| !tags.contains(tag));
            kept.referrers.retain(|(_, referrer)| !doomed.contains(referrer));
        }
        self.tidy();
    }

    /// What a tag pointed at once and what is no longer there is of no matter, nor is a repository without anything.
    fn tidy(&mut self) {
        for kept in self.repositories.values_mut() {
            let Kept { revisions, tags, .. } = kept;
            for tag in tags.values_mut() {
                tag.history.retain(|digest| revisions.contains_key(digest));
            }
        }
        self.repositories.retain(|_, kept| *kept != Kept::default());
    }

    /// Both hold the same; what differs is named.
    #[track_caller]
    pub(super) fn assert_is(&self, expected: &Self, what: &str) {
        let (mut found, mut expected) = (self.clone(), expected.clone());
        found.tidy();
        expected.tidy();
        let differences = [
            difference("is left", &found.lines(), &expected.lines()),
            difference("is missing", &expected.lines(), &found.lines()),
        ];
        assert!(found == expected, "{what}:\n{}", differences.join("\n"));
    }

    /// Everything in it, one thing a line.
    fn lines(&self) -> BTreeSet<String> {
        let mut lines: BTreeSet<String> = self
            .blobs
            .iter()
            .map(|(digest, stored)| format!("blob {digest} of {} bytes", stored.bytes))
            .collect();
        for (name, kept) in &self.repositories {
            lines.insert(format!("repository {name}"));
            lines.extend(kept.layers.iter().map(|(link, to)| format!("layer {name}@{link} to {to}")));
            lines.extend(kept.revisions.iter().map(|(link, to)| format!("revision {name}@{link} to {to}")));
            for (tag, state) in &kept.tags {
                lines.insert(format!("tag {name}:{tag} to {:?}", state.current));
                lines.extend(state.history.iter().map(|digest| format!("history {name}:{tag} of {digest}")));
            }
            lines.extend(
                kept.referrers.iter().map(|(subject, by)| format!("referrer {name}@{by} of {subject}")),
            );
            lines.extend(kept.uploads.iter().map(|id| format!("upload {name} {id}")));
        }
        lines
    }
}

impl Kept {
    fn read(path: &Path) -> Self {
        let mut kept = Self {
            layers: links(&path.join("_layers")),
            revisions: links(&path.join("_manifests/revisions")),
            ..Self::default()
        };
        for tag in entries(&path.join("_manifests/tags")) {
            let current = link(&tag.join("current/link"));
            let history = links(&tag.join("index")).into_values().collect();
            let state = Tag { current, history };
            if state != Tag::default() {
                kept.tags.insert(name(&tag), state);
            }
        }
        for algorithm in entries(&path.join("_manifests/referrers")) {
            for subject in entries(&algorithm) {
                let of = format!("{}:{}", name(&algorithm), name(&subject));
                kept.referrers.extend(links(&subject).into_keys().map(|referrer| (of.clone(), referrer)));
            }
        }
        kept.uploads = entries(&path.join("_uploads")).iter().map(|upload| name(upload)).collect();
        kept
    }
}

/// The links in `<directory>/<algorithm>/<hex>/link`.
fn links(directory: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for algorithm in entries(directory) {
        for digest in entries(&algorithm) {
            if let Some(content) = link(&digest.join("link")) {
                found.insert(format!("{}:{}", name(&algorithm), name(&digest)), content);
            }
        }
    }
    found
}

fn link(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|content| content.trim().to_owned())
}

fn name(path: &Path) -> String {
    path.file_name().expect("a listed name").to_string_lossy().into_owned()
}

fn difference(what: &str, left: &BTreeSet<String>, right: &BTreeSet<String>) -> String {
    left.difference(right).map(|line| format!("  {what}: {line}")).collect::<Vec<_>>().join("\n")
}

fn digests(list: &Value, key: &str) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|entry| entry[key].as_str()).map(str::to_owned).collect()
}

/// What a manifest needs that is no manifest: config and layers, under every name that they ever had.
fn leaves(manifest: &Value) -> Vec<String> {
    let mut found: Vec<String> =
        manifest["config"]["digest"].as_str().into_iter().map(str::to_owned).collect();
    found.extend(digests(&manifest["layers"], "digest"));
    found.extend(digests(&manifest["blobs"], "digest"));
    found.extend(digests(&manifest["fsLayers"], "blobSum"));
    found
}

fn children(manifest: &Value) -> Vec<String> {
    digests(&manifest["manifests"], "digest")
}

fn subject(manifest: &Value) -> Option<String> {
    manifest["subject"]["digest"].as_str().map(str::to_owned)
}

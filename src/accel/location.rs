//! Where X-Accel-Redirect and X-Sendfile lead to. Pure.
//!
//! A path is percent-decoded exactly once, and nothing but the decoded bytes is looked at after that: `%2520` names a file
//! with `%20` in its name. What `%` does not introduce two hexadecimal digits stands for itself, as does `+`. In
//! X-Accel-Redirect `?` begins arguments, which nobody reads; in X-Sendfile it is part of the name. A `..` segment leads
//! nowhere in the first, and one step up in the second, in which a path is one of the filesystem. Whatever comes out of
//! here is opened beneath a root by the kernel, which refuses every step out of it by itself: see
//! [`openat2`](crate::sys::openat2).

use std::borrow::Cow;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use percent_encoding::percent_decode;

/// Where internal locations lie.
pub(super) struct Locations {
    /// Longest prefixes first.
    prefixes: Vec<(Vec<u8>, Content)>,
    /// Roots of X-Sendfile, and their numbers.
    sendfile: Vec<(Vec<u8>, u16)>,
}

/// What lies at a location.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// The files beneath the root of this number.
    Files(u16),
    /// The blobs of the registry of this number.
    Blobs(usize),
}

/// What a field of the backend names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) content: Content,
    /// Relative to it; without NUL.
    pub(super) path: Vec<u8>,
}

impl Locations {
    /// Of prefixes that begin and end with a slash, and of absolute directories.
    pub(super) fn new(mut prefixes: Vec<(Vec<u8>, Content)>, sendfile: &[(PathBuf, u16)]) -> Self {
        prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        let mut sendfile: Vec<_> =
            sendfile.iter().map(|(root, number)| (root.as_os_str().as_bytes().to_vec(), *number)).collect();
        sendfile.sort_by_key(|(root, _)| std::cmp::Reverse(root.len()));
        Self { prefixes, sendfile }
    }

    /// What the value of X-Accel-Redirect names; `None` if it is nothing that is there.
    pub(super) fn redirect(&self, value: &[u8]) -> Option<Named> {
        let path = value.split(|byte| *byte == b'?').next().unwrap_or_default();
        let path = decoded(path);
        if path.contains(&0) || path.split(|byte| *byte == b'/').any(|segment| segment == b"..") {
            return None;
        }
        let (prefix, content) = self.prefixes.iter().find(|(prefix, _)| path.starts_with(prefix))?;
        let path = path.get(prefix.len()..)?.to_vec();
        Some(Named { content: *content, path })
    }

    /// What the value of X-Sendfile names; `None` if it does not lie beneath one of the roots.
    pub(super) fn sendfile(&self, value: &[u8]) -> Option<Named> {
        let path = decoded(value);
        if path.first() != Some(&b'/') || path.contains(&0) {
            return None;
        }
        let mut segments: Vec<&[u8]> = Vec::new();
        for segment in path.split(|byte| *byte == b'/') {
            match segment {
                b"" | b"." => {}
                b".." => drop(segments.pop()),
                name => segments.push(name),
            }
        }
        let mut plain = Vec::with_capacity(path.len());
        for segment in segments {
            plain.push(b'/');
            plain.extend_from_slice(segment);
        }
        if path.ends_with(b"/") {
            plain.push(b'/');
        }
        self.sendfile.iter().find_map(|(root, number)| {
            let root = root.strip_suffix(b"/").unwrap_or(root);
            let rest = plain.strip_prefix(root)?;
            let path = rest.strip_prefix(b"/")?.to_vec();
            Some(Named { content: Content::Files(*number), path })
        })
    }
}

/// Percent-decoded, once.
fn decoded(value: &[u8]) -> Cow<'_, [u8]> {
    if value.contains(&b'%') { percent_decode(value).into() } else { value.into() }
}

/// The repository and the digest of a path to a blob.
pub(super) fn blob(path: &[u8]) -> Option<(&str, &str)> {
    std::str::from_utf8(path).ok()?.trim_start_matches('/').rsplit_once('/')
}

/// For fuzzing: whatever a backend says, what comes out has no NUL and does not climb.
#[doc(hidden)]
pub fn fuzz_entry(data: &[u8]) {
    let prefixes = vec![(b"/a/".to_vec(), Content::Files(0)), (b"/a/b/".to_vec(), Content::Blobs(0))];
    let locations = Locations::new(prefixes, &[("/a".into(), 1), ("/a/b".into(), 2)]);
    for named in [locations.redirect(data), locations.sendfile(data)].into_iter().flatten() {
        assert!(!named.path.contains(&0));
        assert!(named.path.split(|byte| *byte == b'/').all(|segment| segment != b".."));
        let _ = blob(&named.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locations() -> Locations {
        let prefixes = vec![
            (b"/files/".to_vec(), Content::Files(0)),
            (b"/files/deep/".to_vec(), Content::Files(1)),
            (b"/layers/".to_vec(), Content::Blobs(0)),
        ];
        let roots = [("/srv/a".into(), 2), ("/srv/a/b".into(), 3)];
        Locations::new(prefixes, &roots)
    }

    #[test]
    fn redirects() {
        for (value, expected) in [
            ("/files/a.bin", Some((Content::Files(0), "a.bin"))),
            ("/files/a.bin?x=/../y", Some((Content::Files(0), "a.bin"))),
            ("/files/a%3Fb?c", Some((Content::Files(0), "a?b"))),
            ("/files/a b+c#d", Some((Content::Files(0), "a b+c#d"))),
            ("/files/%C3%A9%2B%2520", Some((Content::Files(0), "é+%20"))),
            ("/files/é", Some((Content::Files(0), "é"))),
            ("/files/100%.txt", Some((Content::Files(0), "100%.txt"))),
            ("/files/%2Fetc/passwd", Some((Content::Files(0), "/etc/passwd"))),
            ("/files//x", Some((Content::Files(0), "/x"))),
            ("/files/", Some((Content::Files(0), ""))),
            ("/files/a..b/..c", Some((Content::Files(0), "a..b/..c"))),
            ("/files/deep/x", Some((Content::Files(1), "x"))),
            ("/f%69les/deep%2fx", Some((Content::Files(1), "x"))),
            ("/layers/a/b/sha256:0", Some((Content::Blobs(0), "a/b/sha256:0"))),
            ("/files", None),
            ("/filesx", None),
            ("files/x", None),
            ("http://host/files/x", None),
            ("@files", None),
            ("", None),
            ("/files/..", None),
            ("/files/../x", None),
            ("/files/%2e%2e/x", None),
            ("/files/x%2f..%2fy", None),
            ("/../files/x", None),
            ("/files/x%00", None),
        ] {
            let named = locations().redirect(value.as_bytes());
            let expected = expected.map(|(content, path)| Named { content, path: path.as_bytes().to_vec() });
            assert_eq!(named, expected, "{value}");
        }
    }

    #[test]
    fn sendfile_paths() {
        for (value, expected) in [
            ("/srv/a/x", Some((2, "x"))),
            ("/srv/a/b/x", Some((3, "x"))),
            ("/srv/a/b", Some((2, "b"))),
            ("/srv//a/./y/../x%20y", Some((2, "x y"))),
            ("/srv/a/x?y", Some((2, "x?y"))),
            ("/srv/a/x/", Some((2, "x/"))),
            ("/srv/ab", None),
            ("/srv/a", None),
            ("/srv/a/../x", None),
            ("/srv/a/%2e%2e/x", None),
            ("/etc/passwd", None),
            ("srv/a/x", None),
            ("/srv/a/x%00", None),
            ("", None),
        ] {
            let named = locations().sendfile(value.as_bytes());
            let expected = expected.map(|(root, path): (u16, &str)| Named {
                content: Content::Files(root),
                path: path.as_bytes().to_vec(),
            });
            assert_eq!(named, expected, "{value}");
        }
    }

    #[test]
    fn blobs_have_a_repository_and_a_digest() {
        assert_eq!(blob(b"a/b/sha256:0"), Some(("a/b", "sha256:0")));
        assert_eq!(blob(b"/a/sha256:0"), Some(("a", "sha256:0")));
        assert_eq!(blob(b"sha256:0"), None);
        assert_eq!(blob(b"\xff/sha256:0"), None);
    }
}

//! From a path of the Docker v1 protocol to what is asked for. Pure.

use crate::oci::RepositoryName;
use crate::registry::respond::ApiError;
use crate::registry::route::decode;
use crate::store::images::{ImageFile, ImageId};

/// The namespace of names that have none.
pub(super) const LIBRARY: &str = "library";
/// Longest component of a repository's name, in bytes: what a file's name may have.
const NAME_LEN_MAX: usize = 255;
/// Longest tag, in bytes.
const TAG_LEN_MAX: usize = 128;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// `/_ping`, `/v1/_ping`: does this speak the protocol?
    Ping,
    /// `/v1/images/<id>/…`
    Image(ImageId, ImagePart),
    /// `/v1/repositories/<namespace>/<name>/…`
    Repository(V1Name, Resource),
    /// `/v1/search`
    Search,
}

/// A part of an image that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ImagePart {
    Layer,
    Json,
    Ancestry,
}

/// What a repository has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    Images,
    Tags,
    Tag(String),
    Json,
}

/// The name of a repository. Both parts are fit for names of directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct V1Name {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Route {
    /// The route of a path.
    ///
    /// # Errors
    /// There is nothing of this kind (404), or it cannot be read (400).
    pub(super) fn parse(path: &str) -> Result<Self, ApiError> {
        let path = decode(path)?;
        if path == "/_ping" {
            return Ok(Self::Ping);
        }
        let nothing = || ApiError::no_such_endpoint(&path);
        let rest = path.strip_prefix("/v1/").ok_or_else(nothing)?;
        let components: Vec<_> = rest.split('/').collect();
        match components[..] {
            ["_ping"] => Ok(Self::Ping),
            ["search"] => Ok(Self::Search),
            ["images", id, part] => {
                let image = id.parse().map_err(|_| ApiError::image_unknown())?;
                Ok(Self::Image(image, ImagePart::parse(part).ok_or_else(nothing)?))
            }
            ["repositories", ref name @ ..] => {
                let (name, resource) = repository(name).ok_or_else(nothing)?;
                Ok(Self::Repository(name, resource))
            }
            _ => Err(nothing()),
        }
    }

    /// A stable word for metrics.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Ping => "v1_ping",
            Self::Image(_, ImagePart::Layer) => "v1_layer",
            Self::Image(..) => "v1_image",
            Self::Repository(..) => "v1_repository",
            Self::Search => "v1_search",
        }
    }
}

impl ImagePart {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "layer" => Some(Self::Layer),
            "json" => Some(Self::Json),
            "ancestry" => Some(Self::Ancestry),
            _ => None,
        }
    }

    pub(super) fn file(self) -> ImageFile {
        match self {
            Self::Layer => ImageFile::Layer,
            Self::Json => ImageFile::Json,
            Self::Ancestry => ImageFile::Ancestry,
        }
    }
}

impl V1Name {
    fn new(namespace: &str, name: &str) -> Option<Self> {
        (is_name(namespace) && is_name(name))
            .then(|| Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// The name by which access to it is decided, `library/` included. `None`: the rules cannot name it.
    pub(super) fn known_as(&self) -> Option<RepositoryName> {
        format!("{}/{}", self.namespace, self.name).parse().ok()
    }

    /// Where a source has it.
    pub(super) fn path(&self, resource: &Resource) -> String {
        let front = format!("/v1/repositories/{}/{}", self.namespace, self.name);
        match resource {
            Resource::Images => front + "/images",
            Resource::Tags => front + "/tags",
            Resource::Tag(tag) => format!("{front}/tags/{tag}"),
            Resource::Json => front + "/json",
        }
    }
}

/// `<namespace>/<name>/<resource>`, or without the namespace. What can be read in two ways has a namespace.
fn repository(components: &[&str]) -> Option<(V1Name, Resource)> {
    let plain = |resource: &str| match resource {
        "images" => Some(Resource::Images),
        "tags" => Some(Resource::Tags),
        "json" => Some(Resource::Json),
        _ => None,
    };
    match *components {
        [namespace, name, "tags", tag] => Some((V1Name::new(namespace, name)?, tagged(tag)?)),
        [namespace, name, resource] if plain(resource).is_some() => {
            Some((V1Name::new(namespace, name)?, plain(resource)?))
        }
        [name, "tags", tag] => Some((V1Name::new(LIBRARY, name)?, tagged(tag)?)),
        [name, resource] => Some((V1Name::new(LIBRARY, name)?, plain(resource)?)),
        _ => None,
    }
}

fn tagged(tag: &str) -> Option<Resource> {
    (tag.len() <= TAG_LEN_MAX && is_name(tag)).then(|| Resource::Tag(tag.to_owned()))
}

/// More than the protocol's servers ever took, and nothing that a path or a URL would have to escape.
pub(super) fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=NAME_LEN_MAX).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(namespace: &str, name: &str, resource: Resource) -> Route {
        Route::Repository(V1Name { namespace: namespace.into(), name: name.into() }, resource)
    }

    #[test]
    fn every_endpoint_is_found_and_a_missing_namespace_means_library() {
        let id = "0123456789abcdef";
        let tag = |tag: &str| Resource::Tag(tag.into());
        let cases = [
            ("/_ping".to_owned(), Route::Ping),
            ("/v1/_ping".into(), Route::Ping),
            ("/v1/search".into(), Route::Search),
            (format!("/v1/images/{id}/layer"), Route::Image(id.parse().unwrap(), ImagePart::Layer)),
            (format!("/v1/images/{id}{id}{id}{id}/json"), {
                Route::Image(id.repeat(4).parse().unwrap(), ImagePart::Json)
            }),
            ("/v1/repositories/foo/images".into(), named("library", "foo", Resource::Images)),
            ("/v1/repositories/a/foo/tags".into(), named("a", "foo", Resource::Tags)),
            ("/v1/repositories/a/foo/tags/v1.0".into(), named("a", "foo", tag("v1.0"))),
            ("/v1/repositories/foo/tags/latest".into(), named("library", "foo", tag("latest"))),
            ("/v1/repositories/a/tags/json".into(), named("a", "tags", Resource::Json)),
        ];
        for (path, route) in cases {
            assert_eq!(Route::parse(&path).ok(), Some(route), "{path}");
        }
    }

    #[test]
    fn what_is_no_image_and_what_leaves_the_tree_is_not_found() {
        for path in [
            "/v1/images/0123456789abcde/layer",
            "/v1/images/0123456789ABCDEF/layer",
            "/v1/images/0123456789abcdef/_public",
            "/v1/images/0123456789abcdef/../json",
            "/v1/repositories/../foo/tags",
            "/v1/repositories/a/b/tags/..",
            "/v1/repositories/a/b/c/tags",
            "/v1/repositories//foo/tags",
            "/v1/",
        ] {
            assert_eq!(Route::parse(path).expect_err(path).status(), 404, "{path}");
        }
        assert_eq!(Route::parse("/v1/repositories/a%2Fb/tags").expect_err("encoded").status(), 400);
    }
}

//! From a request's path and query to what is asked for. Nothing else in the crate reads paths of requests.
//!
//! A path is percent-decoded once. A `%2F` or `%00` in it is refused: decoded, it would name something else than the
//! client wrote. OCI distribution spec 1.1, "Endpoints".

use std::borrow::Cow;

use http::Method;

use crate::oci::{Algorithm, Digest, Reference, RepositoryName, Tag};
use crate::store::upload::UploadId;

use super::respond::ApiError;

/// Longest query that is read, in bytes.
const QUERY_MAX: usize = 4096;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/v2/`: does this speak the API?
    Base,
    /// `/v2/_catalog`.
    Catalog,
    /// `/v2/<name>/blobs/<digest>`.
    Blob(RepositoryName, Digest),
    /// `/v2/<name>/manifests/<reference>`.
    Manifest(RepositoryName, Reference),
    /// `/v2/<name>/tags/list`.
    Tags(RepositoryName),
    /// `/v2/<name>/referrers/<digest>`.
    Referrers(RepositoryName, Digest),
    /// `/v2/<name>/blobs/uploads/`: where uploads begin.
    Uploads(RepositoryName),
    /// `/v2/<name>/blobs/uploads/<uuid>`; `None` if no session can have that name.
    Upload(RepositoryName, Option<UploadId>),
}

impl Route {
    /// The route of a path.
    ///
    /// # Errors
    /// A name, tag or digest is invalid (400, the value quoted); or there is no such endpoint (404).
    pub fn parse(path: &str) -> Result<Self, ApiError> {
        let path = decode(path)?;
        if path == "/v2/" || path == "/v2" {
            return Ok(Self::Base);
        }
        let Some(rest) = path.strip_prefix("/v2/") else {
            return Err(ApiError::no_such_endpoint(&path));
        };
        // No name begins with `_`.
        if rest == "_catalog" {
            return Ok(Self::Catalog);
        }
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Ok(Self::Tags(repository(name)?));
        }
        // With or without the slash: some clients leave it out.
        let rest_of_uploads =
            rest.strip_suffix("/blobs/uploads/").or_else(|| rest.strip_suffix("/blobs/uploads"));
        if let Some(name) = rest_of_uploads {
            return Ok(Self::Uploads(repository(name)?));
        }
        // The last component is the reference, the one before it says of what: names may contain both words.
        if let Some((front, last)) = rest.rsplit_once('/') {
            if let Some(name) = front.strip_suffix("/blobs/uploads") {
                return Ok(Self::Upload(repository(name)?, last.parse().ok()));
            }
            if let Some(name) = front.strip_suffix("/referrers") {
                let digest = last.parse().map_err(|error| ApiError::digest_invalid(&error))?;
                return Ok(Self::Referrers(repository(name)?, digest));
            }
            if let Some(name) = front.strip_suffix("/blobs") {
                let digest = last.parse().map_err(|error| ApiError::digest_invalid(&error))?;
                return Ok(Self::Blob(repository(name)?, digest));
            }
            if let Some(name) = front.strip_suffix("/manifests") {
                let reference = last.parse().map_err(|error| ApiError::reference_invalid(&error))?;
                return Ok(Self::Manifest(repository(name)?, reference));
            }
        }
        Err(ApiError::no_such_endpoint(&path))
    }

    /// The methods that the route has, for `Allow`.
    pub(super) fn allowed(&self) -> &'static str {
        match self {
            Self::Base | Self::Catalog | Self::Tags(_) | Self::Referrers(..) => "GET, HEAD",
            Self::Blob(..) => "GET, HEAD, DELETE",
            Self::Manifest(..) => "GET, HEAD, PUT, DELETE",
            Self::Uploads(_) => "POST",
            Self::Upload(..) => "GET, HEAD, PATCH, PUT, DELETE",
        }
    }

    /// Whether the route has this method.
    pub(super) fn allows(&self, method: &Method) -> bool {
        self.allowed().split(", ").any(|allowed| allowed == method.as_str())
    }

    /// The repository that it is about, if it is about one.
    pub(super) fn repository(&self) -> Option<&RepositoryName> {
        match self {
            Self::Blob(name, _)
            | Self::Manifest(name, _)
            | Self::Tags(name)
            | Self::Referrers(name, _)
            | Self::Uploads(name)
            | Self::Upload(name, _) => Some(name),
            Self::Base | Self::Catalog => None,
        }
    }

    /// A stable word for metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Catalog => "catalog",
            Self::Blob(..) => "blob",
            Self::Manifest(..) => "manifest",
            Self::Tags(_) => "tags",
            Self::Referrers(..) => "referrers",
            Self::Uploads(_) | Self::Upload(..) => "upload",
        }
    }
}

/// The parameters of a query that the API knows; others are ignored, as the API asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    /// `ns`: the registry that a mirror is asked to stand in for.
    pub(super) namespace: Option<String>,
    /// `n`: how many entries of a list.
    pub(super) count: Option<usize>,
    /// `last`: the entry after which a list goes on.
    pub(super) last: Option<String>,
    /// `digest`: what an upload is to become.
    pub(super) digest: Option<Digest>,
    /// `digest-algorithm`: by which an upload is hashed on the way.
    pub(super) digest_algorithm: Option<Algorithm>,
    /// `mount`: a blob that is to be had from another repository.
    pub(super) mount: Option<Digest>,
    /// `from`: that repository.
    pub(super) from: Option<RepositoryName>,
    /// `tag`, any number of times: what is to point at a manifest that is pushed by digest.
    pub(super) tags: Vec<Tag>,
    /// `artifactType`, any number of times: which referrers are wanted.
    pub(super) artifact_types: Vec<String>,
}

impl Query {
    /// Reads a query.
    ///
    /// # Errors
    /// It is too long, or a value is not what its key asks for (400, the value quoted).
    pub(super) fn parse(query: Option<&str>) -> Result<Self, ApiError> {
        let mut parsed = Self::default();
        let Some(query) = query else { return Ok(parsed) };
        if query.len() > QUERY_MAX {
            return Err(ApiError::query_invalid(
                &query[..64.min(query.len())],
                "it is longer than 4096 bytes",
            ));
        }
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "ns" => parsed.namespace = Some(value.to_ascii_lowercase()),
                "last" => parsed.last = Some(value.into_owned()),
                "n" => {
                    let count = value.parse().map_err(|_| ApiError::page_size_invalid(&value))?;
                    parsed.count = Some(count);
                }
                "digest" => parsed.digest = Some(digest(&value)?),
                "digest-algorithm" => {
                    let algorithm = Algorithm::from_name(&value);
                    parsed.digest_algorithm =
                        Some(algorithm.ok_or_else(|| ApiError::algorithm_unknown(&value))?);
                }
                "mount" => parsed.mount = Some(digest(&value)?),
                "from" => parsed.from = Some(repository(&value)?),
                "tag" => parsed.tags.push(value.parse().map_err(|error| ApiError::tag_invalid(&error))?),
                "artifactType" => parsed.artifact_types.push(value.into_owned()),
                _ => {}
            }
        }
        Ok(parsed)
    }
}

fn digest(text: &str) -> Result<Digest, ApiError> {
    text.parse().map_err(|error| ApiError::digest_invalid(&error))
}

fn repository(name: &str) -> Result<RepositoryName, ApiError> {
    name.parse().map_err(|error| ApiError::name_invalid(&error))
}

/// A path, percent-decoded once.
///
/// # Errors
/// It has an encoded slash or NUL, or is not UTF-8 once decoded.
pub(super) fn decode(path: &str) -> Result<Cow<'_, str>, ApiError> {
    if !path.contains('%') {
        return Ok(Cow::Borrowed(path));
    }
    let upper = path.to_ascii_uppercase();
    if upper.contains("%2F") || upper.contains("%00") {
        return Err(ApiError::path_invalid(path, "an encoded slash or NUL is not allowed"));
    }
    percent_encoding::percent_decode_str(path)
        .decode_utf8()
        .map_err(|_| ApiError::path_invalid(path, "it is not UTF-8 once decoded"))
}

/// For fuzzing: no input makes the parser panic, and a route's name survives a second parse.
#[doc(hidden)]
pub fn fuzz_entry(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (path, query) = text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)));
    if let Ok(Route::Tags(name)) = Route::parse(path) {
        assert_eq!(Route::parse(&format!("/v2/{name}/tags/list")).ok(), Some(Route::Tags(name)));
    }
    let _ = Query::parse(query);
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn every_endpoint_is_found_also_in_names_that_look_like_one() {
        let name = |name: &str| name.parse::<RepositoryName>().expect("valid");
        let digest = format!("sha256:{HEX}").parse::<Digest>().expect("valid");
        let cases = [
            ("/v2/", Route::Base),
            ("/v2", Route::Base),
            ("/v2/_catalog", Route::Catalog),
            (&format!("/v2/a/b/blobs/sha256:{HEX}"), Route::Blob(name("a/b"), digest)),
            (&format!("/v2/a/blobs/sha256%3A{HEX}"), Route::Blob(name("a"), digest)),
            (&format!("/v2/a/blobs/sha256%3a{HEX}"), Route::Blob(name("a"), digest)),
            ("/v2/a/manifests/v1.0", Route::Manifest(name("a"), "v1.0".parse().expect("valid"))),
            (
                "/v2/a/manifests/manifests/x",
                Route::Manifest(name("a/manifests"), "x".parse().expect("valid")),
            ),
            ("/v2/blobs/manifests/x", Route::Manifest(name("blobs"), "x".parse().expect("valid"))),
            ("/v2/a/tags/list", Route::Tags(name("a"))),
            ("/v2/tags/list/tags/list", Route::Tags(name("tags/list"))),
        ];
        for (path, route) in cases {
            assert_eq!(Route::parse(path).ok(), Some(route), "{path}");
        }
    }

    #[test]
    fn what_is_wrong_is_answered_with_its_code_and_quoted() {
        let cases = [
            ("/v2/A/tags/list", 400, "NAME_INVALID", "A"),
            ("/v2/a%2Fb/tags/list", 400, "NAME_INVALID", "%2F"),
            ("/v2/a%00/tags/list", 400, "NAME_INVALID", "%00"),
            ("/v2/a%ff/tags/list", 400, "NAME_INVALID", "%ff"),
            ("/v2/a/blobs/sha256:12", 400, "DIGEST_INVALID", "sha256:12"),
            ("/v2/a/manifests/.x", 400, "TAG_INVALID", ".x"),
            ("/v2/a/manifests/sha256:zz", 400, "DIGEST_INVALID", "sha256:zz"),
            ("/v3/", 404, "UNSUPPORTED", "/v3/"),
            ("/", 404, "UNSUPPORTED", "/"),
        ];
        for (path, status, code, quoted) in cases {
            let error = Route::parse(path).expect_err(path);
            assert_eq!((error.status().as_u16(), error.code().as_str()), (status, code), "{path}");
            assert!(error.message().contains(quoted), "{path}: {}", error.message());
        }
    }

    #[test]
    fn a_query_is_read_and_a_bad_page_size_refused() {
        let query = Query::parse(Some("n=5&last=a%2Fb&ns=Docker.IO&other=1")).expect("valid");
        assert_eq!(query.count, Some(5));
        assert_eq!(query.last.as_deref(), Some("a/b"));
        assert_eq!(query.namespace.as_deref(), Some("docker.io"));
        for bad in ["n=-1", "n=x", "n=", "n=99999999999999999999999"] {
            let error = Query::parse(Some(bad)).expect_err(bad);
            assert_eq!(
                (error.status().as_u16(), error.code().as_str()),
                (400, "PAGINATION_NUMBER_INVALID"),
                "{bad}"
            );
        }
    }
}

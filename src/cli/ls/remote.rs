//! The images of a registry, asked over HTTP.

use std::io::{self, Write};

use futures_util::{StreamExt, stream};
use tokio::runtime;
use url::{Host, Url};

use super::super::login::Login;
use super::{Output, Unusable};
use crate::upstream::{Upstream, UpstreamError};

/// Repositories asked for their tags at once.
const AT_ONCE: usize = 8;

/// Lists what the registry at `url` holds; the inner error is standard output's.
pub(super) fn list(
    url: &str,
    login: Login,
    output: &mut Output<impl Write>,
) -> Result<io::Result<()>, Unusable> {
    let address = Address::parse(url).map_err(Unusable::Usage)?;
    let upstream = connect(&address, login)?;
    output.host = Some(address.shown);
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Unusable::Missing(format!("cannot start: {error}")))?;
    let listed = runtime.block_on(images(&upstream, output));
    // Somebody who has seen enough need not wait for a name that is being resolved.
    runtime.shutdown_background();
    Ok(listed)
}

async fn images(upstream: &Upstream, output: &mut Output<impl Write>) -> io::Result<()> {
    let mut repositories = match upstream.catalog().await {
        Ok(repositories) => repositories,
        Err(error) => {
            let hint = match error {
                UpstreamError::Unauthorized { .. } => "; give a login that may list all repositories",
                UpstreamError::NotFound { .. } => "; it offers no list of its repositories",
                _ => "",
            };
            output.failed(format_args!("{error}{hint}"));
            return Ok(());
        }
    };
    repositories.retain(|repository| output.wants(repository.as_str()));
    let asked = repositories.into_iter().map(|repository| async move {
        let tags = upstream.tags(&repository).await;
        (repository, tags)
    });
    let mut answers = stream::iter(asked).buffered(AT_ONCE);
    while let Some((repository, tags)) = answers.next().await {
        match tags {
            Ok(tags) => output.repository(repository.as_str(), &tags)?,
            // distribution's catalog has repositories that its tag lists do not know: those without a manifest.
            Err(error) if error.is_absence() => tracing::debug!(%error, "no tags"),
            Err(error) => output.failed(error),
        }
    }
    Ok(())
}

/// A registry's URL, and how it stands in an image's reference.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    url: String,
    shown: String,
    is_plain: bool,
}

impl Address {
    fn parse(text: &str) -> Result<Self, String> {
        // Whatever is wrong with it, what is repeated holds no password.
        let invalid = |why: &str| format!("this is no registry's URL: {why}");
        let expected = "expected http(s)://HOST[:PORT], or HOST:PORT";
        let (url, parsed) = if text.contains("://") {
            (text.to_owned(), Url::parse(text))
        } else {
            let url = format!("https://{text}");
            let parsed = Url::parse(&url);
            match parsed {
                Ok(parsed) if is_this_machine(&parsed) => {
                    let url = format!("http://{text}");
                    let parsed = Url::parse(&url);
                    (url, parsed)
                }
                parsed => (url, parsed),
            }
        };
        let parsed = parsed.map_err(|error| invalid(&format!("{error}; {expected}")))?;
        let is_plain = match parsed.scheme() {
            "http" => true,
            "https" => false,
            _ => return Err(invalid(expected)),
        };
        let host = parsed.host_str().ok_or_else(|| invalid(expected))?;
        let shown = match parsed.port() {
            Some(port) => format!("{host}:{port}"),
            // Without a dot or a port, clients would take it for a part of a repository's name.
            None if host.contains(['.', ':']) || host == "localhost" => host.to_owned(),
            None => format!("{host}:{}", if is_plain { 80 } else { 443 }),
        };
        Ok(Self { url, shown, is_plain: is_plain && !is_this_machine(&parsed) })
    }
}

fn is_this_machine(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// The client. Contacts nobody.
fn connect(address: &Address, login: Login) -> Result<Upstream, Unusable> {
    let access = login.check("registry", "").map_err(Unusable::Usage)?;
    if address.is_plain && access.is_secret() {
        tracing::warn!("the login goes to {} unencrypted", address.shown);
    }
    Upstream::new(access.options("registry", &address.url))
        .map_err(|error| Unusable::Usage(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_https_unless_it_is_this_machine() {
        let address = |text: &str| {
            let address = Address::parse(text).expect(text);
            (address.url, address.shown)
        };
        let cases = [
            ("localhost:5000", "http://localhost:5000", "localhost:5000"),
            ("127.0.0.2:5000", "http://127.0.0.2:5000", "127.0.0.2:5000"),
            ("[::1]:5000", "http://[::1]:5000", "[::1]:5000"),
            ("registry.example:5000", "https://registry.example:5000", "registry.example:5000"),
            ("registry.example", "https://registry.example", "registry.example"),
            ("cache", "https://cache", "cache:443"),
            ("http://cache", "http://cache", "cache:80"),
            ("https://localhost", "https://localhost", "localhost"),
            ("http://10.0.0.1:5000/", "http://10.0.0.1:5000/", "10.0.0.1:5000"),
        ];
        for (text, url, shown) in cases {
            assert_eq!(address(text), (url.to_owned(), shown.to_owned()), "{text}");
        }
        for text in ["", "ftp://a", "http://", "a b", "host:port"] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }
}

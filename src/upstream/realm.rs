//! Who may be given the credentials: the rule for a token server that a registry names. Pure.
//!
//! A registry's answer names its token server (the realm). If it could name any, a hijacked registry would collect
//! passwords; so the credentials go to a realm only if
//! - it is not plain HTTP while the registry is https, and
//! - it is on the registry's host (any port: whoever answers there already runs the registry's machine), or shares the
//!   registry's registrable domain, or is named in `auth_hosts`.
//!
//! Addresses have no domain: they must be equal. The registrable domain is found without the public suffix list, by a
//! rule that errs towards refusing: the last two labels; three where the last two are known to be a registry's own
//! (`co.uk`) or where such names are common; and nothing is shared below domains where anybody gets a subdomain
//! (`azurecr.io`). What it refuses can be named in `auth_hosts`.

use super::endpoint::Origin;

/// Second-level labels below two-letter country domains under which names are registered.
const SECOND_LEVEL: [&str; 34] = [
    "ac", "ad", "asn", "co", "com", "edu", "firm", "gen", "go", "gob", "gouv", "gov", "govt", "gv", "id",
    "ind", "info", "ltd", "me", "mil", "ne", "net", "nhs", "nic", "nom", "or", "org", "plc", "pol", "police",
    "res", "sch", "school", "web",
];

/// Country domains that register below many second-level names, geographic ones for instance.
const THREE_LABELS: [&str; 12] = ["bd", "br", "ck", "er", "fk", "in", "jm", "jp", "kh", "mm", "np", "pg"];

/// Domains whose subdomains belong to different customers.
const SHARED: [&str; 32] = [
    "amazonaws.com",
    "appspot.com",
    "azure.com",
    "azure.net",
    "azurecontainerapps.io",
    "azurecr.cn",
    "azurecr.io",
    "azurecr.us",
    "azureedge.net",
    "azurewebsites.net",
    "cloudapp.net",
    "cloudfront.net",
    "digitaloceanspaces.com",
    "duckdns.org",
    "dyndns.org",
    "fly.dev",
    "github.io",
    "gitlab.io",
    "googleusercontent.com",
    "herokuapp.com",
    "jfrog.io",
    "myqcloud.com",
    "netlify.app",
    "ngrok.io",
    "no-ip.org",
    "onrender.com",
    "pages.dev",
    "pkg.dev",
    "run.app",
    "vercel.app",
    "web.app",
    "workers.dev",
];

/// Whether the credentials for `registry` may be sent to `realm`.
pub(super) fn may_have_credentials(registry: &Origin, realm: &Origin, auth_hosts: &[String]) -> bool {
    if registry.is_https && !realm.is_https {
        return false;
    }
    registry.host == realm.host
        || auth_hosts.iter().any(|allowed| names(allowed, realm))
        || registrable_domain(registry).is_some_and(|domain| registrable_domain(realm) == Some(domain))
}

fn names(allowed: &str, realm: &Origin) -> bool {
    allowed.eq_ignore_ascii_case(&realm.host) || allowed.eq_ignore_ascii_case(&realm.authority_with_port())
}

fn registrable_domain(origin: &Origin) -> Option<&str> {
    if origin.is_address() {
        return None;
    }
    let top = last_labels(&origin.host, 1)?;
    let two = last_labels(&origin.host, 2)?;
    if SHARED.contains(&two) {
        return None;
    }
    let second = two.strip_suffix(top)?.trim_end_matches('.');
    let is_suffix = top.len() == 2 && (SECOND_LEVEL.contains(&second) || THREE_LABELS.contains(&top));
    if is_suffix { last_labels(&origin.host, 3) } else { Some(two) }
}

/// The last `count` labels of a name; `None` if it has fewer, or an empty one among them.
fn last_labels(host: &str, count: usize) -> Option<&str> {
    let mut start = host.len() + 1;
    for _ in 0..count {
        let end = start.checked_sub(1)?;
        start = host[..end].rfind('.').map_or(0, |dot| dot + 1);
        if start == end {
            return None;
        }
    }
    Some(&host[start..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(registry: &str, realm: &str, auth_hosts: &[&str]) -> bool {
        let origin = |text: &str| Origin::of(&text.parse().unwrap()).unwrap();
        let auth_hosts: Vec<_> = auth_hosts.iter().map(ToString::to_string).collect();
        may_have_credentials(&origin(registry), &origin(realm), &auth_hosts)
    }

    #[test]
    fn the_same_host_and_the_same_domain() {
        for (registry, realm) in [
            ("https://registry-1.docker.io", "https://auth.docker.io/token"),
            ("https://registry.gitlab.com", "https://gitlab.com/jwt/auth"),
            ("https://ghcr.io", "https://ghcr.io/token"),
            ("https://registry.example.co.uk", "https://auth.example.co.uk"),
            ("https://Registry.Example.com.", "https://auth.example.COM"),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5001/token"),
            ("http://[::1]:5000", "http://[::1]:5001/token"),
            ("http://registry:5000", "http://registry:5001/token"),
            ("http://registry.example.com", "https://auth.example.com"),
            ("https://x.azurecr.io", "https://x.azurecr.io/oauth2/token"),
        ] {
            assert!(allowed(registry, realm, &[]), "{registry} {realm}");
        }
    }

    #[test]
    fn strangers() {
        for (registry, realm) in [
            ("https://registry.example.com", "https://auth.example.org"),
            ("https://registry.example.com", "https://example.com.evil.org"),
            ("https://registry.example.com", "https://evilexample.com"),
            ("https://registry.example.com", "http://auth.example.com"), // downgrade
            ("https://registry.example.co.uk", "https://evil.co.uk"),
            ("https://a.tokyo.jp", "https://b.tokyo.jp"),
            ("https://a.azurecr.io", "https://b.azurecr.io"),
            ("http://127.0.0.1:5000", "http://127.0.0.2:5000"),
            ("http://10.1.0.1:5000", "http://11.1.0.1:5000"), // equal "last two labels"
            ("http://registry:5000", "http://auth:5000"),
            ("http://localhost:5000", "http://127.0.0.1:5000"),
            ("https://com", "https://evil.com"),
        ] {
            assert!(!allowed(registry, realm, &[]), "{registry} {realm}");
        }
    }

    #[test]
    fn named_hosts() {
        assert!(allowed("https://r.example.com", "https://sso.corp:8443", &["SSO.corp"]));
        assert!(allowed("https://r.example.com", "https://sso.corp:8443", &["sso.corp:8443"]));
        assert!(!allowed("https://r.example.com", "https://sso.corp:8444", &["sso.corp:8443"]));
        assert!(allowed("https://r.example.com", "https://sso.corp", &["sso.corp:443"]));
        assert!(!allowed("https://r.example.com", "http://sso.corp", &["sso.corp"]), "not over plain HTTP");
    }
}

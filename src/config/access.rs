//! `[registry.access]` from what was typed to what can be used.
//!
//! Without it, anybody may do everything where only this machine can connect, and pull where others can. Once there is
//! something to log in to, nothing is open to anybody unless the file says so.

use std::path::PathBuf;

use toml::Spanned;
use url::Url;

use super::UpstreamConfig;
use super::error::{ConfigError, Origin};
use super::field::{Field, Source};
use super::raw::{self, Setting, Texts};
use crate::registry::access::{
    AccessError, AccessOptions, Grant, Pattern, Rights, Rule, TokenOptions, check_htpasswd, check_keys,
};

/// The registry whose access is checked.
pub(super) struct Place<'a> {
    pub(super) source: &'a Source<'a>,
    /// Its name.
    pub(super) name: &'a str,
    /// Where others than this machine connect; `None` if only this one can.
    pub(super) exposed: Option<&'a str>,
    /// Its upstreams.
    pub(super) upstreams: &'a [UpstreamConfig],
}

/// Access to one registry; `at` is where its table begins.
pub(super) fn check(
    place: &Place<'_>,
    at: &Origin,
    raw: Option<Spanned<raw::Access>>,
    warnings: &mut Vec<String>,
) -> Result<AccessOptions, ConfigError> {
    let source = place.source;
    let (at, raw) = match raw {
        Some(raw) => (source.at(raw.span().start), raw.into_inner()),
        None => (at.clone(), raw::Access::default()),
    };
    let name = place.name;
    let table = format!("access to registry {name:?}");
    let htpasswd = source.field(&table, &at, "htpasswd", raw.htpasswd);
    let htpasswd = users(&htpasswd)?;
    let token = raw.token.map(|raw| token(place, raw)).transpose()?;
    let gated = place.upstreams.iter().find(|upstream| upstream.client_credentials);
    if let (Some(upstream), true) = (gated, htpasswd.is_some() || token.is_some()) {
        let key = if htpasswd.is_some() { "htpasswd" } else { "token" };
        let field = Field { table: &table, key, origin: at, given: Some(()) };
        let problem = format!("stands beside `client_credentials` of upstream {:?}", upstream.name);
        let remedy =
            "a client sends one login: have it checked here, or by the upstream in a registry of its own";
        return Err(field.bad_unshown(problem, remedy));
    }
    let authenticates = htpasswd.is_some() || token.is_some();

    let anonymous = source.field(&table, &at, "anonymous", raw.anonymous);
    let repositories = source.field(&table, &at, "anonymous_repositories", raw.anonymous_repositories);
    let rights = match (&anonymous.given, place.exposed) {
        (Some(_), _) => rights(&anonymous)?,
        (None, _) if authenticates => Rights::NONE,
        (None, Some(_)) => Rights::PULL,
        (None, None) => Rights::ALL,
    };
    let mut open = Grant::everywhere(rights);
    if repositories.given.is_some() {
        if rights == Rights::NONE {
            let remedy = "grant something by `anonymous`, or leave the key out";
            return Err(
                repositories.bad_unshown("is about nothing, as nobody may do anything unknown", remedy)
            );
        }
        open.repositories = patterns(&repositories)?;
    }
    let mut rules = Vec::with_capacity(raw.rules.len());
    for one in raw.rules {
        let at = source.at(one.span().start);
        if htpasswd.is_none() {
            let field = Field { table: &table, key: "rules", origin: at, given: Some(()) };
            let remedy = "name a file of users by `htpasswd`, or leave the rules out; tokens say themselves what they \
                          are good for";
            return Err(field.bad_unshown("is about users, of whom there are none", remedy));
        }
        rules.push(rule(source, name, &at, one.into_inner())?);
    }
    if let (true, Some(address)) =
        (anonymous.given.is_some() && (rights.push || rights.delete), place.exposed)
    {
        let words: Vec<_> = rights.words().filter(|word| *word != "pull").collect();
        warnings.push(format!(
            "registry {name:?}: anybody who can connect to {address} may {}, as `anonymous` says",
            words.join(" and ")
        ));
    }
    if rights == Rights::NONE && !authenticates {
        warnings.push(format!("registry {name:?}: nobody may do anything, as nobody can log in"));
    }
    let passes_logins = gated.is_some();
    Ok(AccessOptions { realm: name.to_owned(), anonymous: open, htpasswd, rules, token, passes_logins })
}

fn users(field: &Field<'_, PathBuf>) -> Result<Option<PathBuf>, ConfigError> {
    let path = field.path()?;
    if let Some(path) = &path {
        check_htpasswd(path).map_err(|error| {
            let remedy = format!("write it by `htpasswd -B {} USER`, with -c for a new file", path.display());
            field.bad(path.display(), error.problem(), remedy)
        })?;
    }
    Ok(path)
}

fn rule(source: &Source<'_>, registry: &str, at: &Origin, raw: raw::Rule) -> Result<Rule, ConfigError> {
    let table = format!("a rule of registry {registry:?}");
    let required = |key, setting: Setting<Texts>, example: &str| {
        let field = source.field(&table, at, key, setting);
        if field.texts().is_empty() {
            return Err(field.bad_unshown("is missing, or empty", format!("write e.g. {key} = {example}")));
        }
        Ok(field)
    };
    let users = required("users", raw.users, "[\"alice\"], or \"*\" for every user")?;
    if let Some(bad) = users.texts().iter().find(|user| user.is_empty() || user.contains(':')) {
        return Err(users.bad(bad, "is not a user name", "it has at least one character and no colon"));
    }
    let repositories = required("repositories", raw.repositories, "[\"team/**\"]")?;
    let actions = required("actions", raw.actions, "[\"pull\", \"push\"]")?;
    Ok(Rule {
        users: users.texts().to_vec(),
        grant: Grant { rights: rights(&actions)?, repositories: patterns(&repositories)? },
    })
}

fn rights(field: &Field<'_, Texts>) -> Result<Rights, ConfigError> {
    let mut rights = Rights::NONE;
    for word in field.texts() {
        if !rights.add(word) {
            return Err(field.bad(word, "is not an action", "choose from \"pull\", \"push\" and \"delete\""));
        }
    }
    Ok(rights)
}

fn patterns(field: &Field<'_, Texts>) -> Result<Vec<Pattern>, ConfigError> {
    const REMEDY: &str = "write names of repositories, `*` for what has no slash, `**` for anything";
    if field.texts().is_empty() {
        return Err(field.bad("[]", "names no repository", REMEDY));
    }
    let parse = |text: &String| text.parse().map_err(|problem: &str| field.bad(text, problem, REMEDY));
    field.texts().iter().map(parse).collect()
}

fn token(place: &Place<'_>, raw: Spanned<raw::Token>) -> Result<TokenOptions, ConfigError> {
    let source = place.source;
    let (at, raw) = (source.at(raw.span().start), raw.into_inner());
    let table = format!("the token service of registry {:?}", place.name);
    let text = |key, setting, example: &str| {
        let field = source.field(&table, &at, key, setting);
        match field.text() {
            None => Err(field.bad_unshown("is missing", format!("write e.g. {key} = {example:?}"))),
            // What is sent in a header field.
            Some(text) if text.is_empty() || !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) => {
                Err(field.bad(text, "is not printable ASCII", format!("write e.g. {key} = {example:?}")))
            }
            Some(text) => Ok((field, text)),
        }
    };
    let (field, realm) = text("realm", raw.realm, "https://auth.example/token")?;
    if !Url::parse(&realm).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) {
        let remedy = "write where clients get tokens, e.g. \"https://auth.example/token\"";
        return Err(field.bad(realm, "is not an http or https URL", remedy));
    }
    let (_, service) = text("service", raw.service, "registry.example")?;
    let (_, issuer) = text("issuer", raw.issuer, "auth.example")?;
    let keys = source.field(&table, &at, "keys", raw.keys);
    let jwks = source.field(&table, &at, "jwks", raw.jwks);
    let paths: Vec<PathBuf> = keys.texts().iter().map(PathBuf::from).collect();
    let set = jwks.path()?;
    if paths.is_empty() && set.is_none() {
        let remedy =
            "name PEM files of the token service's certificates or public keys, or a key set by `jwks`";
        return Err(keys.bad_unshown("is missing", remedy));
    }
    check_keys(&paths, None)
        .map_err(|error| refused(&keys, &error, "a file of PEM certificates or public keys"))?;
    check_keys(&[], set.as_deref()).map_err(|error| refused(&jwks, &error, "a JSON Web Key Set"))?;
    Ok(TokenOptions { realm, service, issuer, keys: paths, jwks: set })
}

fn refused<T>(field: &Field<'_, T>, error: &AccessError, wanted: &str) -> ConfigError {
    let remedy =
        format!("name a readable file that is {wanted}, of RSA (2048 bits or more), P-256, P-384 or Ed25519");
    field.bad(error.path().display(), error.problem(), remedy)
}

#[cfg(test)]
mod tests;

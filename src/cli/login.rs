//! Logins at registries, as commands are told of them.

use std::path::PathBuf;

use super::{path_variable, text_variable};
use crate::config::read_password;
use crate::upstream::{Credentials, Upstream, UpstreamConfigError, UpstreamOptions};

/// What a registry may be told about who asks, and how it is trusted; as it was given.
#[derive(Clone, Debug, Default)]
pub(super) struct Login {
    pub(super) username: Option<String>,
    pub(super) password_file: Option<PathBuf>,
    pub(super) docker_config: Option<PathBuf>,
    pub(super) auth_hosts: Vec<String>,
    pub(super) ca_file: Option<PathBuf>,
}

/// The same, read and checked.
#[derive(Clone, Debug)]
pub(super) struct Access {
    credentials: Credentials,
    auth_hosts: Vec<String>,
    ca_file: Option<PathBuf>,
}

impl Login {
    /// What is not given is taken from the variables that commands about one registry have.
    pub(super) fn or_variables(self) -> Self {
        Self {
            username: self.username.or_else(|| text_variable("SPLICEWAY_USERNAME")),
            password_file: self.password_file.or_else(|| path_variable("SPLICEWAY_PASSWORD_FILE")),
            docker_config: self.docker_config.or_else(|| path_variable("SPLICEWAY_DOCKER_CONFIG")),
            auth_hosts: self.auth_hosts,
            ca_file: self.ca_file.or_else(|| path_variable("SPLICEWAY_CA_FILE")),
        }
    }

    /// Reads the files that are named; without any login, the one that `docker login` and its like left behind. `name`
    /// stands for the registry in messages, and `prefix` in front of the flags' names.
    pub(super) fn check(self, name: &str, prefix: &str) -> Result<Access, String> {
        let Self { username, password_file, docker_config, auth_hosts, ca_file } = self;
        let with = |credentials| Access { credentials, auth_hosts, ca_file };
        let access = match (username, password_file) {
            (Some(username), Some(path)) => {
                let password =
                    read_password(&path).map_err(|why| format!("password file {}: {why}", path.display()))?;
                with(Credentials::Basic { username, password: password.expose().to_owned() })
            }
            (Some(_), None) => return Err(format!("--{prefix}username needs --{prefix}password-file")),
            (None, Some(_)) => return Err(format!("--{prefix}password-file needs --{prefix}username")),
            (None, None) => match (docker_config, written_by_login()) {
                (Some(path), _) => with(Credentials::DockerConfig(path)),
                (None, Some(path)) => {
                    let access = with(Credentials::DockerConfig(path));
                    return match access.probe(name) {
                        // Nobody named it: what is wrong with it is no reason not to ask anonymously.
                        Err(error @ UpstreamConfigError::File { key: "docker_config", .. }) => {
                            tracing::warn!(%error, "asking without a login");
                            let access = Access { credentials: Credentials::None, ..access };
                            access.probe(name).map(|()| access).map_err(|error| error.to_string())
                        }
                        probed => probed.map(|()| access).map_err(|error| error.to_string()),
                    };
                }
                (None, None) => with(Credentials::None),
            },
        };
        access.probe(name).map(|()| access).map_err(|error| error.to_string())
    }
}

impl Access {
    /// The options of a client of the registry at `url`; `name` is for messages.
    pub(super) fn options(&self, name: &str, url: &str) -> UpstreamOptions {
        UpstreamOptions {
            credentials: self.credentials.clone(),
            auth_hosts: self.auth_hosts.clone(),
            ca_file: self.ca_file.clone(),
            ..UpstreamOptions::new(name, url)
        }
    }

    /// Whether there is something that must not be read by others on the way.
    pub(super) fn is_secret(&self) -> bool {
        !matches!(self.credentials, Credentials::None)
    }

    /// Whether a password was given, which every registry that asks for one gets.
    pub(super) fn has_password(&self) -> bool {
        matches!(self.credentials, Credentials::Basic { .. })
    }

    /// Whether everything can be used that does not depend on the registry.
    fn probe(&self, name: &str) -> Result<(), UpstreamConfigError> {
        Upstream::new(self.options(name, "https://registry.invalid")).map(drop)
    }
}

/// The file in which `docker login` and its like left their logins, where they look for it themselves.
fn written_by_login() -> Option<PathBuf> {
    let candidates = [
        path_variable("REGISTRY_AUTH_FILE"),
        path_variable("DOCKER_CONFIG").map(|directory| directory.join("config.json")),
        path_variable("XDG_RUNTIME_DIR").map(|directory| directory.join("containers/auth.json")),
        path_variable("HOME").map(|home| home.join(".docker/config.json")),
    ];
    candidates.into_iter().flatten().find(|path| path.is_file())
}

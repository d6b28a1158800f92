//! Debian's lighttpd: the reference for `X-Sendfile`.

use std::net::SocketAddr;
use std::path::Path;

use super::nginx::Peer;

/// lighttpd that passes everything to `backend` and obeys `X-Sendfile` into `root`.
pub(super) fn lighttpd(backend: SocketAddr, root: &Path) -> Peer {
    Peer::start("lighttpd", &["-D", "-f"], |home, addr| {
        let (home, root) = (home.path().display(), root.display());
        format!(
            "server.modules = (\"mod_proxy\")
server.document-root = \"{home}\"
server.upload-dirs = (\"{home}\")
server.bind = \"{}\"
server.port = {}
server.network-backend = \"sendfile\"
mimetype.assign = ( \".txt\" => \"text/plain\", \".bin\" => \"application/octet-stream\", \"\" => \"application/octet-stream\" )
proxy.server = (\"\" => ((
    \"host\" => \"{}\",
    \"port\" => {},
    \"x-sendfile\" => \"enable\",
    \"x-sendfile-docroot\" => (\"{root}\")
)))
",
            addr.ip(),
            addr.port(),
            backend.ip(),
            backend.port()
        )
    })
}

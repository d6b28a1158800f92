"""The servers that are compared.

To add one: a subclass of `Peer` that writes its configuration and says its command, a line in `all_peers`, and its
name in the sets of those that take part in a workload. What copies registries is a `Copier` and needs only the line.
"""

from __future__ import annotations

from pathlib import Path

from caches import DockerRegistry, Spliceway, SplicewayMaintained, Varnish
from copiers import Skopeo
from fileservers import Caddy, H2o, Lighttpd, Nginx, NginxPush, NginxThreads
from peer import Contestant

# Who takes part in what.
FILE_SERVERS = frozenset({"nginx", "nginx-push", "lighttpd", "h2o", "spliceway"})
SENDFILE = frozenset({"nginx", "nginx-push", "nginx-threads", "lighttpd", "spliceway"})
FAST = FILE_SERVERS | {"varnish"}
FAST_AND_THREADS = FAST | {"nginx-threads"}
# Far off: in a few workloads only.
SLOW = frozenset({"caddy", "docker-registry"})
FRONT_CACHES = frozenset({"nginx", "varnish", "spliceway"})
FRONTS = frozenset({"nginx", "nginx-push", "lighttpd", "spliceway"})
REGISTRIES = frozenset({"docker-registry", "spliceway"})
MAINTAINED = frozenset({"spliceway", "spliceway-maintained"})
EVERY_FRONT_CACHE = FRONT_CACHES | {"nginx-push", "docker-registry"}


def all_peers(binary: Path) -> list[Contestant]:
    """Everything that is compared, in the order in which they take turns."""
    return [
        Nginx(),
        NginxPush(),
        NginxThreads(),
        Lighttpd(),
        H2o(),
        Varnish(),
        Caddy(),
        DockerRegistry(),
        Skopeo(),
        Spliceway(binary),
        SplicewayMaintained(binary),
    ]

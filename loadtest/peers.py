"""The servers that are compared, each set up as a careful operator would for one core.

To add one: a subclass of `Peer` that writes its configuration and says its command, and a line in `all_peers`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from http.client import HTTPConnection
from pathlib import Path
from typing import ClassVar

from content import Blob, write_distribution_layout
from measure import wait_until_idle
from nginx import main_configuration, static_locations
from origin import Origin
from processes import Process, first_line, free_port, running


class Role(Enum):
    """What a server is asked to do."""

    # Serve what it holds.
    HIT = "hit"
    # Fetch from the origin what it does not hold.
    COLD = "cold"


@dataclass(frozen=True)
class Site:
    """What one server is started for and with."""

    role: Role
    directory: Path
    port: int
    origin: Origin
    blob: Blob


class Peer(ABC):
    """A kind of server."""

    name: ClassVar[str]
    # Program to Debian package.
    programs: ClassVar[Mapping[str, str]]
    # How the server is set up for what it can do, in the words of the report.
    setups: ClassVar[Mapping[Role, str]]
    # In the site's directory.
    configuration_file: ClassVar[str]

    def label(self, role: Role) -> str:
        """The name in the report."""
        return f"{self.name} ({self.setups[role]})" if self.setups[role] else self.name

    @abstractmethod
    def version(self) -> str:
        """What the program says of itself."""

    @abstractmethod
    def prepare(self, site: Site) -> list[str]:
        """Writes configuration and content, and returns the command."""

    def notes(self, site: Site) -> dict[str, float]:
        """What the server says of itself after a workload."""
        return {}

    def warnings(self, notes: Mapping[str, float]) -> list[str]:
        """What among the notes must not be."""
        return []


@dataclass(frozen=True)
class Server:
    """A server under test."""

    peer: Peer
    site: Site
    process: Process

    @property
    def label(self) -> str:
        return self.peer.label(self.site.role)

    @property
    def url(self) -> str:
        """Where it serves the blob that it was started for."""
        return f"http://127.0.0.1:{self.site.port}{self.site.blob.target}"

    def configuration(self) -> str:
        """What it was started with."""
        return (self.site.directory / self.peer.configuration_file).read_text()

    def warm(self) -> None:
        """Has it fetch what it does not hold yet, then checks what it answers from then on."""
        self.site.blob.check(self.site.port)
        wait_until_idle(self.process)
        self.site.blob.check(self.site.port)

    def notes(self) -> dict[str, float]:
        """What it says of itself."""
        return self.peer.notes(self.site)

    def warnings(self, notes: Mapping[str, float]) -> list[str]:
        """What of that must not be."""
        return self.peer.warnings(notes)


@contextmanager
def running_server(peer: Peer, role: Role, directory: Path, origin: Origin, blob: Blob, core: int) -> Iterator[Server]:
    """Runs a server that holds nothing but what its set-up gives it, until the block ends."""
    directory.mkdir()
    site = Site(role, directory, free_port(), origin, blob)
    with running(peer.label(role), peer.prepare(site), core, directory) as process:
        process.wait_for_port(site.port)
        yield Server(peer, site, process)


class Nginx(Peer):
    name = "nginx"
    programs = {"nginx": "nginx"}
    setups = {Role.HIT: "static", Role.COLD: "proxy_cache"}
    configuration_file = "nginx.conf"

    def version(self) -> str:
        return first_line("nginx", "-v")

    def prepare(self, site: Site) -> list[str]:
        serve = _nginx_static(site) if site.role is Role.HIT else _nginx_cache(site)
        path = site.directory / self.configuration_file
        path.write_text(main_configuration(site.directory, f"    access_log off;\n{serve}"))
        return ["nginx", "-p", str(site.directory), "-c", str(path)]


def _nginx_static(site: Site) -> str:
    return f"""
    server {{
        listen 127.0.0.1:{site.port} reuseport backlog=4096;
        {static_locations(site.origin.content.root)}
    }}"""


def _nginx_cache(site: Site) -> str:
    return f"""
    proxy_cache_path {site.directory}/cache levels=1:2 keys_zone=blobs:10m inactive=1d max_size=16g use_temp_path=off;
    upstream origin {{
        server 127.0.0.1:{site.origin.port};
        keepalive 16;
    }}
    server {{
        listen 127.0.0.1:{site.port} reuseport backlog=4096;
        location / {{
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffers 16 64k;
            proxy_buffer_size 64k;
            proxy_busy_buffers_size 256k;
            proxy_cache blobs;
            proxy_cache_key $uri;
            proxy_cache_valid 200 1d;
            proxy_cache_lock on;
            proxy_cache_lock_timeout 1h;
            proxy_cache_lock_age 1h;
        }}
    }}"""


class Varnish(Peer):
    name = "varnish"
    # varnishd compiles its configuration.
    programs = {"varnishd": "varnish", "cc": "gcc"}
    setups = {Role.HIT: "malloc", Role.COLD: "malloc, streaming"}
    configuration_file = "default.vcl"

    def version(self) -> str:
        return first_line("varnishd", "-V")

    def prepare(self, site: Site) -> list[str]:
        path = site.directory / self.configuration_file
        path.write_text(f"""vcl 4.1;
backend origin {{ .host = "127.0.0.1"; .port = "{site.origin.port}"; }}
sub vcl_backend_response {{ set beresp.ttl = 1d; }}
""")
        address = f"127.0.0.1:{site.port}"
        # Without a jail, because its users could not enter the directory.
        return [
            *("varnishd", "-F", "-j", "none", "-n", str(site.directory / "varnish"), "-f", str(path)),
            *("-a", address, "-T", "none", "-s", "malloc,4g", "-p", "vcc_allow_inline_c=off"),
        ]


class DockerRegistry(Peer):
    name = "docker-registry"
    programs = {"docker-registry": "docker-registry"}
    setups = {Role.HIT: "filesystem", Role.COLD: "proxy"}
    configuration_file = "registry.yml"

    def version(self) -> str:
        return first_line("docker-registry", "--version")

    def prepare(self, site: Site) -> list[str]:
        root = site.directory / "registry"
        root.mkdir()
        proxy = ""
        if site.role is Role.HIT:
            write_distribution_layout(root, site.blob)
        else:
            proxy = f"proxy:\n  remoteurl: {site.origin.url}\n"
        path = site.directory / self.configuration_file
        path.write_text(f"""version: 0.1
log:
  level: error
  accesslog:
    disabled: true
storage:
  cache:
    blobdescriptor: inmemory
  filesystem:
    rootdirectory: {root}
http:
  addr: 127.0.0.1:{site.port}
{proxy}""")
        return ["docker-registry", "serve", str(path)]


class Spliceway(Peer):
    name = "spliceway"
    programs = {}
    setups = {Role.HIT: "", Role.COLD: ""}
    configuration_file = "spliceway.toml"

    # Samples of /metrics that count what must not happen, and those that are kept beside them.
    _MUST_BE_ZERO = ("spliceway_unmatched_regions_total", "spliceway_fill_failures_total")
    _KEPT = (*_MUST_BE_ZERO, "spliceway_fills_total", "process_resident_memory_bytes", "process_open_fds")
    _SAMPLE = re.compile(r"^((\w+)(?:\{.*\})?) (\S+)$", re.MULTILINE)

    def __init__(self, binary: Path) -> None:
        self.binary = binary

    def version(self) -> str:
        return first_line(str(self.binary), "--version")

    def prepare(self, site: Site) -> list[str]:
        admin_port = free_port()
        (site.directory / "admin-port").write_text(str(admin_port))
        path = site.directory / self.configuration_file
        path.write_text(f"""[server]
listen = "127.0.0.1:{site.port}"
admin = "127.0.0.1:{admin_port}"
workers = 1
access_log = "off"
data = "{site.directory}/data"

[[registry]]
[[registry.upstream]]
name = "origin"
url = "{site.origin.url}"
""")
        return [str(self.binary), "serve", "--config", str(path), "-q"]

    def notes(self, site: Site) -> dict[str, float]:
        admin_port = int((site.directory / "admin-port").read_text())
        connection = HTTPConnection("127.0.0.1", admin_port, timeout=10)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        samples = self._SAMPLE.findall(text)
        return {labelled: float(value) for labelled, name, value in samples if name in self._KEPT}

    def warnings(self, notes: Mapping[str, float]) -> list[str]:
        return [f"{name} {value:g}" for name, value in notes.items() if value and name.startswith(self._MUST_BE_ZERO)]


def all_peers(binary: Path) -> list[Peer]:
    """Every kind of server, in the order in which they take turns."""
    return [Nginx(), Varnish(), DockerRegistry(), Spliceway(binary)]

"""Front caches, each set up as a careful operator would for one core. nginx is one too, but in `fileservers.py`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http.client import HTTPConnection
from pathlib import Path

from application import INTERNAL
from content import Blob, write_distribution_layout
from copiers import Copier, Route
from peer import Peer, Role, Site
from processes import ProcessError, free_port
from registry import registry_configuration, registry_storage


class Varnish(Peer):
    name = "varnish"
    # varnishd compiles its configuration.
    programs = {"varnishd": "varnish", "cc": "gcc"}
    setups = {Role.HIT: "malloc", Role.COLD: "malloc, streaming"}
    version_command = ("varnishd", "-V")
    configuration_file = "default.vcl"

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
            *("-a", address, "-T", "none", "-s", "malloc,4g", "-p", "vcc_allow_inline_c=off", "-p", "timeout_idle=75"),
        ]


class DockerRegistry(Peer):
    name = "docker-registry"
    programs = {"docker-registry": "docker-registry"}
    setups = {
        Role.HIT: "filesystem",
        Role.COLD: "proxy",
        Role.PUSH: "filesystem",
        Role.COLLECT: "garbage-collect",
    }
    version_command = ("docker-registry", "--version")
    configuration_file = "registry.yml"

    def prepare(self, site: Site) -> list[str]:
        root = site.directory / "registry"
        root.mkdir()
        proxy = ""
        if site.role is Role.HIT:
            for blob in site.blobs:
                write_distribution_layout(root, blob)
        elif site.role is Role.COLD:
            proxy = f"proxy:\n  remoteurl: {site.origin.url}\n"
        path = site.directory / self.configuration_file
        path.write_text(registry_configuration(root, site.port) + proxy)
        return ["docker-registry", "serve", str(path)]

    def collect_command(self, directory: Path, root: Path) -> list[str]:
        path = directory / self.configuration_file
        path.write_text(registry_storage(root))
        return ["docker-registry", "garbage-collect", str(path)]


class Spliceway(Peer, Copier):
    name = "spliceway"
    programs = {}
    setups = {
        Role.HIT: "",
        Role.COLD: "",
        Role.PUSH: "",
        Role.ACCEL: "X-Accel-Redirect",
        Role.COLLECT: "",
        Role.COPY: "replicate",
    }
    configuration_file = "spliceway.toml"

    # Samples of /metrics that count what must not happen, and how the names of those begin that are kept beside them.
    _MUST_BE_ZERO = ("spliceway_unmatched_regions_total", "spliceway_fill_failures_total")
    _KEPT = (*_MUST_BE_ZERO, "spliceway_fills_total", "process_resident_memory_bytes", "process_open_fds")
    _SAMPLE = re.compile(r"^((\w+)(?:\{.*\})?) (\S+)$", re.MULTILINE)

    def __init__(self, binary: Path) -> None:
        self.binary = binary
        self.version_command = (str(binary), "--version")

    def prepare(self, site: Site) -> list[str]:
        admin_port = free_port()
        (site.directory / "admin-port").write_text(str(admin_port))
        path = site.directory / self.configuration_file
        listen, accel = site.port, ""
        if site.application:
            # What registries listen on is another port.
            listen = free_port()
            accel = f"""
[[accel]]
listen = "127.0.0.1:{site.port}"
backend = "http://127.0.0.1:{site.application.accel_port}"
keep_alive = 64
[[accel.location]]
prefix = "{INTERNAL}/"
root = "{site.origin.content.root}"
"""
        path.write_text(f"""[server]
listen = "127.0.0.1:{listen}"
admin = "127.0.0.1:{admin_port}"
workers = 1
access_log = "off"
data = "{site.directory}/data"

{self._maintenance()}
[[registry]]
{self._bounds()}
[[registry.upstream]]
name = "origin"
url = "{site.origin.url}"
{accel}""")
        return [str(self.binary), "serve", "--config", str(path), "-q"]

    def collect_command(self, directory: Path, root: Path) -> list[str]:
        return [str(self.binary), "gc", "--local", str(root), "--grace", "0s", "-q"]

    def _maintenance(self) -> str:
        """What a server under load is not to do of its own accord."""
        return '[maintenance]\ngc = "off"\nscrub = "off"\nuploads = "off"\n'

    def _bounds(self) -> str:
        return ""

    def copy_command(self, route: Route) -> list[str]:
        return [str(self.binary), "replicate", "--from", route.source, "--to", route.target, "-q"]

    def stored_at(self, site: Site, blob: Blob) -> Path:
        for path in (site.directory / "data").glob(f"**/blobs/sha256/{blob.hex[:2]}/{blob.hex}/data"):
            return path
        raise ProcessError(f"sha256:{blob.hex} is not on the disk")

    def notes(self, site: Site) -> dict[str, float]:
        admin_port = int((site.directory / "admin-port").read_text())
        connection = HTTPConnection("127.0.0.1", admin_port, timeout=10)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        samples = self._SAMPLE.findall(text)
        return {labelled: float(value) for labelled, name, value in samples if name.startswith(self._KEPT)}

    def warnings(self, notes: Mapping[str, float]) -> list[str]:
        return [f"{name} {value:g}" for name, value in notes.items() if value and name.startswith(self._MUST_BE_ZERO)]


class SplicewayMaintained(Spliceway):
    """As busy with its trees as it can be told to: a collection and a scrub whenever the last one has ended, and a cache
    so small that each fill costs another blob its place."""

    name = "spliceway-maintained"
    setups = {Role.HIT: "gc, scrub, eviction"}

    _KEPT = (*Spliceway._KEPT, "spliceway_maintenance_", "spliceway_evict")
    # Less than is fetched within a round.
    _CACHE_SIZE = "8MiB"

    def _maintenance(self) -> str:
        return '[maintenance]\ngc = "1s"\nscrub = "1s"\nuploads = "1s"\n'

    def _bounds(self) -> str:
        return f'max_size = "{self._CACHE_SIZE}"\n'

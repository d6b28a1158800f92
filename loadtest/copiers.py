"""Programs that copy what one registry holds to another, each as a careful operator would call it."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peer import Contestant, Role


@dataclass(frozen=True)
class Route:
    """From where to where, and a place for a program's files."""

    source_port: int
    target_port: int
    # By repository, one path component each.
    tags: Mapping[str, Sequence[str]]
    directory: Path

    @property
    def source(self) -> str:
        return f"http://127.0.0.1:{self.source_port}"

    @property
    def target(self) -> str:
        return f"http://127.0.0.1:{self.target_port}"


class Copier(Contestant):
    """A program that copies, and ends."""

    @abstractmethod
    def copy_command(self, route: Route) -> list[str]:
        """Writes configuration, and returns the command."""


class Skopeo(Copier):
    name = "skopeo"
    programs = {"skopeo": "skopeo"}
    setups = {Role.COPY: "sync"}
    version_command = ("skopeo", "--version")

    def copy_command(self, route: Route) -> list[str]:
        # All tags of all repositories: a registry's own list of them is nothing that it takes. JSON is YAML.
        images: dict[str, list[str]] = {repository: [] for repository in route.tags}
        path = route.directory / "sync.yml"
        path.write_text(json.dumps({f"127.0.0.1:{route.source_port}": {"tls-verify": False, "images": images}}))
        return [
            # What it has learnt of blobs is kept in its home, which is new in each round, and not in the machine's.
            *("env", "_CONTAINERS_ROOTLESS_UID=1000", "skopeo", "--insecure-policy", "sync", "--all"),
            *("--preserve-digests", "--src", "yaml", "--dest", "docker", "--dest-tls-verify=false"),
            *(str(path), f"127.0.0.1:{route.target_port}"),
        ]

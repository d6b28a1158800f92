"""docker-registry as a place that programs copy from and to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from processes import Cores, Process, free_port, running


@dataclass(frozen=True)
class Registry:
    """A running registry."""

    process: Process
    port: int
    # Holds docker/registry/v2.
    root: Path


def registry_configuration(root: Path, port: int) -> str:
    """Over the directory `root`, without a log of requests."""
    return f"""{registry_storage(root)}http:
  addr: 127.0.0.1:{port}
"""


def registry_storage(root: Path) -> str:
    """The part of it that garbage-collect needs too."""
    return f"""version: 0.1
log:
  level: error
  accesslog:
    disabled: true
storage:
  cache:
    blobdescriptor: inmemory
  filesystem:
    rootdirectory: {root}
"""


@contextmanager
def running_registry(directory: Path, root: Path, cores: Cores) -> Iterator[Registry]:
    """Runs a registry over `root` until the block ends."""
    directory.mkdir()
    root.mkdir(exist_ok=True)
    port = free_port()
    path = directory / "registry.yml"
    path.write_text(registry_configuration(root, port))
    with running("registry", ["docker-registry", "serve", str(path)], cores, directory) as process:
        process.wait_for_port(port)
        yield Registry(process, port, root)

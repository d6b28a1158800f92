"""The application behind fronts that send its files: it answers every request with a path and nothing else.

nginx plays it, because it must be so fast that the fronts are what is measured. `X-Accel-Redirect` and `X-Sendfile` are
said on a port each, so that no front passes on a header that it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from content import Content
from nginx import main_configuration
from processes import free_port, running

# Where fronts have the files, for `X-Accel-Redirect`.
INTERNAL = "/protected"


@dataclass(frozen=True)
class Application:
    """A running application."""

    # Where it says `X-Accel-Redirect: /protected/…`.
    accel_port: int
    # Where it says `X-Sendfile: /the/file's/path`.
    sendfile_port: int


@contextmanager
def running_application(directory: Path, content: Content, core: int) -> Iterator[Application]:
    """Runs an application until the block ends. It keeps connections for as long as its front does."""
    directory.mkdir()
    ports = Application(free_port(), free_port())
    servers = "".join(
        f"""
    server {{
        listen 127.0.0.1:{port};
        location / {{
            add_header {header} {path}$uri;
            return 200;
        }}
    }}"""
        for port, header, path in (
            (ports.accel_port, "X-Accel-Redirect", INTERNAL),
            (ports.sendfile_port, "X-Sendfile", content.root),
        )
    )
    path = directory / "nginx.conf"
    path.write_text(main_configuration(directory, f"    access_log off;{servers}", nopush=False))
    with running("application", ["nginx", "-p", str(directory), "-c", str(path)], core, directory) as process:
        process.wait_for_port(ports.accel_port)
        yield ports

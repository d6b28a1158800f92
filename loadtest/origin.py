"""The registry that front caches fetch from: nginx over a directory of blobs, with a log of what was fetched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from content import Content, blob_target
from nginx import main_configuration, static_locations
from processes import Process, free_port, running


@dataclass(frozen=True)
class Tally:
    """What was asked of the origin for blobs."""

    gets: int
    heads: int
    body_bytes: int


@dataclass(frozen=True)
class Origin:
    """A running origin."""

    process: Process
    port: int
    content: Content
    log_path: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def mark(self) -> int:
        """A place in the log, for `since`."""
        return self.log_path.stat().st_size

    def since(self, mark: int) -> Tally:
        """What was asked for blobs since a mark."""
        with self.log_path.open() as log:
            log.seek(mark)
            lines = [line.split() for line in log]
        asked = [line for line in lines if line[1].startswith(blob_target(""))]
        return Tally(
            gets=sum(line[0] == "GET" for line in asked),
            heads=sum(line[0] == "HEAD" for line in asked),
            body_bytes=sum(int(line[3]) for line in asked),
        )


@contextmanager
def running_origin(directory: Path, content: Content, core: int, bytes_per_second: int | None) -> Iterator[Origin]:
    """Runs an origin until the block ends. nginx limits the rate of each request, not of all together."""
    directory.mkdir()
    port = free_port()
    log_path = directory / "access.log"
    # After each piece nginx waits for as long as the piece may take, and does not count how long sending it took: large
    # pieces come close to the rate that was asked for.
    limit = f"limit_rate {bytes_per_second}; sendfile_max_chunk 8m;" if bytes_per_second else ""
    configuration = main_configuration(
        directory,
        f"""
    log_format counted '$request_method $uri $status $body_bytes_sent';
    access_log {log_path} counted;
    server {{
        listen 127.0.0.1:{port};
        {limit}
        # docker-registry asks for this when it starts as a proxy.
        location = /v2/ {{ return 200 '{{}}'; }}
        {static_locations(content.root)}
    }}""",
        nopush=False,
    )
    path = directory / "nginx.conf"
    path.write_text(configuration)
    with running("origin", ["nginx", "-p", str(directory), "-c", str(path)], core, directory) as process:
        process.wait_for_port(port)
        yield Origin(process, port, content, log_path)

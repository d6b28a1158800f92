"""A client that pushes one blob.

    python3 push.py PORT REPOSITORY DIGEST FILE

begins an upload, sends the file in one PATCH with a Content-Length (as skopeo does, by `sendfile`, so that the client's
work is not what is measured), finishes it, and prints one JSON object: the wall time, and what went wrong.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

SECONDS_MAX = 120


def _answer(connection: socket.socket) -> tuple[int, str]:
    """An answer's status and head; none of them has a body worth reading."""
    head = b""
    while b"\r\n\r\n" not in head:
        received = connection.recv(65536)
        if not received:
            raise OSError(f"the connection was closed after {head!r}")
        head += received
    return int(head.split(maxsplit=2)[1]), head.decode("latin-1")


def _location(head: str) -> str:
    found = re.search(r"(?i)\r\nlocation: *(\S+)", head)
    if not found:
        raise OSError(f"no Location in {head!r}")
    parts = urlsplit(found[1])
    return parts.path + (f"?{parts.query}" if parts.query else "")


def push(port: int, repository: str, digest: str, path: Path) -> float:
    """Pushes and returns the wall time in seconds."""
    host = f"Host: 127.0.0.1:{port}\r\n"
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), SECONDS_MAX) as connection, path.open("rb") as file:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        length = path.stat().st_size

        def ask(method: str, target: str, fields: str, expected: int, *, body: bool = False) -> str:
            connection.sendall(f"{method} {target} HTTP/1.1\r\n{host}{fields}\r\n".encode())
            if body:
                connection.sendfile(file)
            status, head = _answer(connection)
            if status != expected:
                raise OSError(f"{method} was answered {status}: {head}")
            return head

        target = _location(ask("POST", f"/v2/{repository}/blobs/uploads/", "Content-Length: 0\r\n", 202))
        fields = f"Content-Type: application/octet-stream\r\nContent-Length: {length}\r\n"
        target = _location(ask("PATCH", target, fields, 202, body=True))
        mark = "&" if "?" in target else "?"
        ask("PUT", f"{target}{mark}digest={digest}", "Content-Length: 0\r\n", 201)
    return time.monotonic() - began


def main() -> None:
    port, repository, digest, path = sys.argv[1:]
    try:
        result = {"wall_s": push(int(port), repository, digest, Path(path)), "errors": []}
    except OSError as error:
        result = {"wall_s": 0.0, "errors": [str(error)]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Connections that make one request each and then stay open.

    python3 idle.py PORT TARGET CONNECTIONS

Prints a JSON object when all have their answers, and another when standard input is closed: how many the server has
closed by then.
"""

from __future__ import annotations

import json
import resource
import socket
import sys
import time

from fanout import get, read_head

ANSWER_SECONDS_MAX = 30


def open_one(port: int, target: str) -> socket.socket:
    """A connection that has its answer."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS_MAX)
    connection.sendall(get(target, port))
    head, body = read_head(connection)
    if head.status != 200 or head.length is None:
        raise OSError(f"status {head.status}, length {head.length}")
    missing = head.length - len(body)
    while missing:
        chunk = connection.recv(missing)
        if not chunk:
            raise OSError(f"the connection ended with {missing} bytes missing")
        missing -= len(chunk)
    connection.setblocking(False)
    return connection


def is_open(connection: socket.socket) -> bool:
    try:
        connection.recv(1)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def main() -> None:
    port, target, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    began = time.monotonic()
    connections = [open_one(port, target) for _ in range(count)]
    print(json.dumps({"open_s": time.monotonic() - began}), flush=True)
    sys.stdin.read()
    closed = count - sum(map(is_open, connections))
    print(json.dumps({"errors": [f"the server closed {closed} of {count} connections"] if closed else []}))


if __name__ == "__main__":
    main()

"""One client that takes a file whose pages are not in memory, again and again.

    python3 coldstream.py PORT TARGET FILE

Evicts FILE, which is what the server sends for TARGET, from the page cache before each request. Prints a JSON object
when the first body begins, and another with what it got when standard input is closed. Bodies are thrown away by the
kernel, as in `fanout.py`.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fanout import DISCARD_BYTES, WAKE_BYTES, get, read_head

STALL_SECONDS_MAX = 30


def evict(path: Path) -> None:
    """Drops a file's pages from memory; they must have been written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


@dataclass
class Stream:
    """What the client got."""

    bytes: int = 0
    seconds: float = 0.0
    # Whole bodies.
    passes: int = 0
    errors: list[str] = field(default_factory=list)

    def run(self, port: int, target: str, path: Path) -> None:
        """Asks until standard input is closed."""
        began = time.monotonic()
        try:
            while self._take(port, target, path):
                self.passes += 1
        except OSError as error:
            self.errors.append(f"the cold stream: {error!r}")
        self.seconds = time.monotonic() - began

    def _take(self, port: int, target: str, path: Path) -> bool:
        """Takes one body; returns whether all of it was taken."""
        evict(path)
        with socket.create_connection(("127.0.0.1", port), timeout=STALL_SECONDS_MAX) as connection:
            connection.sendall(get(target, port))
            head, left = read_head(connection)
            if head.status != 200 or head.length is None:
                raise OSError(f"status {head.status}, length {head.length}")
            self._count(len(left))
            missing = head.length - len(left)
            discarded = bytearray(DISCARD_BYTES)
            while missing:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, min(WAKE_BYTES, missing))
                if sys.stdin in select.select([sys.stdin, connection], [], [], STALL_SECONDS_MAX)[0]:
                    return False
                count = connection.recv_into(discarded, min(DISCARD_BYTES, missing), socket.MSG_TRUNC)
                if count == 0:
                    raise OSError(f"the connection ended with {missing} bytes missing")
                missing -= count
                self._count(count)
        return True

    def _count(self, count: int) -> None:
        if self.bytes == 0 and count:
            print(json.dumps({}), flush=True)
        self.bytes += count


def main() -> None:
    stream = Stream()
    stream.run(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
    print(json.dumps(asdict(stream)))


if __name__ == "__main__":
    main()

"""Many clients at once, in one process, each of which asks for one thing.

    python3 fanout.py PORT TARGET...

prints one JSON object: the wall time over all clients and what each of them saw. Bodies are counted and thrown away by
the kernel (MSG_TRUNC): on two cores, a client that copied every byte would be what is measured. Behind its first bytes
a client is woken for every WAKE_BYTES only (SO_RCVLOWAT): waking a process on another core costs the sender, which it
does not where clients are other machines.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

SECONDS_MAX = 120
HEAD_BYTES_MAX = 64 * 1024
# What one call may throw away; nothing is ever written to a buffer of this size, so it takes no memory.
DISCARD_BYTES = 4 * 1024 * 1024
WAKE_BYTES = 256 * 1024


@dataclass(frozen=True)
class Head:
    """What the clients need of an answer's head."""

    status: int
    length: int | None

    @classmethod
    def parse(cls, text: bytes) -> Head:
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", text)
        return cls(int(text.split(maxsplit=2)[1]), int(length[1]) if length else None)


@dataclass
class Client:
    """What one client saw; times are seconds since the first client's request."""

    status: int = 0
    length: int = -1
    body_bytes: int = 0
    # Of the body, not of the head.
    first_byte_s: float | None = None
    end_s: float | None = None
    # As the socket is set.
    wake_bytes: int = 1
    error: str | None = None

    @property
    def done(self) -> bool:
        return self.error is not None or self.end_s is not None

    def received(self, count: int, now_s: float) -> None:
        """Counts bytes of the body."""
        self.body_bytes += count
        if count and self.first_byte_s is None:
            self.first_byte_s = now_s
        if self.body_bytes == self.length:
            self.end_s = now_s
        elif self.body_bytes > self.length:
            self.error = f"{self.body_bytes} bytes where {self.length} were announced"


class FanOut:
    """The clients and their connections."""

    def __init__(self, port: int, targets: Sequence[str]) -> None:
        self._port = port
        self._targets = targets
        self._discarded = bytearray(DISCARD_BYTES)
        self._heads: dict[socket.socket, bytes] = {}
        self._selector = selectors.DefaultSelector()
        self.clients = [Client() for _ in targets]
        self._began = time.monotonic()

    def run(self) -> float:
        """Returns the seconds from the first request to the end of the last answer."""
        self._began = time.monotonic()
        for client, target in zip(self.clients, self._targets, strict=True):
            self._connect(client, target)
        while self._selector.get_map() and self._now() < SECONDS_MAX:
            for key, _ in self._selector.select(timeout=1):
                self._read(key.fileobj, key.data)  # type: ignore[arg-type]
        wall = self._now()
        for client in self.clients:
            if not client.done:
                client.error = f"{client.body_bytes} bytes after {SECONDS_MAX} s"
        return wall

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _connect(self, client: Client, target: str) -> None:
        try:
            connection = socket.create_connection(("127.0.0.1", self._port), timeout=10)
            connection.sendall(get(target, self._port))
        except OSError as error:
            client.error = repr(error)
            return
        connection.setblocking(False)
        self._heads[connection] = b""
        self._selector.register(connection, selectors.EVENT_READ, client)

    def _read(self, connection: socket.socket, client: Client) -> None:
        try:
            if client.status == 0:
                count = self._read_head(connection, client)
            else:
                count = connection.recv_into(self._discarded, DISCARD_BYTES, socket.MSG_TRUNC)
                client.received(count, self._now())
            _wake_for_more(connection, client)
        except BlockingIOError:
            return
        except OSError as error:
            count = 0
            client.error = repr(error)
        if count == 0 and not client.done:
            client.error = f"the connection ended after {client.body_bytes} of {client.length} bytes"
        if client.done:
            self._selector.unregister(connection)
            connection.close()

    def _read_head(self, connection: socket.socket, client: Client) -> int:
        chunk = connection.recv(HEAD_BYTES_MAX)
        text, end, body = (self._heads[connection] + chunk).partition(b"\r\n\r\n")
        if not end:
            self._heads[connection] += chunk
            return len(chunk)
        head = Head.parse(text)
        client.status = head.status
        if head.status != 200 or head.length is None:
            client.error = f"status {head.status}, length {head.length}"
            return len(chunk)
        client.length = head.length
        client.received(len(body), self._now())
        return len(chunk)


def get(target: str, port: int) -> bytes:
    """A request for `target`."""
    return f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: */*\r\n\r\n".encode()


def read_head(connection: socket.socket) -> tuple[Head, bytes]:
    """Reads an answer's head from a connection that blocks; returns it with what came of the body."""
    text, end, body = b"", b"", b""
    while not end:
        chunk = connection.recv(HEAD_BYTES_MAX)
        if not chunk:
            raise OSError("the connection ended before the head of an answer")
        text, end, body = (text + chunk).partition(b"\r\n\r\n")
    return Head.parse(text), body


def _wake_for_more(connection: socket.socket, client: Client) -> None:
    """Has the next wake-up wait for `WAKE_BYTES`, or for what is left if that is less."""
    left = client.length - client.body_bytes
    begins = client.wake_bytes == 1 and client.body_bytes > 0
    if left > 0 and (begins or left < client.wake_bytes):
        client.wake_bytes = min(WAKE_BYTES, left)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, client.wake_bytes)


def main() -> None:
    fan_out = FanOut(int(sys.argv[1]), sys.argv[2:])
    wall = fan_out.run()
    print(json.dumps({"wall_s": wall, "clients": [asdict(client) for client in fan_out.clients]}))


if __name__ == "__main__":
    main()

"""Asks for the head of one thing again and again, over a number of connections, in one process.

    python3 heads.py PORT TARGET CONNECTIONS SECONDS

prints one JSON object like that of `wrk.lua`. wrk cannot do it: it waits for the body that Content-Length announces.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

HEAD_BYTES_MAX = 64 * 1024


class Heads:
    """The connections, each with one request under way."""

    def __init__(self, port: int, target: str, connections: int) -> None:
        self._port = port
        self._request = f"HEAD {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._asked_at: dict[int, float] = {}
        self._seconds: list[float] = []
        self._bytes = 0
        self._errors = {"connect": 0, "read": 0, "status": 0}
        for _ in range(connections):
            self._connect()

    def run(self, seconds: int) -> dict[str, object]:
        """Asks for so long; returns what was counted."""
        began = time.perf_counter()
        now = began
        while now < began + seconds:
            ready = self._epoll.poll(1)
            now = time.perf_counter()
            for number, _ in ready:
                self._answer(number, now)
        return {
            "duration_us": round((now - began) * 1e6),
            "requests": len(self._seconds),
            "bytes": self._bytes,
            "p50_us": self._percentile(0.5),
            "p99_us": self._percentile(0.99),
            "p999_us": self._percentile(0.999),
            "errors": self._errors,
        }

    def _connect(self) -> None:
        try:
            connection = socket.create_connection(("127.0.0.1", self._port), timeout=10)
        except OSError:
            self._errors["connect"] += 1
            return
        self._sockets[connection.fileno()] = connection
        self._epoll.register(connection, select.EPOLLIN)
        self._ask(connection)

    def _ask(self, connection: socket.socket) -> None:
        self._asked_at[connection.fileno()] = time.perf_counter()
        connection.send(self._request)

    def _answer(self, number: int, now: float) -> None:
        """Takes one answer. A head is small enough to come in one piece."""
        connection = self._sockets[number]
        try:
            head = connection.recv(HEAD_BYTES_MAX)
        except OSError:
            head = b""
        if not head.endswith(b"\r\n\r\n"):
            self._errors["read"] += 1
            self._epoll.unregister(number)
            del self._sockets[number]
            connection.close()
            self._connect()
            return
        self._errors["status"] += not head.startswith(b"HTTP/1.1 200 ")
        self._bytes += len(head)
        self._seconds.append(now - self._asked_at[number])
        self._ask(connection)

    def _percentile(self, share: float) -> int:
        ordered = sorted(self._seconds)
        return round(ordered[int(len(ordered) * share)] * 1e6) if ordered else 0


def main() -> None:
    port, target, connections, seconds = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    print(json.dumps(Heads(port, target, connections).run(seconds)))


if __name__ == "__main__":
    main()

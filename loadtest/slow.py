"""One client that takes a body at a pace of its own.

    python3 slow.py PORT TARGET BYTES_PER_SECOND

Prints a JSON object when the body begins, and another with what it got when standard input is closed.
"""

from __future__ import annotations

import json
import select
import socket
import sys
from dataclasses import asdict, dataclass, field

from fanout import get, read_head

TICK_S = 0.05
STALL_SECONDS_MAX = 120
# So that it is the server that has to hold back, not this end's kernel.
RECEIVE_BUFFER_BYTES = 64 * 1024


@dataclass
class SlowReader:
    """What the client got."""

    bytes: int = 0
    errors: list[str] = field(default_factory=list)

    def run(self, port: int, target: str, bytes_per_second: int) -> None:
        """Reads until standard input is closed."""
        connection = socket.socket()
        connection.settimeout(STALL_SECONDS_MAX)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        with connection:
            connection.connect(("127.0.0.1", port))
            connection.sendall(get(target, port))
            head, body = read_head(connection)
            if head.status != 200 or head.length is None:
                raise OSError(f"status {head.status}, length {head.length}")
            print(json.dumps({}), flush=True)
            self.bytes = len(body)
            piece = int(bytes_per_second * TICK_S)
            discarded = bytearray(piece)
            while self.bytes < head.length and not select.select([sys.stdin], [], [], TICK_S)[0]:
                count = connection.recv_into(discarded, piece, socket.MSG_TRUNC)
                if count == 0:
                    raise OSError(f"the connection ended after {self.bytes} of {head.length} bytes")
                self.bytes += count


def main() -> None:
    reader = SlowReader()
    try:
        reader.run(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    except OSError as error:
        reader.errors.append(f"the slow reader: {error!r}")
    print(json.dumps(asdict(reader)))


if __name__ == "__main__":
    main()

"""One client that asks for one thing after another, so many a second.

    python3 fetches.py PORT PER_SECOND FILE

FILE has a target a line. Prints a JSON object when the first answer is there, and another with how many answers there
were when standard input is closed. Bodies are thrown away.
"""

from __future__ import annotations

import json
import select
import sys
import time
from dataclasses import asdict, dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

SECONDS_MAX = 30


@dataclass
class Fetches:
    """What the client got."""

    answers: int = 0
    errors: list[str] = field(default_factory=list)

    def run(self, port: int, per_second: int, targets: list[str]) -> None:
        """Asks for each target once, until standard input is closed."""
        connection = HTTPConnection("127.0.0.1", port, timeout=SECONDS_MAX)
        began = time.monotonic()
        try:
            for number, target in enumerate(targets):
                due = began + number / per_second
                if select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
                    return
                connection.request("GET", target)
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    raise OSError(f"status {answer.status} for {target}")
                self.answers += 1
                if self.answers == 1:
                    print(json.dumps({}), flush=True)
            select.select([sys.stdin], [], [])
        except (OSError, HTTPException) as error:
            self.errors.append(f"the fetches: {error!r}")
        finally:
            connection.close()


def main() -> None:
    fetches = Fetches()
    fetches.run(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]).read_text().split())
    print(json.dumps(asdict(fetches)))


if __name__ == "__main__":
    main()

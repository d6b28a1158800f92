"""What taking a blob in costs at least: its bytes hashed and written, by one process that has them in memory.

    python3 hashwrite.py FILE

prints one JSON object: wall time in seconds and CPU time in ns, from the first byte to the end of fdatasync.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
import tempfile
import time
from pathlib import Path

PIECE_BYTES = 64 * 1024


def main() -> None:
    path = Path(sys.argv[1])
    with path.open("rb") as source, tempfile.TemporaryFile(dir=path.parent) as target:
        flags = mmap.MAP_PRIVATE | mmap.MAP_POPULATE
        content = memoryview(mmap.mmap(source.fileno(), 0, flags=flags, prot=mmap.PROT_READ))
        digest = hashlib.sha256()
        began, cpu_began = time.monotonic(), time.process_time_ns()
        for start in range(0, len(content), PIECE_BYTES):
            piece = content[start : start + PIECE_BYTES]
            os.pwrite(target.fileno(), piece, start)
            digest.update(piece)
        digest.hexdigest()
        os.fdatasync(target.fileno())
        print(json.dumps({"wall_s": time.monotonic() - began, "cpu_ns": time.process_time_ns() - cpu_began}))


if __name__ == "__main__":
    main()

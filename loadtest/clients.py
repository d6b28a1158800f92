"""The clients: wrk, oha, and those in this directory. All run on the clients' core."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from content import Blob
from processes import ProcessError, bare_environment, pinned

HERE = Path(__file__).resolve().parent
CLIENT_SECONDS_MARGIN = 60
FAN_OUT_SECONDS_MAX = 150


@dataclass(frozen=True)
class LoadResult:
    """What wrk or oha counted."""

    client: str
    duration_us: int
    requests: int
    bytes: int
    p50_us: int
    p99_us: int
    p999_us: int
    errors: list[str]


def run_wrk(url: str, connections: int, seconds: int, core: int, requests: Path | None = None) -> LoadResult:
    """Asks for one URL again and again, or sends the requests of a file (see `wrk.lua`), over some connections."""
    script = ["--", str(requests)] if requests else []
    output = _run_client(
        [
            *("wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"),
            *("--timeout", "30s", "--latency", "--script", str(HERE / "wrk.lua"), url, *script),
        ],
        core,
        seconds + CLIENT_SECONDS_MARGIN,
    )
    return _load_result("wrk", output)


def run_heads(port: int, target: str, connections: int, seconds: int, core: int) -> LoadResult:
    """Asks for one thing's head again and again, over some connections."""
    command = [sys.executable, "-B", str(HERE / "heads.py"), str(port), target, str(connections), str(seconds)]
    return _load_result("heads.py", _run_client(command, core, seconds + CLIENT_SECONDS_MARGIN))


def run_oha(url: str, connections: int, seconds: int, rate: int, core: int) -> LoadResult:
    """Asks for one URL at a fixed rate. An answer's time counts from when its request was due, sent or not."""
    output = _run_client(
        [
            *("oha", "--no-tui", "--output-format", "json", "--disable-compression", "--redirect", "0"),
            *("-z", f"{seconds}s", "-w", "-c", str(connections), "-q", str(rate), "--latency-correction", url),
        ],
        core,
        seconds + CLIENT_SECONDS_MARGIN,
    )
    counted = json.loads(output)
    answers: dict[str, int] = counted["statusCodeDistribution"]
    times: dict[str, float | None] = counted["latencyPercentiles"]
    wrong = {f"status {status}": count for status, count in answers.items() if status != "200"}
    return LoadResult(
        client="oha",
        duration_us=round(counted["summary"]["total"] * 1e6),
        requests=sum(answers.values()),
        bytes=counted["summary"]["totalData"],
        p50_us=round((times["p50"] or 0) * 1e6),
        p99_us=round((times["p99"] or 0) * 1e6),
        p999_us=round((times["p99.9"] or 0) * 1e6),
        errors=[f"{count} × {what}" for what, count in (wrong | counted["errorDistribution"]).items()],
    )


@dataclass(frozen=True)
class FanOutResult:
    """What clients that asked at the same time saw."""

    wall_s: float
    last_first_byte_s: float
    errors: list[str]


def run_fan_out(port: int, targets: Sequence[str], core: int) -> FanOutResult:
    """Asks for things from many clients at once, one thing each."""
    command = [sys.executable, "-B", str(HERE / "fanout.py"), str(port), *targets]
    result = json.loads(_run_client(command, core, FAN_OUT_SECONDS_MAX))
    seen = result["clients"]
    return FanOutResult(
        wall_s=result["wall_s"],
        last_first_byte_s=max(client["first_byte_s"] or result["wall_s"] for client in seen),
        errors=[client["error"] for client in seen if client["error"]],
    )


def run_push(port: int, blob: Blob, core: int) -> FanOutResult:
    """Pushes one blob."""
    repository = blob.target.removeprefix("/v2/").partition("/blobs/")[0]
    command = [sys.executable, "-B", str(HERE / "push.py"), str(port), repository, f"sha256:{blob.hex}", str(blob.path)]
    result = json.loads(_run_client(command, core, FAN_OUT_SECONDS_MAX))
    return FanOutResult(wall_s=result["wall_s"], last_first_byte_s=0.0, errors=result["errors"])


def run_hash_and_write(path: Path, core: int) -> dict[str, Any]:
    """Hashes and writes a file's content, on the server's core."""
    command = [sys.executable, "-B", str(HERE / "hashwrite.py"), str(path)]
    result: dict[str, Any] = json.loads(_run_client(command, core, FAN_OUT_SECONDS_MAX))
    return result


@dataclass
class Companion:
    """A client that is there while something else is measured; when it has ended, what it printed of itself."""

    # What it printed when it was under way.
    began: dict[str, Any]
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def errors(self) -> list[str]:
        return list(self.result.get("errors", []))


@contextmanager
def companion(core: int, script: str, *arguments: str) -> Iterator[Companion]:
    """Runs a client of this directory until the block ends.

    It prints one JSON object when it is under way, and one more when its standard input is closed.
    """
    popen = subprocess.Popen(
        [*pinned(core), sys.executable, "-B", str(HERE / script), *arguments],
        env=bare_environment(Path("/")),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert popen.stdout is not None
        line = popen.stdout.readline()
        if not line:
            raise ProcessError(f"{script} failed: {popen.communicate()[1].strip()}")
        found = Companion(json.loads(line))
        yield found
        output, wrong = popen.communicate(timeout=CLIENT_SECONDS_MARGIN)
        if popen.returncode != 0:
            raise ProcessError(f"{script} failed with status {popen.returncode}: {wrong.strip()}")
        found.result = json.loads(output)
    except subprocess.TimeoutExpired as error:
        raise ProcessError(f"{script} did not end") from error
    finally:
        if popen.poll() is None:
            popen.kill()
            popen.communicate()


def _load_result(client: str, output: str) -> LoadResult:
    """What `wrk.lua` and `heads.py` print on their last line."""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise ProcessError(f"{client} printed no result: {output}")
    counted = json.loads(lines[-1])
    errors = [f"{count} {kind} errors" for kind, count in counted.pop("errors").items() if count]
    return LoadResult(client=client, errors=errors, **counted)


def _run_client(command: Iterable[str], core: int, seconds_max: float) -> str:
    try:
        done = subprocess.run(
            [*pinned(core), *command],
            env=bare_environment(Path("/")),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds_max,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ProcessError(f"the client did not end: {error}") from error
    if done.returncode != 0:
        raise ProcessError(f"the client failed with status {done.returncode}: {done.stderr.decode(errors='replace')}")
    return done.stdout.decode()

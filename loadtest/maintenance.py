"""Workloads of requests for what a server holds while it looks after its trees."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import link
from typing import Any, ClassVar

from bench import Bench
from clients import companion
from content import KIB, MIB, write_distribution_layout
from figures import MAINTAINED, Figure
from hits import load_at_rate
from measure import Meter
from peer import Role, Server
from records import HitRound
from trees import Tree, TreeSize
from workload import FreshTurns

# What was pushed: many small images for the collection to look at, and one large blob for the scrub to read.
PUSHED = TreeSize(images=2_000, repositories=100)
PUSHED_BYTES = 512 * MIB
# What is fetched meanwhile, so that a bounded cache has to evict: small, and so many a second.
FETCHED_BYTES = 256 * KIB
FETCHES_PER_SECOND = 20
# Until what is to be done every second is being done.
SETTLING_S = 3


@dataclass(frozen=True, kw_only=True)
class Maintained(FreshTurns):
    """One blob asked for at a fixed rate, beside a slow stream of fills."""

    connections: int
    # Requests a second.
    rate: int

    role: ClassVar[Role] = Role.HIT
    figures: ClassVar[Sequence[Figure[Any]]] = MAINTAINED
    programs: ClassVar[Mapping[str, str]] = {"wrk": "wrk"}

    def round(self, bench: Bench, server: Server, number: int) -> HitRound:
        site, core = server.site, bench.cores.client
        seconds = bench.seconds * 2
        server.warm()
        _push(bench, server)
        blobs = bench.content.blobs(FETCHED_BYTES, seconds * FETCHES_PER_SECOND)
        targets = site.directory / "targets"
        targets.write_text("".join(f"{blob.target}\n" for blob in blobs))
        time.sleep(SETTLING_S)
        meter = Meter(server.process, site.origin)
        with companion(core, "fetches.py", str(site.port), str(FETCHES_PER_SECOND), str(targets)) as fetches:
            found = load_at_rate(server.url(site.blobs[0]), self.connections, seconds, self.rate, core)
        costs = meter.read()
        fields = asdict(found)
        if found.bytes == 0:
            fields["errors"].append("not one answer")
        fields["errors"] += fetches.errors
        return HitRound(workload=self.name, server=server.label, round=number, costs=costs, **fields)


def _push(bench: Bench, server: Server) -> None:
    """Puts the same content into a server's tree of what was pushed, by second names of files that are made once."""
    images = bench.directory / "pushed"
    if not images.exists():
        Tree.write(images, PUSHED)
        write_distribution_layout(images, bench.content.blob(PUSHED_BYTES))
    local = server.site.directory / "data/local"
    # A manifest's link without the manifest is what no collection goes on from.
    for part in ("docker/registry/v2/blobs", "docker/registry/v2/repositories"):
        shutil.copytree(images / part, local / part, copy_function=link, dirs_exist_ok=True)

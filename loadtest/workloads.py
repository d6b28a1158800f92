"""What is measured. To add a workload: a line here, or a class with what `Workload` asks for."""

from __future__ import annotations

from collections.abc import Iterator

from asks import Asks, every_blob, multiple_ranges, ranges, revalidations
from checks import SendfileCheck
from collects import Collect
from content import GIB, KIB, MIB
from copies import Replication
from fanouts import ColdFanOut, IdleConnections, WarmFanOut
from hits import AccelWorkload, ColdStreamWorkload, HeadWorkload, HitWorkload, RateWorkload
from maintenance import Maintained
from peers import (
    EVERY_FRONT_CACHE,
    FAST,
    FAST_AND_THREADS,
    FILE_SERVERS,
    FRONT_CACHES,
    FRONTS,
    MAINTAINED,
    REGISTRIES,
    SENDFILE,
    SLOW,
)
from pushes import Push
from shelf import large_image, small_images
from trees import TreeSize
from workload import Workload

THROTTLED = 200_000_000


def all_workloads() -> list[Workload]:
    """Every workload, in the order of the report."""
    return [
        *_hits("512b", 512),
        *_hits("4kib", 4 * KIB, with_slow=32),
        *_hits("32kib", 32 * KIB),
        *_hits("64kib", 64 * KIB),
        *_hits("1mib", MIB, with_slow=32),
        *_hits("16mib", 16 * MIB),
        # 4 connections get whole bodies within a round even of this size.
        *_hits("256mib", 256 * MIB, connections=(1, 4, 32, 512), with_slow=4, times_seconds=2),
        HeadWorkload(
            name="head_64kib_c32",
            title="HEAD of 64 KiB held, 32 connections",
            size=64 * KIB,
            peers=FAST,
            connections=32,
        ),
        _asking("not_modified_64kib_c32", "64 KiB held and up to date at the client (304)", 64 * KIB, revalidations),
        _asking("range_64kib_c32", "64 KiB at random places of 256 MiB held", 256 * MIB, ranges),
        # varnish answers with the whole blob.
        _asking("ranges_3x16kib_c32", "3 × 16 KiB at random places of 1 MiB held", MIB, multiple_ranges, FILE_SERVERS),
        _asking("blobs_10000_c32", "10,000 blobs of 4 KiB held, in a random order", 4 * KIB, every_blob, count=10_000),
        *_accel(),
        *_latency(),
        *_fills(),
        WarmFanOut(
            name="warm_512mib_c16",
            title="512 MiB held, 16 clients at once",
            size=512 * MIB,
            peers=FAST_AND_THREADS,
            clients=16,
        ),
        IdleConnections(
            name="idle_5000",
            title="5,000 connections that made one request for 4 KiB each and stay open",
            size=4 * KIB,
            peers=FAST,
            connections=5_000,
        ),
        Collect(
            name="gc_10000x10",
            title="Garbage collected from 10,000 images of 10 layers in 500 repositories, a tenth of it garbage",
            size=TreeSize(images=10_000, repositories=500),
            peers=REGISTRIES,
        ),
        *_maintained(),
        Replication(
            name="replicate_small",
            title="200 images of five small layers, copied to a new registry",
            images=small_images,
        ),
        Replication(
            name="replicate_small_again",
            title="200 images of five small layers, copied to a registry that has them",
            images=small_images,
            again=True,
        ),
        Replication(name="replicate_large", title="One layer of 1 GiB, copied to a new registry", images=large_image),
        SendfileCheck("hit_is_sendfile", "1 MiB held: what leaves by sendfile", MIB),
    ]


def _hits(
    size_name: str,
    size: int,
    connections: tuple[int, ...] = (1, 32, 512),
    with_slow: int | None = None,
    times_seconds: int = 1,
) -> Iterator[Workload]:
    """GETs of one blob with each number of connections; with `with_slow` of them, slow peers take part too."""
    few = FAST_AND_THREADS if size >= MIB else FAST
    for number in connections:
        yield HitWorkload(
            name=f"hit_{size_name}_c{number}",
            title=f"{_words(size)} held, {number} connection{'s' * (number > 1)}",
            size=size,
            peers=few | SLOW if number == with_slow else few,
            connections=number,
            times_seconds=times_seconds,
        )


def _asking(name: str, title: str, size: int, asks: Asks, peers: frozenset[str] = FAST, count: int = 1) -> HitWorkload:
    """Requests that are not the same GET every time, over 32 connections."""
    return HitWorkload(
        name=name, title=f"{title}, 32 connections", size=size, peers=peers, count=count, connections=32, asks=asks
    )


def _accel() -> Iterator[Workload]:
    for size_name, size, connections in (("4kib", 4 * KIB, 32), ("1mib", MIB, 32), ("256mib", 256 * MIB, 4)):
        yield AccelWorkload(
            name=f"accel_{size_name}",
            title=f"{_words(size)} that an application redirects to, {connections} connections",
            size=size,
            peers=FRONTS,
            connections=connections,
            times_seconds=2 if size > MIB else 1,
        )


def _latency() -> Iterator[Workload]:
    for size_name, size, rate in (("4kib", 4 * KIB, 5_000), ("1mib", MIB, 500)):
        yield RateWorkload(
            name=f"rate_{size_name}_{rate}",
            title=f"{_words(size)} held, {rate:,} requests a second over 32 connections",
            size=size,
            peers=FAST,
            connections=32,
            rate=rate,
        )
    beside = "held, beside one client that takes 2 GiB that are not in the page cache"
    for name, title, rate_or_none in (
        ("cold_stream_c32", f"4 KiB {beside}; 32 connections", None),
        ("cold_stream_rate_2000", f"4 KiB {beside}; 2,000 requests a second", 2_000),
    ):
        yield ColdStreamWorkload(
            name=name, title=title, size=2 * GIB, peers=SENDFILE, connections=32, rate=rate_or_none
        )


def _maintained() -> Iterator[Workload]:
    for size_name, size, rate in (("4kib", 4 * KIB, 2_000), ("1mib", MIB, 200)):
        yield Maintained(
            name=f"maintenance_p99_{size_name}",
            title=f"{_words(size)} held, {rate:,} requests a second over 32 connections, beside 20 fills a second; "
            "with and without gc, scrub and eviction",
            size=size,
            peers=MAINTAINED,
            connections=32,
            rate=rate,
        )


def _fills() -> Iterator[Workload]:
    for clients in (1, 16, 64):
        for suffix, words, limit in (("", "", None), ("_200mbs", ", an origin of 200 MB/s", THROTTLED)):
            yield ColdFanOut(
                name=f"cold_512mib_c{clients}{suffix}",
                title=f"512 MiB not held, {clients} client{'s' * (clients > 1)} at once{words}",
                size=512 * MIB,
                peers=EVERY_FRONT_CACHE if clients == 16 and limit is None else FRONT_CACHES,
                clients=clients,
                origin_bytes_per_second=limit,
            )
    yield ColdFanOut(
        name="cold_64x16mib",
        title="64 blobs of 16 MiB not held, one client each, all at once",
        size=16 * MIB,
        count=64,
        peers=FRONT_CACHES,
        clients=1,
    )
    yield ColdFanOut(
        name="cold_slow_reader",
        title="512 MiB not held: a client that takes 8 MB/s asks first, then 16 at once; figures are the 16's",
        size=512 * MIB,
        peers=FRONT_CACHES,
        clients=16,
        slow_bytes_per_second=8_000_000,
    )
    yield Push(
        name="push_512mib",
        title="512 MiB pushed in one chunk",
        size=512 * MIB,
        peers=REGISTRIES,
    )


def _words(size: int) -> str:
    return f"{size // MIB} MiB" if size >= MIB else f"{size / KIB:g} KiB"

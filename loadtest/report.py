"""What a person reads of a run, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from fanouts import DIRECT
from figures import Figure
from processes import NOT_INSTALLED
from records import CheckRecord, FailureRecord, MachineRecord, NotesRecord, Record, Round
from targets import SUBJECT, Finding, findings
from workload import Workload


def render(records: Sequence[Record], workloads: Sequence[Workload]) -> str:
    """The report of a run."""
    parts: list[str] = []
    for machine in records:
        if isinstance(machine, MachineRecord):
            parts += [_head(machine), *_missing(machine)]
    parts += _disturbance([record for record in records if isinstance(record, Round) and record.server != DIRECT])
    reached = findings(records)
    if reached:
        parts.append(f"## Targets\n\n{_targets(reached)}")
    for workload in workloads:
        rounds = [record for record in records if isinstance(record, Round) and record.workload == workload.name]
        if rounds:
            parts.append(f"## {workload.name}\n\n{workload.title}.\n\n{_table(rounds, workload.figures)}")
    checks = [record for record in records if isinstance(record, CheckRecord)]
    if checks:
        parts.append("## Checks\n\n" + "\n".join(_check(record) for record in checks))
    wrong = troubles(records)
    if wrong:
        parts.append("## What went wrong\n\n" + "\n".join(f"- {line}" for line in wrong))
    return "\n\n".join(parts) + "\n"


def troubles(records: Iterable[Record]) -> list[str]:
    """Everything that was not as it must be."""
    found = []
    for record in records:
        match record:
            case FailureRecord():
                found.append(f"{record.workload}, {record.server}: {record.reason}")
            case CheckRecord(passed=False):
                found.append(f"{record.check}, {record.server}: {record.summary}")
            case Round():
                found += [f"{record.workload}, {record.server}, round {record.round}: {text}" for text in record.errors]
            case NotesRecord():
                found += [f"{record.workload}, {record.server}: {text}" for text in record.warnings]
    return found


def _head(machine: MachineRecord) -> str:
    pinned = (
        f"server on core {machine.server_core}, clients and origin on core {machine.client_core}"
        if machine.server_core != machine.client_core
        else "server, clients and origin share one core: the figures say little"
    )
    versions = "\n".join(f"- {name}: {version}" for name, version in machine.versions.items())
    return f"""# Benchmark of {machine.date}

{machine.cpu}, {machine.cores} cores ({pinned}), {machine.memory_bytes / 2**30:.0f} GiB, {machine.filesystem},
TCP {machine.congestion_control}, {machine.kernel}, {machine.system}. Commit {machine.commit}.

    {" ".join(machine.command)}

{versions}

"× best" is the ratio to the best of the other servers in the same run. CPU time is the smallest of all rounds ("worst"
is the largest), times and rates are medians, memory and what the origin was asked for are the largest."""


def _missing(machine: MachineRecord) -> list[str]:
    """What could not be used, and what that does to the figures."""
    if machine.versions["oha"] != NOT_INSTALLED:
        return []
    return ["oha is not installed: where a rate is named, wrk asked instead, as fast as it could."]


def _disturbance(rounds: Sequence[Round]) -> list[str]:
    """How much of the server's core others had: the noise that the figures are to be read with."""
    shares = [found.costs.core_taken_ns / found.costs.elapsed_ns * 100 for found in rounds]
    if not shares:
        return []
    return [
        f"Others had the server's core for {median(shares):.0f} % of a round (median), at most {max(shares):.0f} %."
    ]


def _targets(reached: Sequence[Finding]) -> str:
    """Each target with what was found in this run."""
    rows = [["workload", "figure", "target", "here that is", "found", "reached"]]
    for finding in reached:
        target = finding.target
        # More digits than in the tables, where a ratio near its bound would look equal to it.
        digits = target.figure.digits + 1
        rows.append(
            [
                target.workload or "all of them",
                target.figure.title,
                target.bound.words(),
                f"{finding.bound:.{digits}f}",
                f"{finding.found:.{digits}f}",
                "yes" if finding.reached else "**no**",
            ]
        )
    return _markdown(rows)


def _table(rounds: Sequence[Round], figures: Sequence[Figure[Any]]) -> str:
    by_server: dict[str, list[Round]] = {}
    for found in rounds:
        by_server.setdefault(found.server, []).append(found)
    header = ["server"]
    for figure in figures:
        header += [figure.title, "× best"] if figure.compared else [figure.title]
    rows = [header]
    best = {figure.title: _best(figure, by_server) for figure in figures if figure.compared}
    for server, its_rounds in by_server.items():
        row = [f"**{server}**" if server == SUBJECT else server]
        for figure in figures:
            value = figure.of(its_rounds)
            row.append(f"{value:.{figure.digits}f}")
            if figure.compared:
                row.append(_ratio(server, value, best[figure.title]))
        rows.append(row)
    return _markdown(rows)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head, the first column its names."""
    ruled = [rows[0], ["---"] + ["---:"] * (len(rows[0]) - 1), *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in ruled)


def _best(figure: Figure[Any], by_server: dict[str, list[Round]]) -> float | None:
    """The best figure of the servers that are compared with the subject."""
    values = [figure.of(rounds) for server, rounds in by_server.items() if server not in (SUBJECT, DIRECT)]
    return min(values, default=None)


def _ratio(server: str, value: float, best: float | None) -> str:
    return f"{value / best:.2f}" if best and server != DIRECT else "–"


def _check(record: CheckRecord) -> str:
    calls = ", ".join(f"{name} {counts['calls']}" for name, counts in record.details.items())
    return f"- {record.check}, {record.server}: {'yes' if record.passed else 'NO'}, {record.summary} (calls: {calls})"

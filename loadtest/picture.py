"""A picture of a run for people who will not read the table: bars for each server in the workloads that matter most.

Each panel is a workload, and the length of a bar the server's figure relative to the longest bar, which ends where the
panel does; a bar that would be longer is cut, and its number says how long it is. Colours follow the reader's choice of
a light or a dark page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from figures import CPU, CPU_PER_GIGABYTE, CPU_PER_REQUEST, P99, PER_CONNECTION, WALL, Figure
from records import MachineRecord, Record, Round
from targets import SUBJECT, figure_of


@dataclass(frozen=True)
class Panel:
    """One workload's bars."""

    workload: str
    title: str
    unit: str
    figure: Figure[Any]


PANELS = (
    Panel("hit_4kib_c32", "4 KiB held", "CPU µs a request", CPU_PER_REQUEST),
    Panel("hit_64kib_c32", "64 KiB held", "CPU µs a request", CPU_PER_REQUEST),
    Panel("hit_1mib_c32", "1 MiB held", "CPU µs a request", CPU_PER_REQUEST),
    Panel("hit_256mib_c4", "256 MiB held", "CPU s a GB", CPU_PER_GIGABYTE),
    Panel("cold_512mib_c16", "512 MiB not held, 16 clients", "s until all have it", WALL),
    Panel("warm_512mib_c16", "512 MiB held, 16 clients", "CPU s", CPU),
    Panel("cold_stream_rate_2000", "4 KiB beside a cold 2 GiB file", "p99 ms", P99),
    Panel("idle_5000", "5,000 idle connections", "KiB each", PER_CONNECTION),
)
# In this order; others are too far off for the scale.
SERVERS = (SUBJECT, "nginx", "nginx-push", "nginx-threads", "lighttpd", "h2o", "varnish")
# A bar is cut at so many times the subject's or the best server's figure, whichever is larger.
LONGEST = 3.0

# Pixels.
WIDTH = 800
MARGIN = 20
GUTTER = 36
HEAD_HEIGHT = 66
FOOT_HEIGHT = 34
PANEL_HEAD = 24
ROW = 17
BAR = 11
PANEL_GAP = 20
NAME_WIDTH = 92
VALUE_WIDTH = 52
PANEL_WIDTH = (WIDTH - 2 * MARGIN - GUTTER) // 2
BAR_WIDTH = PANEL_WIDTH - NAME_WIDTH - VALUE_WIDTH

STYLE = """
    .page { fill: #ffffff; stroke: #d8dee4 }
    text { font: 12px system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #1f2328 }
    .title { font-size: 17px; font-weight: 600 }
    .panel { font-size: 13px; font-weight: 600 }
    .quiet { fill: #59636e }
    .value { font-variant-numeric: tabular-nums }
    .subject { font-weight: 600 }
    .bar { fill: #afb8c1 }
    .bar.subject { fill: #0a7f6f }
    .gap { fill: #ffffff }
    .axis { stroke: #d8dee4 }
    @media (prefers-color-scheme: dark) {
      .page { fill: #0d1117; stroke: #30363d }
      text { fill: #e6edf3 }
      .quiet { fill: #9198a1 }
      .bar { fill: #484f58 }
      .bar.subject { fill: #2dbda8 }
      .gap { fill: #0d1117 }
      .axis { stroke: #30363d }
    }"""


def draw(records: Sequence[Record]) -> str | None:
    """The picture as SVG, of those workloads that were measured; None if none of them was."""
    rounds = [record for record in records if isinstance(record, Round)]
    machine = next((record for record in records if isinstance(record, MachineRecord)), None)
    panels = [(panel, bars) for panel in PANELS if len(bars := _bars(panel, rounds)) > 1]
    if not panels or machine is None:
        return None
    body: list[str] = []
    top = float(HEAD_HEIGHT)
    for first in range(0, len(panels), 2):
        pair = panels[first : first + 2]
        for column, (panel, bars) in enumerate(pair):
            body += _panel(panel, bars, MARGIN + column * (PANEL_WIDTH + GUTTER), top)
        top += PANEL_HEAD + ROW * max(len(bars) for _, bars in pair) + PANEL_GAP
    height = top + FOOT_HEIGHT - PANEL_GAP
    return "\n".join([*_head(machine, panels, height), *body, *_foot(machine, height), "</svg>", ""])


def _bars(panel: Panel, rounds: Sequence[Round]) -> dict[str, float]:
    """Each server's figure."""
    found = {server: figure_of(rounds, panel.workload, server, panel.figure) for server in SERVERS}
    return {server: value for server, value in found.items() if value is not None}


def _head(machine: MachineRecord, panels: Sequence[tuple[Panel, dict[str, float]]], height: float) -> Iterator[str]:
    said = "; ".join(f"{panel.title}, {panel.unit}: {_spoken(panel, bars)}" for panel, bars in panels)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" role="img" aria-labelledby="title description">'
    )
    yield '<title id="title">Spliceway beside other servers</title>'
    yield f'<desc id="description">Shorter bars are better. {escape(said)}.</desc>'
    yield f"<style>{STYLE}\n</style>"
    yield f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:.0f}" rx="8"/>'
    yield f'<text class="title" x="{MARGIN}" y="30">Spliceway beside other servers</text>'
    yield (
        f'<text class="quiet" x="{MARGIN}" y="48">Shorter is better; a bar with a gap is longer than drawn. '
        "Each server has one core, clients and origin another.</text>"
    )


def _spoken(panel: Panel, bars: dict[str, float]) -> str:
    return ", ".join(f"{server} {value:.{panel.figure.digits}f}" for server, value in bars.items())


def _panel(panel: Panel, bars: dict[str, float], left: float, top: float) -> Iterator[str]:
    """One workload's title and bars."""
    digits = panel.figure.digits
    # The best server may have next to nothing, or less than that where what is measured is a difference.
    least = max(bars.get(SUBJECT, 0.0), min(bars.values()), 10.0**-digits)
    longest = min(max(bars.values()), LONGEST * least) or 1.0
    yield f'<text class="panel" x="{left}" y="{top + 11}">{escape(panel.title)}</text>'
    yield (f'<text class="quiet" x="{left + PANEL_WIDTH}" y="{top + 11}" text-anchor="end">{escape(panel.unit)}</text>')
    start = left + NAME_WIDTH
    for row, (server, value) in enumerate(bars.items()):
        y = top + PANEL_HEAD + row * ROW
        kind = " subject" if server == SUBJECT else ""
        cut = value > longest
        length = max(1.5, BAR_WIDTH * min(1.0, value / longest))
        yield f'<text class="name{kind}" x="{start - 8}" y="{y + BAR - 1.5}" text-anchor="end">{escape(server)}</text>'
        yield f'<rect class="bar{kind}" x="{start}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>'
        if cut:
            yield _break(start + length - 16, y)
        yield (f'<text class="value{kind}" x="{start + length + 6:.1f}" y="{y + BAR - 1.5}">{value:.{digits}f}</text>')
    bottom = top + PANEL_HEAD + len(bars) * ROW - (ROW - BAR) + 3
    yield f'<line class="axis" x1="{start - 0.5}" y1="{top + PANEL_HEAD - 3}" x2="{start - 0.5}" y2="{bottom}"/>'


def _break(x: float, y: float) -> str:
    """A gap that says: longer than it is drawn."""
    return f'<path class="gap" d="M{x:.1f} {y + BAR + 1} l4 -{BAR + 2} h4 l-4 {BAR + 2} z"/>'


def _foot(machine: MachineRecord, height: float) -> Iterator[str]:
    where = f"{machine.cpu}, {machine.cores} cores, {machine.kernel}, TCP {machine.congestion_control}"
    text = f"{machine.date[:10]}, {where}. Ratios count, not the figures."
    yield f'<text class="quiet" x="{MARGIN}" y="{height - 14:.0f}">{escape(text)}</text>'

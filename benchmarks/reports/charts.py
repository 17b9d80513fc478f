"""Charts as small SVG: lines of a quality against evaluations or time, with their spread.

A chart is 480 units wide, so that its text can be read on a phone, and two stand side by side on a
desk. Colours are classes, which the page's style sheet gives a light and a dark value. Every line
has its contender in ``data-solver`` and is hidden with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import count

WIDTH, HEIGHT = 480, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 14, 48
COLOURS, MARKERS = 8, 5


@dataclass(frozen=True)
class Point:
    """A place, how far the spread reaches down and up from y, and what is said of it."""

    x: float
    y: float
    spread: float = 0.0
    text: str = ""
    nfe: int = 0


@dataclass(frozen=True)
class Line:
    """Points of one contender.  style: its number.  ours: drawn whole, others broken."""

    name: str
    points: Sequence[Point]
    style: int
    ours: bool


@dataclass(frozen=True)
class Level:
    """A horizontal line with a name, as the FID of real data."""

    text: str
    y: float


class Axis:
    """Values to places between two ends, linear or logarithmic, with ticks at round numbers."""

    def __init__(self, values: Sequence[float], low: float, high: float, log: bool) -> None:
        self.log = log and min(values) > 0
        first, last = self._warp(min(values)), self._warp(max(values))
        room = 0.05 * (last - first) or (0.1 if self.log else 0.1 * abs(first) or 1.0)
        self.first, self.last = first - room, last + room
        self.low, self.high = low, high

    def _warp(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def __call__(self, value: float) -> float:
        """Where a value is; beyond the ends, at the end."""
        if self.log and value <= 0:
            return self.low
        share = (self._warp(value) - self.first) / (self.last - self.first)
        return self.low + min(max(share, 0.0), 1.0) * (self.high - self.low)

    def ticks(self) -> list[float]:
        """Three to twelve round numbers within the ends."""
        ends = (10**self.first, 10**self.last) if self.log else (self.first, self.last)
        return ticks_between(*ends, log=self.log)


def ticks_between(first: float, last: float, *, log: bool) -> list[float]:
    """Three to twelve round numbers between two ends that differ; above 0 on a logarithmic axis."""
    if log:
        decades = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
        for digits in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 5, 6, 8)):
            found = [digit * 10.0**decade for decade in decades for digit in digits]
            found = [value for value in found if first <= value <= last]
            if len(found) >= 3:
                return found
    return _round_between(first, last)


def _round_between(first: float, last: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    span = last - first
    step = 10 ** math.floor(math.log10(span))
    step *= next(factor for factor in (0.1, 0.2, 0.5, 1, 2) if span / step / factor < 7)
    start = math.ceil(first / step - 1e-9)
    return [round(i * step, 12) for i in range(start, math.floor(last / step + 1e-9) + 1)]


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_title: str,
    y_title: str,
    log_x: bool,
    log_y: bool,
    ticks: Sequence[float] = (),
    levels: Sequence[Level] = (),
    front: Sequence[Point] = (),
) -> str:
    """The chart as an SVG element, or a note where there is nothing to draw.

    ticks : where the x axis has numbers; round ones by default.
    levels : dashed lines across. front : the Pareto front, drawn as steps behind the lines.
    """
    points = [point for line in lines for point in line.points]
    if not points:
        return '<p class="none">nothing to draw</p>'
    log_y = log_y and min(point.y for point in points) > 0
    spans = [y for p in points for y in (p.y, p.y + p.spread, p.y - p.spread) if not log_y or y > 0]
    x = Axis([point.x for point in points], LEFT, WIDTH - RIGHT, log_x)
    y = Axis([*spans, *(level.y for level in levels)], HEIGHT - BOTTOM, TOP, log_y)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"',
        f' aria-label="{escape(title)}">',
        _axes(x, y, ticks, x_title, y_title),
        *_levels(levels, y),
    ]
    if front:
        parts.append(_front(front, x, y))
    parts += [_line(line, x, y) for line in sorted(lines, key=lambda line: line.ours)]
    return "".join([*parts, "</svg>"])


def swatch(style: int, ours: bool) -> str:
    """A short piece of a contender's line with its marker, for a legend."""
    dash = "" if ours else " theirs"
    mark = marker(14, 6, style, ours)
    return (
        f'<svg class="swatch c{style % COLOURS}{dash}" viewBox="0 0 28 12" aria-hidden="true">'
        f'<path class="line" d="M1 6H27"/>{mark}</svg>'
    )


def marker(x: float, y: float, style: int, ours: bool, title: str = "") -> str:
    """One of five shapes around a place."""
    r = 3.6
    shapes = (
        f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z",
        f"M{x - 3.2:.1f} {y - 3.2:.1f}h6.4v6.4h-6.4Z",
        f"M{x:.1f} {y - 4.3:.1f}l4.2 7.4h-8.4Z",
        f"M{x:.1f} {y - 4.6:.1f}l4.6 4.6l-4.6 4.6l-4.6 -4.6Z",
        f"M{x:.1f} {y + 4.3:.1f}l4.2 -7.4h-8.4Z",
    )
    kind = "mark" if ours else "mark hollow"
    tip = f"<title>{escape(title)}</title>" if title else ""
    return f'<path class="{kind}" d="{shapes[style % MARKERS]}">{tip}</path>'


def _axes(x: Axis, y: Axis, ticks: Sequence[float], x_title: str, y_title: str) -> str:
    bottom = HEIGHT - BOTTOM
    parts = []
    for value in y.ticks():
        place = y(value)
        parts.append(
            f'<path class="grid" d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}"/>'
            f'<text class="tick" x="{LEFT - 7}" y="{place + 4:.1f}" text-anchor="end">'
            f"{_number(value)}</text>"
        )
    last = -math.inf
    for value in ticks or x.ticks():
        place = x(value)
        parts.append(f'<path class="grid" d="M{place:.1f} {TOP}V{bottom}"/>')
        if place - last > 9 * len(_number(value)) + 4:
            parts.append(
                f'<text class="tick" x="{place:.1f}" y="{bottom + 18}" text-anchor="middle">'
                f"{_number(value)}</text>"
            )
            last = place
    middle = (TOP + bottom) / 2
    parts.append(
        f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"/>'
        f'<text class="name" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" '
        f'text-anchor="middle">{escape(x_title)}</text>'
        f'<text class="name" transform="translate(12 {middle}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_title)}</text>'
    )
    return "".join(parts)


def _line(line: Line, x: Axis, y: Axis) -> str:
    places = [(x(point.x), y(point.y)) for point in line.points]
    kind = f"series c{line.style % COLOURS}" + ("" if line.ours else " theirs")
    parts = [f'<g class="{kind}" data-solver="{escape(line.name)}">']
    if any(point.spread for point in line.points):
        up = [(x(point.x), y(point.y + point.spread)) for point in line.points]
        down = [(x(point.x), y(point.y - point.spread)) for point in line.points]
        parts.append(f'<path class="band" d="M{_path([*up, *reversed(down)])}Z"/>')
    parts.append(f'<path class="line" d="M{_path(places)}"/>')
    for point, (px, py) in zip(line.points, places, strict=True):
        parts.append(
            f'<g data-nfe="{point.nfe}">{marker(px, py, line.style, line.ours, point.text)}</g>'
        )
    return "".join([*parts, "</g>"])


def _levels(levels: Sequence[Level], y: Axis) -> list[str]:
    """Lines across with their names above; below, where the line above is too near."""
    parts, last = [], -math.inf
    for level in sorted(levels, key=lambda level: -level.y):
        place = y(level.y)
        above = place > TOP + 16 and place - last > 32
        parts.append(
            f'<path class="level" d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}"/>'
            f'<text class="level" x="{LEFT + 6}" y="{place + (-5 if above else 14):.1f}">'
            f"{escape(level.text)}</text>"
        )
        last = place
    return parts


def _front(front: Sequence[Point], x: Axis, y: Axis) -> str:
    """Steps from point to point: to pay more, one waits until it buys something."""
    places = [(x(point.x), y(point.y)) for point in front]
    path = f"M{places[0][0]:.1f} {TOP}V{places[0][1]:.1f}"
    path += "".join(f"H{px:.1f}V{py:.1f}" for px, py in places[1:])
    return f'<path class="front" d="{path}H{WIDTH - RIGHT}"/>'


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "L".join(f"{px:.1f} {py:.1f}" for px, py in places)


def _number(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        digits = math.floor(math.log10(abs(value)))
        return f"{value / 10**digits:.3g}e{digits}"
    return f"{value:.6g}" if value else "0"


def styles(names: Sequence[str]) -> dict[str, int]:
    """A number for each contender: colour and marker change with every one."""
    return dict(zip(names, count(), strict=False))

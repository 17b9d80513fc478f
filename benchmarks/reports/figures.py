"""Which charts a report has: each quality against NFE, and against time with its Pareto front."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from logsnr.benchmarks.metrics.cost import pareto_front
from logsnr.benchmarks.reports.charts import Level, Line, Point, line_chart
from logsnr.benchmarks.reports.quantities import Quantity, quantity, with_spread
from logsnr.benchmarks.reports.rows import Row, Table

TIME = "seconds"


@dataclass(frozen=True)
class Figure:
    """A chart's data, which the page draws as SVG and `plots` as PNG.

    key : of its quality. x_key : "nfe", or the cost on the x axis. front : rows on the front.
    """

    title: str
    key: str
    x_key: str
    x_title: str
    y_title: str
    lines: tuple[Line, ...]
    levels: tuple[Level, ...]
    front: tuple[Row, ...]
    log_y: bool
    ticks: tuple[float, ...] = ()

    @property
    def svg(self) -> str:
        """The chart as it is drawn in the page."""
        return line_chart(
            self.title,
            self.lines,
            x_title=self.x_title,
            y_title=self.y_title,
            log_x=True,
            log_y=self.log_y,
            ticks=self.ticks,
            levels=self.levels,
            front=[_point(row, self.key, row.values[self.x_key].mean) for row in self.front],
        )


def against_nfe(table: Table, found: Quantity, styles: Mapping[str, int]) -> Figure:
    """A quality against the evaluations, the spread over seeds as a band."""
    levels = []
    exact, real = table.reference(found.key), table.real(found.key)
    if exact is not None:
        levels.append(Level("converged solution", exact.mean))
    if real is not None:
        levels.append(Level("real against real", real.mean))
    bar = table.reference("error_bar")
    least = min(row.values[found.key].mean for row in table.rows if found.key in row.values)
    if found.key == "rmse" and bar is not None and bar.mean > least / 5:
        levels.append(Level("error bar of the converged solution", bar.mean))
    return Figure(
        title=f"{found.title} against NFE",
        key=found.key,
        x_key="nfe",
        x_title="network evaluations (NFE)",
        y_title=_axis(found),
        lines=_lines(table, found.key, "nfe", styles),
        levels=tuple(levels),
        front=(),
        log_y=found.log,
        ticks=tuple(map(float, table.nfe)),
    )


def against_time(table: Table, found: Quantity, styles: Mapping[str, int]) -> Figure | None:
    """A quality against seconds a sample, with the Pareto front; None where no time is known."""
    lines = _lines(table, found.key, TIME, styles)
    if not any(line.points for line in lines):
        return None
    cost = quantity(TIME)
    return Figure(
        title=f"{found.title} against time",
        key=found.key,
        x_key=TIME,
        x_title=f"seconds a sample{'' if table.setting.samples else ' and seed'}",
        y_title=_axis(found),
        lines=lines,
        levels=(),
        front=tuple(front_rows(table, found, cost.key)),
        log_y=found.log,
    )


def front_rows(table: Table, found: Quantity, cost: str) -> list[Row]:
    """Rows by rising cost that no row beats in both cost and quality."""
    rows = [row for row in table.rows if found.key in row.values and cost in row.values]
    points = [(row.values[cost].mean, -found.better * row.values[found.key].mean) for row in rows]
    return [rows[index] for index in pareto_front(points)]


def _axis(found: Quantity) -> str:
    better = {-1: "lower is better", 1: "higher is better"}.get(found.better)
    return found.heading + (f" — {better}" if better else "")


def _lines(table: Table, key: str, x_key: str, styles: Mapping[str, int]) -> tuple[Line, ...]:
    lines = []
    for name in table.contenders:
        rows = [row for row in table.rows if row.contender == name and key in row.values]
        points = []
        for row in rows:
            x = float(row.nfe) if x_key == "nfe" else row.mean(x_key)
            if x is not None and x > 0:
                points.append(_point(row, key, x))
        lines.append(Line(name, tuple(points), styles[name], table.ours[name]))
    return tuple(line for line in lines if line.points)


def _point(row: Row, key: str, x: float) -> Point:
    value = row.values[key]
    text = f"{row.contender}, {row.nfe} NFE: {with_spread(value.mean, value.deviation)}"
    return Point(x, value.mean, value.deviation or 0.0, text, row.nfe)

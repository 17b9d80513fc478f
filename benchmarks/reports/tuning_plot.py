"""The picture of a card folder: nodes, coefficients, errors before and after."""

from __future__ import annotations

import math
from io import BytesIO
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from logsnr.benchmarks.reports.plots import COLOURS, DPI, INK, MUTED, RULE
from logsnr.solvers import Cards, Plan

PLOT = "cards.png"


def write_plot(cards: Cards, path: Path) -> None:
    """Write `figure` as a PNG of few colours."""
    buffer = BytesIO()
    figure(cards).savefig(buffer, format="png", dpi=DPI, facecolor="white")
    Image.open(buffer).convert("RGB").quantize(128).save(path, optimize=True)


def figure(cards: Cards) -> Figure:
    """Three panels over the numbers of evaluations.

    Nodes are in lambda, with the times that the network is told as hollow marks; coefficients are
    the weights B of the outputs, in the order of the rows; errors are those of the median
    validation start and of all.
    """
    drawing = Figure(figsize=(11.5, 3.7), layout="constrained")
    nodes, coefficients, errors = drawing.subplots(1, 3)
    for k, (nfe, card) in enumerate(cards.items()):
        colour = COLOURS[k % len(COLOURS)]
        lams = finite_lams(card.plan)
        nodes.plot(lams, [nfe] * len(lams), "o-", color=colour, markersize=5, linewidth=0.8)
        weights = output_weights(card.plan)
        coefficients.plot(
            range(len(weights)),
            weights,
            "o-",
            color=colour,
            markersize=3,
            linewidth=1,
            label=f"{nfe} NFE",
        )
    nodes.set_yticks(list(cards))
    _titled(nodes, "nodes", "λ   (noise → data)", "NFE")
    _titled(coefficients, "weights of the outputs", "in the order of the rows", "")
    coefficients.legend(fontsize=8, frameon=False)
    for j, (name, marker) in enumerate((("median", "o"), ("rmse", "s"))):
        for side, style in (("before", "--"), ("after", "-")):
            values = [getattr(card, side).get(name, math.nan) for card in cards.values()]
            label = f"{name}, {'untuned' if side == 'before' else 'card'}"
            errors.plot(
                list(cards),
                values,
                marker=marker,
                linestyle=style,
                color=COLOURS[j],
                markerfacecolor=COLOURS[j] if side == "after" else "white",
                label=label,
            )
    errors.set_yscale("log")
    errors.set_xticks(list(cards))
    _titled(errors, "errors of validation starts", "NFE", "")
    errors.legend(fontsize=8, frameon=False)
    return drawing


def finite_lams(plan: Plan) -> list[float]:
    """lambda of the evaluations, but for pure noise."""
    found = (float(plan.rows[k].node.lam) for k in plan.evaluated)
    return [lam for lam in found if math.isfinite(lam)]


def output_weights(plan: Plan) -> list[float]:
    """All B's, row by row."""
    return [float(b) for row in plan.rows for _, b in row.outputs]


def _titled(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.grid(color=RULE, linewidth=0.6)
    axes.tick_params(colors=MUTED, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)

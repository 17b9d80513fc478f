"""A scheduler in one line: what runs, on which grid, at which times."""

from __future__ import annotations

from collections.abc import Sequence

from .config.description import Description

SHOWN = 8
"""Times that are listed; of more, the first and the last ones."""
_MANY = 1000  # evaluations, where the order is not lowered for want of them


def summary(description: Description, told: Sequence[float], listed: bool) -> str:
    """The representation of a scheduler.

    Parameters
    ----------
    told : what the network is told at the evaluations that are laid out; empty before that.
    listed : whether the caller gave the times.
    """
    given = description.plan or description.cards
    if given is not None:
        parts = [repr(given)]
    else:
        parts = _of_the_choice(description, listed)
    parts.append(f"nfe={len(told)}, times=[{_shortened(told)}]" if told else "not laid out")
    return f"<PlanScheduler {', '.join(parts)}>"


def _of_the_choice(description: Description, listed: bool) -> list[str]:
    parts = [repr(description.solver.name)]
    order = description.solver.options(_MANY, _MANY, 0.0).get("order")
    if order is not None:
        parts.append(f"order={order}")
    return [*parts, f"grid={'listed' if listed else description.grid.spacing!r}"]


def _shortened(told: Sequence[float]) -> str:
    shown = [f"{time:.6g}" for time in told]
    if len(shown) > SHOWN:
        shown[SHOWN // 2 : -SHOWN // 2] = ["..."]
    return ", ".join(shown)

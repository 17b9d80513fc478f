r"""Where a diffusers config puts the nodes, and what the network is told there.

A grid of n evaluations has n + 1 nodes: the last one is where the sample is, sigma = 0 or the
smallest noise level of training. Three kinds of models differ in what they are told:

    training steps (`step_layout`)     i = 0..N-1, whole unless the caller's timesteps are not
    flow matching (`flow_layout`)      N sigma, or N (1 - sigma) with ``invert_sigmas``
    a range of sigma (`sigma_layout`)  a function of sigma, see `SigmaModel`
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from logsnr.solvers import DiscreteVP, Node, NoiseSchedule
from logsnr.solvers.grids import node_at

from ..config.description import Description
from ..config.model import Model
from ..config.sigma_models import SigmaModel
from .discrete import at_ratio, nearest_step, step_layout
from .flow import flow_layout
from .pipeline_sigmas import sent_unasked
from .sigma import sigma_layout

Place = Callable[..., tuple[Sequence[Node], Sequence[float]]]


@dataclass(frozen=True)
class Layout:
    """n + 1 nodes, and what the network is told at the first n of them.

    ``inverted`` flow models count noise levels from 0 (noise) to 1 (data). ``listed`` is the name
    of the argument in which the user listed the nodes, None where a rule has laid them out.
    """

    nodes: tuple[Node, ...]
    timesteps: tuple[float, ...]
    inverted: bool = False
    listed: str | None = None

    @cached_property
    def whole(self) -> bool:
        """Whether the network is told whole numbers only."""
        return all(told == round(told) for told in self.timesteps)

    def told(self, nodes: Sequence[Node], schedule: NoiseSchedule, steps: int) -> list[float]:
        """What the network is told at ``nodes``, which may lie between those of the layout."""
        known = dict(zip(self.nodes, self.timesteps, strict=False))
        return [
            known[node] if node in known else self._told(node, schedule, steps) for node in nodes
        ]

    def _told(self, node: Node, schedule: NoiseSchedule, steps: int) -> float:
        if isinstance(schedule, DiscreteVP) and self.whole and node.told is None:
            return nearest_step(schedule, node)
        return told_at(schedule, float(node.call[0]), steps, self.inverted)

    def levels(self, nodes: Sequence[Node], schedule: NoiseSchedule) -> list[float]:
        """What diffusers calls sigmas: sigma of flow models, sigma / alpha of the others."""
        if isinstance(schedule, DiscreteVP):
            return [node.sigma / node.alpha if node.alpha else math.inf for node in nodes]
        if isinstance(schedule, SigmaModel):
            return [schedule.sigma_data * node.sigma / node.alpha for node in nodes]
        return [1 - node.sigma if self.inverted else node.sigma for node in nodes]


def told_at(schedule: NoiseSchedule, t: float, steps: int, inverted: bool = False) -> float:
    """What a network of N = ``steps`` training steps is told at the schedule's time t."""
    if isinstance(schedule, DiscreteVP):
        return float(schedule.network_time(t))
    if isinstance(schedule, SigmaModel):
        return float(schedule.network_time(t)) if t > 0 else -math.inf
    return steps * (1 - t if inverted else t)


def layout(
    description: Description,
    n: int | None,
    *,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    mu: float | None = None,
) -> Layout:
    """The nodes of a run of n evaluations.

    Parameters
    ----------
    timesteps : what the network is told, instead of a rule; used exactly as given.
    sigmas : sigma / alpha of all nodes, the end included. Flow: t of the evaluations, which the
        shift moves, as diffusers does, unless ``exact_sigmas`` is set; a trailing 0 is the end.
    mu : logarithm of the shift, if the config's shift is dynamic.

    Raises ValueError naming the argument or config key that is wrong.
    """
    if n is None and timesteps is None and sigmas is None:
        raise ValueError("num_inference_steps is missing: give it, or timesteps, or sigmas")
    for name, values in (("timesteps", timesteps), ("sigmas", sigmas)):
        if values is not None and (len(values) == 0 or not np.isfinite(values).all()):
            raise ValueError(f"{name}={list(values)}: need finite numbers, at least one")
    if n is not None and (isinstance(n, bool) or int(n) != n or n < 1):
        raise ValueError(f"num_inference_steps={n!r}: need a whole number of at least 1")
    n = None if n is None else int(n)
    schedule = description.model.schedule
    if isinstance(schedule, DiscreteVP | SigmaModel) and sigmas is not None:
        _check_levels(sigmas, timesteps)
    if isinstance(schedule, DiscreteVP | SigmaModel) and mu is not None:
        raise ValueError(f"mu={mu!r} is the shift of flow models, and this model is none")
    place: Place = flow_layout
    if isinstance(schedule, DiscreteVP):
        place = step_layout
    elif isinstance(schedule, SigmaModel):
        place = sigma_layout
    nodes, told = place(description, n, timesteps, sigmas, mu)
    given = timesteps if timesteps is not None else sigmas
    name = "timesteps" if timesteps is not None else "sigmas"
    check_nodes(name, given or (), nodes)
    if n is not None and len(told) != n:
        raise ValueError(
            f"num_inference_steps={n} was given beside values for {len(told)} evaluations"
        )
    inverted = place is flow_layout and description.model.inverted
    own = place is flow_layout and sigmas is not None and not description.grid.exact_sigmas
    listed = None if given is None or (own and sent_unasked(sigmas or ())) else name
    return Layout(tuple(nodes), tuple(told), inverted, listed)


def check_nodes(name: str, given: Sequence[float], nodes: Sequence[Node]) -> None:
    """ValueError unless ``nodes``, by the values ``given`` as ``name``, go from noise to data."""
    if any(node.sigma == 0 for node in nodes[:-1]):
        raise ValueError(
            f"{name}={list(given)}: the network would be called at sigma = 0, where nothing "
            "is left to predict; only the end may be there"
        )
    lams = [node.lam for node in nodes if math.isfinite(node.lam)]
    if (np.diff(lams) < 0).any():
        raise ValueError(f"{name}={list(given)}: need falling values (noise to data)")


def node_of_level(model: Model, level: float, *, end: bool = False) -> Node:
    """The node whose entry in `Layout.levels` is ``level``; ``end`` is the last of a run.

    Raises ValueError for a level that is none.
    """
    schedule = model.schedule
    highest = math.inf if isinstance(schedule, DiscreteVP | SigmaModel) else 1.0
    if not 0 <= level <= highest:
        raise ValueError(f"sigmas has {level!r}: need values in [0, {highest:g}]")
    if isinstance(schedule, SigmaModel):
        return schedule.last(level) if end else schedule.at(level)
    if isinstance(schedule, DiscreteVP):
        return at_ratio(schedule, level) if level < math.inf else node_at(schedule, 1.0)
    return node_at(schedule, 1 - level if model.inverted else level)


def node_told(model: Model, told: float) -> Node:
    """The node of the model's schedule at which its network is told ``told``.

    Raises ValueError for a time that it is never told.
    """
    schedule = model.schedule
    if isinstance(schedule, SigmaModel):
        return schedule.at(schedule.time_told(told) * schedule.sigma_data)
    steps = last = model.training_steps
    if isinstance(schedule, DiscreteVP):
        steps, last = schedule.steps, schedule.steps - 1
    if not 0 <= told <= last:
        raise ValueError(f"timesteps has {told!r}: need values in [0, {last}]")
    if isinstance(schedule, DiscreteVP):
        return node_at(schedule, (told + 1) / steps)
    return node_at(schedule, 1 - told / steps if model.inverted else told / steps)


def _check_levels(sigmas: Sequence[float], timesteps: Sequence[float] | None) -> None:
    if timesteps is not None or len(sigmas) < 2:
        raise ValueError(
            f"sigmas={list(sigmas)}: need sigma / alpha of all nodes, the end included, and no "
            "timesteps beside them"
        )
    negative = [ratio for ratio in sigmas if ratio < 0]
    if negative:
        raise ValueError(f"sigmas has {negative[0]!r}: need sigma / alpha >= 0")
    if sigmas[0] == 0:
        ramp = " (a ramp from 0 to 1 is for EDMEulerScheduler alone)" if sigmas[-1] == 1 else ""
        raise ValueError(f"sigmas={list(sigmas)}: need falling values (noise to data){ramp}")

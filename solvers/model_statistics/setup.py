"""From the options of an estimation to a checked `Setup`. No network is called."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..grids import check_range, nodes_at
from ..plan import Node
from ..prediction import to_noise
from ..registry import make_plan
from ..schedule_notes import schedule_note
from ..schedules import NoiseSchedule
from .accumulators import block_size
from .checkpoint import stored_group
from .moments import RECORD
from .options import StatesEstimation
from .probes import Path, Probe, columns
from .samples import Data, data_of, own_samples, signs_and_noise

OWN_NFE = 32
"""Evaluations a sample, where the model has to draw its own: 3 % of what its probes take."""


@dataclass(frozen=True)
class Setup:
    """Everything that an estimation is determined by, checked.

    ``nodes`` run from noise to data, uniformly in lambda over ``path``; ``data`` is where samples
    come from; ``group`` is the number of samples of a group, ``rows`` that of states in one network
    call; ``settings`` are JSON values that name what else the result depends on (data, network, how
    derivatives are had).
    """

    options: StatesEstimation
    prediction: str
    path: Path
    nodes: tuple[Node, ...]
    data: Data
    group: int
    rows: int
    dtype: torch.dtype
    device: torch.device
    settings: dict[str, Any]

    @property
    def samples(self) -> int:
        """The number of samples, at most."""
        return self.options.samples

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of a sample."""
        return self.data.event

    @property
    def durable(self) -> bool:
        """Whether the work is kept."""
        return self.options.checkpoint is not None

    @property
    def batch(self) -> int:
        """Samples that are worked on together."""
        return min(self.rows, self.group)

    @property
    def block(self) -> int:
        """Nodes that are worked on together."""
        return min(self.rows // self.batch, block_size((RECORD, *self.pooled)))

    @property
    def axes(self) -> tuple[int, ...]:
        """Event axes over which moments are pooled."""
        own = {"coordinate": len(self.event), "channel": 1, "scalar": 0}
        return tuple(range(own[self.options.granularity], len(self.event)))

    @property
    def pooled(self) -> tuple[int, ...]:
        """Shape of the statistics at a node."""
        return tuple(1 if axis in self.axes else n for axis, n in enumerate(self.event))

    @property
    def pool(self) -> int:
        """Coordinates that share one statistic."""
        return math.prod(self.event) // math.prod(self.pooled)

    @property
    def spacing(self) -> float:
        """Distance of the nodes in lambda."""
        return (self.path.last - self.path.first) / (len(self.nodes) - 1)

    def states(self, x0: Tensor, n: Tensor, nodes: Sequence[Node]) -> Tensor:
        """x = alpha x0 + sigma n (K, B, *event) at ``nodes`` as the network gets it."""
        alpha, sigma = columns([(node.alpha, node.sigma) for node in nodes], x0[None])
        return (alpha * x0 + sigma * n).to(self.device, self.dtype)

    def drawn(self, samples: range) -> tuple[Tensor, Tensor]:
        """Noise (B, *event) and random signs, these as the network's states are, of ``samples``."""
        pairs = [signs_and_noise(self.options.seed, i, self.event) for i in samples]
        n, signs = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        return n, signs.to(self.device, self.dtype)


def prepare(
    schedule: NoiseSchedule, data: Any, prediction: str, options: StatesEstimation
) -> Setup:
    """The setup of an estimation.

    ``batch_size`` None, the number that fits memory, is left open: one state a call.
    """
    if not isinstance(schedule, NoiseSchedule):
        raise ValueError(f"schedule={schedule!r}: need a NoiseSchedule")
    path, grid = _grid(schedule, options)
    for node in (grid[0], grid[-1]):
        to_noise(prediction, node)  # raises where it does not exist
    device = torch.device("cpu" if options.device is None else options.device)
    if data is None:
        source = _own(schedule, prediction, (grid[0].t, grid[-1].t), options, device)
    elif options.plan is not None:
        raise ValueError("plan was given beside data: it draws the model's own samples, data=None")
    else:
        source = data_of(data, seed=options.seed, shape=options.shape)
    group = stored_group(options.checkpoint) if options.group is None else options.group
    if group is None:
        group = max(4, min(32, 2 ** int(math.log2(max(options.samples, 32) / 8))))
    dtype = options.dtype or source.dtype
    settings = {
        **schedule_note(schedule, path.first, path.last),
        "t_start": grid[0].t,
        "t_end": grid[-1].t,
        "intervals": options.nodes,
        "seed": options.seed,
        "granularity": options.granularity,
        "event": list(source.event),
        "prediction": prediction,
        "data": source.name,
        "dtype": str(dtype),
    }
    rows = options.batch_size or 1
    return Setup(options, prediction, path, grid, source, group, rows, dtype, device, settings)


def _grid(schedule: NoiseSchedule, options: StatesEstimation) -> tuple[Path, tuple[Node, ...]]:
    """The nodes, uniform in lambda, and their range."""
    start = float(schedule.t_start if options.t_start is None else options.t_start)
    end = float(schedule.t_end if options.t_end is None else options.t_end)
    check_range(schedule, start, end)
    first, last = schedule.lam(start), schedule.lam(end)
    if not (math.isfinite(first) and math.isfinite(last)):
        raise ValueError(
            f"t_start={start!r}, t_end={end!r} have lambda {first} and {last}: need finite values, "
            "so a smaller t_start or a larger t_end"
        )
    lams = torch.linspace(first, last, options.nodes + 1, dtype=torch.float64)
    times = schedule.time(lams)
    times[0], times[-1] = start, end
    return Path(schedule, first, last), tuple(nodes_at(schedule, times))


def _own(
    schedule: NoiseSchedule,
    prediction: str,
    ends: tuple[float, float],
    options: StatesEstimation,
    device: torch.device,
) -> Data:
    """The model's own samples."""
    if options.shape is None:
        raise ValueError("shape=None: data=None needs the event shape of a sample")
    plan = options.plan
    if plan is None:
        start, end = ends
        plan = make_plan("unipc", schedule, nfe=OWN_NFE, spacing="logsnr", t_start=start, t_end=end)
    dtype = options.dtype or torch.float32
    return own_samples(plan, prediction, tuple(options.shape), dtype, options.seed, device)


def trial(setup: Setup) -> Probe:
    """States near both ends and in the middle on which ways and steps are compared."""
    samples = range(min(4, setup.group, setup.samples))
    n, signs = setup.drawn(samples)
    last = len(setup.nodes) - 1
    nodes = [setup.nodes[k] for k in (last // 8, last // 2, last - last // 8)]
    return Probe(setup.states(n, n, nodes), signs, nodes, samples)

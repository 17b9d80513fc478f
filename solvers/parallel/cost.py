r"""What a parallel run costs, before and after it.

A run of n evaluations takes n t(1) one after the other, t(p) being the time of one network call on
p groups (each a whole batch). In K sweeps over windows of p_1 .. p_K groups on W devices it takes

    T = sum_k t(ceil(p_k / W)) + K overhead,

and whatever the windows are, never less than the critical path or the work,

    T >= max(K t(1), sum_k p_k / W  min_p t(p) / p).

``predict`` gets the windows from a run on a stand-in for the network, with the same plan, window,
tolerance and options. It says when parallel sampling does not pay: W devices that are busy with one
group each gain at most n W / sum_k p_k.

**The stand-in.** How many sweeps a plan takes depends on the plan, the window and the tolerance,
and only weakly on the network, as long as its data prediction turns as sharply as that of a trained
one. The stand-in is the exact data prediction of a mixture of M narrow Gaussians N(mu_k, s^2) in D
dimensions,

    x0(x) = sum_k r_k (mu_k + alpha s^2 / v (x - alpha mu_k)),      v = alpha^2 s^2 + sigma^2,
    r = softmax_k(-|x - alpha mu_k|^2 / (2 v)),

with means drawn once from N(0, 1). M = 16, D = 128, s = 0.1 were chosen among eight such mixtures
because they take as many sweeps as the trained UNet in benchmarks/embedded; the numbers are in
docs/parallel-devices.md.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..checks import check_whole
from ..denoiser import Denoiser
from ..keywords import takes
from ..noise import noise_source
from ..plan import Coefficient, Plan
from ..requests import Evaluate, drive_batches, evaluator
from .options import Picard
from .sweeps import ParallelStats, picard

MODES, DIMENSION, SCALE = 16, 128, 0.1
"""M, D and s of the stand-in."""

SPREAD = (0.4, 1.5)
"""Actual sweeps and evaluations lie between these multiples of the predicted ones: 0.4 to 0.8 as a
rule, up to 1.1 for the published scheme. See docs/parallel-devices.md."""


@dataclass(frozen=True)
class Cost:
    """A prediction. Times are in the unit of the throughput it was made with.

    Parameters
    ----------
    sweeps, evaluations : as in `ParallelStats`.
    sequential_time, parallel_time : of the whole run.
    speedup : sequential_time / parallel_time.
    bound : the speed-up that the critical path and the work allow, whatever the windows.
    devices : that share the work.
    """

    sweeps: int
    evaluations: int
    sequential_time: float
    parallel_time: float
    speedup: float
    bound: float
    devices: int = 1

    @property
    def likely_sweeps(self) -> tuple[int, int]:
        """The range in which the sweeps of most networks lie; see ``SPREAD``."""
        return _range(self.sweeps)

    @property
    def likely_evaluations(self) -> tuple[int, int]:
        """The range in which the evaluations of most networks lie; see ``SPREAD``."""
        return _range(self.evaluations)


def _range(count: int) -> tuple[int, int]:
    return int(SPREAD[0] * count), -int(-SPREAD[1] * count // 1)


@takes(Picard)
def predict(
    plan: Plan,
    *,
    options: Picard,
    devices: int = 1,
    throughput: Mapping[int, float] | None = None,
    overhead: float = 0.0,
) -> Cost:
    """What ``sample_parallel(denoise, x_T, plan, window, tolerance, ...)`` will cost.

    Parameters
    ----------
    plan : of the run.
    options : those of `Picard`.
    devices : that share the groups of every sweep.
    throughput : groups -> seconds of one network call on so many, as ``measure_throughput`` gives
        it. Default: a device gains nothing from a larger batch, t(p) = p, and times are in
        evaluations. True of large networks, and too pessimistic for small ones on a GPU.
    overhead : of one sweep beside the network, in the same unit.

    Raises ValueError for values out of range.
    """
    check_whole("devices", devices, 1)
    if not overhead >= 0:
        raise ValueError(f"overhead={overhead!r}: need a number of at least 0")
    plain = without_tensors(plan)
    x_T, evaluate = stand_in(plain)
    draw = noise_source(torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, stats = drive_batches(picard(plain, x_T, draw=draw, options=options), evaluate)
    return cost(plan, stats, devices=devices, throughput=throughput, overhead=overhead)


def stand_in(plan: Plan, batch: int = 4) -> tuple[Tensor, Evaluate]:
    """Start states (batch, D) of ``plan`` and the stand-in's data predictions at its nodes."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    means = normal(MODES, DIMENSION)
    start, *_ = nodes = [row.node for row in plan.rows]
    data = means[torch.arange(batch) % MODES] + SCALE * normal(batch, DIMENSION)
    x_T = start.alpha * data + start.sigma * normal(batch, DIMENSION)
    scales = {node.t: (node.alpha, node.sigma) for node in nodes}

    def evaluate(x: Tensor, times: Sequence[float]) -> Tensor:
        pairs = torch.tensor([scales[t] for t in times], dtype=torch.float64)
        alpha, sigma = pairs.view(-1, 2, 1, 1).unbind(1)
        variance = (alpha * SCALE) ** 2 + sigma**2
        # |x - alpha mu_k|^2 without the term that all k share.
        square = alpha**2 * means.square().sum(1) - 2 * alpha * (x @ means.T)
        share = torch.softmax(-square / (2 * variance), dim=-1)
        shrink = alpha * SCALE**2 / variance
        return (1 - alpha * shrink) * (share @ means) + shrink * x

    return x_T, evaluate


def without_tensors(plan: Plan) -> Plan:
    """The plan with every tensor coefficient replaced by its mean, for states of any shape."""
    if plan.numeric:
        return plan

    def mean(value: Coefficient) -> float:
        return float(value.detach().mean()) if isinstance(value, Tensor) else value

    rows = [
        replace(
            row,
            states=tuple((j, mean(a)) for j, a in row.states),
            outputs=tuple((j, mean(b)) for j, b in row.outputs),
            target=None if row.target is None else type(row.target)(*map(mean, row.target)),
            offset=mean(row.offset),
        )
        for row in plan.rows
    ]
    return replace(plan, rows=tuple(rows), consistent=False)


def cost(
    plan: Plan,
    stats: ParallelStats,
    *,
    devices: int = 1,
    throughput: Mapping[int, float] | None = None,
    overhead: float = 0.0,
) -> Cost:
    """The cost of a run with the sweeps ``stats``: the formulas of the module's text."""
    seconds, best = _interpolated(throughput or {1: 1.0})
    sequential = plan.nfe * seconds(1)
    groups = [-(-(end - begin) // devices) for begin, end in stats.windows]
    parallel = sum(map(seconds, groups)) + overhead * stats.sweeps
    least = max(stats.sweeps * seconds(1), stats.evaluations * best / devices)
    return Cost(
        sweeps=stats.sweeps,
        evaluations=stats.evaluations,
        sequential_time=sequential,
        parallel_time=parallel,
        speedup=sequential / parallel,
        bound=sequential / least,
        devices=devices,
    )


def _interpolated(throughput: Mapping[int, float]) -> tuple[Callable[[int], float], float]:
    """t(p), linear between the sizes measured and in proportion beyond them; and min t(p) / p."""
    if not isinstance(throughput, Mapping):
        raise ValueError(f"throughput={throughput!r}: need {{groups >= 1: seconds > 0}}")
    sizes = sorted(throughput)
    if not sizes or sizes[0] < 1 or not all(throughput[p] > 0 for p in sizes):
        raise ValueError(f"throughput={dict(throughput)!r}: need {{groups >= 1: seconds > 0}}")

    def seconds(p: int) -> float:
        if p <= sizes[0]:
            return throughput[sizes[0]]
        if p >= sizes[-1]:
            return throughput[sizes[-1]] * p / sizes[-1]
        above = next(size for size in sizes if size >= p)
        below = sizes[sizes.index(above) - 1]
        share = (p - below) / (above - below)
        return (1 - share) * throughput[below] + share * throughput[above]

    return seconds, min(throughput[p] / p for p in sizes)


def measure_throughput(
    denoise: Denoiser | Callable[[Tensor, float], Tensor],
    x: Tensor,
    t: float,
    *,
    sizes: Sequence[int] = (1, 2, 4, 8, 16),
    calls: int = 3,
) -> dict[int, float]:
    """Median seconds of a network call on so many groups, each a copy of states x (B, *event).

    ``t`` is any time of the schedule. One call of every size goes before, so that nothing is
    compiled or allocated while the clock runs. Raises ValueError for sizes or calls < 1.
    """
    if not sizes or min(sizes) < 1 or calls < 1:
        raise ValueError(f"sizes={tuple(sizes)}, calls={calls}: need numbers of at least 1")
    evaluate = evaluator(denoise)
    result = {}
    for size in sizes:
        states = x.expand(size, *x.shape).contiguous()
        taken = []
        for _ in range(calls + 1):
            started = time.perf_counter()
            output = evaluate(states, [t] * size)
            output.flatten()[0].item()  # waits for the device
            taken.append(time.perf_counter() - started)
        result[size] = statistics.median(taken[1:])
    return result


def report(predicted: Cost, stats: ParallelStats, seconds: float | None = None) -> str:
    """The prediction beside what happened, as a small table; ``seconds`` is the run's time."""
    lines = [
        f"{'':16}{'predicted':>12}{'likely':>14}{'actual':>12}",
        _line("sweeps", predicted.sweeps, predicted.likely_sweeps, stats.sweeps),
        _line(
            "evaluations", predicted.evaluations, predicted.likely_evaluations, stats.evaluations
        ),
    ]
    if seconds is not None:
        speedup = predicted.sequential_time / seconds
        lines.append(f"{'seconds':16}{predicted.parallel_time:12.3g}{'':14}{seconds:12.3g}")
        lines.append(
            f"{'speed-up':16}{predicted.speedup:12.2f}"
            f"{f'<= {predicted.bound:.2f}':>14}{speedup:12.2f}"
        )
    return "\n".join(lines)


def _line(name: str, predicted: int, likely: tuple[int, int], actual: int) -> str:
    return f"{name:16}{predicted:12}{f'{likely[0]}-{likely[1]}':>14}{actual:12}"


def warn_if_slower(predicted: Cost) -> None:
    """UserWarning if the sequential run is predicted to be faster."""
    if predicted.speedup < 1:
        warnings.warn(
            f"sample() would be faster: {predicted.evaluations} evaluations in "
            f"{predicted.sweeps} sweeps on {predicted.devices} device(s) are predicted to take "
            f"{1 / predicted.speedup:.1f} times as long as the sequential run. A larger tolerance, "
            "another window or more devices help; a measured throughput= sharpens this",
            UserWarning,
            stacklevel=3,
        )

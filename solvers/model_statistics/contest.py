r"""Do the statistics help? A comparison with the degenerate ones, at the end of an estimation.

Nothing guarantees that l, s and b of the best regression make a better solver, least of all where
the regression leaves most of df/d lambda (see docs/ems.md). So a few starts are run to the end with
them and with l = 1, s = b = 0, which is DPM-Solver++ with the same polynomial, at every order and
at 5 to 20 evaluations, and both are compared with the converged solution. A start takes 640
evaluations, as many as a sample at 127 nodes. There are 16 of them, and up to 64 where a state has
few coordinates.

The starts are x = alpha x0 + sigma n at the beginning of the range, x0 a sample of the data and n
a noise that the estimation has not seen (sigma n alone if the model draws its own samples, which
begin there). Processes share them, and each keeps the runs that it has finished.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..denoiser import Denoiser, check_start
from ..plan import Plan
from ..processes import present
from ..registry import make_plan
from ..requests import Batch, drive_batches, evaluator, relay
from ..schedules import NoiseSchedule
from .accumulators import Records
from .checkpoint import of_process
from .conditions import check_conditions, conditioned
from .ems import EMS, check_event
from .samples import KEPT, generator_of, sampled
from .setup import Setup
from .verdict import Verdict

NFE = (5, 6, 8, 10, 15, 20)
ORDERS = (1, 2, 3)
CONVERGED = 256
"""Evaluations of the converged solution, UniPC-3."""
LEAST_STARTS, MOST_STARTS, COORDINATES = 16, KEPT, 4096
"""So many starts as have that many coordinates: an error of few scatters more."""
EVALUATIONS = CONVERGED + 2 * len(ORDERS) * sum(NFE)
"""Of one start."""
FAR = 1e3
"""A state that is this many times the largest start has left for good."""
LOST = 1e30
"""Its error: finite, because JSON knows no other."""
SMALLEST = 1e-30
"""Two solutions that are equal have this distance, so that it can be divided by."""


def number_of_starts(event: Sequence[int]) -> int:
    """How many starts are run, of states of this shape."""
    return min(max(LEAST_STARTS, COORDINATES // math.prod(event)), MOST_STARTS)


@dataclass(frozen=True)
class Contest:
    """The runs that are compared, from t_start to t_end of ``schedule``."""

    ems: EMS
    schedule: NoiseSchedule
    prediction: str
    t_start: float
    t_end: float

    def plans(self) -> list[Callable[[], Plan]]:
        """The converged solution, then own and degenerate for each order and NFE.

        Functions, because a plan with statistics is large.
        """
        ends: dict[str, Any] = {"t_start": self.t_start, "t_end": self.t_end}

        def v3(order: int, nfe: int, ems: EMS | None) -> Plan:
            options: dict[str, Any] = {"treatment": "spline", "fallback": False}
            return make_plan(
                "dpm-solver-v3", self.schedule, nfe=nfe, order=order, ems=ems, **options, **ends
            )

        def converged() -> Plan:
            return make_plan("unipc", self.schedule, nfe=CONVERGED, order=3, **ends)

        return [converged] + [
            lambda order=order, nfe=nfe, ems=ems: v3(order, nfe, ems)
            for order in ORDERS
            for nfe in NFE
            for ems in (self.ems, None)
        ]

    def verdict(self, errors: np.ndarray) -> Verdict:
        """From the sizes of the converged solution and the errors (runs, starts) of the others.

        An error is the geometric mean of two, the root mean square over the starts, which the worst
        of them rule, and their own geometric mean, which says what is typical.
        """
        size = float(np.sqrt((errors[0] ** 2).mean()))
        others = np.maximum(errors[1:], SMALLEST)
        worst, typical = np.sqrt((others**2).mean(axis=1)), np.exp(np.log(others).mean(axis=1))
        values = np.sqrt(worst * typical).tolist()
        relative = [min(max(v / max(size, SMALLEST), SMALLEST), LOST) for v in values]
        table = np.array(relative).reshape(len(ORDERS), len(NFE), 2)
        own, degenerate = (
            {order: tuple(table[i, :, side].tolist()) for i, order in enumerate(ORDERS)}
            for side in (0, 1)
        )
        return Verdict(NFE, own, degenerate, errors.shape[1])


def compared(
    contest: Contest, x_T: Tensor, samples: range, batch: int, store: Records | None = None
) -> Generator[Batch, Tensor, np.ndarray]:
    """Errors (runs, starts) from the starts x_T of ``samples``, ``batch`` in one evaluation.

    The first row holds the root mean square of the converged solution instead. ``store`` keeps
    what is done, run by run.
    """
    plans = contest.plans()
    errors = np.zeros((len(plans), len(samples)))
    done = 0 if store is None else store.state.get("runs", 0)
    reference = torch.zeros_like(x_T, dtype=torch.float64, device="cpu")
    if store is not None and done:
        errors[:done] = store.read("errors", 0, done)
        reference = torch.from_numpy(store.read("converged", 0)[0])
    for k in range(done, len(plans)):
        x = yield from _end(plans[k], x_T, contest.prediction, samples, batch)
        if k == 0:
            reference = x
            if store is not None:
                store.commit("converged", 0, x[None].numpy(), {"runs": 0})
        far = (x if k == 0 else x - reference).square().flatten(1).mean(1).sqrt()
        errors[k] = torch.nan_to_num(far, LOST, LOST).clamp(max=LOST).numpy()
        if store is not None:
            store.commit("errors", k, errors[k][None], {"runs": k + 1})
    return errors


def _end(
    build: Callable[[], Plan], x_T: Tensor, prediction: str, samples: range, batch: int
) -> Generator[Batch, Tensor, Tensor]:
    """The ends of all runs in float64: infinite of those that left for good."""
    try:
        plan = build()
    except ValueError:  # statistics whose integrals overflow have no plan
        return torch.full_like(x_T, torch.inf, dtype=torch.float64, device="cpu")
    results = []
    limit = FAR * float(x_T.abs().max())
    for low in range(0, len(samples), batch):
        part = slice(low, low + batch)
        x = yield from _guarded(plan, x_T[part], prediction, samples[part], limit)
        results.append(x.to("cpu", torch.float64))
    return torch.cat(results)


def _guarded(
    plan: Plan, x: Tensor, prediction: str, samples: range, limit: float
) -> Generator[Batch, Tensor, Tensor]:
    """The samples of ``plan``, infinite for states beyond ``limit``, which no network is given."""
    lost = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    rows = lost.view(-1, *[1] * (x.ndim - 1))

    def ask(batch: Batch) -> Generator[Batch, Tensor, Tensor]:
        state = batch.x[0]
        lost.logical_or_(~(state.flatten(1).abs().amax(1) <= limit))
        batch.x = torch.where(rows, 0, state)[None]
        return (yield batch)

    end = yield from relay(sampled(plan, x, prediction, samples), ask)
    return torch.where(rows, torch.inf, end)


def check(setup: Setup, ems: EMS, folder: Path) -> Generator[Any, Any, EMS]:
    """The statistics with their verdict: the last part of an estimation, in all its processes."""
    world = present()
    starts = min(number_of_starts(setup.event), setup.samples)
    first, last = setup.nodes[0], setup.nodes[-1]
    contest = Contest(ems, setup.path.schedule, setup.prediction, first.t, last.t)
    mine, runs = world.mine(starts), len(contest.plans())
    errors = np.zeros((runs, 0))
    if mine:
        total = ems.about["samples"]
        settings = {"samples": total, "starts": starts, "processes": world.size}
        tables = {"converged": (1, len(mine), *setup.event), "errors": (runs, len(mine))}
        # An estimation that was extended has other statistics.
        store = Records(
            of_process(folder) / f"check{total}", tables, settings, durable=setup.durable
        )
        x_T = yield from _starts(setup, mine)
        errors = yield from compared(contest, x_T, mine, setup.rows, store)
    rows = world.gather("the check of statistics", errors.tobytes())
    parts = [np.frombuffer(row).reshape(runs, -1) for row in rows if row]
    return replace(ems, verdict=contest.verdict(np.concatenate(parts, axis=1)))


def _starts(setup: Setup, samples: range) -> Generator[Batch, Tensor, Tensor]:
    seed = setup.options.seed
    draws = [
        torch.randn(*setup.event, dtype=torch.float64, generator=generator_of(seed, i, purpose=2))
        for i in samples
    ]
    n = torch.stack(draws)
    x0 = torch.zeros_like(n) if setup.data.own else (yield from setup.data.source(samples))
    return setup.states(x0, n, setup.nodes[:1])[0]


def check_ems(denoise: Denoiser, ems: EMS, x_T: Tensor) -> EMS:
    """The statistics with a verdict of their own, as `estimate_ems` gives: for those without one.

    Parameters
    ----------
    denoise : the network. Its schedule, condition and guidance are those of the statistics; a
        condition tensor has one entry for all starts, or one for each.
    x_T : start states (B, *event) at the first lambda of the statistics.

    It takes 640 evaluations a start. Raises ValueError if the statistics or the starts do not fit
    the network.
    """
    if not isinstance(denoise, Denoiser):
        raise ValueError(f"denoise={denoise!r}: need a Denoiser, for its schedule and prediction")
    if not isinstance(ems, EMS):
        raise ValueError(f"ems={ems!r}: need an EMS")
    check_start(x_T, denoise)
    ems.fits(denoise.schedule)
    check_event(ems.event, tuple(x_T.shape[1:]))
    check_conditions(denoise, len(x_T))
    samples = range(len(x_T))
    t_start, t_end = (float(denoise.schedule.time(float(lam))) for lam in ems.lam[[0, -1]])
    contest = Contest(ems, denoise.schedule, denoise.prediction, t_start, t_end)
    here = evaluator(conditioned(denoise, samples, len(x_T)))
    with torch.no_grad():
        errors = drive_batches(compared(contest, x_T, samples, len(x_T)), here)
    return replace(ems, verdict=contest.verdict(errors))

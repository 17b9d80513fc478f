r"""The best known plan for one network at one budget, by measurement.

Candidates are every solver of the registry that may be good at few evaluations, on every spacing;
rules for the last step are added to those that lead, and the location and scale of the logistic
grid fitted for the best solvers. All have the same number of evaluations and the same starts. Few
starts rank all of them, more those that are left, and all the last ones: successive halving. Then
starts that nobody has seen compare the winner with what is used where nobody chooses, which stays
unless the winner is better with confidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ..checks import check_choice, check_kind, check_whole
from ..denoiser import Denoiser, check_start
from ..model_statistics import estimate_ems
from ..model_statistics.ems import EMS
from ..plan import Plan
from ..progress import Show, progress_bar
from ..schedules import NoiseSchedule
from .candidates import Candidate, Pool
from .errors import MEASURES, better, for_samples, summary
from .grid_fit import METHODS, fit_grid
from .grid_problem import OF_THE_NODES, schedule_of
from .options import LEVELS, Tuning
from .references import OF_THE_RUN
from .trials import REFERENCE_NFE, Trials, converged
from .tune import tune

LEAST_STARTS = 12
FIRST_STARTS = 6
KEEP = 3
"""Of three candidates one goes on to the next round, with twice the starts; at least as many."""


@torch.no_grad()
def auto_plan(
    denoise: Denoiser | Callable[[Tensor, float], Tensor],
    starts: Tensor,
    nfe: int = 8,
    *,
    level: str | None = None,
    tuning: Mapping[str, Any] | None = None,
    schedule: NoiseSchedule | None = None,
    default: Plan | None = None,
    candidates: Sequence[tuple[str, dict[str, Any]]] | None = None,
    ems: EMS | dict[str, Any] | None = None,
    targets: Tensor | None = None,
    fit: str | None = "location",
    measure: str = "log",
    confidence: float = 0.95,
    batch_size: int = 64,
    progress: Show = False,
    **run: Any,
) -> Plan:
    """The best of all solvers, orders, spacings and last steps for a network, at ``nfe``.

    Without ``level`` no gradients are asked for. Evaluations of a start at 8 NFE, beside 100 for
    its target: about 350 with 48 starts, most of them for the fitted grids.

    Parameters
    ----------
    denoise : a `Denoiser`, or a data prediction (x, t) -> x0.
    starts : start states (B, *event), twelve at least, a few dozen better; see `Plan.start`. The
        last third of them decides whether the default is left.
    nfe : network evaluations of every candidate and of the plan.
    level : "grid", "coefficients" or "full" goes on with `tune` from the best solver, which takes
        gradients of a `Denoiser`; the tuned plan is the result if it is better with confidence.
    tuning : more options of `tune`.
    schedule : of the network; None is the denoiser's own.
    default : the plan that has to be beaten, of ``nfe`` evaluations too; None is what `make_plan`
        does best where nothing is known: UniPC-2, on the straight path iPNDM-2 in t.
    candidates : more of them, as (solver, options of `make_plan`).
    ems : statistics of DPM-Solver-v3, which makes it a candidate; or options of `estimate_ems`,
        which then estimates them first.
    targets : (B, *event) converged solutions from the starts; None makes them by a long run.
    fit : the method of `fit_grid` that fits the leader's grid; None leaves grids as they are known.
    measure : of the errors over the starts, "log", "median" or "rmse".
    confidence : with which the winner has to beat the default.
    batch_size : starts that run at once.
    progress : show a bar over the evaluations of one start, or a function of those done and all.
    run : t_start, t_end, shift and snap of every candidate.

    ``options["auto"]`` of the plan notes the last candidates with their errors, the comparison of
    the winner with the default on the last third, and what was spent. Raises ValueError for bad
    input before the network is called.
    """
    check_start(starts, denoise)
    check_whole("nfe", nfe, 1)
    check_choice("measure", measure, MEASURES)
    if fit is not None:
        check_choice("fit", fit, METHODS)
    if level is not None:
        _check_level(level, denoise, run)
    asked = _asked_of_tuning(level, nfe, tuning, measure, confidence)
    check_kind("confidence", confidence, 0.0)
    check_whole("batch_size", batch_size, 1)
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence={confidence!r}: need a number in (0.5, 1)")
    if len(starts) < LEAST_STARTS:
        raise ValueError(f"starts has {len(starts)} entries: need {LEAST_STARTS} or more")
    if targets is not None and targets.shape != starts.shape:
        raise ValueError(
            f"targets has shape {tuple(targets.shape)}: need that of starts, {tuple(starts.shape)}"
        )
    for key, value in run.items():
        if key not in OF_THE_NODES:
            raise ValueError(f"{key}={value!r}: need one of {', '.join(OF_THE_NODES)}")
    pool = Pool(schedule_of(denoise, schedule), nfe, run)
    stays = pool.default() if default is None else _given(default, nfe)
    more = [pool.given(solver, options) for solver, options in candidates or ()]
    if ems is None or isinstance(ems, EMS):
        statistics = ems
    else:
        statistics = estimate_ems(denoise, None, shape=tuple(starts.shape[1:]), **ems)
    ends = {key: value for key, value in run.items() if key in OF_THE_RUN}
    spent = 0
    if targets is None:
        targets = converged(denoise, starts, pool.schedule, batch_size, **ends)
        spent = REFERENCE_NFE * len(starts)
    chosen = len(starts) - len(starts) // 3
    trials, unseen = (
        Trials(for_samples(denoise, rows, len(starts)), starts[rows], targets[rows], batch_size)
        for rows in torch.arange(len(starts)).split([chosen, len(starts) - chosen])
    )
    with progress_bar(_most(chosen, nfe), progress, unit="evaluation") as show:
        contest = _Contest(pool, trials, stays, measure, show)
        winner = contest.winner([*more, *pool.first(statistics)], fit)
        show(_most(chosen, nfe))
    new, old = (unseen.errors(one.key, one.plan) for one in (winner, stays))
    found = better(new, old, confidence, measure=measure)
    best = winner if found.better else stays
    note = {
        **best.note,
        "default": stays.note,
        "comparison": {**asdict(found), "better": found.better, "of": winner.note},
        "errors": {"default": asdict(summary(old)), "winner": asdict(summary(new))},
        "ranking": contest.ranking,
        "candidates": len(contest.met),
        "refused": sorted(pool.refused.values()),
        "starts": [chosen, len(starts) - chosen],
        "evaluations": spent + trials.spent + unseen.spent,
    }
    plan = best.plan
    if level is not None and isinstance(denoise, Denoiser):
        share = len(unseen.starts) / len(starts)
        fitted: dict[str, Any] = {
            **(best.own_solver if best.remade else {}),
            "targets": targets,
            "validation": share,
            "progress": progress,
            **{key: run[key] for key in ("t_start", "t_end") if key in run},
            **asked,
        }
        tuned = tune(denoise, starts, nfe, **fitted)
        found = better(
            unseen.errors("tuned", tuned),
            unseen.errors(best.key, best.plan),
            confidence,
            measure=measure,
        )
        note["tuned"] = {"level": level, **asdict(found), "better": found.better}
        plan = tuned if found.better else plan
    return plan.labelled(plan.solver, {**plan.options, "auto": note})


def _check_level(level: str, denoise: Any, run: dict[str, Any]) -> None:
    check_choice("level", level, LEVELS)
    if not isinstance(denoise, Denoiser):
        raise ValueError(f"level={level!r} needs gradients: denoise has to be a Denoiser")
    if run.get("snap"):
        raise ValueError(f"snap=True: nodes of level={level!r} are no whole training steps")


def _asked_of_tuning(
    level: str | None, nfe: int, tuning: Any, measure: str, confidence: float
) -> dict[str, Any]:
    """The options of `tune`, checked; what ``tuning`` says counts."""
    if tuning is not None and not isinstance(tuning, Mapping):
        raise ValueError(f"tuning={tuning!r}: need a mapping of options of tune")
    if level is None:
        if tuning:
            raise ValueError(f"tuning={dict(tuning)!r} was given without a level")
        return {}
    objective = "mse" if measure == "rmse" else "log"
    asked = {"level": level, "objective": objective, "confidence": confidence, **(tuning or {})}
    try:
        Tuning(nfe, **asked)
    except TypeError as error:
        raise ValueError(f"tuning={tuning!r}: {error}") from error
    return asked


def _given(plan: Plan, nfe: int) -> Candidate:
    if not isinstance(plan, Plan):
        raise ValueError(f"default={plan!r}: need a Plan")
    if plan.nfe != nfe:
        raise ValueError(f"default has {plan.nfe} evaluations: need nfe={nfe}, as all have")
    if plan.stochastic:
        raise ValueError("default adds noise: it has no distance to the solution")
    return Candidate(plan.solver, plan.options, plan)


def _most(starts: int, nfe: int) -> int:
    """About how many evaluations a contest spends."""
    return nfe * (100 * FIRST_STARTS + 60 * starts)


class _Contest:
    """Successive halving of candidates over more and more starts."""

    def __init__(
        self,
        pool: Pool,
        trials: Trials,
        stays: Candidate,
        measure: str,
        show: Callable[[int], None],
    ):
        self.pool, self.trials, self.stays = pool, trials, stays
        self.measure, self.show = measure, show
        self.met: dict[str, Candidate] = {}
        counts = [len(trials.starts)]
        while counts[0] >= 2 * FIRST_STARTS:
            counts.insert(0, counts[0] // 2)
        self.rounds = counts

    def winner(self, candidates: Sequence[Candidate], fit: str | None) -> Candidate:
        """The candidate that is nearest in the last round."""
        left = self._ranked(candidates, self.rounds[0])
        leaders = left[:KEEP]
        left = left[: max(KEEP, len(left) // KEEP)]
        left += [other for leader in leaders for other in self.pool.last_steps(leader)]
        for starts in self.rounds[:-1]:
            left = self._ranked(left, starts)
            left = left[: max(KEEP, len(left) // KEEP)]
        left = self._ranked(left, self.rounds[-1])
        if fit is not None:
            # The leader's, and those of the best one of another solver.
            known = [one for one in left if one.remade]
            others = [one for one in known if one.without_grid != known[0].without_grid]
            fitted = [self._fitted(one, fit) for one in [*known[:1], *others[:1]]]
            left = self._ranked([*left, *fitted], self.rounds[-1])
        self.ranking = [{**one.note, "error": self._error(one, self.rounds[-1])} for one in left]
        return left[0]

    def _ranked(self, candidates: Sequence[Candidate], starts: int) -> list[Candidate]:
        """Nearest first, each once; of equals the first, so that the default wins ties."""
        once = {one.key: one for one in [self.stays, *candidates]}
        self.met |= once
        return sorted(once.values(), key=lambda one: self._error(one, starts))

    def _error(self, one: Candidate, starts: int) -> float:
        found = summary(self.trials.errors(one.key, one.plan, starts)).of(self.measure)
        self.show(self.trials.spent)
        return found

    def _fitted(self, leader: Candidate, method: str) -> Candidate:
        """The leader's solver on the grid that fits it."""
        solver, own = leader.without_grid
        plan = fit_grid(
            self.trials.denoise,
            self.trials.starts,
            self.pool.nfe,
            method=method,
            schedule=self.pool.schedule,
            solver=solver,
            targets=self.trials.targets,
            measure=self.measure,
            batch_size=self.trials.batch_size,
            **{**self.pool.run, **own},
        )
        note = plan.options["fit"]
        self.trials.spent += note["evaluations"] * len(self.trials.starts)
        return Candidate(solver, {**own, "fit": note["method"]}, plan)

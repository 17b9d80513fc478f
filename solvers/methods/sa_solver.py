r"""SA-Solver, stochastic Adams methods in lambda (Xue et al. 2023).

The SDE of strength tau(lambda), see `stochastic`, over a step with tau constant in it, kappa =
1 + tau^2 and h = lambda_t - lambda_s, in data space

    x_t = (sigma_t / sigma_s) e^(-tau^2 h) x_s
        + alpha_t kappa int e^(kappa (lambda - lambda_t)) D(lambda) dlambda
        + sigma_t sqrt(1 - e^(-2 tau^2 h)) z,

and in noise space

    x_t = (alpha_t / alpha_s) x_s - alpha_t kappa int e^(-lambda) eps(lambda) dlambda
        + tau sigma_t sqrt(e^(2h) - 1) z.

The predictor puts the polynomial through the last ``order`` predictions into the integral, the
corrector that through the last ``corrector_order``, the one at t among them, with the same z. In
kappa lambda the weights are those of the exponential Adams method (`adams`), which tau = 0 is.

Marginals are exact in data space. Of the formula in noise space they are too wide, by
1 + (tau^2 + tau^4)(e^h - 1)^2 in the variance of a step.

``weights="published"`` replaces the integral of the second-order methods in data space by h / 2
times its largest value, as the authors do in few steps ("rescaling", appendix D).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from .. import scalar
from ..checks import check_choice, check_order, check_whole
from ..grids import Grid
from ..plan import Node, Noise, Plan, Row, Target
from ..registry import solver
from ..scalar import Number, plain
from ..schedules import NoiseSchedule, VarianceExploding
from .lagrange import means, panels
from .multistep import SPACES, first_order
from .pure_noise import Frame
from .runge_kutta import reduced
from .stochastic import Split, Strength, recorded, split, strengths

PUBLISHED_INTERVAL = (0.2, 0.8)
TAU_AT = ("end", "start", "mean")
MARGIN = 1e-3
"""By so much an interval reaches beyond its ends: timesteps 200 and 800 of 1000 are t = .201 and
.801, and both publications mean the same."""


def _order(options: Mapping[str, Any]) -> int:
    corrector = _corrector(options["corrector_order"], options["order"], options["weights"])
    return min(options["order"] + 1, corrector) if corrector else options["order"]


def _corrector(given: int | None, order: int, weights: str) -> int:
    """The order of the corrector: as given, or as the authors recommend for the predictor's."""
    if given is not None:
        return given
    return 2 if order == 2 and weights == "published" else order + 1


def _listed(tau: Strength) -> bool:
    return isinstance(tau, list | tuple) or (isinstance(tau, Tensor) and tau.ndim == 1)


def _strong(options: Mapping[str, Any]) -> float | None:
    """Less where the noise ends before the last step, none where an interval cuts steps."""
    if _listed(options["tau"]):
        return 1.0
    if not callable(options["tau"]) and tuple(options["interval"] or ()) != (0, 1):
        return None
    return 1.0 if options["weights"] == "taylor" or options["correct_last"] else 0.5


@solver(
    "sa-solver",
    order=_order,
    nfe_per_step=lambda options: 2 if options["pece"] and options["corrector_order"] != 0 else 1,
    strong=_strong,
    weak=lambda options: float(min(2, _order(options))),
    title="SA-Solver: stochastic Adams predictor-corrector in lambda",
    when="noise in the middle of a run, at 20 evaluations and more",
    paper="xue2023sasolver",
)
def sa_solver(
    grid: Grid,
    nfe: int | None = None,
    *,
    tau: Strength = 1.0,
    interval: Sequence[float] | None = None,
    tau_at: str = "end",
    order: int = 3,
    corrector_order: int | None = None,
    pece: bool = False,
    correct_last: bool = False,
    space: str = "data",
    weights: str = "published",
    lower_order_final: bool = True,
    keep_marginals: bool = True,
) -> Plan:
    """SA-Solver; see the module's text for the update rule.

    Parameters
    ----------
    tau : the strength of the noise, 0 for the ODE, 1 for the reverse SDE: a number, which acts in
        ``interval`` only, a list of one a step, or a function of the time.
    interval : the shares of the schedule's time (where noise explodes, of the run's range of log
        sigma) between which a number tau acts; None is the published (0.2, 0.8).
    tau_at : where on a step a function or the interval is asked: "end" as published, "start" as
        diffusers does, "mean" for the root mean square of a function over the step.
    order : of the predictor, 1 to 4.
    corrector_order : of the corrector, 1 to 5, or 0 for none; None is what the authors recommend,
        2 with the published weights of order 2, and one more than ``order`` otherwise.
    pece : evaluate the corrected states again, two evaluations a step.
    correct_last : evaluate and correct the last step too, for one evaluation more (the authors'
        "more_steps" is this with ``weights="taylor"`` and ``denoise_to_zero=True``).
    space : "data", or "noise", where tau > 0 needs ``keep_marginals=False``.
    weights : "published" (the authors' "few_steps"), with no noise in the last step unless tau is a
        list or the last step is corrected, or "taylor", exact integrals.
    lower_order_final : lower the orders towards the last steps.
    keep_marginals : False allows the published formula in noise space, which leaves them.

    Raises ValueError for a value that is not listed here, or fewer steps than ``order``.
    """
    check_order(order, range(1, 5))
    if corrector_order not in (None, *range(6)) or isinstance(corrector_order, bool):
        raise ValueError(f"corrector_order={corrector_order!r}: need None or a number from 0 to 5")
    check_choice("space", space, ("data", "noise"))
    check_choice("weights", weights, ("published", "taylor"))
    corrector_order = _corrector(corrector_order, order, weights)
    method = _Method(space, order, corrector_order, weights == "published", lower_order_final)
    nodes, counts = method.layout(grid, nfe, pece, correct_last)
    taus = _taus(tau, interval, tau_at, nodes, grid.schedule)
    if weights == "published" and not correct_last and not _listed(tau):
        taus[-1] = 0.0
    marginal = space == "data" or not any(map(plain, taus))
    if keep_marginals and not marginal:
        raise ValueError(
            f"space={space!r} with tau > 0 leaves the marginals, by more than all noise in long "
            "steps: give keep_marginals=False to have the published formula nevertheless"
        )
    rows = method.rows(nodes, taus, counts)
    return Plan(tuple(rows), options=recorded("tau", tau, taus), consistent=marginal)


def _taus(
    tau: Strength, interval: Any, at: str, nodes: Sequence[Node], schedule: NoiseSchedule
) -> list[Number]:
    check_choice("tau_at", at, TAU_AT)
    number = not (callable(tau) or _listed(tau))
    if interval is not None and not number:
        raise ValueError(f"interval={interval!r} is for a number tau, not for a list or a function")
    if at == "mean" and not callable(tau):
        raise ValueError(f"tau_at={at!r} is for a function tau, not for tau={tau!r}")
    asked = nodes[1:] if at == "end" else nodes[:-1]
    value = tau
    if callable(tau) and at != "mean":
        value = [tau(plain(node.t)) for node in asked]
    found = strengths("tau", value, nodes, schedule, power=2)
    if number:
        low, high = _interval(interval)
        shares = _shares(schedule, nodes, asked)
        inside = [low - MARGIN <= share <= high + MARGIN for share in shares]
        found = [each if here else 0.0 for each, here in zip(found, inside, strict=True)]
    return found


def _interval(interval: Any) -> tuple[float, float]:
    if interval is None:
        return PUBLISHED_INTERVAL
    pair = isinstance(interval, Sequence) and len(interval) == 2
    if not pair or not all(isinstance(end, int | float) for end in interval):
        raise ValueError(f"interval={interval!r}: need two shares of the time, (low, high)")
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise ValueError(f"interval={interval!r}: need 0 <= low <= high <= 1")
    return float(low), float(high)


def _shares(schedule: NoiseSchedule, nodes: Sequence[Node], asked: Sequence[Node]) -> list[float]:
    """How far each of ``asked`` is from the data, as a share of the schedule's time.

    Where noise explodes the time is sigma, and it is the share of log sigma over the run.
    """
    if not isinstance(schedule, VarianceExploding):
        return [plain(node.t) / schedule.t_max for node in asked]
    lams = [plain(node.lam) for node in nodes if node.sigma > 0]
    low, high = min(lams), max(lams)
    return [1.0 if low == high else max(0.0, (high - plain(n.lam)) / (high - low)) for n in asked]


@dataclass(frozen=True)
class _Method:
    space: str
    order: int
    corrector_order: int
    rescaled: bool
    lower_order_final: bool

    def layout(
        self, grid: Grid, nfe: int | None, pece: bool, correct_last: bool
    ) -> tuple[list[Node], list[int]]:
        """The nodes, and the number of evaluations at each that has any."""
        if grid.intervals is not None:
            nodes = grid.nodes(grid.intervals)
            counts = self._counts(nodes, pece, correct_last)
            most = sum(counts)
            least = most - (max(counts) - 1)
            if nfe is not None and not least <= nfe <= most:
                raise ValueError(
                    f"nfe={nfe}: the grid of {grid.intervals} intervals takes "
                    f"{most if least == most else f'{least} to {most}'}"
                )
        else:
            check_whole("nfe", nfe, 1)
            assert nfe is not None
            steps = max(1, nfe // 2 if pece else nfe - correct_last)
            nodes = grid.nodes(steps)
            while sum(counts := self._counts(nodes, pece, correct_last)) < nfe:
                steps += 1
                nodes = grid.nodes(steps)
        if len(nodes) - 1 < self.order:
            raise ValueError(
                f"nfe={nfe!r} makes {len(nodes) - 1} steps: need {self.order} at order {self.order}"
            )
        return nodes, reduced(counts, sum(counts) if nfe is None else nfe)

    def _counts(self, nodes: Sequence[Node], pece: bool, correct_last: bool) -> list[int]:
        frame = Frame.of(self.space, nodes)
        if correct_last and not self._corrects(frame, *nodes[-2:]):
            raise ValueError(
                "correct_last=True needs a corrector, and a last step to sigma > 0 that it changes"
            )
        counts = [1] * (len(nodes) - 1 + correct_last)
        if pece and self.corrector_order:
            for i, step in enumerate(pairwise(nodes[:-1]), start=1):
                counts[i] += self._corrects(frame, *step)
        return counts

    def _corrects(self, frame: Frame, start: Node, end: Node) -> bool:
        singular = self._first(frame, start, end) or frame.single_evaluation(start, end)
        return self.corrector_order > 0 and not singular

    def _first(self, frame: Frame, start: Node, end: Node) -> bool:
        singular = frame.only_first_order(start, end) or frame.ends(end)
        return singular or bool(end.lam == start.lam)

    def rows(
        self, nodes: Sequence[Node], taus: Sequence[Number], counts: Sequence[int]
    ) -> list[Row]:
        """The rows: a predicted one at every node, and behind it the corrected one."""
        frame = Frame.of(self.space, nodes)
        targets = [
            frame.first_target if frame.starts(node) else SPACES[self.space] for node in nodes
        ]
        rows = [Row(nodes[0], target=targets[0])]
        history: list[int] = []  # evaluated rows at distinct finite lambda, newest first
        newest = base = 0
        for i, (step, tau) in enumerate(zip(pairwise(nodes), taus, strict=True), start=1):
            start, end = step
            if not frame.starts(start):
                repeated = bool(history) and rows[history[0]].node.lam == start.lam
                history = [newest, *history[1 if repeated else 0 :]]
            left = len(nodes) - i if self.lower_order_final else len(nodes)
            part = split(start, end, tau**2)
            if self._first(frame, start, end):
                target = rows[newest].target
                assert target is not None
                a, b = first_order(target, start, part.down)
                used, noise, weights = [newest], part.noise, [b]
            else:
                used = history[: min(self.order, left)]
                a, weights, noise = self._step(part, tau, [rows[j].node for j in used])
            calls = counts[i] if i < len(counts) else 0
            rows.append(_row(end, base, a, used, weights, targets[i] if calls else None, noise))
            predicted = len(rows) - 1
            if calls and self._corrects(frame, start, end):
                used = [*history[: min(self.corrector_order - 1, left)], predicted]
                a, weights, noise = self._step(part, tau, [rows[j].node for j in used])
                again = targets[i] if calls > 1 else None
                rows.append(_row(end, base, a, used, weights, again, noise))
            base = len(rows) - 1
            newest = base if rows[base].evaluated else predicted
        return rows

    def _step(
        self, part: Split, tau: Number, at: Sequence[Node]
    ) -> tuple[Number, list[Number], tuple[Noise, ...]]:
        """a, one b for the prediction at each of ``at``, the start first, and the noise."""
        start, end = part.start, part.end
        h, kappa = end.lam - start.lam, 1 + tau**2
        if self.space == "data":
            a, total = first_order(SPACES["data"], start, part.down)
            noise, scale = part.noise, kappa
        else:
            a, total = first_order(SPACES["noise"], start, end)
            total = kappa * total
            published = tau * end.sigma * scalar.sqrt(scalar.expm1(2 * h))
            noise = part._replace(scale=published).noise
            scale = 1.0
        if self.rescaled and self.space == "data" and len(at) == 2:
            slope = kappa * end.alpha * h**2 / 2 / (at[1].lam - start.lam)
            return a, [total - slope, slope], noise
        first, last = scale * start.lam, scale * end.lam
        points, measure = panels(first, last)
        measure = measure * scalar.exps(points - last if self.space == "data" else first - points)
        shares = means([scale * node.lam for node in at], points, measure)
        return a, scalar.entries(total * scalar.alike(shares, total)), noise


def _row(
    node: Node,
    base: int,
    a: Number,
    used: Sequence[int],
    weights: Sequence[Number],
    target: Target | None,
    noise: tuple[Noise, ...],
) -> Row:
    states = ((base, a),) if scalar.is_tensor(a) or a != 0 else ()
    outputs = tuple(
        (j, b) for j, b in zip(used, weights, strict=True) if scalar.is_tensor(b) or b != 0
    )
    return Row(node, states, outputs, target, noise=noise)

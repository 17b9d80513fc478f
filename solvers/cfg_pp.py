r"""CFG++ (Chung et al. 2024): the guided x0, re-noised with what the null branch predicts as noise.

For DDIM, and for every step that is one (Euler in sigma, ancestral steps, with sigma_down for
sigma_t),

    x_t = alpha_t (x0_null + w (x0_cond - x0_null)) + sigma_t eps_null + n z.

This is the same step with plain guidance, of another scale: with e^-h = alpha_s sigma_t / (alpha_t
sigma_s), eps_null = (x_s - alpha_s x0_null) / sigma_s gives

    x_t = (sigma_t / sigma_s) x_s + alpha_t (1 - e^-h) (x0_null + scale (x0_cond - x0_null)) + n z,
    scale = w / (1 - e^-h).

So CFG++ is guidance whose scale is a number of the step, known from the plan, in terms of sigma and
alpha on every schedule. `gains` reads it off the rows: what an evaluation adds to the guidance of
the next state it leads to is alpha_t w (x0_cond - x0_null), for solvers of every kind. On a grid
that is uniform in lambda the gain is the same at every step, and with it the order of a multistep
solver is its own; elsewhere its history mixes different scales.

The gain grows like 1 / h: with more steps the same w guides more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from .guidance import ClassifierFree
from .plan import Plan, Row
from .scalar import plain


@dataclass(frozen=True)
class ClassifierFreePP(ClassifierFree):
    """CFG++ of ``network(x, t, **kwargs)``, see the module's text; for `sample` with a plan.

    Parameters are those of `ClassifierFree`; ``scale`` is w, in [0, 1] as published. What a
    callback sees as the data prediction is that of the plain guidance that does the same step.
    Raises ValueError for a thresholded denoiser, and where there is no plan (parallel and adaptive
    runs, single calls of a denoiser).
    """

    def along(self, plan: Plan) -> dict[int, ClassifierFree]:
        """The plain guidance at each evaluated row of ``plan``."""
        rest = (self.condition, self.null, self.rescale, self.interval)
        return {k: ClassifierFree(self.scale * gain, *rest) for k, gain in gains(plan).items()}

    def __call__(self, *args: Any) -> NoReturn:
        """ValueError: the scale is that of a step."""
        raise ValueError(
            "guidance=ClassifierFreePP(...) takes its scale from the steps of a plan: run it with "
            "sample(denoise, x_T, plan)"
        )


def cfg_pp_scales(plan: Plan, scale: float) -> list[float]:
    """The scale of plain guidance at each evaluation of ``plan`` that makes it CFG++.

    For loops that guide by themselves, such as a pipeline whose ``guidance_scale`` a callback sets.
    Raises ValueError for a plan whose coefficients are no plain numbers.
    """
    return [scale * gain for gain in gains(plan).values()]


def gains(plan: Plan) -> dict[int, float]:
    """By evaluated row: scale / w of the step that it leads to first."""
    if not plan.numeric:
        raise ValueError("guidance=ClassifierFreePP(...) needs a plan of plain numbers")
    return {k: _gain(plan.rows, k) for k in plan.evaluated}


def _gain(rows: tuple[Row, ...], k: int) -> float:
    """alpha_t over what a shift of all data predictions by 1 adds to the first step from row k."""
    users = [j for j in range(k + 1, len(rows)) if any(i == k for i, _ in rows[j].outputs)]
    moved = [j for j in users if plain(rows[j].node.lam) != plain(rows[k].node.lam)]
    if not users:
        return 1.0
    row = rows[(moved or users)[0]]
    shift = 0.0
    for i, b in row.outputs:
        target, node = rows[i].target, rows[i].node
        assert target is not None
        # eps = (x - alpha x0) / sigma
        shift += plain(b) * (plain(target.data) - plain(target.eps) * node.alpha / node.sigma)
    return plain(row.node.alpha / shift) if shift else 1.0

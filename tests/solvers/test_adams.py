r"""Exponential Adams methods, UniPC's vary_coeff, and UniC after other predictors.

Adams-Bashforth of order p must be exact when the prediction is a polynomial of degree p - 1 in
lambda, with its corrector of degree p. The exact step is a sum of phi-functions, which the
quadrature behind the weights does not use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logsnr.solvers import Node, VPLinear, cite, make_plan
from logsnr.solvers.bibliography import PAPERS
from logsnr.solvers.methods.adams import bashforth, moulton
from logsnr.solvers.methods.multistep import Weights, exponential
from logsnr.solvers.methods.unipc import correct, correct_published, predict
from logsnr.solvers.phi import z_phi
from logsnr.solvers.registry import SOLVERS


def node(lam: float) -> Node:
    return Node(0.0, 1 / math.hypot(1, math.exp(-lam)), 1 / math.hypot(1, math.exp(lam)))


def history(lam: float, gaps: Sequence[float]) -> list[Node]:
    """Nodes at lam, lam - gaps[0], ... (newest first)."""
    return [node(lam - back) for back in np.cumsum([0.0, *gaps])]


def step(weights: Weights, at: Sequence[Node], start: Node, degree: int) -> float:
    """The step from x_s = 0 with g = (lambda - lambda_s)^degree."""
    _, b = weights
    return sum(w * (n.lam - start.lam) ** degree for w, n in zip(b, at, strict=True))


def exact(space: str, start: Node, end: Node, degree: int) -> float:
    """The same by variation of constants: -S degree! z phi_{degree + 1}(z) h^degree."""
    _, scale, z = exponential(space, start, end)
    h = end.lam - start.lam
    return -scale * math.factorial(degree) * z_phi(degree + 1, z) * h**degree


@given(
    space=st.sampled_from(["data", "noise"]),
    lam=st.floats(-6, 6),
    h=st.floats(0.01, 8),
    gaps=st.lists(st.floats(0.1, 3.0), max_size=4),
)
def test_polynomials_in_lambda_are_integrated_exactly(
    space: str, lam: float, h: float, gaps: list[float]
) -> None:
    past, end = history(lam, [h * gap for gap in gaps]), node(lam + h)
    for weights, at in ((bashforth, past), (moulton, [*past, end])):
        result = weights(space, past, end)
        for degree in range(len(at)):
            terms = [abs(w * (n.lam - lam) ** degree) for w, n in zip(result[1], at, strict=True)]
            wanted = exact(space, past[0], end, degree)
            assert step(result, at, past[0], degree) == pytest.approx(
                wanted, rel=1e-9, abs=1e-12 * sum(terms)
            )


@pytest.mark.parametrize("space", ["data", "noise"])
@pytest.mark.parametrize("order", [3, 4])
def test_unipc_solves_the_same_conditions(space: str, order: int) -> None:
    # From three unknowns on, UniP has no simplification: both are the polynomial through all nodes.
    past, end = history(0.3, [0.4, 0.9, 0.2][: order - 1]), node(0.8)
    for adams, unipc in ((bashforth, predict), (moulton, correct)):
        _, ours = adams(space, past, end)
        for variant in ("bh1", "bh2"):
            assert ours == pytest.approx(unipc(space, variant, past, end)[1], rel=1e-10)


def test_vary_coeff_is_adams_with_its_corrector() -> None:
    for space in ("data", "noise"):
        vary = make_plan("unipc", VPLinear(), nfe=9, order=4, variant="vary_coeff", space=space)
        adams = make_plan("adams", VPLinear(), nfe=9, order=4, corrector=True, space=space)
        assert vary.rows == adams.rows


@pytest.mark.parametrize("space", ["data", "noise"])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_published_vary_coeff_corrector_misses_linear_predictions(space: str, order: int) -> None:
    past, end = history(0.3, [0.4, 0.5, 0.6][: order - 1]), node(0.7)
    published, at = correct_published(space, past, end), [*past, end]
    for degree, right in ((0, True), (1, False)):
        wanted = exact(space, past[0], end, degree)
        assert (abs(step(published, at, past[0], degree) / wanted - 1) < 1e-12) is right


@pytest.mark.parametrize("solver, options", [
    ("ddim", {}),
    ("ddim", {"space": "noise"}),
    ("dpm-solver++", {"order": 2}),
    ("dpm-solver++", {"order": 3, "weights": "taylor"}),
    ("dpm-solver", {"order": 2, "steps": "multistep"}),
    ("deis", {"order": 3}),
])  # fmt: skip
def test_the_corrector_is_unic_and_costs_nothing(solver: str, options: dict[str, Any]) -> None:
    plain = make_plan(solver, VPLinear(), nfe=7, **options)
    corrected = make_plan(solver, VPLinear(), nfe=7, corrector=True, **options)
    assert corrected.times == plain.times
    # Every evaluated row after the first is a predictor; the row behind it, at the same node,
    # repeats the step from the same state with that evaluation added.
    for k in corrected.evaluated[1:]:
        predicted, repeated = corrected.rows[k], corrected.rows[k + 1]
        assert repeated.node == predicted.node and not repeated.evaluated
        assert repeated.states[0][0] == predicted.states[0][0]
        past = [corrected.rows[j].node for j, _ in predicted.outputs]
        space = "data" if predicted.target == (0.0, 1.0, 0.0) else "noise"
        _, b = correct(space, "bh2", past, predicted.node)
        assert [w for _, w in repeated.outputs] == pytest.approx(b, rel=1e-13)
    declared = SOLVERS[solver].order
    defaults = SOLVERS[solver].defaults
    assert declared({**defaults, **options, "corrector": True}) == 1 + declared(
        {**defaults, **options}
    )


def test_corrector_needs_a_multistep_predictor() -> None:
    with pytest.raises(ValueError, match="corrector=True needs steps='multistep'"):
        make_plan("dpm-solver++", VPLinear(), nfe=6, steps="singlestep", corrector=True)
    with pytest.raises(ValueError, match="corrector=True needs eta=0"):
        make_plan("ddim", VPLinear(), nfe=6, eta=0.5, corrector=True)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_every_solver_can_be_cited(name: str) -> None:
    entry = cite(name)
    assert f"{{{SOLVERS[name].paper}," in entry
    assert entry.count("{") == entry.count("}")
    for field in ("title", "author", "year"):
        assert f"  {field} " in entry


def test_papers_are_filed_under_their_own_key() -> None:
    for key, entry in PAPERS.items():
        assert entry.startswith("@") and f"{{{key}," in entry.splitlines()[0]

"""Edits of the state between evaluations: what becomes of precision and of correctors."""

from __future__ import annotations

import pytest
import torch
from cases import NFE, SCHEDULES, normal
from topologies import REGULAR, topology_cases

from logsnr.solvers import make_plan, run

SCHEDULE = SCHEDULES["vp_linear"]
SHAPE = (3, 2, 4)


def driven(plan, network, x, edits=None, *, prediction="sample", differentiable=False):
    """The sample, with the state of evaluation i replaced by edits[i](state)."""
    process = run(plan, x, prediction, differentiable=differentiable)
    evaluation = next(process)
    for i in range(plan.nfe):
        if edits and i in edits:
            evaluation.x = edits[i](evaluation.x)
        try:
            evaluation = process.send(network(evaluation.x, evaluation.node))
        except StopIteration as stop:
            return stop.value


def smooth(x, node):
    return torch.tanh(2 * x) * (1 + node.alpha)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize(("name", "options"), topology_cases())
def test_a_copy_is_no_edit(name, options, dtype, differentiable):
    """States that come back as other tensors with the same values change no bit of the sample."""
    plan = make_plan(name, **REGULAR, **options)
    x, kept = normal(*SHAPE).to(dtype), {"differentiable": differentiable}
    copies = dict.fromkeys(range(plan.nfe), torch.clone)
    assert torch.equal(driven(plan, smooth, x, copies, **kept), driven(plan, smooth, x, **kept))


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_large_edit_leaves_the_predictor_to_what_was_edited(order, differentiable):
    """The overwritten sample goes on as UniP would, the others are corrected as ever."""
    kept = {"differentiable": differentiable}
    corrected, plain = (
        make_plan("unipc", SCHEDULE, nfe=NFE, order=order, corrector=flag) for flag in (True, False)
    )
    x, far = normal(*SHAPE), 1e6 * normal(*SHAPE[1:], seed=1)
    edits = {
        i: lambda x, i=i: torch.cat([(-1) ** i * far[None], x[1:]]) for i in range(1, corrected.nfe)
    }
    first, *others = driven(corrected, smooth, x, edits, **kept)
    torch.testing.assert_close(first, driven(plain, smooth, x, edits, **kept)[0], rtol=1e-9, atol=0)
    untouched = driven(corrected, smooth, x, **kept)[1:]
    torch.testing.assert_close(torch.stack(others), untouched, rtol=1e-12, atol=1e-12)
    assert (untouched - driven(plain, smooth, x, **kept)[1:]).abs().max() > 1e-4


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("after", [2, 3, 4, 5])
def test_unipc_overshoots_less_than_dpm_solver_after_an_edit(after, order):
    """For an epsilon that ignores x the ODE answers d by d alpha_0 / alpha_t: UniPC is nearer.

    With its corrector in full it would be where DPM-Solver++(2M) is, or further.
    """
    eps = normal(*SHAPE)
    answers = []
    for name in ("unipc", "dpm-solver++"):
        options = {"order": order, "spacing": "time", "t_end": 0.0}
        plan = make_plan(name, SCHEDULES["vp_discrete"], nfe=8, **options)
        plain, edited = (
            driven(plan, lambda x, node: eps, eps, edits, prediction="epsilon")
            for edits in (None, {after: lambda x: x + 10})
        )
        node = plan.rows[plan.evaluated[after]].node
        exact = torch.full(SHAPE, 10 / node.alpha, dtype=eps.dtype)
        answers.append(((edited - plain) / exact).mean())
    assert 1 < answers[0] < answers[1]

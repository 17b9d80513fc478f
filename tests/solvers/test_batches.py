"""Several nodes in one network call: the same outputs as one call a node."""

from __future__ import annotations

import pytest
import torch
from cases import MIXTURE, normal

from logsnr.benchmarks.problems.analytic import exact_denoiser
from logsnr.solvers import ClassifierFree, Denoiser, VPLinear
from logsnr.solvers.grids import node_at
from logsnr.solvers.requests import Batch, drive_batches, evaluator

TIMES = [0.9, 0.5, 0.2]
SCHEDULE = VPLinear()


def shifted(x: torch.Tensor, t: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return torch.sin(x) * t[:, None] + shift[:, None]


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.4, 0.6)])
@pytest.mark.parametrize("max_groups", [None, 1, 2])
def test_groups_equal_single_calls_with_conditions_for_every_sample(
    interval: tuple[float, float], max_groups: int | None
) -> None:
    shift, null = torch.tensor([1.0, 2.0]).double(), torch.zeros(2).double()
    guidance = ClassifierFree(2.5, {"shift": shift}, {"shift": null}, interval=interval)
    plain = Denoiser(shifted, SCHEDULE, condition={"shift": shift})
    for denoise in (plain, Denoiser(shifted, SCHEDULE, guidance=guidance)):
        x = normal(3, 2, 4)
        single = [denoise.evaluate(group, t) for group, t in zip(x, TIMES, strict=True)]
        together = evaluator(denoise, max_groups=max_groups)(x, TIMES)
        torch.testing.assert_close(together, torch.stack(single), rtol=1e-15, atol=0)


def test_a_function_of_a_single_time_is_called_once_a_group() -> None:
    denoise = exact_denoiser(MIXTURE, SCHEDULE)
    x = normal(3, 2, 4)
    expected = torch.stack([denoise(group, t) for group, t in zip(x, TIMES, strict=True)])
    result = evaluator(lambda state, t: denoise(state, float(t)))(x, TIMES)
    assert torch.equal(result, expected)


def test_driving_returns_the_result_and_names_the_times_of_bad_outputs() -> None:
    nodes = [node_at(SCHEDULE, t) for t in TIMES]

    def process(x):
        output = yield Batch(x, nodes)
        return output + 1

    x = normal(3, 2, 4)
    assert torch.equal(drive_batches(process(x), lambda x, times: 2 * x), 2 * x + 1)
    with pytest.raises(ValueError, match="not finite at t=0.5"):
        drive_batches(process(x), lambda x, times: x / torch.tensor([1, 0, 1.0])[:, None, None])
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        drive_batches(process(x), lambda x, times: x[:, 0, 0])
    with pytest.raises(ValueError, match="max_groups=0"):
        evaluator(lambda x, t: x, max_groups=0)

"""With a network that knows the data exactly, every solver must end there: no noise is left.

For x0 fixed, x = alpha x0 + sigma eps stays on its path whatever the steps, so the end shows
whether every row is consistent and whether the last one reaches sigma = 0.
"""

from __future__ import annotations

import pytest
import torch
from scheduler_cases import FAMILIES
from torch import Tensor

from logsnr.adapters import PlanScheduler
from logsnr.adapters.config.network_output import data_scale, output_sign, prediction_type
from logsnr.solvers import SOLVERS, Node

POINT = torch.tensor([[0.3, -0.7, 1.1]], dtype=torch.float64)


class KnowsTheData:
    """A network of the config's kind whose data prediction is always `POINT`."""

    def __init__(self, config):
        self.data, self.sign = POINT / data_scale(config), output_sign(config)
        self.kind = prediction_type(config)

    def __call__(self, node: Node, x: Tensor) -> Tensor:
        eps = (x - node.alpha * self.data) / node.sigma
        outputs = {
            "epsilon": eps,
            "v_prediction": node.alpha * eps - node.sigma * self.data,
            "flow_prediction": eps - self.data,
        }
        return outputs[self.kind] * self.sign


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_no_noise_is_left_after_any_number_of_steps(family, solver):
    config, given = FAMILIES[family]
    scheduler = PlanScheduler(**config, solver=solver)
    network = KnowsTheData(scheduler.config)
    noise = torch.randn(1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for nfe in range(1, 31):
        scheduler.set_timesteps(nfe, **given)
        assert len(scheduler.timesteps) == nfe and scheduler.sigmas[-1] in (0, 1)
        x = noise
        for i, t in enumerate(scheduler.timesteps):
            output = network(scheduler._nodes[i], x)
            x = scheduler.step(output, t, x, return_dict=False)[0]
        # float64 rounding, which the larger coefficients of high orders multiply
        torch.testing.assert_close(x, POINT, rtol=0, atol=1e-9)

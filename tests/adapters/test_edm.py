"""EDM's networks, raw and preconditioned, against closed forms of a Gaussian."""

from __future__ import annotations

import math

import pytest
import torch
from cases import GAUSSIAN, normal
from torch import Tensor

from logsnr.adapters.edm import PRECONDITIONINGS, from_edm, precondition
from logsnr.solvers import (
    Denoiser,
    VarianceExploding,
    VPLinear,
    make_plan,
    sample,
)

S2 = GAUSSIAN.scale**2
VP = VPLinear(0.1, 20.0)


def denoised(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x0 + sigma n = x] for x0 ~ N(mean, scale^2), entry by entry."""
    sigma2 = sigma.reshape(-1, 1) ** 2
    return (S2 * x + sigma2 * GAUSSIAN.mean) / (S2 + sigma2)


def solved(x: Tensor, start: float) -> Tensor:
    """The end at sigma = 0 of the probability-flow ODE of `denoised` from x at ``start``."""
    return GAUSSIAN.mean + (x - GAUSSIAN.mean) * (S2 / (S2 + start**2)).sqrt()


def sigma_of(kind: str, told: Tensor) -> Tensor:
    """The inverse of c_noise."""
    if kind == "edm":
        return torch.exp(4 * told)
    if kind == "ve":
        return 2 * torch.exp(told)
    return torch.exp(-VP.lam(told / 999))


def raw(kind: str, sigma_data: float = 0.5):
    """The F whose D is `denoised`: what such a network would have learnt, from the paper's table.

    edm: the loss's target (y - c_skip x) / c_out with E[y | x] for y; vp: epsilon; ve: -epsilon.
    """

    def network(x_in: Tensor, told: Tensor) -> Tensor:
        sigma = sigma_of(kind, told).reshape(-1, 1)
        if kind == "edm":
            x = x_in * (sigma**2 + sigma_data**2).sqrt()
            residual = denoised(x, sigma) - x * sigma_data**2 / (sigma**2 + sigma_data**2)
            return residual * (sigma**2 + sigma_data**2).sqrt() / (sigma * sigma_data)
        x = x_in * (1 + sigma**2).sqrt() if kind == "vp" else x_in
        return (x - denoised(x, sigma)) / sigma * (1 if kind == "vp" else -1)

    return network


@pytest.mark.parametrize("kind", PRECONDITIONINGS)
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_the_preconditioned_network_is_the_posterior_mean(kind, sigma_data):
    network = precondition(raw(kind, sigma_data), kind, sigma_data=sigma_data)
    sigma = torch.tensor([0.01, 1.0, 60.0], dtype=torch.float64)
    x = GAUSSIAN.mean + normal(3, 4) * (S2 + sigma[:, None] ** 2).sqrt()
    torch.testing.assert_close(network(x, sigma), denoised(x, sigma), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [None, *PRECONDITIONINGS])
def test_samples_are_on_the_exact_trajectory(kind):
    """Second-order samples of 400 evaluations to sigma = 0, float64 all the way."""
    network = denoised if kind is None else raw(kind)
    denoise = from_edm(network, preconditioning=kind)
    x = 80.0 * normal(3, 4)
    plan = make_plan("heun", denoise.schedule, nfe=799, t_end=0.0, spacing="karras")
    exact = solved(x, 80.0)
    ours = sample(denoise, x, plan)
    assert (ours - exact).abs().max() < 2e-4
    halved = make_plan("heun", denoise.schedule, nfe=399, t_end=0.0, spacing="karras")
    coarse = sample(denoise, x, halved)
    assert 3.5 < (coarse - exact).abs().max() / (ours - exact).abs().max() < 4.5


def test_the_edm_sampler_written_out():
    """Algorithm 1 of the paper with n = 8 levels after eq. 5, and 15 evaluations."""
    denoise = from_edm(raw("edm"), preconditioning="edm")
    low, high = denoise.schedule.sigma_min, denoise.schedule.sigma_max
    levels = torch.linspace(high ** (1 / 7), low ** (1 / 7), 8, dtype=torch.float64) ** 7
    levels = torch.cat([levels, torch.zeros(1, dtype=torch.float64)])
    x = expected = 80.0 * normal(3, 4)
    for t, t_next in zip(levels, levels[1:], strict=False):
        d = (expected - denoised(expected, t)) / t
        ahead = expected + (t_next - t) * d
        if t_next > 0:
            d = (d + (ahead - denoised(ahead, t_next)) / t_next) / 2
        expected = expected + (t_next - t) * d
    plan = make_plan("heun", denoise.schedule, sigmas=levels)
    assert plan.nfe == 15
    torch.testing.assert_close(sample(denoise, x, plan), expected, rtol=1e-8, atol=1e-8)


def test_vp_and_ve_networks_are_ordinary_denoisers():
    """The table's "vp" and "ve" are an epsilon network on VPLinear and a negative one on VE."""
    sigma = 3.0
    x = normal(3, 4) * sigma
    vp = Denoiser(raw("vp"), VP, "epsilon", network_time=lambda t: 999 * t)
    t = VP.time(-math.log(sigma))
    theirs = from_edm(raw("vp"), preconditioning="vp")(x, sigma)
    torch.testing.assert_close(vp(VP.alpha(t) * x, t), theirs, rtol=1e-9, atol=1e-9)
    ve = Denoiser(
        lambda x, told: -raw("ve")(x, told),
        VarianceExploding(),
        "epsilon",
        network_time=lambda t: math.log(t / 2),
    )
    theirs = from_edm(raw("ve"), preconditioning="ve")(x, sigma)
    torch.testing.assert_close(ve(x, sigma), theirs, rtol=1e-9, atol=1e-9)


class Net(torch.nn.Module):
    """Behaves as the networks of NVlabs/edm: casts to float32, reshapes sigma, answers float32."""

    sigma_min, sigma_max, label_dim = 0.0, math.inf, 3

    def __init__(self) -> None:
        super().__init__()
        self.shifts = torch.nn.Linear(3, 4)

    def forward(self, x, sigma, class_labels=None, force_fp32=False):
        x, sigma = x.to(torch.float32), sigma.to(torch.float32).reshape(-1, 1)
        labels = torch.zeros(1, 3) if class_labels is None else class_labels.reshape(-1, 3)
        return denoised(x, sigma).float() + self.shifts(labels.to(torch.float32))


def test_a_float32_network_in_a_float64_run():
    denoise = from_edm(Net().requires_grad_(False))
    x = 80.0 * normal(3, 4)
    plan = make_plan("heun", denoise.schedule, nfe=9)
    result = sample(denoise, x, plan)
    assert result.dtype == torch.float64 and result.isfinite().all()
    assert denoise(x, 1.0).dtype == torch.float64


def test_labels_are_given_as_the_network_wants_them():
    net = Net().requires_grad_(False)
    x, sigma = normal(2, 4), torch.tensor([1.0, 1.0])
    rows = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    expected = net(x, sigma, rows).double()
    assert torch.equal(from_edm(net, class_labels=[2, 0])(x, 1.0), expected)
    assert torch.equal(from_edm(net, class_labels=rows, force_fp32=True)(x, 1.0), expected)
    assert torch.equal(from_edm(net)(x, 1.0), net(x, sigma).double())


def test_the_range_is_what_the_network_supports():
    net = Net()
    assert from_edm(net).schedule == VarianceExploding(0.002, 80.0)
    net.sigma_min, net.sigma_max = 0.02, torch.tensor(50.0)
    assert from_edm(net).schedule == VarianceExploding(0.02, 50.0)
    assert from_edm(net, sigma_min=0.1, sigma_max=9.0).schedule == VarianceExploding(0.1, 9.0)


def test_a_raw_module_is_called_in_its_own_dtype():
    class Raw(torch.nn.Linear):
        def forward(self, x, told):
            assert x.dtype == self.weight.dtype == torch.bfloat16
            assert told.dtype == torch.float32
            return super().forward(x)

    network = precondition(Raw(4, 4).to(torch.bfloat16))
    assert network(normal(3, 4), torch.tensor([1.0])).dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: from_edm(None), "network=None: need a callable"),
        (lambda: from_edm(Net(), preconditioning="iddpm"), "kind='iddpm': choose one of edm"),
        (lambda: precondition(Net(), sigma_data=0.0), "sigma_data=0.0: need a positive"),
        (lambda: from_edm(Net(), class_labels=[3]), "need integers in 0..2"),
        (lambda: from_edm(Net(), class_labels=torch.zeros(2, 5)), r"\(2, 5\): need \(B, 3\)"),
        (lambda: from_edm(Net(), sigma_min=-1.0), "sigma_min=-1.0"),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_labels_for_a_network_without_are_refused():
    net = Net()
    net.label_dim = 0
    with pytest.raises(ValueError, match="label_dim=0"):
        from_edm(net, class_labels=[0])

"""Sources of noise: distribution, independence of batch and dtype, shared intervals, paths."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import GAUSSIAN, SCHEDULES, normal
from scipy import stats
from torch import Tensor

from logsnr.benchmarks.problems.analytic import exact_denoiser
from logsnr.solvers import BrownianPath, CounterNoise, Noise, Plan, make_plan, sample
from logsnr.solvers.identities import marginal_deviations
from logsnr.solvers.noise import noise_source
from logsnr.solvers.noise_terms import covariance
from logsnr.solvers.shared_noise import along, draws

VP = SCHEDULES["vp_linear"]
DENOISE = exact_denoiser(GAUSSIAN, VP)
PLAN = make_plan("ddim", VP, nfe=5, eta=1.0)
LIKE = torch.zeros(6, 3, 5, dtype=torch.float64)
TERMS = [
    Noise(1.0, 0.0, 1.0),
    Noise(1.0, 0.0, 1.0, moment=1),
    Noise(1.0, 0.25, 0.5),
    Noise(1.0, 0.5, 2.0, moment=1),
    Noise(1.0, 1.5, 2.0),
    Noise(1.0, 0.0, 1.0, "sigma"),
]


def integrand(term: Noise) -> Callable[[np.ndarray], np.ndarray]:
    """f of z = int f dW, as the definitions of increment and Levy area say."""
    h = term.end - term.start

    def f(u: np.ndarray) -> np.ndarray:
        inside = (u > term.start) & (u < term.end)
        if term.moment == 0:
            return inside / math.sqrt(h)
        # sqrt(12 / h) (mean of W - W(start) - increment / 2)
        return inside * math.sqrt(12 / h) * ((term.end - u) / h - 0.5)

    return f


@pytest.mark.parametrize("one", TERMS)
@pytest.mark.parametrize("other", TERMS)
def test_covariance_is_the_integral_of_the_product(one, other):
    u = (np.arange(400_000) + 0.5) / 200_000  # of [0, 2]; no edge of an interval is inside a cell
    product = integrand(one)(u) * integrand(other)(u)
    exact = product.sum() / 200_000 if one.clock == other.clock else 0.0
    assert covariance(one, other) == pytest.approx(exact, abs=1e-9)


def test_backwards_an_increment_changes_its_sign_and_an_area_does_not():
    for moment, sign in ((0, -1.0), (1, 1.0)):
        forward = Noise(1.0, 0.0, 1.0, moment=moment)
        assert covariance(forward, forward._replace(start=1.0, end=0.0)) == sign
    part = covariance(Noise(1.0, 2.0, 0.0), Noise(1.0, 0.0, 1.0))
    assert part == pytest.approx(-math.sqrt(0.5))


def test_infinite_intervals_are_shared_as_a_whole_only():
    whole = Noise(1.0, -math.inf, 1.0)
    assert covariance(whole, whole._replace(scale=2.0)) == 1.0
    assert covariance(whole, Noise(1.0, 1.0, 2.0)) == 0.0
    with pytest.raises(ValueError, match="infinite interval"):
        covariance(whole, Noise(1.0, 0.0, 1.0))


# the counter


def test_counter_noise_is_standard_normal_and_independent_between_questions():
    like = torch.zeros(4, 20_000)
    first = CounterNoise(7)(TERMS[0], like)
    others = [
        CounterNoise(8)(TERMS[0], like),
        *(CounterNoise(7)(term, like) for term in TERMS[1:]),
    ]
    for z in (first, *others):
        for row in z:
            assert stats.kstest(row.numpy(), "norm").pvalue > 1e-4
    for z in others:
        assert abs(float((first * z).mean())) < 5 / math.sqrt(z.numel())
    correlation = torch.corrcoef(first)
    assert (correlation - torch.eye(4)).abs().max() < 5 / math.sqrt(20_000)
    lags = [(first[0, :-lag] * first[0, lag:]).mean() for lag in (1, 2, 10_000)]
    assert max(map(abs, lags)) < 5 / math.sqrt(10_000)


def test_a_sample_does_not_depend_on_its_batch_or_dtype():
    term = PLAN.rows[2].noise[0]
    whole = CounterNoise(11)(term, LIKE)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        other = CounterNoise(11)(term, LIKE.to(dtype))
        assert other.dtype == dtype and torch.equal(other, whole.to(torch.float32).to(dtype))
    for samples in ([3], [5, 0], range(1, 6)):
        part = CounterNoise(11, samples=samples)(term, LIKE[: len(samples)])
        assert torch.equal(part, whole[list(samples)])
    with pytest.raises(ValueError, match="2 samples"):
        CounterNoise(11, samples=[1, 2])(term, LIKE)


def test_one_seed_serves_a_run_whatever_its_batch():
    x = normal(6, 4, seed=1)
    whole = sample(DENOISE, x, PLAN, noise=11)
    assert torch.equal(whole, sample(DENOISE, x, PLAN, noise=11))
    assert not torch.equal(whole, sample(DENOISE, x, PLAN, noise=12))
    for i in (0, 4):
        alone = sample(DENOISE, x[i : i + 1], PLAN, noise=CounterNoise(11, samples=[i]))
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=0, atol=1e-14)
    # A seed a sample: that of a batch is sample 0 of each.
    own = sample(DENOISE, x[:2], PLAN, noise=[11, 5])
    torch.testing.assert_close(own[0], whole[0], rtol=0, atol=1e-14)


def test_the_last_bit_of_an_interval_does_not_matter():
    term = Noise(1.0, 0.1, 0.7)
    near = Noise(1.0, math.nextafter(0.1, 1), math.nextafter(0.7, 0))
    source = CounterNoise(3)
    assert torch.equal(source(term, LIKE), source(near, LIKE))
    assert not torch.equal(source(term, LIKE), source(Noise(1.0, 0.1, 0.7 + 1e-9), LIKE))
    zero = source(Noise(1.0, 0.0, 0.7), LIKE)
    assert torch.equal(zero, source(Noise(1.0, -0.0, 0.7), LIKE))


# other forms


def test_generators_one_a_sample():
    seeds = [3, 4, 5]
    x = normal(3, 4, seed=1)
    together = sample(DENOISE, x, PLAN, noise=[torch.Generator().manual_seed(s) for s in seeds])
    for i, seed in enumerate(seeds):
        single = torch.Generator().manual_seed(seed)
        alone = sample(DENOISE, x[i : i + 1], PLAN, noise=single)
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-14)


def test_noise_samplers_of_k_diffusion_are_asked_in_sigma_over_alpha():
    asked = []

    def noise_sampler(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        asked.append((float(sigma), float(sigma_next)))
        return normal(3, 4, seed=len(asked))

    x = normal(3, 4)
    result = sample(DENOISE, x, PLAN, noise=noise_sampler)
    nodes = [row.node for row in PLAN.rows[:-1]]
    ratios = [node.sigma / node.alpha for node in nodes]
    wanted = [*zip(ratios, ratios[1:], strict=False)]
    for ours, theirs in zip(asked, wanted, strict=False):
        assert ours == pytest.approx(theirs, rel=1e-12)
    tensors = [normal(3, 4, seed=i + 1) for i in range(len(asked))]
    assert torch.equal(result, sample(DENOISE, x, PLAN, noise=tensors))


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (-1, "noise=-1: need whole numbers"),
        (2**63, "noise=.*need whole numbers"),
        (True, "noise=True"),
        ([1, -2, 3], "noise=-2"),
        (1.5, "noise=1.5"),
        ("random", "noise='random'"),
        ([1, 2], "noise has 2 seeds: need one a sample, 3"),
        ([torch.Generator()], "noise has 1 generators: need one a sample, 3"),
        ([torch.zeros(3, 4)], "noise has 1 tensors: the plan has"),
        ([1, torch.Generator()], "noise="),
    ],
)
def test_bad_noise_is_refused_before_the_network_is_called(noise, message):
    def never(x: Tensor, t: float) -> Tensor:
        raise AssertionError("called")

    with pytest.raises(ValueError, match=message):
        sample(never, normal(3, 4), PLAN, noise=noise)


# rows that share noise


def shared_plan(first: Noise, second: Noise) -> Plan:
    """Ancestral sampling in which the second row's noise is correlated with the first's."""
    rows = list(PLAN.rows)
    (one,), (two,) = rows[1].noise, rows[2].noise
    rows[1] = replace(rows[1], noise=(first._replace(scale=one.scale),))
    # x_2 = a x_1 + b g + n z_2, where x_1 holds n_1 z_1: choose n so that the variance is right.
    ((_, a),) = rows[2].states
    cross = a * one.scale * covariance(first, second)
    free = rows[2].node.sigma ** 2 - (a * rows[1].node.sigma) ** 2
    scale = -cross + math.sqrt(cross**2 + free)
    rows[2] = replace(rows[2], noise=(second._replace(scale=scale),))
    assert two.scale**2 == pytest.approx(free)
    return Plan((*rows[:2], replace(rows[2], target=None)))  # passes its identities


@pytest.mark.parametrize(
    ("first", "second"),
    [(TERMS[0], TERMS[0]), (TERMS[0], TERMS[2]), (TERMS[1], TERMS[2]), (TERMS[3], TERMS[4])],
)
def test_variances_of_rows_that_share_noise_add_with_their_covariance(first, second):
    plan = shared_plan(first, second)
    exact = [row.node.sigma for row in plan.rows]
    assert marginal_deviations(plan.rows) == pytest.approx(exact, rel=1e-12)
    rows = list(plan.rows)
    (term,) = rows[2].noise
    rows[2] = replace(rows[2], noise=(term._replace(scale=term.scale * (1 + 1e-10)),))
    with pytest.raises(ValueError, match="row 2 breaks its identities"):
        Plan(tuple(rows))


def test_shared_noise_is_drawn_with_that_covariance():
    terms = TERMS[:5]
    rows = (
        PLAN.rows[0],
        *(replace(PLAN.rows[1], noise=(term,)) for term in terms),
        replace(PLAN.rows[-1], outputs=((1, 1.0),), states=()),
    )
    plan = Plan(rows, consistent=False)
    like = torch.zeros(1, 200_000, dtype=torch.float64)
    exact = torch.tensor([[covariance(a, b) for b in terms] for a in terms])
    for noise in (5, torch.Generator().manual_seed(5)):
        source = along(plan, noise_source(noise))
        z = torch.cat([source(term, like) for term in terms])
        assert (torch.cov(z) - exact).abs().max() < 0.015


def test_the_same_term_twice_is_drawn_once():
    (term,) = PLAN.rows[1].noise
    rows = list(PLAN.rows)
    rows[2] = replace(rows[2], noise=(term,))
    plan = Plan(tuple(rows), consistent=False)
    assert draws(plan) == draws(PLAN) - 1
    seen: list[Noise] = []

    def source(term: Noise, like: Tensor) -> Tensor:
        seen.append(term)
        return torch.full_like(like, float(len(seen)))

    path = along(plan, source)
    drawn = [path(term, LIKE)[0, 0, 0].item() for row in rows for term in row.noise]
    assert drawn[0] == drawn[1] and len(seen) == draws(plan)
    assert along(PLAN, source) is source


# paths


def test_a_path_is_refined_and_does_not_depend_on_what_was_asked():
    like = torch.zeros(2, 3, dtype=torch.float64)
    path, other = BrownianPath(5, -6.0, 6.0), BrownianPath(5, -6.0, 6.0)
    edges = np.linspace(-1.3, 0.7, 9)
    parts = [Noise(1.0, *map(float, pair)) for pair in zip(edges, edges[1:], strict=False)]
    h = 2.0
    whole = path(Noise(1.0, -1.3, 0.7), like)
    pieces = [other(part, like) for part in parts]
    total = sum(z * math.sqrt(p.end - p.start) for z, p in zip(pieces, parts, strict=True))
    torch.testing.assert_close(total / math.sqrt(h), whole, rtol=0, atol=1e-9)
    area = path(Noise(1.0, -1.3, 0.7, moment=1), like)
    mean, before = torch.zeros_like(like), torch.zeros_like(like)
    for z, p in zip(pieces, parts, strict=True):
        w = p.end - p.start
        levy = other(p._replace(moment=1), like) * math.sqrt(w / 12)
        mean += w / h * (before + z * math.sqrt(w) / 2 + levy)
        before = before + z * math.sqrt(w)
    torch.testing.assert_close((mean - before / 2) * math.sqrt(12 / h), area, rtol=0, atol=1e-5)


def test_increments_and_areas_of_a_path_are_standard_and_independent():
    like = torch.zeros(1, 40_000, dtype=torch.float64)
    path = BrownianPath(1, 0.0, 4.0)
    z = torch.cat(
        [path(Noise(1.0, 1.0, 3.0, moment=m), like) for m in (0, 1)]
        + [path(Noise(1.0, 3.0, 3.5), like)]
    )
    assert (torch.cov(z) - torch.eye(3)).abs().max() < 0.03


def test_steps_of_any_number_see_one_path():
    """eta = 1 on Gaussian data: halving the steps converges pathwise, sample by sample."""
    x = normal(2, 4, seed=1)
    ends = 0.0, math.exp(2 * VP.lam(0.01)) + 1e-6
    results = []
    for nfe in (10, 40, 160):
        plan = make_plan("ddim", VP, nfe=nfe, eta=1.0, spacing="logsnr", t_end=0.01)
        results.append(sample(DENOISE, x, plan, noise=BrownianPath(2, *ends, clock="snr")))
    coarse, fine = ((r - results[-1]).square().mean().sqrt() for r in results[:2])
    fresh = (sample(DENOISE, x, plan, noise=7) - results[-1]).square().mean().sqrt()
    assert fine < coarse / 2 and coarse < fresh / 2


@pytest.mark.parametrize("tolerance", [1e-4, 3e-4, 9e-4])
def test_a_path_tells_apart_what_its_tolerance_says_and_knows_its_ends(tolerance, recwarn):
    """Its readings are rounded, to no less than the tolerance, and its ends are inside."""
    start, end = 0.00234567, 0.9876543
    path = BrownianPath(3, start, end, tolerance=tolerance)
    middle = start + 50 * tolerance
    whole, first, second = (
        path(Noise(1.0, *ends), LIKE) * (ends[1] - ends[0]) ** 0.5
        for ends in ((start, middle + tolerance), (start, middle), (middle, middle + tolerance))
    )
    assert not torch.equal(second, torch.zeros_like(second))
    torch.testing.assert_close(first + second, whole)
    path(Noise(1.0, middle, end), LIKE)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0.0, 1.0), "seed=-1"),
        ((1, 1.0, 0.0), "start=1.0, end=0.0"),
        ((1, -math.inf, 0.0), "start=-inf"),
        ((1, 0.0, 1.0, {"tolerance": 0.0}), "tolerance=0.0"),
    ],
)
def test_bad_paths_are_refused(arguments, message):
    *given, last = arguments
    options = last if isinstance(last, dict) else {}
    with pytest.raises(ValueError, match=message):
        BrownianPath(*(given if options else arguments), **options)
    with pytest.raises(ValueError, match="the path is that of"):
        BrownianPath(1, 0.0, 1.0)(Noise(1.0, 0.5, 1.5), LIKE)

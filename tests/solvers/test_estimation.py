"""Estimated model statistics: formulas, errors, and the same numbers however they were had."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from cases import GAUSSIAN, MIXTURE, SCHEDULES, normal
from estimation_cases import BY_DIFFERENCE, DATA, SCHEDULE, SMALL, network_of, rowwise, same
from PIL import Image
from places import TESTS
from safetensors.torch import save_file

from logsnr.benchmarks.embedded import load_scheduler, load_unet
from logsnr.benchmarks.problems.analytic import exact_denoiser
from logsnr.solvers import (
    ClassifierFree,
    Denoiser,
    DiscreteVP,
    FlowMatching,
    estimate_ems,
    estimation,
    make_plan,
)
from logsnr.solvers.grids import node_at
from logsnr.solvers.model_statistics import accumulators as records
from logsnr.solvers.model_statistics.derivatives import RIPPLE_STEP
from logsnr.solvers.model_statistics.moments import estimate, merge, moments, with_slopes
from logsnr.solvers.model_statistics.probes import Path as LambdaPath
from logsnr.solvers.model_statistics.probes import (
    Probe,
    Steps,
    derivative_by_difference,
    derivative_by_jvp,
    jacobian_by_difference,
    jacobian_by_jvp,
    velocity,
)
from logsnr.solvers.model_statistics.samples import data_of, event_of
from logsnr.solvers.requests import drive_batches, evaluator

RANGES = {"vp_linear": (1.0, 1e-3), "vp_discrete": (1.0, 1e-3), "edm": (80.0, 0.01)}
RANGES |= {"flow": (0.999, 0.01), "vp_cosine": (0.99, 1e-3)}


# The formulas


def exact_jacobian(x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """diag(sigma d eps/dx) (B, D) of the mixture.

    With u_k = (x - alpha mu_k) / v_k: eps = sigma sum r_k u_k and dr_k/dx = r_k (mean(u) - u_k).
    """
    v = (alpha * MIXTURE.scales) ** 2 + sigma**2
    far = x[:, None] - alpha * MIXTURE.means
    log_r = torch.log(MIXTURE.weights) - 0.5 * MIXTURE.dimension * torch.log(v)
    r = torch.softmax(log_r - 0.5 * far.square().sum(-1) / v, -1)[..., None]
    u = far / v[:, None]
    mean = (r * u).sum(1)
    return sigma**2 * ((r / v[:, None]).sum(1) - (r * u**2).sum(1) + mean**2)


def noise_derivative(v1, x, node):
    """eps1 from the derivative of the velocity, both along the ODE."""
    rho = math.hypot(node.alpha, node.sigma)
    return node.alpha / rho * v1 - node.sigma * node.alpha**2 / rho**4 * x


def population(schedule, ends, nodes, x0, n):
    """l, s, b over the pairs (x0, n) straight from the definitions, with the exact Jacobian."""
    denoise = exact_denoiser(MIXTURE, schedule)
    lams = torch.linspace(*(schedule.lam(t) for t in ends), nodes + 1, dtype=torch.float64)
    path = LambdaPath(schedule, float(lams[0]), float(lams[-1]))
    rows = []
    for lam in lams.tolist():
        node = path.node(lam)
        x = node.alpha * x0 + node.sigma * n
        eps = MIXTURE.predict(x, node.alpha, node.sigma)[0]
        probe = Probe(x[None], torch.ones_like(x), [node], range(len(x)))
        v = velocity(eps[None], probe.x, [node], "epsilon")
        process = derivative_by_difference(probe, v, "epsilon", path, Steps(1, 1e-4, 1e-16))
        v, v1 = v[0], drive_batches(process, evaluator(denoise))[0]
        l = exact_jacobian(x, node.alpha, node.sigma).mean(0)
        rows.append((node, x.numpy(), eps.numpy(), v.numpy(), v1.numpy(), l.numpy()))
    l = np.stack([row[-1] for row in rows])
    slope = np.gradient(l, lams.numpy(), axis=0, edge_order=2)
    s, b = np.empty_like(l), np.empty_like(l)
    for k, (node, x, eps, _, v1, _) in enumerate(rows):
        eps1 = noise_derivative(v1, x, node)
        f = (node.sigma * eps - l[k] * x) / node.alpha
        f1 = node.sigma / node.alpha * ((l[k] - 1) * eps + eps1) - slope[k] * x / node.alpha
        centred = f - f.mean(0)
        s[k] = (centred * (f1 - f1.mean(0))).mean(0) / (centred**2).mean(0)
        b[k] = f1.mean(0) - s[k] * f.mean(0)
    return rows, l, s, b


@pytest.mark.parametrize("name", RANGES)
def test_moments_give_the_statistics_of_the_definitions(name):
    schedule, ends = SCHEDULES[name], RANGES[name]
    x0 = MIXTURE.draw(50, torch.Generator().manual_seed(0))
    rows, l, s, b = population(schedule, ends, 12, x0, normal(50, 4, seed=1))
    table = []
    for node, x, _, v, v1, _ in rows:
        rho = math.hypot(node.alpha, node.sigma)
        jacobian = exact_jacobian(torch.from_numpy(x), node.alpha, node.sigma).numpy()
        record = np.zeros((10, 4))
        for i in range(50):
            part = moments(np.stack([x[i] / rho, v[i], v1[i]]), jacobian[i], ())
            merge(record, i, part, 1)
        table.append(record)
    spacing = (rows[-1][0].lam - rows[0][0].lam) / 12
    for k, (record, slope) in enumerate(with_slopes(table, spacing)):
        found = estimate(record, slope, 50, rows[k][0])
        # The definitions themselves cancel where there is little signal: 1e-6 of s at lambda = -5.
        np.testing.assert_allclose(found.l, l[k], rtol=1e-12)
        np.testing.assert_allclose(found.s, s[k], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(found.b, b[k], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", RANGES)
def test_df_dlambda_is_the_derivative_of_f_along_the_exact_flow(name):
    """f1 of the definitions, for every schedule, against f on the closed-form trajectories."""
    schedule, ends = SCHEDULES[name], RANGES[name]
    path = LambdaPath(schedule, *(schedule.lam(t) for t in ends))
    start = node_at(schedule, ends[0])
    x_T = start.alpha * GAUSSIAN.draw(5, torch.Generator().manual_seed(0)) + start.sigma * normal(
        5, 4
    )
    flow = GAUSSIAN.flow(start, x_T)
    l, slope = lambda lam: 1 / (1 + np.exp(lam)), lambda lam: -0.25 / np.cosh(lam / 2) ** 2

    def f(lam):
        node = path.node(lam)
        eps = GAUSSIAN.predict(flow(node), node.alpha, node.sigma)[0]
        return (node.sigma * eps - l(lam) * flow(node)) / node.alpha

    denoise = exact_denoiser(GAUSSIAN, schedule)
    for lam in torch.linspace(path.first, path.last, 7, dtype=torch.float64)[1:-1].tolist():
        node = path.node(lam)
        x = flow(node)
        eps = GAUSSIAN.predict(x, node.alpha, node.sigma)[0]
        probe = Probe(x[None], torch.ones_like(x), [node], range(5))
        v = velocity(eps[None], probe.x, [node], "epsilon")
        process = derivative_by_difference(probe, v, "epsilon", path, Steps(1, 1e-5, 1e-16))
        eps1 = noise_derivative(drive_batches(process, evaluator(denoise))[0], x, node)
        r = node.sigma / node.alpha
        f1 = r * ((l(lam) - 1) * eps + eps1) - slope(lam) * x / node.alpha
        expected = (f(lam + 1e-4) - f(lam - 1e-4)) / 2e-4
        torch.testing.assert_close(f1, expected, rtol=1e-5, atol=1e-6 * float(f1.abs().max()))


def test_a_gaussian_has_constant_f():
    """l = sigma^2 / v for every state, so f = -l mu is constant, s = 0 and b = -l' mu."""
    denoise = exact_denoiser(GAUSSIAN, SCHEDULE)
    x0 = GAUSSIAN.draw(32, torch.Generator().manual_seed(0))
    ems = estimate_ems(denoise, x0, 1.0, 1e-3, nodes=40, samples=32, **BY_DIFFERENCE)
    ratio = torch.exp(2 * ems.lam)[:, None] * GAUSSIAN.scale**2
    l = 1 / (1 + ratio)
    torch.testing.assert_close(ems.l, l, rtol=1e-8, atol=1e-9)
    assert not ems.s.any()
    slope = -2 * ratio * l**2
    # What is left is the difference of l' on the grid, times the mean of x / alpha.
    torch.testing.assert_close(ems.b, -slope * GAUSSIAN.mean, rtol=0, atol=1e-2)


# Against the population


def test_estimates_are_within_their_errors_of_the_population():
    ends, nodes = (1.0, 1e-3), 12
    generator = torch.Generator().manual_seed(1)
    x0, n = MIXTURE.draw(30_000, generator), normal(30_000, 4, seed=3)
    _, *exact = population(SCHEDULE, ends, nodes, x0, n)
    ems = estimate_ems(
        exact_denoiser(MIXTURE, SCHEDULE),
        MIXTURE.draw(1024, generator),
        *ends,
        nodes=nodes,
        samples=1024,
        **BY_DIFFERENCE,
    )
    for name, values in zip("lsb", exact, strict=True):
        z = (getattr(ems, name).numpy() - values) / ems.errors[name].numpy()
        assert (np.abs(z) < 3).mean() > 0.95, name
        assert 0.5 < np.sqrt((z**2).mean()) < 1.5, name  # errors of the right size, not too large


def test_errors_fall_with_the_root_of_the_samples():
    denoise = exact_denoiser(MIXTURE, SCHEDULE)
    x0 = MIXTURE.draw(1024, torch.Generator().manual_seed(1))
    arguments = {"t_start": 0.9, "t_end": 0.05, "nodes": 4, "group": 8, **BY_DIFFERENCE}
    sizes = {}
    for samples in (64, 256, 1024):
        ems = estimate_ems(denoise, x0, samples=samples, **arguments)
        sizes[samples] = torch.stack([ems.errors[k] for k in "lsb"])
    for fewer, more in ((64, 256), (256, 1024)):
        assert 1.6 < float((sizes[fewer] / sizes[more]).median()) < 2.4


def test_the_stopping_rule_ends_early_with_the_errors_it_asks_for():
    denoise = exact_denoiser(MIXTURE, SCHEDULE)
    x0 = MIXTURE.draw(1024, torch.Generator().manual_seed(1))
    arguments = {"t_start": 0.9, "t_end": 0.05, "nodes": 4, "group": 8, **BY_DIFFERENCE}
    ems = estimate_ems(denoise, x0, samples=512, stop=0.2, **arguments)
    assert 64 <= ems.about["samples"] < 512 and ems.about["samples"] % 8 == 0
    for name in "ls":
        assert ems.errors[name].median(1).values.median() <= 0.2
    fixed = estimate_ems(denoise, x0, samples=ems.about["samples"], **arguments)
    assert same(ems, fixed)


# The same numbers however they were had


@pytest.mark.parametrize("granularity", ["coordinate", "channel", "scalar"])
def test_the_batch_size_does_not_change_a_bit(granularity):
    runs = [
        estimate_ems(network_of(), DATA, **SMALL, batch_size=size, granularity=granularity)
        for size in (1, 7, 64)
    ]
    shape = {"coordinate": (2, 3, 3), "channel": (2, 1, 1), "scalar": (1, 1, 1)}[granularity]
    assert runs[0].event == shape
    assert same(runs[0], runs[1]) and same(runs[0], runs[2])


class Crash(Exception):
    pass


@pytest.mark.parametrize("batch_size", [3, 8])
def test_a_run_cut_short_anywhere_goes_on_to_the_same_result(tmp_path, monkeypatch, batch_size):
    """Every write of a small run is made to fail once, before it and half-way through it."""
    arguments = {**SMALL, "samples": 20, "batch_size": batch_size}
    whole = estimate_ems(network_of(), DATA, **arguments)
    write, replace_file = records.Records._write, os.replace
    countdown = [0]

    def crash_after(action):
        countdown[0] -= 1
        if countdown[0] == 0:
            action()
            raise Crash

    def broken_write(self, table, index, record):
        half = record.copy()
        half[len(half) // 2 :] = np.nan
        crash_after(lambda: write(self, table, index, half))
        write(self, table, index, record)

    def broken_replace(source, target):
        crash_after(lambda: None)
        replace_file(source, target)

    monkeypatch.setattr(records.Records, "_write", broken_write)
    monkeypatch.setattr(os, "replace", broken_replace)
    cuts = 0
    for gap in (1, 2, 3, 5, 8, 13, 21, 34):
        countdown[0] = gap
        try:
            estimate_ems(network_of(), DATA, **arguments, checkpoint=tmp_path / "ems")
        except Crash:
            cuts += 1
    assert cuts >= 5
    countdown[0] = -1
    assert same(whole, estimate_ems(network_of(), DATA, **arguments, checkpoint=tmp_path / "ems"))


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from estimation_cases import DATA, SMALL, estimate_ems, network_of, rowwise
calls = 0
def network(x, t):
    global calls
    calls += 1
    if calls == {calls}:
        os.kill(os.getpid(), signal.SIGKILL)
    return rowwise(x, t)
estimate_ems(network_of(network), DATA, **SMALL, batch_size=8, checkpoint={folder!r})
"""


def test_a_killed_process_is_resumed_to_the_same_result(tmp_path):
    calls = []

    def counting(x, t):
        calls.append(len(x))
        return rowwise(x, t)

    folder = str(tmp_path / "ems")
    whole = estimate_ems(network_of(counting), DATA, **SMALL, batch_size=8)
    undisturbed, done = len(calls), len(calls) // 2
    script = SCRIPT.format(tests=str(TESTS), calls=done, folder=folder)
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=100)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    calls.clear()
    resumed = estimate_ems(network_of(counting), DATA, **SMALL, batch_size=8, checkpoint=folder)
    assert same(whole, resumed)
    # Five calls a node of a group: only those of the node in flight are made again, and one to
    # know the network again.
    assert undisturbed - done <= len(calls) <= undisturbed - done + 5 + 1


def test_a_finished_checkpoint_is_read_and_extended(tmp_path):
    first = estimate_ems(network_of(), DATA, **{**SMALL, "samples": 24}, checkpoint=tmp_path)
    assert first.about["samples"] == 24
    assert same(
        estimate_ems(network_of(), DATA, **SMALL, checkpoint=tmp_path),
        estimate_ems(network_of(), DATA, **SMALL),
    )
    with pytest.raises(ValueError, match="samples=32: the checkpoint holds 40"):
        estimate_ems(network_of(), DATA, **{**SMALL, "samples": 32}, checkpoint=tmp_path)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    estimate_ems(network_of(), DATA, **SMALL, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="made with seed=0, not seed=1"):
        estimate_ems(network_of(), DATA, **SMALL, checkpoint=tmp_path, seed=1)
    other = network_of(lambda x, t: 0.9 * rowwise(x, t))
    with pytest.raises(ValueError, match="fingerprint"):
        estimate_ems(other, DATA, **SMALL, checkpoint=tmp_path)
    (tmp_path / "elsewhere" / "process0").mkdir(parents=True)
    (tmp_path / "elsewhere" / "process0" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="empty folder"):
        estimate_ems(network_of(), DATA, **SMALL, checkpoint=tmp_path / "elsewhere")


def test_the_generator_gives_what_estimate_ems_gives():
    arguments = {k: v for k, v in SMALL.items() if k not in BY_DIFFERENCE}
    process = estimation(SCHEDULE, DATA, **arguments, about={"network": "rowwise"})
    ems = drive_batches(process, evaluator(network_of()))
    assert same(ems, estimate_ems(network_of(), DATA, **SMALL))
    assert ems.about["network"] == "rowwise"


# Derivatives


@pytest.mark.parametrize(
    "prediction", ["epsilon", "sample", "v_prediction", "flow_prediction", "score"]
)
@pytest.mark.parametrize("name", ["vp_linear", "edm", "flow"])
def test_forward_mode_and_differences_agree_on_the_mixture(name, prediction):
    schedule = SCHEDULES[name]
    path = LambdaPath(schedule, *(schedule.lam(t) for t in RANGES[name]))
    denoise = exact_denoiser(MIXTURE, schedule, prediction)
    x0 = MIXTURE.draw(6, torch.Generator().manual_seed(0))
    nodes = [path.node(lam) for lam in (path.first, 0.0, 1.5, path.last)]
    n = normal(6, 4, seed=1)
    x = torch.stack([node.alpha * x0 + node.sigma * n for node in nodes])
    probe = Probe(x, normal(6, 4, seed=2).sign(), nodes, range(6))
    v, forward = jacobian_by_jvp(denoise, probe)
    steps = Steps(1e-5, 1e-5, 2e-16)
    evaluate = evaluator(denoise)
    again, central = drive_batches(jacobian_by_difference(probe, prediction, steps), evaluate)
    along = drive_batches(derivative_by_difference(probe, v, prediction, path, steps), evaluate)
    torch.testing.assert_close(again, v)
    torch.testing.assert_close(central, forward, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(derivative_by_jvp(denoise, probe, v), along, rtol=1e-4, atol=1e-5)


def test_forward_mode_and_differences_agree_on_a_unet():
    """The embedded UNet, in float64, and in float32 where a pointwise derivative is all noise."""
    schedule = DiscreteVP(load_scheduler().alphas_cumprod)
    path = LambdaPath(schedule, schedule.lam(1.0), schedule.lam(1e-3))
    node = path.node(schedule.lam(0.5005))  # between two steps: lambda has kinks at them
    labels = {"class_labels": torch.tensor([3, 8])}
    x = normal(2, 1, 28, 28)
    signs = normal(2, 1, 28, 28, seed=1).sign()
    for dtype, step, tolerance in ((torch.float64, 1e-5, 1e-5), (torch.float32, 5e-3, 1e-3)):
        denoise = Denoiser(load_unet(dtype), schedule, condition=labels)
        probe = Probe(x.to(dtype)[None], signs.to(dtype), [node], range(2))
        v, forward = jacobian_by_jvp(denoise, probe)
        process = jacobian_by_difference(probe, "epsilon", Steps(step, 0, 1e-7))
        central = drive_batches(process, evaluator(denoise))[1]
        assert (forward - central).norm() < tolerance * forward.norm()
        if dtype == torch.float64:
            # Time embeddings are computed in float32: a step of 0.03 is resolved to 1e-3.
            steps = Steps(0, 1e-4, 0)
            process = derivative_by_difference(probe, v, "epsilon", path, steps)
            along = drive_batches(process, evaluator(denoise))
            found = derivative_by_jvp(denoise, probe, v)
            assert (found - along).norm() < 5e-3 * along.norm()


def test_auto_takes_forward_mode_only_where_it_is_right():
    small = {k: v for k, v in SMALL.items() if k not in BY_DIFFERENCE}
    good = estimate_ems(network_of(), DATA, **small)
    assert (good.about["jacobian"], good.about["derivative"]) == ("jvp", "jvp")

    def exported(x, t):
        return torch.from_numpy(rowwise(x, t).numpy())  # fails under forward mode

    def detached(x, t):
        return rowwise(x.detach(), t.detach())  # runs, with derivatives of zero

    for network, words in ((exported, "fails"), (detached, "differ by 1")):
        ems = estimate_ems(network_of(network), DATA, **small)
        assert (ems.about["jacobian"], ems.about["derivative"]) == ("difference", "difference")
        assert words in ems.about["derivatives"]["jacobian"]
        torch.testing.assert_close(ems.l, good.l, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_networks_give_the_statistics_within_their_errors(dtype):
    single = {"t_start": 0.9, "t_end": 0.01, "nodes": 6, "samples": 256, **BY_DIFFERENCE}
    x0 = normal(256, 2, 3, 3, seed=5)
    exact = estimate_ems(network_of(), x0, **single, granularity="channel")
    rough = estimate_ems(network_of(dtype=dtype), x0, **single, granularity="channel")
    tolerance = {torch.float32: 1e-3, torch.bfloat16: 0.1}[dtype]
    assert float((rough.l - exact.l).abs().max()) < tolerance


# Data and conditions


def first_samples(data, **options) -> torch.Tensor:
    source = data_of(data, seed=0, shape=None, **options).source
    try:
        next(source(range(0, 6)))
    except StopIteration as stop:
        return stop.value
    raise AssertionError("data asked for an evaluation")


def test_every_kind_of_data_gives_the_same_samples(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    arrays = pixels.transpose(0, 3, 1, 2)
    np.save(tmp_path / "data.npy", arrays)
    tensor = torch.from_numpy(arrays.copy()).float() / 127.5 - 1
    save_file({"data": tensor}, tmp_path / "data.safetensors")
    expected = first_samples(tensor)
    assert not torch.equal(expected, tensor.double())  # shuffled
    dataset = torch.utils.data.TensorDataset(tensor, torch.arange(6))
    for data in (
        arrays,
        dataset,
        tmp_path / "images",
        tmp_path / "data.npy",
        tmp_path / "data.safetensors",
        [Image.fromarray(image) for image in pixels],
    ):
        torch.testing.assert_close(first_samples(data), expected, rtol=0, atol=1e-7)
    stream = ({"image": Image.fromarray(image)} for image in pixels)
    torch.testing.assert_close(first_samples(stream), tensor.double(), rtol=0, atol=1e-7)


def test_a_stream_is_resumed_by_skipping(tmp_path):
    arguments = {**SMALL, "samples": 40, "batch_size": 8}
    whole = estimate_ems(network_of(), iter(DATA), **arguments)
    calls = [0]

    def failing(x, t):
        calls[0] += 1
        if calls[0] == 40:
            raise Crash
        return rowwise(x, t)

    with pytest.raises(Crash):
        estimate_ems(network_of(failing), iter(DATA), **arguments, checkpoint=tmp_path)
    resumed = estimate_ems(network_of(), iter(DATA), **arguments, checkpoint=tmp_path)
    assert same(whole, resumed)
    with pytest.raises(ValueError, match="ended after 48 samples"):
        estimate_ems(network_of(), iter(DATA), **{**SMALL, "samples": 56})


def test_the_models_own_samples_follow_its_data():
    """Of a Gaussian they have its statistics, which depend on the data through f alone."""
    denoise = exact_denoiser(MIXTURE, SCHEDULE)
    arguments = {"t_start": 0.9, "t_end": 0.01, "nodes": 6, "samples": 512, **BY_DIFFERENCE}
    x0 = MIXTURE.draw(512, torch.Generator().manual_seed(2))
    given = estimate_ems(denoise, x0, **arguments)
    own = estimate_ems(denoise, None, **arguments, shape=(4,), dtype=torch.float64)
    assert "own samples" in own.about["data"]
    error = torch.hypot(given.errors["l"], own.errors["l"])
    assert float(((given.l - own.l).abs() < 4 * error).double().mean()) > 0.95


def test_conditions_of_their_own_follow_the_samples():
    shift = normal(40, seed=9)

    def network(x, t, shift):
        return rowwise(x - shift[:, None, None, None], t)

    guidance = ClassifierFree(2.0, {"shift": shift}, {"shift": torch.zeros(1).double()})
    runs = [
        estimate_ems(
            network_of(network, condition={"shift": shift}), DATA, **SMALL, batch_size=size
        )
        for size in (3, 8)
    ]
    assert same(*runs)
    assert runs[0].about["conditions"] == "one for each sample"
    assert (
        estimate_ems(network_of(network, guidance=guidance), DATA, **SMALL).about["guidance"] == 2.0
    )
    with pytest.raises(ValueError, match=r"condition\['shift'\] has 7 entries: need 1"):
        estimate_ems(Denoiser(network, SCHEDULE, condition={"shift": shift[:7]}), DATA, **SMALL)


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": torch.zeros(3)}, r"data has shape \(3,\)"),
        ({"data": 3}, "data=int"),
        ({"data": "nowhere"}, "data='nowhere' does not exist"),
        ({"data": []}, "data is empty"),
        ({"data": None}, "shape=None"),
        ({"data": torch.utils.data.DataLoader(DATA)}, "DataLoader"),
        ({"shape": (3, 3)}, r"shape=\(3, 3\)"),
        ({"nodes": 2}, "nodes=2"),
        ({"samples": 0}, "samples=0"),
        ({"batch_size": True}, "batch_size=True"),
        ({"group": 2}, "group=2"),
        ({"seed": -1}, "seed=-1"),
        ({"granularity": "pixel"}, "granularity='pixel'"),
        ({"jacobian": "exact"}, "jacobian='exact'"),
        ({"derivative": "exact"}, "derivative='exact'"),
        ({"stop": 0.0}, "stop=0.0"),
        ({"stop": "soon"}, "stop='soon'"),
        ({"shape": 3}, "shape=3"),
        ({"dtype": "float32"}, "dtype='float32'"),
        ({"t_start": "1"}, "t_start='1'"),
        ({"data": None, "shape": (2, 3, 3), "plan": "unipc"}, "plan='unipc'"),
        ({"lam_step": -1.0}, "lam_step=-1.0"),
        ({"dtype": torch.int64}, "dtype=torch.int64"),
        ({"t_end": 0.0}, "t_end=0.0 have lambda"),
        ({"t_start": 2.0}, "t_start=2.0"),
        ({"plan": make_plan("ddim", SCHEDULE, nfe=3)}, "plan was given beside data"),
    ],
)
def test_bad_arguments_are_named_before_the_network_is_called(arguments, message):
    def network(x, t):
        raise AssertionError("called")

    with pytest.raises(ValueError, match=message):
        estimate_ems(Denoiser(network, SCHEDULE), **{"data": DATA, **SMALL, **arguments})


def test_singular_ends_and_bad_outputs_are_named():
    with pytest.raises(ValueError, match="t_start=1.0.*smaller t_start"):
        estimate_ems(Denoiser(rowwise, FlowMatching(), "flow_prediction"), DATA)
    with pytest.raises(ValueError, match="denoise="):
        estimate_ems(rowwise, DATA)
    bad = Denoiser(lambda x, t: x * torch.nan, SCHEDULE)
    with pytest.raises(ValueError, match="not finite at t=1"):
        estimate_ems(bad, DATA, **SMALL)
    with pytest.raises(ValueError, match="int64"):
        event_of(torch.arange(3))


@pytest.mark.parametrize("count", [1, 2])
def test_two_values_say_nothing_of_a_slope(count):
    # The line through two points: its slope is any number, and e^S overflows in the solver.
    data, ends = MIXTURE.draw(count, torch.Generator().manual_seed(0)), (1.0, 1e-3)
    few = estimate_ems(exact_denoiser(MIXTURE, SCHEDULE), data, *ends, nodes=8, samples=count)
    assert (few.s == 0).all() and few.b.abs().max() < 10
    more = estimate_ems(exact_denoiser(MIXTURE, SCHEDULE), data, *ends, nodes=8, samples=3)
    assert (more.s != 0).all()


@pytest.mark.parametrize(("scale", "step"), [(1000, RIPPLE_STEP), (1, 2**-52)])
def test_a_flow_network_that_is_told_training_steps_gets_the_wide_difference(scale, step):
    def network(x, t):
        assert (t <= scale).all() and t.max() > 0.01 * scale
        return 0.5 * x

    denoise = Denoiser(network, FlowMatching(), "flow_prediction", network_time=lambda t: scale * t)
    ems = estimate_ems(denoise, DATA, 0.98, 0.02, nodes=4, samples=4)
    assert ems.about["steps"][1] == pytest.approx(step if scale > 1 else step ** (1 / 3))
    assert ems.about["derivative"] == ("difference" if scale > 1 else "jvp")


def test_a_network_that_drops_at_random_is_refused():
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.1)).double()

    class Timed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network

        def forward(self, x, t):
            return self.body(x)

    data = normal(8, 4)
    kept = {"nodes": 4, "samples": 4, "t_start": 1.0, "t_end": 1e-3}
    with pytest.raises(ValueError, match=r"body\.1 drops a share of 0.1 .* Call .eval\(\)"):
        estimate_ems(Denoiser(Timed(), SCHEDULES["vp_linear"]), data, **kept)
    assert (
        estimate_ems(Denoiser(Timed().eval(), SCHEDULES["vp_linear"]), data, **kept).intervals == 4
    )

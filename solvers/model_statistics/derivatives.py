r"""The choice between forward mode and differences, and between their steps.

A central difference with step d errs by about u / d from rounding, u the unit roundoff of the
network's dtype, and by d^2 from truncation: least in sum near d = u^(1/3), which is 6e-6 in
float64, 5e-3 in float32, 0.1 in float16 and 0.2 in bfloat16. For the Jacobian that is the step,
in units of sigma.

The derivative along the ODE is another matter for networks of discrete time, which embed the
step's number by sines of periods from 2 pi steps on. Trained at whole steps, their output ripples
with those periods. The ripple is small (1e-3 in x0) but a pointwise derivative multiplies it by
its frequency in lambda: on the embedded model of digits the root mean square of eps1 is 0.46 at
t = 0.7 by forward mode, 0.24 by differences with d = 0.013, 0.068 with 0.026, and settles at 0.06
for 0.05 to 0.4. A solver whose steps in lambda are many times the ripple's period sees only what
is left after averaging. For `DiscreteVP`, and for networks of other schedules that count their
time in hundreds (diffusers' flow models: 1000 t), the derivative is therefore a difference with
d = 0.1, which errs by 1 % on a smooth model (the mixture of `benchmarks.problems`: 0.9 to 1.7 %).

A network may count steps within, where its time does not show it. So the two differences, with the
small step and with d = 0.1, are compared: where they are apart by more than `RIPPLE`, relative to
the larger, the pointwise derivative is not what a solver sees. Measured: 0.00 to 0.04 on small
networks of smooth time and 0.5 to 1 on those with sines of 1000 t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..requests import Batch, Evaluate, drive_batches
from ..schedules import DiscreteVP, NoiseSchedule, VarianceExploding
from .probes import (
    Measured,
    Path,
    Probe,
    Steps,
    derivative_by_difference,
    derivative_by_jvp,
    jacobian_by_difference,
    jacobian_by_jvp,
)

RIPPLE_STEP = 0.1
"""Step in lambda of the derivative of networks that take the number of a training step."""
RIPPLE = 0.2
"""Difference of the two derivatives, relative to the larger, from which on a network ripples."""
MANY_STEPS = 100
"""A network's time beyond this counts training steps."""


@dataclass(frozen=True)
class Ways:
    """How Jacobian and derivative are had ("jvp" or "difference"), by which steps, and why.

    ``note`` holds JSON values for ``EMS.about``: the agreement of the two ways where it was
    checked, relative to the root mean square, or why a way was ruled out.
    """

    jacobian: str
    derivative: str
    steps: Steps
    note: dict[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What the result depends on, as JSON values."""
        return {
            "jacobian": self.jacobian,
            "derivative": self.derivative,
            "steps": list(self.steps),
            "derivatives": dict(self.note),
        }


def default_steps(
    dtype: torch.dtype, lam_step: float | None = None, *, rippling: bool = False
) -> Steps:
    """The steps of the module's text for a network that computes in ``dtype``."""
    unit = torch.finfo(dtype).eps
    step = unit ** (1 / 3)
    return Steps(step, lam_step or (RIPPLE_STEP if rippling else step), unit)


def ripples(schedule: NoiseSchedule, network_time: Callable[[float], Any] | None = None) -> bool:
    """Whether the network is told the number of a training step.

    Of variance-exploding schedules the network's time may be sigma, which is large too.
    """
    if isinstance(schedule, DiscreteVP):
        return True
    if network_time is None or isinstance(schedule, VarianceExploding):
        return False
    return abs(float(network_time(schedule.t_max))) >= MANY_STEPS


def differences(
    probe: Probe, prediction: str, path: Path, steps: Steps
) -> Generator[Batch, Tensor, Measured]:
    """Everything about a probe from network outputs alone: five evaluations a state."""
    v, jacobian = yield from jacobian_by_difference(probe, prediction, steps)
    derivative = yield from derivative_by_difference(probe, v, prediction, path, steps)
    return Measured(v, jacobian, derivative)


def measure(
    probe: Probe, denoise: Denoiser, path: Path, ways: Ways, evaluate: Evaluate
) -> Measured:
    """Everything about a probe in the ways that were chosen."""
    prediction, steps = denoise.prediction, ways.steps
    if ways.jacobian == "jvp":
        v, jacobian = jacobian_by_jvp(denoise, probe)
    else:
        v, jacobian = drive_batches(jacobian_by_difference(probe, prediction, steps), evaluate)
    if ways.derivative == "jvp":
        derivative = derivative_by_jvp(denoise, probe, v)
    else:
        derivative = drive_batches(
            derivative_by_difference(probe, v, prediction, path, steps), evaluate
        )
    return Measured(v, jacobian, derivative)


def choose_step(
    probe: Probe, prediction: str, path: Path, steps: Steps
) -> Generator[Batch, Tensor, tuple[Steps, dict[str, Any]]]:
    """``steps`` with the wide one along the ODE if the network ripples, and a note of it."""
    wide = steps._replace(lam=RIPPLE_STEP)
    v, _ = yield from jacobian_by_difference(probe, prediction, steps)
    found = []
    for tried in (steps, wide):
        found.append((yield from derivative_by_difference(probe, v, prediction, path, tried)))
    sizes = [float(derivative.double().square().mean().sqrt()) for derivative in found]
    apart = float((found[0] - found[1]).double().square().mean().sqrt()) / max(*sizes, 1e-30)
    if steps.lam >= RIPPLE_STEP or not apart > RIPPLE:
        return steps, {}
    reason = f"the network ripples: over {wide.lam} the derivative differs by {apart:.2g}"
    return wide, {"step": reason}


def choose_ways(wanted: Ways, denoise: Denoiser, trial: Callable[[Ways], Measured]) -> Ways:
    """``wanted`` with every "auto" decided on what ``trial`` measures, at a few nodes.

    "auto" is "jvp" where forward mode runs and agrees with differences to 2 % (30 % in half
    precision, where differences are that noisy). The derivative along the ODE stays with
    differences for networks that ripple, and behind a threshold, whose dependence on time forward
    mode does not see.
    """
    chosen = {"jacobian": wanted.jacobian, "derivative": wanted.derivative}
    note = dict(wanted.note)
    if wanted.derivative == "auto":
        if "step" in note:
            chosen["derivative"] = "difference"
        elif ripples(denoise.schedule, denoise.network_time):
            chosen["derivative"] = "difference"
            note["derivative"] = "difference: a network of discrete time ripples between steps"
        elif denoise.threshold is not None:
            chosen["derivative"] = "difference"
            note["derivative"] = "difference: the threshold's time dependence is not traced"
    undecided = [name for name, way in chosen.items() if way == "auto"]
    base = Ways("difference", "difference", wanted.steps)
    expected = trial(base) if undecided else None
    tolerance = 0.02 if wanted.steps.unit < 1e-5 else 0.3
    for name in undecided:
        one: dict[str, Any] = {name: "jvp"}
        ways = replace(base, **one)
        try:
            found = trial(ways)
        except Exception as error:  # whatever a foreign network raises under forward mode
            chosen[name] = "difference"
            note[name] = f"difference: forward mode fails ({type(error).__name__}: {error})"[:200]
            continue
        pairs = zip(getattr(found, name), getattr(expected, name), strict=True)
        worst = max(_distance(u, v) for u, v in pairs)  # node by node
        agrees = worst <= tolerance
        chosen[name] = "jvp" if agrees else "difference"
        note[name] = f"{chosen[name]}: the two ways differ by {worst:.2g}"
    return Ways(chosen["jacobian"], chosen["derivative"], wanted.steps, note)


def _distance(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, relative to that of ``expected``."""
    scale = float(expected.double().square().mean().sqrt())
    error = float((found - expected).double().square().mean().sqrt())
    return error / scale if scale > 0 else math.inf if error > 0 else 0.0

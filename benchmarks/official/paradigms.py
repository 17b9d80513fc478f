r"""The official code of ParaDiGMs (AndyShih12/paradigms) in our terms; see `official`.

It samples DDIM on the timesteps of a diffusers scheduler. A window of states is evaluated in one
network call, so that a recorded run is the timestep at which each window begins; its length
follows from that. Sweeps and evaluations are thus compared by the times of the calls.

Its steps go to timestep t - N // n, as those of diffusers' DDIM do. With "trailing" timesteps and n
that does not divide N the next timestep is another, and the last step does not reach the data.

With tolerance 0 it accepts the states of two sweeps if they agree in every bit, and whether they
do is a matter of rounding: the number of sweeps is not defined by the algorithm.
"""

from __future__ import annotations

from torch import Tensor

from logsnr.solvers import Denoiser, DiscreteVP, make_plan
from logsnr.solvers.parallel import sample_parallel

from .cases import (
    Answer,
    Case,
    Difference,
    Recipe,
    Unsupported,
    family,
    leaves_list,
    next_timesteps,
    schedule_of,
)

BIT_BY_BIT = (
    "tolerance 0 accepts states that agree in every bit: the number of sweeps is up to rounding. "
    "The result agrees"
)

BESIDE_THE_LIST = (
    "its DDIM steps to timestep t - N // n although the next timestep, or after the last one the "
    "data, is elsewhere"
)


@family("paradigms")
def paradigms(case: Case) -> Answer:
    """AndyShih12/paradigms, `paradigms_forward` with the scheduler ParaDDIM."""
    config, schedule = case.config, schedule_of(case)
    if not isinstance(schedule, DiscreteVP) or config["eta"] != 0 or config["clip_sample"]:
        return Unsupported("only DDIM with eta = 0 on a discrete schedule, without clipping")
    if not config["set_alpha_to_one"]:
        return Unsupported("an end at timestep 0 instead of the data")
    timesteps = case.arrays["timesteps"]
    beyond = next_timesteps(timesteps, schedule.steps)[-1] < 0
    if leaves_list(timesteps, schedule.steps) or not beyond:
        return Difference(BESIDE_THE_LIST)
    tolerance, window = config["tolerance"], config["parallel"]
    times = (timesteps + 1) / schedule.steps
    plan = make_plan("ddim", schedule, times=[*times.tolist(), 0.0])

    def run(denoise: Denoiser, x_T: Tensor) -> Tensor:
        return sample_parallel(
            denoise, x_T, plan, window, tolerance, update="literal", published=True
        )[0]

    begins = (case.arrays["window_begin_timesteps"] + 1) / schedule.steps
    return Recipe(
        run,
        schedule,
        config["prediction_type"],
        called_at=begins,
        calls=len(begins),
        calls_vary=BIT_BY_BIT if tolerance == 0 else "",
    )

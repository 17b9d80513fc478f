"""What the tests of PlanScheduler share: configs of every model family, and a pipeline's loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logsnr.adapters import PlanScheduler

LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
VIDEO = {
    **LATENT,
    "timestep_type": "continuous",
    "prediction_type": "v_prediction",
    "use_karras_sigmas": True,
    "sigma_min": 0.002,
    "sigma_max": 700.0,
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
EDM = {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0}
AUDIO = {
    "sigma_data": 1.0,
    "sigma_min": 0.3,
    "sigma_max": 500.0,
    "sigma_schedule": "exponential",
    "prediction_type": "v_prediction",
    "stock_class": "CosineDPMSolverMultistepScheduler",
}
ZERO_SNR = {
    **LATENT,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # config, and what its pipelines give to set_timesteps
    "sd": (LATENT, {}),
    "sdxl": ({**LATENT, "timestep_spacing": "leading", "steps_offset": 1}, {}),
    "karras": ({**LATENT, "use_karras_sigmas": True}, {}),
    "zero_snr": (ZERO_SNR, {}),
    "cosine": ({"beta_schedule": "squaredcos_cap_v2"}, {}),
    "flow": ({"shift": 3.0}, {}),
    "flow_dynamic": ({"shift": 1.0, "use_dynamic_shifting": True}, {"mu": 1.15}),
    "flow_terminal": (
        {"shift": 1.0, "use_dynamic_shifting": True, "shift_terminal": 0.1},
        {"mu": 2.05},
    ),
    "flow_inverted": ({"shift": 1.0, "invert_sigmas": True}, {}),
    "video": (VIDEO, {}),
    "edm": (EDM, {}),
    "audio": (AUDIO, {}),
}
SHAPE = (2, 3, 4, 4)
_NUMBERS = torch.Generator().manual_seed(0)
_MIX = torch.linalg.qr(torch.randn(48, 48, generator=_NUMBERS, dtype=torch.float64))[0]


def network(x: Tensor, t: Tensor | float) -> Tensor:
    """A smooth non-linear stand-in that depends on state and time, at x's precision."""
    level = 0.5 + torch.as_tensor(t, device=x.device).double().reshape(-1, 1).cpu() / 2000
    return torch.tanh(x.double().flatten(1) @ _MIX * level).reshape(x.shape).to(x.dtype)


def start(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).to(dtype)


@torch.no_grad()
def drive(scheduler: Any, x: Tensor, begin: int = 0, edit: Any = None, **options: Any) -> Tensor:
    """The loop of every pipeline, from states whose scale is that of the scheduler."""
    scale = getattr(scheduler, "scale_model_input", None)  # flow schedulers have none
    for i, t in enumerate(scheduler.timesteps[begin:]):
        shown = x if scale is None else scale(x, t)
        x = scheduler.step(network(shown, t), t, x, return_dict=False, **options)[0]
        if edit is not None:
            x = edit(i, x)
    return x


def scheduler_for(solver: Any, **config: Any) -> PlanScheduler:
    return PlanScheduler(**{**LATENT, "solver": solver, **config})


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal to ``tolerance`` of the largest entry, element by element."""
    scale = float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


def run_with(scheduler: PlanScheduler, given: dict[str, Any]) -> list[float]:
    """The entries of the result of six steps; a function that another process can import."""
    scheduler.set_timesteps(6, **given)
    return drive(scheduler, start()).flatten().tolist()


def load_and_run(folder: str, given: dict[str, Any]) -> list[float]:
    """`run_with` the scheduler saved in ``folder``."""
    return run_with(PlanScheduler.from_pretrained(folder), given)
